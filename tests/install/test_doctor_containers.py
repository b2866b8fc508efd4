"""control.py doctor in containers: faults of their environment, with Docker's remedies."""

import shlex
import unittest

from tests.install import need_install
from tests.install.containers import IMAGE, ContainerHost

HOST: ContainerHost


def setUpModule():
    global HOST
    need_install(podman="podman", debootstrap="debootstrap", ip="iproute2", iptables="iptables")
    HOST = ContainerHost()
    unittest.addModuleCleanup(HOST.stop)
    HOST.build()


class Containers(unittest.TestCase):
    def start(self, name, *command, options=(), ready=""):
        """Start a container of the image and wait for a text in its log."""
        HOST.podman("run", "--detach", f"--name={name}", *options, IMAGE, *command)
        self.addCleanup(HOST.podman, "rm", "--force", "--time=0", name)
        if ready:
            HOST.wait_for_log(name, ready)

    def doctor(self, name, *arguments, user="pigeonpost", status=0):
        command = ["exec", "--user", user, name, "python3", "control.py", "doctor", *arguments]
        result = HOST.podman(*command, is_checked=False)
        self.assertEqual((result.stderr, result.returncode), ("", status), result.stdout)
        return result.stdout

    def test_server_that_is_well_and_what_its_owner_may_want(self):
        self.start("server", ready="the page is at")
        said = self.doctor("server")
        for words in ("runs in a container with the command server.py", "As a server\n",
                      "8080: the page of this server", "TZ=Europe/Vienna in .env",
                      "PIGEONPOST_WEB_NAMES=raspberrypi.local"):  # fmt: skip
            self.assertIn(words, said)
        self.assertNotIn("As a node", said)
        self.assertIn("No problems found.", self.doctor("server", user="root"))

    def test_node_without_a_device_and_without_a_library(self):
        sensor = '[[sensor]]\nkind = "mcp3424"\nchannels = {a = {input = 1}}\n'
        options = ("--env", f"PIGEONPOST_NODE_TOML={sensor}", "--env", "TZ=Europe/Vienna")
        self.start("node", "python3", "node.py", options=options, ready="listening on")
        said = self.doctor("node", status=1)
        self.assertIn("settings: the variable PIGEONPOST_NODE_TOML", said)
        self.assertIn('in docker-compose.yml: devices: ["/dev/i2c-1:/dev/i2c-1"], then docker compose up -d', said)
        self.assertIn('docker compose build --build-arg EXTRA="python3-smbus2"', said)
        self.assertIn("PIGEONPOST_NODE_NAME=basement in .env", said)
        self.assertNotIn("TZ is not set", said)

    def test_volume_of_root_and_the_command_that_gives_it_away(self):
        give = ["run", "--rm", "--user=root", "--volume=old:/data", "--entrypoint=sh", IMAGE, "-c"]
        HOST.podman(*give, "touch /data/x; chown root:root /data; chmod 700 /data")
        self.addCleanup(HOST.podman, "volume", "rm", "--force", "old")
        wait = "import time; time.sleep(600)"  # the server itself ends at once
        command = ["sh", "-c", f"exec python3 -c '{wait}' server.py"]
        self.start("held", *command, options=("--volume=old:/data",))
        self.assertIn("/data: the user pigeonpost may not write there", self.doctor("held", status=1))
        said = self.doctor("held", user="root", status=1)
        self.assertIn("/data belongs to user 0, and the program (user 10001) may not write there", said)
        remedy = said.partition("with the name of the volume: ")[2].partition(" (docker compose")[0]
        words = shlex.split(remedy.replace("VOLUME", "old"))
        self.assertEqual(words[:2], ["docker", "run"])
        HOST.podman(*[IMAGE if word == "pigeonpost" else word for word in words[1:]])
        self.assertIn("No problems found.", self.doctor("held"))


if __name__ == "__main__":
    unittest.main()
