"""The image and docker-compose.yml with Docker's own Compose.

Node and server as a user runs them, and single containers.

They are used from another machine, recreated, stopped, backed up and restored.
"""

import os
import re
import shlex
import sys
import tempfile
import textwrap
import time
import unittest
import zoneinfo
from datetime import datetime

from tests.install import need_install
from tests.install.containers import ADDRESS, IMAGE, NAME, ContainerHost
from tests.support import ROOT, wait_until

ZONE = "Europe/Vienna"
NODE_TOML = """
[node]
simulate = true
every = 0.2

[[sensor]]
kind = "command"
command = ["echo", "42"]
channels = {answer = {}}

[[sensor]]
kind = "adc"
channels = {temperature = {input = 1, convert = "mcp9700"}}
"""
VARIABLES = {"TZ": ZONE, "PIGEONPOST_SERVER_NODES": "127.0.0.1", "PIGEONPOST_NODE_TOML": NODE_TOML}
SERVER, NODE = "pigeonpost-server-1", "pigeonpost-node-1"
STOP_S = 5.0
HOST: ContainerHost


def setUpModule():
    global HOST
    need_install(podman="podman", curl="curl", debootstrap="debootstrap", ip="iproute2", iptables="iptables")
    HOST = ContainerHost()
    unittest.addModuleCleanup(HOST.stop)
    HOST.build()


def status_of_process(container, *names):
    """Return the lines of /proc/1/status of a container's program, by their names."""
    text = HOST.podman("exec", container, "cat", "/proc/1/status").stdout
    return [re.search(rf"(?m)^{name}:\t(.*)$", text)[1] for name in names]


def page_code(host, port, *, path="/", address=ADDRESS):
    """Return the HTTP status of a page for a browser on the neighbour that requests it from `host`."""
    url = f"http://{host}:{port}{path}"
    curl = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}",
            "--resolve", f"{host}:{port}:{address}"]  # fmt: skip
    return int(HOST.neighbour(*curl, url, is_checked=False).stdout)


def samples_in(verified):
    """Return the number of samples that `control.py verify` reports, each once."""
    return int(re.search(r"(\d+) samples? of 1 node: none missing, none stored twice", verified)[1])


class Compose(unittest.TestCase):
    """Node and server by `docker compose up -d` on one machine. Each test leaves both running."""

    @classmethod
    def setUpClass(cls):
        HOST.sh("test -e /dev/spidev0.0 || mknod /dev/spidev0.0 c 1 3")  # it can be opened, but is not a chip
        cls.addClassCleanup(HOST.compose, "down", "--volumes", "--timeout=5", variables=VARIABLES)
        cls.up()

    @classmethod
    def up(cls, *options):
        HOST.compose("up", "--detach", *options, variables=VARIABLES)
        HOST.wait_for_log(NODE, "listening on 0.0.0.0:5003")
        HOST.wait_for_log(SERVER, "the page is at ")
        wait_until(lambda: " on; last sample " in cls.status(), "the node is collected from")

    @staticmethod
    def server(*command, given=""):
        """Run a command in the server's container, as a user does, and return its output."""
        return HOST.compose("exec", "-T", "server", *command, given=given, variables=VARIABLES).stdout

    @classmethod
    def status(cls):
        """Return the nodes' lines in `control.py status`; an empty list while the server starts."""
        return HOST.podman("exec", SERVER, "python3", "control.py", "status", is_checked=False).stdout

    def test_page_is_reached_from_another_machine_as_printed_and_by_name(self):
        HOST.compose("down", "--volumes", "--timeout=20", variables=VARIABLES)  # no password, and a key that is unused
        self.up()
        for name in (f"{NAME}.local", NAME, ADDRESS):
            self.assertNotEqual(page_code(name, 80), 421, name)
        self.assertEqual(page_code("example.org", 80), 421)
        logged = HOST.wait_for_log(SERVER, "(from another machine")
        printed = re.search(rf"http://{ADDRESS}:80/\?key=\S+", logged)[0]
        page = HOST.neighbour("curl", "--silent", "--location", "--cookie", "", printed).stdout
        self.assertRegex(page, r"temperature +[0-9]")
        self.assertRegex(page, r"answer +42")

    def test_password_is_set_by_the_command_of_docker_compose_yml(self):
        self.server("python3", "control.py", "password", given="correct horse battery\n")
        wait_until(lambda: page_code(ADDRESS, 80) in (302, 303, 401), "the page asks for the password")
        self.assertEqual(
            HOST.podman("exec", SERVER, "stat", "-c", "%U %a", "/data/users.json").stdout, "pigeonpost 600\n"
        )

    def test_programs_are_not_root_and_have_no_more_rights_than_they_need(self):
        for container, rights in ((SERVER, "0000000000000400"), (NODE, "0000000000000000")):
            with self.subTest(container):
                found = status_of_process(container, "Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
                self.assertEqual(found, ["\t".join(["10001"] * 4)] * 2 + [rights] * 5)
                self.assertEqual(status_of_process(container, "NoNewPrivs"), ["1"])
                self.assertNotEqual(HOST.podman("exec", container, "touch", "/app/x", is_checked=False).returncode, 0)

    def test_health_checks_succeed(self):
        for container in (SERVER, NODE):
            HOST.podman("healthcheck", "run", container)

    def test_time_zone_is_that_of_the_variable(self):
        offset = datetime.now(zoneinfo.ZoneInfo(ZONE)).strftime("%z")
        row = self.server("sh", "-c", "tail -n 1 /data/logs/*.csv")
        self.assertIn(f"{offset[:3]}:{offset[3:]},{NAME},", row)

    def test_node_and_its_samples_are_the_same_after_both_are_made_again(self):
        ids = HOST.podman("ps", "--quiet").stdout
        self.up("--force-recreate")
        self.assertTrue(set(ids.split()).isdisjoint(HOST.podman("ps", "--quiet").stdout.split()))
        self.assertRegex(self.status(), rf"^{NAME}: on; last sample \S+ \S+\n$")  # one node, and nothing missing
        self.assertGreater(samples_in(self.server("python3", "control.py", "verify")), 0)

    def test_stopped_containers_end_in_time(self):
        begin_s = time.monotonic()
        HOST.compose("stop", "--timeout=20", variables=VARIABLES)
        self.assertLess(time.monotonic() - begin_s, STOP_S)
        for container in (SERVER, NODE):
            state = HOST.podman("inspect", "--format={{.State.ExitCode}}", container).stdout
            self.assertEqual(state, "0\n")
        self.up()

    def test_backup_is_restored(self):
        self.server("python3", "control.py", "backup", "/backup/one.tar")
        stored = samples_in(self.server("python3", "control.py", "verify", "/backup/one.tar"))
        HOST.compose("stop", "--timeout=20", "server", variables=VARIABLES)
        run = ["run", "--rm", "-T", "--entrypoint=python3", "server", "control.py"]
        HOST.compose(*run, "restore", "/backup/one.tar", variables=VARIABLES)
        verified = HOST.compose(*run, "verify", variables=VARIABLES).stdout
        self.assertEqual(samples_in(verified), stored)
        self.up()
        self.assertRegex(self.status(), rf"^{NAME}: on; ")


class Documented(unittest.TestCase):
    """docs/containers.md, executed as written. `docker` is Podman, and the images are already built."""

    @classmethod
    def setUpClass(cls):
        with open(os.path.join(ROOT, "docs", "containers.md"), encoding="utf-8") as file:
            parts = re.split(r"(?m)^##+ (.*)\n", file.read())
        cls.sections = dict(zip(parts[1::2], parts[2::2]))

    def setUp(self):
        self.folder = tempfile.mkdtemp(dir=HOST.folder)
        self.env_file = os.path.join(self.folder, ".env")
        self.write_env("")
        self.addCleanup(self.tidy)

    def tidy(self):
        self.do("docker compose down --volumes --timeout=5")
        HOST.podman("rm", "--all", "--force", "--time=0", "--volumes")
        HOST.podman("volume", "prune", "--force")

    def write_env(self, text):
        with open(self.env_file, "w", encoding="utf-8") as file:
            file.write(text)

    def blocks(self, section):
        """Return the indented blocks of a section."""
        return [
            textwrap.dedent(block).strip("\n") + "\n"
            for block in re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", self.sections[section])
        ]

    def do(self, line, given=""):
        """Run a line of the page and return its output."""
        program, *words = shlex.split(line)
        if (program, words[0]) == ("docker", "compose"):
            words = [word for word in words[1:] if word != "--build"]
            words[:1] = [words[0], "-T"] if words[0] in ("exec", "run") else words[:1]
            result = HOST.compose(*words, given=given, env_file=self.env_file, cwd=self.folder)
        else:
            self.assertIn(program, ("docker", "podman"))
            result = HOST.podman(*words)
        return result.stdout + result.stderr

    def do_section(self, section, given=""):
        """Run the commands of a section that begin with docker or podman, except for those that build."""
        lines = [line for block in self.blocks(section) for line in block.replace("\\\n", " ").splitlines()]
        lines = [line for line in lines if re.match(r"(docker|podman) (?!build|compose build)", line)]
        self.assertTrue(lines, section)
        return "".join(self.do(line, given) for line in lines)

    def test_docker_with_its_variables_settings_data_and_health(self):
        HOST.sh("test -e /dev/spidev0.0 || mknod /dev/spidev0.0 c 1 3")
        said = self.do_section("Docker", given="correct horse battery\n")
        self.assertIn("page now asks for user name and password", said)
        HOST.wait_for_log(NODE, f"node {NAME}: ")
        (variables,) = [block for block in self.blocks("Docker") if block.startswith("TZ=")]
        (settings,) = [
            block for block in self.blocks("Sensors and other tables") if block.startswith("PIGEONPOST_NODE")
        ]
        self.write_env(f"{variables}{settings}PIGEONPOST_SERVER_NODES=127.0.0.1\n")
        self.do("docker compose up -d")
        logged = HOST.wait_for_log(NODE, " temperature, sampled every 10 s")
        self.assertIn("PIGEONPOST_NODE_TOML", logged)
        HOST.wait_for_log(SERVER, "the page is at ")
        self.do("docker compose exec server python3 control.py alive")
        self.do_section("Data volumes")
        HOST.wait_for_log(SERVER, "the page is at ")

    def test_node_of_another_machine_is_found_by_its_announcements(self):
        self.do("docker compose up -d server")
        HOST.wait_for_log(SERVER, "the page is at ")
        token = re.search(
            r"(?m)^[0-9a-f]{32}$", self.do("docker compose exec server python3 control.py token basement")
        )[0]
        program = [sys.executable, os.path.join(ROOT, "node.py"), f"--data={self.folder}/node"]
        node = HOST.start_on_neighbour(
            *program, "--simulate", "--name=basement", "--every=0.5",
            PIGEONPOST_NODE_TOKEN=token, PIGEONPOST_ANNOUNCE_EVERY="1",
        )  # fmt: skip
        self.addCleanup(node.wait)
        self.addCleanup(node.kill)
        status = "docker compose exec server python3 control.py status"
        wait_until(lambda: "basement: on; last sample " in self.do(status), "the node is found")

    def test_network_of_its_own(self):
        self.do_section("A separate network")
        HOST.wait_for_log("server", "the page is at ")
        self.assertNotEqual(page_code("raspberrypi.local", 8080), 421)

    def test_podman_runs_the_documented_commands(self):
        self.do_section("Podman")
        HOST.wait_for_log("server", "the page is at ")
        HOST.wait_for_log("node", "listening on ")
        for container in ("server", "node"):
            HOST.podman("healthcheck", "run", container)

    def test_node_without_hardware(self):
        self.do_section("Devices")
        HOST.wait_for_log("node", "temperature, light")


class Single(unittest.TestCase):
    """Containers by `docker run`, each with its own network and host name (its id)."""

    def run_(self, *arguments, volume="", variables=None, options=()):
        """Start a container and return its id."""
        given = [f"--env={name}={value}" for name, value in (variables or {}).items()]
        data = [f"--volume={volume}:/data"] if volume else []
        started = HOST.podman("run", "--detach", "--read-only", *given, *data, *options, IMAGE, *arguments)
        container = started.stdout.strip()[:12]
        self.addCleanup(self.remove, container)
        return container

    def remove(self, container):
        HOST.podman("rm", "--force", "--time=0", "--volumes", container, is_checked=False)

    def volume(self, name):
        self.addCleanup(HOST.podman, "volume", "rm", "--force", name)
        return name

    def in_volume(self, volume, *command):
        return HOST.podman("run", "--rm", f"--volume={volume}:/data", IMAGE, *command).stdout

    def test_name_of_a_node_is_kept_when_its_container_is_made_again(self):
        volume = self.volume("kept")
        simulated = {"PIGEONPOST_NODE_SIMULATE": "true"}
        first = self.run_("python3", "node.py", volume=volume, variables=simulated)
        HOST.wait_for_log(first, f"node {first}: sensors temperature, light")
        self.remove(first)
        second = self.run_("python3", "node.py", volume=volume, variables=simulated)
        HOST.wait_for_log(second, f"node {first}: sensors temperature, light")
        self.assertNotEqual(first, second)

    def test_published_port_is_reached_by_the_names_that_are_set(self):
        names = {"PIGEONPOST_WEB_NAMES": "raspberrypi.local,sensors.example.org"}
        server = self.run_("python3", "server.py", variables=names, options=["--publish=8099:8080"])
        HOST.wait_for_log(server, "the page is at ")
        codes = {
            name: page_code(name, 8099) for name in ("raspberrypi.local", "sensors.example.org", "other.example.org")
        }
        self.assertEqual([code == 421 for code in codes.values()], [False, False, True], codes)
        self.assertEqual(page_code(ADDRESS, 8099, path="/healthz"), 200)

    def test_names_of_a_balena_device_are_known(self):
        uuid = "1a2b3c4d5e6f708192a3b4c5d6e7f809"
        balena = {"BALENA": "1", "BALENA_DEVICE_UUID": uuid, "BALENA_DEVICE_NAME_AT_INIT": "quiet-river",
                  "PIGEONPOST_SERVER_NODES": "", "PIGEONPOST_WEB_NAMES": "", "PIGEONPOST_SERVER_TOML": ""}  # fmt: skip
        server = self.run_("python3", "server.py", variables=balena, options=["--user=root", "--publish=8098:80"])
        HOST.wait_for_log(server, "the page is at http://127.0.0.1:80/")
        for name in (f"{uuid[:7]}.local", f"{uuid}.balena-devices.com", "quiet-river.local"):
            self.assertNotEqual(page_code(name, 8098), 421, name)

    def test_health_check_of_a_server_asks_its_address_by_tls(self):
        volume = self.volume("secure")
        self.in_volume(volume, "python3", "control.py", "certificate")
        variables = {"PIGEONPOST_WEB_LISTEN": "127.0.0.1:8443", "PIGEONPOST_WEB_CERTIFICATE": "/data/certificate.pem",
                     "PIGEONPOST_WEB_KEY": "/data/certificate.key"}  # fmt: skip
        server = self.run_("python3", "server.py", volume=volume, variables=variables)
        HOST.wait_for_log(server, "the page is at https://127.0.0.1:8443/")
        HOST.podman("healthcheck", "run", server)

    def test_health_check_of_a_node_asks_its_address(self):
        variables = {"PIGEONPOST_NODE_LISTEN": "0.0.0.0:6003", "PIGEONPOST_NODE_TOKEN": "a token of sixteen or more",
                     "PIGEONPOST_LINK_TLS": "true", "PIGEONPOST_NODE_SIMULATE": "true"}  # fmt: skip
        node = self.run_("python3", "node.py", variables=variables)
        logged = HOST.wait_for_log(node, "listening on 0.0.0.0:6003")
        HOST.podman("healthcheck", "run", node)
        self.assertEqual(HOST.wait_for_log(node, "listening on 0.0.0.0:6003"), logged)  # it logs nothing

    def test_many_samples_are_verified_and_backed_up_with_a_read_only_root(self):
        """SQLite sorts them in temporary files. A Pi collects this number in less than two days."""
        make = (
            "from datetime import UTC, datetime as d; print('time,temperature'); [print(d.fromtimestamp("
            "1_750_000_000 + n, UTC).isoformat() + f',{n % 100}') for n in range(150_000)]"
        )
        control = "python3 control.py"
        steps = f'python3 -c "$0" >/data/many.csv; {control} import --node attic /data/many.csv; {control} verify;'
        steps += f" {control} backup /backup/many.tar; echo done"
        options = ["--read-only-tmpfs=false", f"--volume={self.volume('many')}:/backup"]  # as Docker, without tmpfs
        container = self.run_("sh", "-ec", steps, make, options=options)
        logged = HOST.wait_for_log(container, "done\n")
        self.assertEqual(logged.count("150000 samples of 1 node: none missing, none stored twice"), 2)

    def test_health_check_fails_where_no_program_answers(self):
        container = self.run_("sleep", "infinity")
        self.assertNotEqual(HOST.podman("healthcheck", "run", container, is_checked=False).returncode, 0)

    def test_sensors_are_read_from_a_mounted_settings_file(self):
        path = f"{HOST.folder}/node.toml"
        with open(path, "w", encoding="utf-8") as file:
            file.write(NODE_TOML)
        options = [f"--volume={path}:/etc/pigeonpost/node.toml:ro"]
        node = self.run_("python3", "node.py", options=options, variables={"PIGEONPOST_NODE_NAME": "attic"})
        logged = HOST.wait_for_log(node, "node attic: sensors answer, temperature")
        self.assertIn("/etc/pigeonpost/node.toml", logged)

    def test_node_without_the_device_names_the_line_of_compose(self):
        node = self.run_("python3", "node.py", variables={"PIGEONPOST_NODE_EVERY": "0.2"})
        logged = HOST.wait_for_log(node, "/dev/spidev0.0 does not exist")
        self.assertIn('devices: ["/dev/spidev0.0:/dev/spidev0.0"]', logged)

    def test_device_of_root_and_volume_of_root_are_opened_to_the_program(self):
        volume = self.volume("older")
        self.in_volume(volume, "true")
        folder = HOST.podman("volume", "inspect", "--format={{.Mountpoint}}", volume).stdout.strip()
        HOST.sh('chown 0:0 "$1"; chmod 755 "$1"; touch "$1/pigeonpost.sqlite3-old"', folder)
        HOST.sh("mknod /dev/chip c 1 3; chmod 600 /dev/chip")
        options = ["--user=root", "--cap-drop=ALL", "--device=/dev/chip:/dev/spidev0.0",
                   *[f"--cap-add={right}" for right in ("CHOWN", "FOWNER", "SETGID", "SETPCAP", "SETUID")]]  # fmt: skip
        container = self.run_(
            "sh",
            "-c",
            "ls -l /dev/spidev0.0 /data; head -c 1 /dev/spidev0.0 && echo opened; id -u",
            volume=volume,
            options=options,
        )
        logged = HOST.wait_for_log(container, "10001\n")
        self.assertRegex(logged, r"crw-rw---- 1 root +pigeonpost 1, 3 .* /dev/spidev0.0")
        self.assertRegex(logged, r"pigeonpost pigeonpost .* pigeonpost.sqlite3-old")
        self.assertIn("opened", logged)
        self.assertEqual(HOST.sh("stat -c %a:%g /dev/chip"), "600:0\n")  # the machine's own clock is unchanged

    def test_image_holds_its_libraries_and_neither_tests_nor_settings_nor_data(self):
        listed = HOST.podman("run", "--rm", IMAGE, "ls", "-a", "/app", "/app/docs").stdout.split()
        self.assertLess({"node.py", "tutorial.md"}, set(listed))  # the page shows the manual
        self.assertTrue(
            {"tests", "bench", ".git", "data", "node.toml", "server.toml", ".env"}.isdisjoint(listed), listed
        )
        imported = (
            "import paho.mqtt.client, spidev, ssl, sqlite3, tomllib, zoneinfo; zoneinfo.ZoneInfo('Europe/Vienna')"
        )
        HOST.podman("run", "--rm", IMAGE, "python3", "-c", imported)


if __name__ == "__main__":
    unittest.main()
