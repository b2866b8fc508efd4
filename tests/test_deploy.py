"""Container files and systemd units: not root, no secrets in an image, data for its owner alone."""

import fnmatch
import os
import re
import subprocess
import unittest

from pigeonpost.cli import install
from pigeonpost.settings import NODE, SERVER
from tests.support import ROOT, clean_environment, temp_folder

USER = 10001


def read(*parts):
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as file:
        return file.read()


class Image(unittest.TestCase):
    def test_user_is_not_root_and_owns_the_volumes(self):
        text = read("Dockerfile")
        self.assertEqual(re.findall(r"(?m)^USER (.*)$", text), ["pigeonpost"])
        self.assertIn(f"useradd --uid {USER} --gid {USER}", text)
        self.assertIn("install --directory --owner pigeonpost --group pigeonpost --mode 0700 /data /backup\n", text)
        self.assertLess(text.index("install --directory"), text.index("VOLUME /data"))  # what comes later is not kept
        self.assertLess(text.rindex("\nRUN "), text.index("\nUSER "))

    def test_base_can_be_chosen_and_nothing_is_compiled_from_c(self):
        text = read("Dockerfile")
        self.assertIn("\nARG BASE=debian:trixie-slim\nFROM ${BASE}\n", text)
        self.assertEqual(re.findall(r"(?m)^FROM ", text), ["FROM "])
        for word in ("gcc", "pip ", "libc6-dev"):
            self.assertNotIn(word, text)

    def test_program_and_health_check_run_as_the_same_user(self):
        text = read("Dockerfile")
        self.assertIn('ENTRYPOINT ["sh", "/app/deploy/container.sh"]', text)
        check = '["sh", "/app/deploy/container.sh", "python3", "-m", "pigeonpost.cli.alive", "/data"]'
        self.assertIn(f"CMD {check}", text)

    def test_sqlite_has_a_place_for_temporary_files_where_the_root_is_read_only(self):
        self.assertRegex(read("Dockerfile"), r"(?m)^ENV (.*\\\n.*)*\bSQLITE_TMPDIR=/data\b")

    def test_build_leaves_out_secrets_and_data(self):
        patterns = read(".dockerignore").split()
        for path in (
            "node.toml", "server.toml", "deploy/server.toml", "certificate.pem", "x.key", "data/tokens.json",
            "data/a/b", "old/data/users.json", "pigeonpost.sqlite3-wal", "outbox.ring", ".git/config", ".env",
            "deploy/node-token", "node.env", "deploy/server.env", "tokens.json.bak", "node.pyz",
            "pigeonpost_0.1.0_all.deb",
        ):  # fmt: skip
            with self.subTest(path):
                self.assertTrue(any(matches(path, pattern) for pattern in patterns))
        for path in ("node.py", "node.default.toml", "server.default.toml", "deploy/container.sh", "protocol.py",
                     "docs/web.md", "pigeonpost/storage/csv/format.py",
                     "pigeonpost/views/static/page.css"):  # fmt: skip
            with self.subTest(path):
                self.assertTrue(os.path.exists(os.path.join(ROOT, path)) or "static" in path)
                self.assertFalse(any(matches(path, pattern) for pattern in patterns))

    def test_services_have_no_more_rights_than_they_need(self):
        server, node = read("docker-compose.yml").partition("\n  node:")[::2]
        for service in (server, node):
            for line in ("read_only: true", "cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]'):
                self.assertIn(line, service)
            self.assertNotIn("privileged: true", service)
        # What container.sh and `docker compose exec ... control.py` take as root; the programs give it up.
        self.assertIn("cap_add: [CHOWN, DAC_OVERRIDE, FOWNER, NET_BIND_SERVICE, SETGID, SETPCAP, SETUID]", server)
        self.assertIn("cap_add: [CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETPCAP, SETUID]", node)

    def test_variables_of_docker_compose_are_settings(self):
        """And docs/containers.md has each of them."""
        passed = re.findall(r"(?m)^      - (PIGEONPOST_\w+)(?:=.*)?$", read("docker-compose.yml"))
        self.assertIn("PIGEONPOST_WEB_NAMES", passed)
        known = {setting.variable for setting in (*NODE, *SERVER)}
        self.assertEqual(set(passed) - known, {"PIGEONPOST_NODE_TOML", "PIGEONPOST_SERVER_TOML"})
        described = read("docs", "containers.md")
        for name in (*passed, "TZ"):
            self.assertIn(f"| `{name}` |", described)


def matches(path, pattern):
    """Return True if a .dockerignore pattern matches a path; `**/` is any number of folders (docs.docker.com)."""
    parts = path.split("/")
    heads = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    names = [pattern] if not pattern.startswith("**/") else [pattern, pattern.removeprefix("**/")]
    return any(fnmatch.fnmatchcase(head, name) for head in heads for name in names)


class Entry(unittest.TestCase):
    """deploy/container.sh"""

    def run_(self, *command, user=None, before=(), dev="/dev"):
        environment = clean_environment(VOLUME=self.volume)
        script = read("deploy", "container.sh").replace("/dev/", f"{dev}/").replace("/dev tmpfs", f"{dev} tmpfs")
        result = subprocess.run(
            # Not by its path: another user may not be allowed to look into this folder.
            [*before, "sh", "-c", script, "container.sh", *command], env=environment, text=True,
            capture_output=True, timeout=60, user=user, group=user, extra_groups=None if user is None else [], cwd="/",
        )  # fmt: skip
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def setUp(self):
        self.volume = temp_folder(self)

    @unittest.skipUnless(os.geteuid() == 0, "only root can change the user")
    def test_as_root_it_gives_up_everything_and_takes_over_a_volume_of_root(self):
        os.mkdir(os.path.join(self.volume, "logs"))
        found = self.run_("sh", "-c", "id -u; id -g; cat /proc/self/status")
        self.assertEqual(found.split("\n")[:2], [str(USER), str(USER)])
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.assertRegex(found, rf"(?m)^{name}:\t0+$")
        self.assertRegex(found, r"(?m)^NoNewPrivs:\t1$")
        for path in (self.volume, os.path.join(self.volume, "logs")):
            self.assertEqual(os.stat(path).st_uid, USER)

    @unittest.skipUnless(os.geteuid() == 0, "only root can change the user")
    def test_server_keeps_the_right_to_listen_on_port_80_where_it_was_given(self):
        command = ["sh", "-c", "cat /proc/self/status", "python3", "server.py"]
        self.assertEqual(set(re.findall(r"(?m)^Cap\w+:\t(.*)$", self.run_(*command))), {"0000000000000400"})
        without = ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service"]
        self.assertEqual(set(re.findall(r"(?m)^Cap\w+:\t(.*)$", self.run_(*command, before=without))), {"0" * 16})

    @unittest.skipUnless(os.geteuid() == 0, "only root can change the user")
    def test_device_of_the_group_of_root_does_not_give_that_group(self):
        devices = temp_folder(self)  # where /dev is that of the machine, container.sh leaves groups as they are
        for name, group in (("spidev0.0", 0), ("i2c-1", 4242)):
            path = os.path.join(devices, name)
            with open(path, "wb"):
                os.chown(path, 0, group)
        self.assertEqual(self.run_("id", "-G", dev=devices), f"{USER} 4242\n")

    @unittest.skipUnless(os.geteuid() == 0, "only root can change the user")
    def test_as_any_other_user_it_changes_nothing(self):
        self.assertEqual(self.run_("id", "-u", user=4321), "4321\n")
        self.assertEqual(os.stat(self.volume).st_uid, 0)


class Units(unittest.TestCase):
    """deploy/*.service, *.socket and their drop-ins; tests/install/test_systemd_*.py boot them."""

    def test_state_is_for_its_user_alone(self):
        for name in ("node", "server"):
            text = read("deploy", f"pigeonpost-{name}.service")
            for line in ("StateDirectoryMode=0700", "UMask=0077", "DynamicUser=yes", "NoNewPrivileges=yes"):
                self.assertIn(f"\n{line}\n", text)

    def test_wrong_settings_and_data_in_use_are_not_tried_again(self):
        for name in ("node", "server"):
            text = read("deploy", f"pigeonpost-{name}.service")
            for line in ("RestartPreventExitStatus=2 75", "StartLimitIntervalSec=0"):
                self.assertIn(f"\n{line}\n", text)
            self.assertRegex(text, r"(?m)^LimitNOFILE=\d+$")
            self.assertRegex(text, r"(?m)^TasksMax=\d+$")

    def test_node_starts_without_a_token_and_without_groups_that_a_system_may_lack(self):
        text = read("deploy", "pigeonpost-node.service")
        self.assertIn("\nLoadCredential=node-token:/etc/pigeonpost/node-token\n", text)
        self.assertIn("\nSetCredential=node-token:\\n\n", text)
        self.assertNotIn("SupplementaryGroups=", text)
        self.assertNotIn("SupplementaryGroups=", read("deploy", "pigeonpost-server.service"))

    def test_groups_of_the_drop_ins_are_made_where_they_are_missing(self):
        folder = os.path.join(ROOT, "deploy", "pigeonpost-node.service.d")
        groups = set()
        for name in os.listdir(folder):
            text = read("deploy", "pigeonpost-node.service.d", name)
            groups.update(re.findall(r"(?m)^SupplementaryGroups=(.*)$", text))
            self.assertRegex(text, r"(?m)^DeviceAllow=\S+ rw$")
        made = set(re.findall(r"(?m)^g (\S+) - -$", read("deploy", "pigeonpost.sysusers")))
        self.assertEqual(groups - {"video"}, made)  # Debian's base-passwd has video
        self.assertEqual(groups, set(re.findall(r'GROUP="(\w+)"', read("deploy", "pigeonpost.rules"))))

    def test_unit_of_the_node_names_every_drop_in(self):
        header = read("deploy", "pigeonpost-node.service").partition("[Unit]")[0]
        for name in os.listdir(os.path.join(ROOT, "deploy", "pigeonpost-node.service.d")):
            self.assertIn(f" {name}", header)

    def test_package_makes_its_groups_also_in_an_image_that_is_being_built(self):
        text = read("deploy", "deb", "postinst")
        self.assertLess(text.index("systemd-sysusers pigeonpost.conf"), text.index("if [ -d /run/systemd/system ]"))
        made, triggered = text.index("systemd-sysusers pigeonpost.conf"), text.index("udevadm trigger")
        self.assertLess(made, triggered)
        found = re.findall(r"--subsystem-match=(\S+)", text)
        self.assertEqual([f"--subsystem-match={name}" for name in found], install._TRIGGERED)

    def test_install_page_names_every_file(self):
        text = read("docs", "install.md")
        for name in os.listdir(os.path.join(ROOT, "deploy", "pigeonpost-node.service.d")):
            self.assertIn(f"`{name}`", text)
        for name in ("pigeonpost-server.socket", "pigeonpost-server-backup.conf", "pigeonpost.sysusers"):
            self.assertIn(name, text)


if __name__ == "__main__":
    unittest.main()
