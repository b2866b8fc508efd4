"""The commands of README and docs/, executed as written, page by page, by a user with sudo in one machine.

tests/install/document_plays.py has the preconditions of each page, and the commands that are not executed. The machine
has only loopback, with the addresses and host names of the documents. Commands that lead to other machines are only
recorded.
"""

import json
import os
import re
import shlex
import unittest

from tests.document_blocks import Block, without_cron
from tests.install import need_install
from tests.install.document_plays import HOME, PLAYS, Play, Step
from tests.install.machine import machine_for
from tests.support import wait_until
from tests.test_document_blocks import commands_of, is_session

# Commands that would leave the machine: their arguments are recorded in /tmp/stubs.
STUBS = ("mail", "scp", "ssh")
HOSTS = "127.0.0.1 localhost server.local sensors.example.org\n"
UNITS = "/etc/systemd/system"
# Sends the lines of a session as a person with nc does: each after the reply to the previous one.
TALK = """
import json, socket, sys
host, port, lines = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
sock = socket.create_connection((host, port), 30)
answers = sock.makefile("r", encoding="utf-8")
for line in lines:
    word = line.split()[0]
    if word in ("AUTH", "CHECK", "SEND", "BYE"):
        sock.sendall((line + "\\n").encode())
    else:
        expected = " ".join(line.split()[:2] if word != "SENSORS" else [word])
        while not (answer := next(answers)).startswith(expected):
            if not answer.startswith("SENSORS"):
                sys.exit(f"{answer!r} came, not {expected!r}")
"""


def setUpModule():
    need_install(systemd_nspawn="systemd-container", debootstrap="debootstrap")


class Documents(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.machine = machine_for(cls, "trixie")
        cls.machine.sh(
            "useradd --create-home pi; echo 'pi ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pi\n"
            "ip addr add 192.168.1.20/24 dev lo\n"
            f"echo '{HOSTS.strip()}' $(hostname) > /etc/hosts\n"
            "echo 'APT::Get::Assume-Yes \"true\";' > /etc/apt/apt.conf.d/yes"
        )
        for name in STUBS:
            cls.machine.write(
                f"/usr/local/bin/{name}", f'#!/bin/sh\necho "{name} $*" >> /tmp/stubs\ncat > /dev/null\n', 0o755
            )
        cls.machine.copy_program("/home/source")
        cls.background = 0

    def set_up(self):
        self.addCleanup(self.tidy)
        self.machine.sh(f"rm -rf {HOME} /tmp/stubs /home/pi/token; cp -r /home/source {HOME}; chown -R pi: {HOME}")

    def tidy(self):
        """End the programs that a page has started, and remove what it has installed."""
        self.machine.sh(
            "systemctl stop 'document-*'; cd /home/source; for one in node server; do"
            f" test ! -e {UNITS}/pigeonpost-$one.service || python3 control.py uninstall $one --write; done;"
            " rm -rf /var/lib/pigeonpost-* /var/lib/private/pigeonpost-* /etc/pigeonpost /opt/pigeonpost"
        )

    def play(self, document):
        """Execute a page."""
        play = PLAYS[document]
        commands = [(heading, command, play.step_of(command.text)[1]) for heading, command in commands_of(document)]
        left = [
            (command, step) for heading, command, step in commands if not step.skip and heading not in play.elsewhere
        ]
        if left:
            self.set_up()
            self.script(play.setup)
        for command, step in left:
            with self.subTest(command.where, command=command.text):
                self.execute(command, step, play)

    def script(self, text):
        """Run a shell script as root in the user's folder."""
        if text:
            self.machine.run("sh", "-ec", text, cwd=HOME)

    def execute(self, command: Block, step: Step, play: Play):
        self.script(step.first)
        if is_session(command):
            self.talk(command.text.split("\n"))
            return
        text = without_cron(command.text)
        for words, other in step.replace.items():
            text = text.replace(words, other)
        token = self.machine.sh("cat /home/pi/token 2>/dev/null || true").stdout.strip()
        text = text.replace("PIGEONPOST_NODE_TOKEN=...", f"PIGEONPOST_NODE_TOKEN={token}")
        variables = {"PIGEONPOST_NODE_SIMULATE": "1", "HOME": "/home/pi", "TOKEN": token, **play.environment}
        folder = os.path.normpath(os.path.join(HOME, step.cwd))
        if step.runs:
            self.start(text, variables, folder, step.runs)
        else:
            result = self.machine.run(
                "sh", "-c", text, user="pi", cwd=folder, environment=variables, given=step.given, is_checked=False
            )
            said = result.stdout + result.stderr
            self.assertEqual(result.returncode, step.status, said)
            self.assertRegex(said, re.compile(step.shows, re.MULTILINE))
            if printed := re.match(r"[\w-]{32,}$", result.stdout, re.MULTILINE):
                self.machine.write("/home/pi/token", printed[0] + "\n")
        if step.then:
            wait_until(lambda: self.does(step.then), f"{step.then!r} after {text!r}")

    def does(self, script):
        return self.machine.run("sh", "-c", script, cwd=HOME, is_checked=False).returncode == 0

    def start(self, text, variables, folder, words):
        """Start a command that keeps running, and wait until its log has the words."""
        type(self).background += 1
        unit = f"document-{self.background}"
        given = [f"--setenv={name}={value}" for name, value in variables.items()]
        self.machine.run(
            "systemd-run", "--quiet", f"--unit={unit}", "--uid=pi", f"--working-directory={folder}", *given,
            "--setenv=PYTHONUNBUFFERED=1", "sh", "-c", text,
        )  # fmt: skip
        self.machine.wait_for_log(unit, words)

    def talk(self, lines):
        """Carry out a session with a node, and check that it replies as the page shows."""
        _, _, host, port = shlex.split(lines[0])
        token = self.machine.sh("cat /home/pi/token 2>/dev/null || true").stdout.strip()
        said = [re.sub(r'"token": "[0-9a-f]+"', f'"token": "{token}"', line) for line in lines[1:]]
        self.machine.run("python3", "-c", TALK, host, port, json.dumps(said))

    def test_commands_of_readme_run(self):
        self.play("README.md")

    def test_commands_of_contributing_run(self):
        self.play("CONTRIBUTING.md")

    def test_commands_of_security_run(self):
        self.play("SECURITY.md")

    def test_commands_of_bench_run(self):
        self.play("bench/README.md")

    def test_commands_of_promise_run(self):
        self.play("docs/promise.md")

    def test_commands_of_demo_run(self):
        self.play("docs/demo.md")

    def test_commands_of_protocol_run(self):
        self.play("docs/protocol.md")

    def test_commands_of_tutorial_run(self):
        self.play("docs/tutorial.md")

    def test_commands_of_scale_run(self):
        self.play("docs/scale.md")

    def test_commands_of_sensors_run(self):
        self.play("docs/sensors.md")

    def test_commands_of_packages_run(self):
        self.play("docs/packages.md")

    def test_commands_of_data_run(self):
        self.play("docs/data.md")

    def test_commands_of_web_run(self):
        self.play("docs/web.md")

    def test_commands_of_monitoring_run(self):
        self.play("docs/monitoring.md")

    def test_commands_of_other_devices_run(self):
        self.play("docs/other-devices.md")

    def test_coming_from_file_drop(self):
        self.play("docs/coming-from-file-drop.md")

    def test_coming_from_multi_sensor(self):
        self.play("docs/coming-from-multi-sensor.md")

    def test_coming_from_pimonitor(self):
        self.play("docs/coming-from-pimonitor.md")

    def test_coming_from_practical_6(self):
        self.play("docs/coming-from-practical-6.md")

    def test_coming_from_tmon(self):
        self.play("docs/coming-from-tmon.md")


if __name__ == "__main__":
    unittest.main()
