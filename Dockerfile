# One image for both programs: `docker run ... python3 server.py` (the default) or `python3 node.py`.
# It uses Debian's own Python and spidev, so nothing is compiled, and the image for linux/arm/v5 runs on a Pi Zero.
ARG BASE=debian:trixie-slim
FROM ${BASE}
# Packages for optional features: --build-arg EXTRA="python3-paho-mqtt python3-psycopg python3-redis python3-smbus2"
ARG EXTRA=""
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      python3 python3-spidev ca-certificates openssl tzdata ${EXTRA} \
 && rm -rf /var/lib/apt/lists/*
# A new volume gets the owner and the mode of its mount point.
RUN groupadd --gid 10001 pigeonpost \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin pigeonpost \
 && install --directory --owner pigeonpost --group pigeonpost --mode 0700 /data /backup
WORKDIR /app
COPY . .
# Compile now: the root of a container is read-only, so every start would compile all modules again.
RUN chmod -R a+rX /app && python3 -m compileall -q /app
# With a read-only root, SQLite has no other folder for its temporary files, which it deletes after opening them.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIGEONPOST_NODE_DATA=/data PIGEONPOST_SERVER_DATA=/data \
    SQLITE_TMPDIR=/data
VOLUME /data
EXPOSE 80 8080 5003
STOPSIGNAL SIGTERM
USER pigeonpost
# The script changes the user only if the container is started as root, as in docker-compose.yml.
ENTRYPOINT ["sh", "/app/deploy/container.sh"]
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s \
  CMD ["sh", "/app/deploy/container.sh", "python3", "-m", "pigeonpost.cli.alive", "/data"]
CMD ["python3", "server.py"]
