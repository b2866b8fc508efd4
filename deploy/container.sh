#!/bin/sh
# Entry point of the image: run a program as user `pigeonpost`, even if the container starts as root. Root rights are
# needed for three steps: joining the groups of the devices that are passed to the container (their numbers differ
# between systems), changing the owner of a volume that an older image created as root, and keeping the one capability
# that the server needs to listen on port 80.
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
  # Without the udev rules of Raspberry Pi OS, only root can open a device. The container's own /dev contains a copy, so
  # this change does not affect the host.
  if [ "$(stat -c %g "$device")" -eq 0 ] && grep -q '^tmpfs /dev tmpfs ' /proc/mounts; then
    chgrp "$user" "$device" && chmod g+rw "$device"
  fi
  group=$(stat -c %g "$device")
  [ "$group" -eq 0 ] || groups=$groups,$group  # membership in root's group would give access to more than the device
done
kept=-all
port_80=1024  # bit of CAP_NET_BIND_SERVICE, see capabilities(7)
case " $* " in *" server.py "*)
  if [ $((0x$(sed -n 's/^CapBnd:\t*//p' /proc/self/status) & port_80)) -ne 0 ]; then
    kept=-all,+net_bind_service
  fi ;;
esac
exec setpriv --reuid "$user" --regid "$user" --groups "$groups" --inh-caps="$kept" --ambient-caps="$kept" \
  --bounding-set="$kept" --no-new-privs "$@"
