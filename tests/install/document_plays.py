"""Instructions for executing the commands of each document: preconditions, conditions to wait for, skipped commands.

An entry is found by text that the command contains. A command without an entry is executed unchanged and must exit with
status 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

HOME = "/home/pi/pigeonpost"  # copy of the checkout, and the user's working folder
PASSWORD = "correct horse battery\n"
_ONE_SAMPLE = "python3 control.py status | grep 'basement: .*last sample'"


class Step(NamedTuple):
    """Instructions for one command of a document.

    Attributes:
        skip: Reason why the command is not executed; empty if it is executed.
        first: Script that root runs before the command, in the user's folder.
        given: Standard input of the command.
        status: Expected exit status.
        shows: Regular expression that the output must match.
        runs: Text in the log after which the command continues in the background; empty for other commands.
        then: Script of root that must exit with status 0 after the command, within the time limit of a test.
        replace: Texts to replace in the command.
        cwd: Working folder, relative to the user's folder.
    """

    skip: str = ""
    first: str = ""
    given: str = ""
    status: int = 0
    shows: str = ""
    runs: str = ""
    then: str = ""
    replace: Mapping[str, str] = {}
    cwd: str = "."


class Play(NamedTuple):
    """Instructions for one document.

    Attributes:
        setup: Script that root runs first, in the user's folder, to create the preconditions of the text.
        environment: Variables in addition to PIGEONPOST_NODE_SIMULATE.
        elsewhere: Sections whose commands another test executes, with the file of this test.
        steps: Instructions by text that the command contains.
    """

    setup: str = ""
    environment: Mapping[str, str] = {}
    elsewhere: Mapping[str, str] = {}
    steps: Mapping[str, Step] = {}

    def step_of(self, command: str) -> tuple[str, Step]:
        """Return the key and the step of the first entry whose key is in `command` (with a line feed at its end)."""
        for words, step in self.steps.items():
            if words in command + "\n":
                return words, step
        return "", Step()


def _start(program: str, arguments: str) -> str:
    """Return a script that starts `program` as the user pi and waits until it is ready."""
    return (
        f"systemd-run --quiet --collect --unit=document-{program} --service-type=notify --uid=pi"
        f" --working-directory={HOME} --setenv=PIGEONPOST_NODE_SIMULATE=1 python3 {program}.py {arguments}\n"
    )


_NODE = _start("node", "--name basement --every 0.2")
_SERVER = _start("server", "--node basement@127.0.0.1")
_COLLECTING = f"{_NODE}{_SERVER}until {_ONE_SAMPLE}; do sleep 0.1; done\n"
_INSTALLED = r"""
sed 's/^simulate = false/simulate = true/; s/^every = 10/every = 0.2/; s/^name = ""/name = "basement"/' \
    node.default.toml > node.toml
sed 's/^nodes = \[\]/nodes = ["basement@127.0.0.1"]/' server.default.toml > server.toml
for program in node server; do python3 control.py install $program --write; done
rm node.toml server.toml
until python3 control.py --data /var/lib/pigeonpost-server status | grep 'last sample'; do sleep 0.1; done
"""
_STOP = "systemctl stop 'document-*'\n"
_IN_CI = ".ci/run executes it or an equivalent command"
_TAKES_MINUTES = "takes minutes; tests/test_document_blocks.py checks that the module exists"

# Changes that a reader of the tutorial makes in a text editor.
_WITH_TLS = r"""
cd /etc/pigeonpost
made=/var/lib/pigeonpost-server/certificate
sed -i "s|^certificate = .*|certificate = '$made.pem'|; s|^key = .*|key = '$made.key'|" server.toml
systemctl restart pigeonpost-server
curl --silent --insecure https://127.0.0.1:8080/healthz
"""
_WITH_ALERT = r"""
sed -i 's/^to = \[\]/to = ["you@example.org"]/; s/^host = "localhost"/host = "smtp.example.org"/' \
    /etc/pigeonpost/server.toml
printf '[[alert]]\nsilent = 600\n' >> /etc/pigeonpost/server.toml
"""
_HAS_PASSWORD_OF_MAIL = r"""
curl --silent --insecure https://127.0.0.1:8080/healthz &&
tr '\0' '\n' < /proc/$(systemctl show -P MainPID pigeonpost-server)/environ | grep MAIL_PASSWORD=secret
"""
_FILES_TO_SEND = r"""
echo 10000000a1b2c3d5 cellar > ids.txt
mkdir /home/pi/readings
printf 'time,temperature\n2026-11-20T15:36:10Z,21.5\n' > /home/pi/readings/a.csv
chown -R pi: /home/pi
"""
# Component C4 of the multicast bus, and an old configuration with two components.
_BUS = r"""
ip route add 224.0.0.0/4 dev lo
for address in 192.168.136.4 192.168.0.225; do ip address add $address/24 dev lo; done
mkdir component
cat > component/node.toml << END
[bus]
enabled = true
codifiers = ["temperature=C4"]
alive = 0.5
END
cat > config.json << END
{"Sensors": [
    {"Codifier": "C4", "ShortName": "Air", "Type": "TempLinux", "Sensor": {"File": "/x"}},
    {"Codifier": "F1", "ShortName": "Soil", "Type": "TempLinux", "Sensor": {"File": "/y"}}]}
END
chown -R pi: .
""" + _start("node", "--config component/node.toml --data component --listen 127.0.0.1:0 --every 0.2")
# Databases of older systems, and readings of an old year.
_OLD_FILES = r'''
mkdir old
python3 - << END
import sqlite3
with sqlite3.connect("old/tmon.sqlite3") as db:
    db.executescript("""
        CREATE TABLE node (id INTEGER PRIMARY KEY, name TEXT, token TEXT);
        CREATE TABLE temperature (
            id INTEGER PRIMARY KEY, node_id INTEGER REFERENCES node (id), timestamp TEXT, value TEXT);
        INSERT INTO node VALUES (1, 'attic', 'x');
        INSERT INTO temperature (node_id, timestamp, value) VALUES (1, '2023-01-02 10:00:00', '20812');
    """)
with sqlite3.connect("old.db") as db:
    db.executescript("""
        CREATE TABLE readings (time TEXT, temperature REAL);
        INSERT INTO readings VALUES ('2023-01-02 10:00:00', 20.8);
        CREATE TABLE log (at TEXT, room TEXT, t REAL, h REAL);
        INSERT INTO log VALUES ('2023-01-02 10:00:00', 'kitchen', 20.8, 40);
    """)
END
printf 'time,temperature\n2023-01-02T11:00:00Z,20.8\n' > 2023.csv
chown -R pi: old old.db 2023.csv
'''
# A reading in the month that docs/data.md exports, so that the test does not depend on the date.
_NOVEMBER = r"""
printf 'time,node,sensor,value,unit\n2026-11-20T15:36:10Z,basement,temperature,21.5,°C\n' > of-november.csv
python3 control.py import of-november.csv
"""
# Values of the sensors that docs/data.md calibrates, besides the temperature.
_TO_CALIBRATE = r"""
printf 'time,node,sensor,value,unit\n2026-11-20T15:36:10Z,cellar,humidity,47,%%\n' > instruments.csv
printf '2026-11-20T15:36:10Z,garden,moisture,655,\n' >> instruments.csv
python3 control.py import instruments.csv
"""
_UNPACKED = "mkdir unpacked; tar -xf /mnt/usb/pigeonpost.tar -C unpacked; chown -R pi: unpacked"
_HAS_SAMPLES = "python3 control.py --data /var/lib/pigeonpost-server status | grep 'basement: .*last sample'"
_DAMAGED_OUTBOX = r"""
cp data/outbox.ring outbox.ring.damaged-20261129-231500
chown pi: outbox.ring.damaged-*
"""
_OF_TMON = r"""
curl --silent --data '{"type": "temperature", "token": "'$(cat /home/pi/token)'", "data": {"temperature": "20812"}}' \
    http://127.0.0.1:13117/temp | grep true
"""

# Documents whose commands are all executed by another test.
ELSEWHERE = {
    "docs/install.md": "tests/install/test_systemd_page.py",
    "docs/containers.md": "tests/install/test_containers.py",
    "docs/forwarding.md": "tests/programs/test_forward_pigeonpost.py",
}

PLAYS = {
    "README.md": Play(
        steps={
            "server.py --demo": Step(runs="the page is at", then=f"curl -s http://127.0.0.1:8080/ | grep -E"
                                     f" 'temperature +-?[0-9]' && {_STOP}"),
            "raspi-config nonint do_spi 0": Step(skip="the machine has no SPI"),
            "control.py token basement": Step(shows=r"^[0-9a-f]{32}$"),
            "node.py --name basement": Step(runs="listening on"),
            "server.py --node basement@192.168.1.20": Step(runs="the page is at", then=_ONE_SAMPLE),
            "python3 -m unittest": Step(skip=_IN_CI),
        },
    ),
    "CONTRIBUTING.md": Play(
        steps={
            "python3 -m unittest": Step(skip=_IN_CI),
            "python3 -m venv .venv": Step(skip=_IN_CI),
            ".venv/bin/pip install": Step(skip=_IN_CI),
        },
    ),
    "SECURITY.md": Play(
        setup=f"{_COLLECTING}python3 control.py token basement",
        steps={"control.py revoke basement": Step(shows=r"^[0-9a-f]{32}$")},
    ),
    "bench/README.md": Play(
        steps={
            "-m bench.soak": Step(skip=_IN_CI),
            "-m bench.": Step(skip=_TAKES_MINUTES),
        },
    ),
    "docs/promise.md": Play(
        steps={
            "tests.run tests.faults": Step(skip=_IN_CI),
            "tests.faults.test_kills": Step(skip=_IN_CI),
            "tests.faults.simulate --seed 4711": Step(),
            "-m bench.soak": Step(skip=_IN_CI),
        },
    ),
    "docs/demo.md": Play(
        steps={
            "server.py --demo": Step(runs="the page is at", then="curl -s http://127.0.0.1:8080/demo | grep"
                                     f" 'taken = [1-9].*Stored twice: 0. Missing without a trace: 0' && {_STOP}"),
            "control.py --data lesson verify": Step(shows="none missing, none stored twice"),
        },
    ),
    "docs/protocol.md": Play(setup=_NODE),
    "docs/tutorial.md": Play(
        elsewhere={"5. Start at boot": "tests/install/test_systemd_tutorial.py"},
        steps={
            "server.py --demo": Step(runs="the page is at"),
            "curl http://127.0.0.1:8080/log": Step(shows=r"temperature -?[0-9]", then=_STOP),
            "nc 192.168.1.20": Step(first=(
                "token=$(python3 control.py token basement); echo $token > /home/pi/token\n"
                + _start("node", "--name basement --every 0.2 --token $token"))),
            "nc 127.0.0.1": Step(first=f"{_STOP}{_NODE}"),
            "pigeonpost-server password": Step(
                first=f"{_STOP}{_INSTALLED}", given=PASSWORD, then="curl -s http://127.0.0.1:8080/ | grep /login"),
            "pigeonpost-server certificate": Step(shows=r"^[0-9a-f]{64}$", then=_WITH_TLS),
            "/etc/pigeonpost/server.env": Step(first=_WITH_ALERT, given="PIGEONPOST_MAIL_PASSWORD=secret\n"),
            "restart pigeonpost-server": Step(then=_HAS_PASSWORD_OF_MAIL),
            "pigeonpost-server check": Step(
                first="systemctl stop pigeonpost-server", then="grep -q 'mail -s pigeonpost' /tmp/stubs"),
            "docker compose exec server": Step(skip="tests/install/test_containers.py runs a similar command"),
        },
    ),
    "docs/monitoring.md": Play(
        setup=_COLLECTING,
        steps={
            "cp deploy/prometheus": Step(first="groupadd prometheus; mkdir /etc/prometheus"),
            "api-token prometheus": Step(then="grep -E '^\\S{32,}$' /etc/prometheus/pigeonpost.token"),
            "reload prometheus": Step(skip="the machine has no Prometheus"),
            "export --format sqlite readings.sqlite3": Step(then="test -s readings.sqlite3"),
        },
    ),
    "docs/scale.md": Play(
        steps={
            "apt install postgresql": Step(skip="needs a mirror: .ci/run installs it for tests/libraries"),
            "createuser --pwprompt pigeon": Step(skip="asks for a password: tests/libraries/postgres.py"),
            "createdb --owner pigeon": Step(skip="needs the same PostgreSQL: tests/libraries/postgres.py"),
            "apt install redis-server": Step(skip="needs a mirror: .ci/run installs it for tests/libraries"),
        },
    ),
    "docs/sensors.md": Play(
        steps={
            "control.py scan > node.toml": Step(then="python3 node.py --show | grep -F '[[sensor]] {'"),
            "cat /sys/bus/iio": Step(skip="the machine has no such device"),
            "grep . /sys/class/hwmon": Step(skip="the machine has no such device"),
            "ls /sys/bus/w1": Step(skip="the machine has no such device"),
            "sudo dtc ": Step(skip="needs a mirror, and the machine has no such folder: compiled by hand"),
        },
    ),
    "docs/packages.md": Play(
        elsewhere={"pipx": "tests/install/test_packages.py"},
        steps={
            "bundle node node.pyz": Step(then="python3 node.pyz --version"),
            "bundle server server.pyz": Step(then="python3 server.pyz --version"),
            "bundle control control.pyz": Step(then="python3 control.pyz --version"),
            "enable --now pigeonpost-node": Step(
                first="sed -i 's/^simulate = false/simulate = true/' /etc/pigeonpost/node.toml",
                then="systemctl is-active pigeonpost-node"),
            "enable --now pigeonpost-server": Step(
                then="curl -s http://127.0.0.1:8080/healthz && apt-get purge --yes pigeonpost"),
            "scp ": Step(then="grep -q 'scp pigeonpost_.*_all.deb pi@basement.local:' /tmp/stubs"),
            "ssh ": Step(then="grep -q 'ssh pi@basement.local sudo dpkg --install' /tmp/stubs"),
        },
    ),
    "docs/data.md": Play(
        setup=f"install -d -o pi /mnt/usb\n{_COLLECTING}",
        steps={
            "backup /mnt/usb/pigeonpost.tar": Step(then="test -s /mnt/usb/pigeonpost.tar"),
            "restore /var/lib/pigeonpost-server/tokens.json.bak": Step(
                first=f"{_STOP}{_INSTALLED}python3 control.py --data /var/lib/pigeonpost-server token attic"),
            "restore /mnt/usb/pigeonpost.tar": Step(shows="samples"),
            "start pigeonpost-server": Step(then=_HAS_SAMPLES),
            "find * -type f": Step(first=_UNPACKED, cwd="unpacked", then="python3 control.py verify NEW.tar"),
            "control.py verify": Step(first=_NOVEMBER, shows="none missing, none stored twice"),
            "--out all.csv": Step(then="grep -q ,basement,temperature, all.csv"),
            "--out november.csv": Step(then="grep -q 2026-11-20 november.csv"),
            "gzip > week.jsonl.gz": Step(then="gzip --test week.jsonl.gz"),
            "rename basement cellar": Step(then="python3 control.py export | grep -q ,cellar,"),
            "retire attic": Step(first=f"{_OLD_FILES}python3 control.py import --node attic 2023.csv"),
            "cellar humidity 47=50": Step(first=_TO_CALIBRATE),
            "temperature --remove": Step(shows="removed"),
            "import --check": Step(first="cp 2023.csv old.csv", shows="2023-01-02"),
            "import november.csv week.jsonl": Step(shows=r"november\.csv: (1 reading|(?!1 )[\d,]+ readings),"),
            "old/tmon.sqlite3": Step(shows="1 reading, 1 new"),
            "--table readings --node attic old.db": Step(shows="1 reading, 1 new"),
            "--query": Step(shows="1 reading, [01] new"),
            "postgresql://user@host/sensors": Step(skip="needs a PostgreSQL: tests/libraries/test_postgres_tables.py"),
            "export --out rescued.csv": Step(then="test -s rescued.csv"),
            "mkdir damaged": Step(then="test -s damaged/pigeonpost.sqlite3"),
            "read-outbox data/outbox.ring": Step(shows="time,node,epoch,seq,sensor,value"),
            "outbox.ring.damaged-": Step(first=_DAMAGED_OUTBOX, then="grep -q basement rescued.jsonl"),
        },
    ),
    "docs/web.md": Play(
        setup=_COLLECTING,
        steps={
            "control.py certificate": Step(shows=r"^[0-9a-f]{64}$", then="test -s data/certificate.pem"),
            "control.py password  ": Step(given=PASSWORD),
            "guest --role viewer": Step(given=PASSWORD),
            "password --list": Step(shows=r"guest +viewer"),
            "api-token prometheus": Step(shows=r"^\S{32,}$"),
            "api-tokens  ": Step(shows=r"(?s)prometheus +viewer.*thermostat +operator"),
            "revoke --api thermostat": Step(
                first="python3 control.py api-token reader > /home/pi/token; sleep 0.1",
                then="! python3 control.py api-tokens | grep thermostat"),
            "127.0.0.1:8080/api/v1/nodes\n": Step(shows='"basement"'),
            '"any:$TOKEN"': Step(shows="pigeonpost_reading"),
            "format=csv": Step(shows=",temperature,"),
            "/log.csv": Step(then="grep -q temperature log.csv"),
            "-o chart.svg": Step(then="grep -q '<svg' chart.svg"),
            "--no-buffer": Step(runs="data:"),
            '{"on": false}': Step(
                first="python3 control.py api-token switch --role operator > /home/pi/token",
                then="python3 control.py status | grep -i 'basement: off'"),
            "nodes/basement/check": Step(shows="basement|{"),
            "/healthz": Step(shows="ok"),
        },
    ),
    "docs/other-devices.md": Play(
        setup=_COLLECTING,
        steps={
            "api-token devices": Step(
                shows=r"^\S{32,}$",
                then="python3 control.py api-token curl --role writer > /home/pi/token; sleep 0.1"),
            '-d \'{"node"': Step(shows='{"stored":1,"repeated":0}'),
            "@readings.json": Step(
                first="""echo '[{"node": "attic", "values": {"t": 1}, "id": 1}]' > readings.json""",
                shows='{"stored":1,"repeated":0}'),
            "/proc/loadavg": Step(
                runs="readings in the queue", then="until python3 control.py status | grep shed; do sleep 0.1; done"),
            "--value 3.2": Step(),
            "install -D": Step(skip="the machine has no 1-wire sensor"),
            "pigeonpost-client.service": Step(skip="the machine has no 1-wire sensor"),
            "enable --now pigeonpost-client": Step(skip="the machine has no 1-wire sensor"),
            "api/v2/write": Step(),
        },
    ),
    "docs/coming-from-file-drop.md": Play(
        setup=_FILES_TO_SEND,
        environment={"PIGEONPOST_PI_ID": "10000000a1b2c3d4"},
        steps={
            "--import ids.txt": Step(then="python3 control.py file-id | grep 10000000a1b2c3d5"),
            "server.py --web": Step(runs="the page is at"),
            "python3 control.py send-files": Step(then="ls data/files | grep 10000000a1b2c3d4_a.csv"),
            "/opt/pigeonpost/control.py send-files": Step(
                first=f"ln -s {HOME} /opt/pigeonpost; echo 1 > /home/pi/readings/b.txt",
                then="ls data/files | grep 10000000a1b2c3d4_b.txt; rm /opt/pigeonpost"),
        },
    ),
    "docs/coming-from-multi-sensor.md": Play(
        setup=_BUS,
        steps={
            "control.py watch  ": Step(runs="C4 -> @@"),
            "--either C4": Step(shows="C4 -> @@"),
            "watch --from C4": Step(shows="C4 -> @@"),
            "say ping C4": Step(shows="C4 answered"),
            "control.py router": Step(runs="226.0.0.221:7001"),
            "old-config config.json C4 F1": Step(then="python3 node.py --show | grep C4"),
        },
    ),
    "docs/coming-from-pimonitor.md": Play(
        steps={
            "PIGEONPOST_PIMONITOR_API_KEY": Step(
                runs="the page is at", then="curl -s -d '{}' http://127.0.0.1:8080/ | grep api_hash"),
        },
    ),
    "docs/coming-from-practical-6.md": Play(
        steps={
            "node.py --name pi1": Step(runs="listening on", then=_STOP),
            "control.py token pi1": Step(
                shows=r"^[0-9a-f]{32}$",
                then=_start("node", "--name pi1 --every 0.2 --token $(cat /home/pi/token)")),
            "python3 server.py": Step(
                runs="the page is at", then="python3 control.py status | grep 'pi1: .*last sample'"),
        },
    ),
    "docs/coming-from-tmon.md": Play(
        steps={
            "get-token attic": Step(shows=r"^[0-9a-f]{32}$"),
            "server.py --web": Step(runs="the page is at", then=_OF_TMON),
            "mail -s pigeonpost": Step(
                first=_STOP, replace={"/path/to/control.py": f"{HOME}/control.py", "/path/to/data": f"{HOME}/data"},
                then="grep -q 'mail -s pigeonpost' /tmp/stubs"),
        },
    ),
}  # fmt: skip
