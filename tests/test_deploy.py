"""Container files and systemd units: not root, no secrets in an image, data for its owner alone."""

import fnmatch
import os
import re
import subprocess
import unittest

from tests.support import ROOT, clean_environment, temp_folder

USER = 10001


def read(*parts):
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as file:
        return file.read()


class Image(unittest.TestCase):
    def test_its_user_is_not_root_and_owns_the_volume(self):
        text = read("Dockerfile")
        last = text[text.rindex("\nFROM ") :]
        self.assertEqual(re.findall(r"(?m)^USER (.*)$", last), ["pigeonpost"])
        self.assertIn(f"useradd --uid {USER} --gid {USER}", last)
        self.assertIn("install --directory --owner pigeonpost --group pigeonpost --mode 0700 /data", last)
        self.assertLess(last.index("install --directory"), last.index("VOLUME /data"))  # what comes later is not kept
        self.assertLess(last.index("RUN chmod"), last.index("USER"))

    def test_program_and_health_check_run_as_the_same_user(self):
        text = read("Dockerfile")
        self.assertIn('ENTRYPOINT ["sh", "/app/deploy/container.sh"]', text)
        self.assertIn('CMD ["sh", "/app/deploy/container.sh", "python3", "control.py", "alive"]', text)

    def test_build_leaves_out_secrets_and_data(self):
        patterns = read(".dockerignore").split()
        for path in (
            "node.toml", "server.toml", "deploy/server.toml", "certificate.pem", "x.key", "data/tokens.json",
            "data/a/b", "old/data/users.json", "pigeonpost.sqlite3-wal", "outbox.ring", ".git/config",
        ):  # fmt: skip
            with self.subTest(path):
                self.assertTrue(any(matches(path, pattern) for pattern in patterns))
        for path in ("node.py", "node.default.toml", "server.default.toml", "deploy/container.sh", "protocol.py",
                     "pigeonpost/storage/csv/format.py", "pigeonpost/views/static/page.css"):  # fmt: skip
            with self.subTest(path):
                self.assertTrue(os.path.exists(os.path.join(ROOT, path)) or "static" in path)
                self.assertFalse(any(matches(path, pattern) for pattern in patterns))

    def test_services_have_no_more_rights_than_they_need(self):
        server, node = read("docker-compose.yml").partition("\n  node:")[::2]
        for service in (server, node):
            for line in ("read_only: true", "cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]'):
                self.assertIn(line, service)
            self.assertNotIn("privileged: true", service)
        self.assertNotIn("user:", server)
        self.assertNotIn("cap_add", server)
        self.assertIn("ip_unprivileged_port_start=80", server)
        self.assertIn("cap_add: [CHOWN, SETGID, SETUID, SETPCAP]", node)  # what container.sh takes, and gives up


def matches(path, pattern):
    """Whether a .dockerignore pattern leaves out a path; `**/` is any number of folders (docs.docker.com)."""
    parts = path.split("/")
    heads = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    names = [pattern] if not pattern.startswith("**/") else [pattern, pattern.removeprefix("**/")]
    return any(fnmatch.fnmatchcase(head, name) for head in heads for name in names)


class Entry(unittest.TestCase):
    """deploy/container.sh"""

    def run_(self, *command, user=None):
        environment = clean_environment(VOLUME=self.volume)
        result = subprocess.run(
            # Not by its path: another user may not be allowed to look into this folder.
            ["sh", "-c", read("deploy", "container.sh"), "container.sh", *command], env=environment, text=True,
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
    def test_as_any_other_user_it_changes_nothing(self):
        self.assertEqual(self.run_("id", "-u", user=4321), "4321\n")
        self.assertEqual(os.stat(self.volume).st_uid, 0)


class Units(unittest.TestCase):
    def test_state_is_for_its_user_alone(self):
        for name in ("node", "server"):
            text = read("deploy", f"pigeonpost-{name}.service")
            for line in ("StateDirectoryMode=0700", "UMask=0077", "DynamicUser=yes", "NoNewPrivileges=yes"):
                self.assertIn(f"\n{line}\n", text)


if __name__ == "__main__":
    unittest.main()
