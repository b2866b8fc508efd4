#!/bin/sh
# Entry point of the image: runs a program as user `pigeonpost`, also where the container starts as root. Only root can
# do two things that a node needs on machines that we do not know: join the groups of the devices that the container was
# given (their numbers differ from one system to another), and take over a volume that an older image left to root.
set -eu
user=10001
if [ "$(id -u)" -ne 0 ]; then
  exec "$@"
fi
data=${VOLUME:-/data}
if [ "$(stat -c %u "$data")" -eq 0 ]; then
  chown -R -h "$user:$user" "$data"
fi
groups=$user
for device in /dev/spidev* /dev/i2c-* /dev/gpiochip* /dev/gpiomem*; do
  if [ -e "$device" ]; then
    groups=$groups,$(stat -c %g "$device")
  fi
done
exec setpriv --reuid "$user" --regid "$user" --groups "$groups" --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
