# One image for both programs: `docker run ... python3 server.py` (the default) or `python3 node.py`.
# The official image also comes for arm32v5, which a Pi Zero runs.
FROM python:3.13-slim-trixie AS build
# spidev, the node's only library, is compiled here: the image itself gets no compiler.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && pip install --no-cache-dir --target /spidev spidev

FROM python:3.13-slim-trixie
COPY --from=build /spidev /usr/local/lib/python3.13/site-packages
# A new volume gets the owner and the mode of the folder that it is mounted on.
RUN groupadd --gid 10001 pigeonpost \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin pigeonpost \
 && install --directory --owner pigeonpost --group pigeonpost --mode 0700 /data
WORKDIR /app
COPY . .
RUN chmod -R a+rX /app
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIGEONPOST_NODE_DATA=/data PIGEONPOST_SERVER_DATA=/data
VOLUME /data
EXPOSE 80 8080 5003
STOPSIGNAL SIGTERM
USER pigeonpost
# It changes the user only where a container is started as root, as the node's in docker-compose.yml.
ENTRYPOINT ["sh", "/app/deploy/container.sh"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s \
  CMD ["sh", "/app/deploy/container.sh", "python3", "control.py", "alive"]
CMD ["python3", "server.py"]
