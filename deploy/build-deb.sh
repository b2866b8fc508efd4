#!/bin/sh
# Build pigeonpost_VERSION_all.deb in the current folder, or in FOLDER:
#     sh deploy/build-deb.sh [FOLDER]
# Needs dpkg-deb, which Debian and Raspberry Pi OS include, but no root rights and no network. docs/packages.md
# describes the installation.
set -eu
out=$(cd "${1:-.}" && pwd)
cd "$(dirname "$0")/.."
version=$(sed -n 's/^VERSION = "\(.*\)"$/\1/p' pigeonpost/core/version.py)
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
umask 022
root=$built/root
program=$root/usr/share/pigeonpost
documents=$root/usr/share/doc/pigeonpost
units=$root/usr/lib/systemd/system
mkdir -p "$root/DEBIAN" "$program" "$documents" "$units" "$root/usr/bin"

# The program, with the same layout as in its folder.
cp ./*.default.toml node.py server.py control.py protocol.py adc.py csvbuffer.py webui.py "$program"
cp -R pigeonpost deploy "$program"
find "$program" -name __pycache__ -prune -exec rm -rf {} +
rm -rf "$program/deploy/deb" "$program/deploy/build-deb.sh" "$program/deploy/container.sh"
for pair in pigeonpost=control pigeonpost-node=node pigeonpost-server=server; do
  printf '#!/bin/sh\nexec /usr/bin/python3 /usr/share/pigeonpost/%s.py "$@"\n' "${pair#*=}" >"$root/usr/bin/${pair%%=*}"
done

# Files for systemd and udev. The units contain the path /opt/pigeonpost, which is replaced. The drop-ins for devices
# need the groups of pigeonpost.sysusers; postinst creates missing ones.
mkdir -p "$units/pigeonpost-node.service.d" "$root/usr/lib/sysusers.d" "$root/usr/lib/udev/rules.d"
for unit in deploy/*.service deploy/*.socket; do
  sed '/^# /d; s|/opt/|/usr/share/|g' "$unit" >"$units/$(basename "$unit")"
done
cp deploy/pigeonpost-node.service.d/*.conf "$units/pigeonpost-node.service.d"
cp deploy/pigeonpost.sysusers "$root/usr/lib/sysusers.d/pigeonpost.conf"
cp deploy/pigeonpost.rules "$root/usr/lib/udev/rules.d/60-pigeonpost.rules"

cp -R README.md SECURITY.md docs "$documents"
rm -rf "$documents/docs/pictures"
ln -s ../doc/pigeonpost/docs "$program/docs" # the web interface shows them as /help
gzip -9 -n -c CHANGES.md >"$documents/CHANGES.md.gz"
cp LICENSE "$documents/copyright"

size=$(du -sk "$root" | cut -f 1)
sed "s/@VERSION@/$version/; s/@SIZE@/$size/" deploy/deb/control >"$root/DEBIAN/control"
cp deploy/deb/postinst deploy/deb/prerm deploy/deb/postrm "$root/DEBIAN"
find "$root" -type f -exec chmod 0644 {} +
chmod 0755 "$root"/usr/bin/* "$root"/DEBIAN/postinst "$root"/DEBIAN/prerm "$root"/DEBIAN/postrm
dpkg-deb --root-owner-group -Zxz --build "$root" "$out/pigeonpost_${version}_all.deb"
