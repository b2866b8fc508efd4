"""The service file for Avahi is valid, and avahi-daemon announces both services in a network of its own."""

import os
import re
import subprocess
import unittest
from xml.etree import ElementTree

from tests.programs import PATHS, need_programs
from tests.support import LIMIT_S, ROOT

SERVICE = os.path.join(ROOT, "deploy", "avahi", "pigeonpost.service")
DTD = "/usr/share/avahi/avahi-service.dtd"
# The daemon reads only /etc/avahi/services, and avahi-browse asks it over D-Bus. So both have their own /run, network
# and processes, which end with the shell.
SCRIPT = r"""
set -e
mount -t tmpfs tmpfs /run
mount --bind "$1" /etc/avahi/services
ip link set lo up
ip link add pp0 type veth peer name pp1
ip link set pp1 up
ip address add 10.207.23.1/24 dev pp0
ip link set pp0 up
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/bus
dbus-daemon --session --address=$DBUS_SYSTEM_BUS_ADDRESS --nofork --nopidfile 2>/dev/null &
until [ -S /run/bus ]; do sleep 0.05; done
mkdir /run/avahi-daemon
printf '[server]\nhost-name=testhost\nuse-ipv6=no\nallow-interfaces=pp0\n' > /run/avahi.conf
avahi-daemon --no-drop-root --no-chroot --no-rlimits --no-proc-title -f /run/avahi.conf 2>/run/log &
until [ "$(grep -sc ^= /run/found)" = 2 ]; do
  sleep 0.2
  timeout 5 avahi-browse --all --terminate --resolve --parsable > /run/found 2>/dev/null || true
done
cat /run/found
"""


def setUpModule():
    need_programs("avahi-daemon", "avahi-browse", "dbus-daemon", "unshare", "ip")
    if os.geteuid() != 0:
        raise unittest.SkipTest("needs root, for a network of its own")


def content_models():
    """Return a regular expression for the names of the children of each element with children, from the DTD."""
    with open(DTD, encoding="utf-8") as file:
        found = re.findall(r"<!ELEMENT ([a-z-]+) \(([^#)]+)\)>", file.read())
    return {name: re.sub(r"([a-z-]+)([*+?]?)", r"(?:\1 )\2", model).replace(",", "") for name, model in found}


class Announced(unittest.TestCase):
    def test_elements_are_those_of_the_document_type(self):
        models = content_models()
        self.assertEqual(set(models), {"service-group", "service"})
        tree = ElementTree.parse(SERVICE).getroot()
        self.assertEqual(tree.tag, "service-group")
        for element in tree.iter():
            children = "".join(f"{child.tag} " for child in element)
            self.assertRegex(children, f"^{models.get(element.tag, '')}$")

    def test_both_services_are_found(self):
        done = subprocess.run(
            ["timeout", "--signal=KILL", f"{LIMIT_S:g}", "unshare", "--mount", "--net", "--pid", "--fork",
             "--kill-child", "sh", "-c", SCRIPT, "sh", os.path.dirname(SERVICE)],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, "PATH": PATHS, "LC_ALL": "C"},
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        found = {tuple(line.split(";")[6:]) for line in done.stdout.splitlines() if line.startswith("=")}
        self.assertEqual(found, {
            ("testhost.local", "10.207.23.1", "8080", '"path=/"'),
            ("testhost.local", "10.207.23.1", "8080", '"path=/metrics"'),
        })  # fmt: skip
        self.assertIn(r";Pigeonpost\032on\032testhost;_prometheus-http._tcp;", done.stdout)


if __name__ == "__main__":
    unittest.main()
