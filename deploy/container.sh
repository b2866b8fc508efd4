#!/bin/sh
# Entry point of the image: runs a program as user `pigeonpost`, also where the container starts as root. Only root can
# do what is needed on machines that we do not know: join the groups of the devices that the container was given (their
# numbers differ from one system to another), take over a volume that an older image left to root, and keep the one
# right that a server takes to listen on port 80.
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
for device in /dev/spidev* /dev/i2c-* /dev/gpiochip* /dev/gpiomem* /dev/vcio /dev/vchiq; do
  [ -e "$device" ] || continue
  # Without the udev rules of Raspberry Pi OS a device is for root alone. In the container's own /dev it is a copy.
  if [ "$(stat -c %g "$device")" -eq 0 ] && grep -q '^tmpfs /dev tmpfs ' /proc/mounts; then
    chgrp "$user" "$device" && chmod g+rw "$device"
  fi
  group=$(stat -c %g "$device")
  [ "$group" -eq 0 ] || groups=$groups,$group  # the group of root opens more than a device
done
kept=-all
port_80=1024  # CAP_NET_BIND_SERVICE in the mask of capabilities(7)
case " $* " in *" server.py "*)
  if [ $((0x$(sed -n 's/^CapBnd:\t*//p' /proc/self/status) & port_80)) -ne 0 ]; then
    kept=-all,+net_bind_service
  fi ;;
esac
exec setpriv --reuid "$user" --regid "$user" --groups "$groups" --inh-caps="$kept" --ambient-caps="$kept" \
  --bounding-set="$kept" --no-new-privs "$@"
