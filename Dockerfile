# One image for both programs: `docker run ... python3 server.py` (the default) or `python3 node.py`.
# The official image also comes for arm32v5, which a Pi Zero runs.
FROM python:3.13-slim-trixie AS build
# spidev, the node's only library, is compiled here: the image itself gets no compiler.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && pip install --no-cache-dir --target /spidev spidev

FROM python:3.13-slim-trixie
COPY --from=build /spidev /usr/local/lib/python3.13/site-packages
WORKDIR /app
COPY . .
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIGEONPOST_NODE_DATA=/data PIGEONPOST_SERVER_DATA=/data
VOLUME /data
EXPOSE 80 8080 5003
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s CMD ["python3", "control.py", "alive"]
CMD ["python3", "server.py"]
