"""Tests that the programs accept every example in the documentation: settings, command lines, variables, units.

`OTHERS` lists all other examples with a reason. tests/install/test_documents_run.py executes the commands.
"""

import argparse
import contextlib
import functools
import importlib.util
import os
import re
import shlex
import tomllib
import unittest
from types import SimpleNamespace
from typing import NamedTuple

import control
import node
import server
from pigeonpost.alerts.registry import alert_channels, alert_rules, report_plans
from pigeonpost.compat import pimonitor
from pigeonpost.core.config import read_options
from pigeonpost.core.errors import MissingLibrary, PigeonpostError
from pigeonpost.integrations.forward_settings import read_forward_tables
from pigeonpost.integrations.forward_targets import KINDS
from pigeonpost.server.node_settings import read_nodes
from pigeonpost.server.quality import read_rules
from pigeonpost.settings import NODE, NODE_ARRAYS, SERVER, SERVER_ARRAYS, load_node, load_server, unknown_variables
from tests.document_blocks import (
    Block,
    blocks_of,
    command_lines,
    documents,
    inline_code,
    own_command,
    own_commands,
    plain_command,
    read_document,
    simple_commands,
)
from tests.install.document_plays import ELSEWHERE, PLAYS
from tests.page_support import main_here, use_memory_disk
from tests.support import ROOT, temp_folder

# Commands of other programs in the examples. An unknown command is a spelling mistake, or must be added here.
COMMANDS = frozenset({
    "apt", "balena", "cat", "cd", "cp", "createdb", "createuser", "curl", "docker", "dtc", "echo", "find", "grep",
    "groupadd", "gunzip", "gzip", "install", "journalctl", "ls", "mail", "mkdir", "mv", "pigeonpost", "pigeonpost-node",
    "pigeonpost-server", "pip", "pipx", "podman", "python3", "raspi-config", "scp", "sed", "sh", "ssh", "systemctl",
    "systemd-sysusers", "tar",
})  # fmt: skip


class Place(NamedTuple):
    """Identifies a block by its document and by text that no other block of this document contains."""

    document: str
    words: str


_KERNEL = '[[sensor]]\nkind = "kernel"\n'
_CHANNEL = '[sensor.channels.{}]\nfrom = "iio/bme280/temp"\n'
# Incomplete settings, with the lines that must precede them in a file.
BEFORE = {
    Place("docs/web.md", 'names = ["sensors.example.org"]'): "[web]\n",
    Place("docs/web.md", "proxies = ["): "[web]\n",
    Place("docs/sensors.md", "[sensor.channels.greenhouse]"): _KERNEL,
    Place("docs/sensors.md", 'kind = "formula"'): _KERNEL
    + "".join(_CHANNEL.format(name) for name in ("room", "humidity", "rate", "flow", "back", "pump")),
}
# Placeholders in the examples, with valid values for the test.
FILLED_IN = {
    'certificate = "..."': f'certificate = "{"ab" * 32}"',
    '"env:NEST_SECRET"': '"secret"',
    '"file:/etc/pigeonpost/nest"': '"token"',
}
# Blocks that are neither settings nor commands: the type of each, and the test that covers it, if any.
OTHERS = {
    Place("docs/forwarding.md", "out_of_order_time_window"): "settings of Prometheus",
    Place("docs/forwarding.md", '{"server": "home",'): "a request: tests/integrations/test_webhook_batches.py",
    Place("docs/forwarding.md", '{"value":23.4,'): "a message: tests/integrations/test_mqtt_topics.py",
    Place("docs/architecture.md", "node.py, on the Pi with the sensors"): "a diagram",
    Place("docs/promise.md", "sample ─→ slot in the ring"): "a diagram",
    Place("docs/coming-from-pimonitor.md", "POST /   {"): "a request: tests/compat/test_pimonitor.py",
    Place("docs/coming-from-tmon.md", "POST /temp"): "a request: tests/compat/test_tmon.py",
    Place(
        "docs/containers.md", 'volumes: ["node-data:/data'
    ): "a line of docker-compose.yml: tests/install/test_containers.py",
    Place("docs/containers.md", '"/mnt/usb:/backup"'): "a line of docker-compose.yml, in place of another",
    Place("docs/containers.md", "devices:"): "lines of docker-compose.yml: tests/install/test_containers.py",
    **{
        Place("docs/python.md", words): "Python: tests/libraries/test_notebook.py"
        for words in ("import Client", "import pandas", "tz_convert", "import polars", "statistics(", "client.send(")
    },
    Place("docs/alerts.md", "Alert: temperature of greenhouse"): "subjects: tests/alerts/test_engine.py",
    Place("docs/protocol.md", "$ nc 127.0.0.1 5003"): "a session, shortened",
    Place("docs/protocol.md", '{"seq": 151, "time": "'): "a sample",
    Place("docs/protocol.md", '{"seq": 151, "time": ['): "samples in columns: tests/link/test_columns.py",
    Place("docs/scale.md", "FROM pigeonpost.readings"): "SQL: tests/libraries/test_postgres_schema.py",
    Place("docs/protocol.md", "server  HELLO {"): "a session, shortened: tests/transports/test_tcp_session.py",
    Place("docs/protocol.md", "GAP 8d1f03a2c4b5e697"): "a line of the link",
    Place("docs/protocol.md", "<node's nonce>\n"): "a signed text",
    Place("docs/protocol.md", "<node's nonce>|tls:<SHA-256>"): "a signed text",
    Place("docs/protocol.md", '"pigeonpost":1'): "an announcement",
    Place("docs/protocol.md", "POST /api/v1/samples"): "requests and answers, shortened",
    Place("docs/protocol.md", '"base": 150'): "a message over MQTT, shortened",
    Place("docs/data.md", "SELECT time, sensor, value FROM readings\n"): "SQL: tests/storage/sqlite/test_schema.py",
    Place("docs/data.md", "DESC, time DESC LIMIT 100"): "SQL: tests/storage/sqlite/test_schema.py",
    Place("docs/data.md", "sum(c.count)"): "SQL: tests/storage/sqlite/test_schema.py",
    Place("docs/data.md", "FROM statistics"): "SQL: tests/storage/sqlite/test_schema.py",
    Place("docs/data.md", "import sqlite3, pandas"): "Python: tests/storage/sqlite/test_schema.py",
    Place("docs/data.md", "import pandas\n"): "Python: tests/libraries/test_exports.py",
    Place("docs/data.md", "import polars\n"): "Python: tests/libraries/test_exports.py",
    Place("docs/data.md", "import duckdb\n"): "Python: tests/libraries/test_exports.py",
    Place("docs/data.md", "datasette /var/lib"): "another program, which does not exit",
    Place("docs/other-devices.md", '[{"node": "shed"'): "a file: tests/programs/test_line_protocol_clients.py",
    Place("docs/other-devices.md", "outputs.influxdb_v2"): "of Telegraf: tests/programs/test_line_protocol_clients.py",
    Place("docs/other-devices.md", "outputs.influxdb]]"): "of Telegraf: tests/programs/test_line_protocol_clients.py",
    Place("docs/other-devices.md", "Backlog IfxHost"): "commands of Tasmota, from its source xdrv_59_influxdb.ino",
    Place("docs/other-devices.md", "HTTPClient http;"): "C++ for Arduino, not compiled by a test",
    Place("docs/other-devices.md", "import urequests"): "Python: tests/programs/test_line_protocol_clients.py",
    Place("docs/sensors.md", "/dts-v1/;"): "a device tree overlay, compiled by hand with dtc 1.6.1",
    Place("docs/tutorial.md", "$ nc 192.168.1.20 5003"): "a session: tests/install/test_documents_run.py",
    Place("docs/tutorial.md", "$ nc 127.0.0.1 5003"): "a session: tests/install/test_documents_run.py",
    Place("docs/web.md", "POST /api/v1/annotations"): "a request: tests/views/test_annotations.py",
    Place("docs/web.md", '"light": 812'): "a response: tests/views/test_readings_api.py",
    Place("docs/monitoring.md", "job_name: pigeonpost"): "settings of Prometheus: tests/programs/test_prometheus.py",
    Place("docs/monitoring.md", "/var/lib/grafana/dashboards"): "needs Grafana, which is not in Debian",
    Place("docs/monitoring.md", "datasette -i"): "a server that does not exit: tests/programs/test_datasette.py",
    Place("docs/monitoring.md", "/etc/avahi/services"): "the machine has no Avahi",
    Place("docs/monitoring.md", "PIGEONPOST_URL="): "variables of Grafana: tests/programs/test_grafana.py",
    Place("docs/monitoring.md", "CREATE ROLE grafana"): "SQL: tests/programs/test_grafana.py",
    Place("docs/monitoring.md", "/api/v1/readings?"): "an address: tests/views/test_readings_api.py",
    Place("docs/monitoring.md", "http_sd_configs"): "settings of Prometheus: tests/programs/test_prometheus.py",
    Place("docs/web.md", "listen 443 ssl;"): "settings of nginx: tests/install/test_proxies.py",
    Place("docs/web.md", "location /sensors/ {"): "settings of nginx: tests/install/test_proxies.py",
    Place("docs/web.md", "ProxyPreserveHost On"): "settings of Apache: tests/install/test_proxies.py",
    Place("docs/web.md", "RequestHeader set X-Forwarded-Prefix"): "settings of Apache: tests/install/test_proxies.py",
    Place("docs/web.md", "reverse_proxy 127.0.0.1:8080\n}"): "settings of Caddy: tests/install/test_proxies.py",
    Place("docs/web.md", "credentials: TOKEN"): "settings of Prometheus: tests/install/test_prometheus.py",
    Place("docs/web.md", "basic_auth:"): "settings of Prometheus: tests/install/test_prometheus.py",
}


def setUpModule():
    use_memory_disk()


@functools.cache
def all_blocks():
    return [block for document in documents() for block in blocks_of(document)]


def entry_for(table, block):
    """Return the entry for a block in a table with Place keys, or None."""
    for place, entry in table.items():
        if place.document == block.document and place.words in block.text + "\n":
            return entry
    return None


def kind_of(block):
    """Return the kind of an example: others, settings, unit, variables, commands, or an empty string if unknown."""
    if entry_for(OTHERS, block):
        return "others"
    if entry_for(BEFORE, block) or re.match(r"\[\[?[a-z]", block.text):
        return "settings"
    if re.match(r"\[[A-Z][a-z]+\]\n", block.text):
        return "unit"
    if all(re.match(r"(TZ|PIGEONPOST_[A-Z_]+)=", word) for word in shlex.split(block.text, comments=True)):
        return "variables"
    return "commands" if names_of_commands(block.text) <= COMMANDS else ""


def names_of_commands(text):
    """Return the names of all commands in a block."""
    commands = [plain_command(words) for line in command_lines(text) for words in simple_commands(line)]
    return {os.path.basename(words[0]) for words in commands if words}


def is_session(block):
    return block.text.startswith("$ nc ")


def commands_of(document):
    """Yield every command of a document in order, with the heading of its section."""
    found = [
        Block(document, block.line, line) if kind_of(block) == "commands" else block
        for block in blocks_of(document) if kind_of(block) == "commands" or is_session(block)
        for line in ([block.text] if is_session(block) else command_lines(block.text))
    ]  # fmt: skip
    lines = read_document(document).split("\n")
    found += [
        code for code in inline_code(document) if lines[code.line - 1].startswith("| Pi ")
    ]  # the table in README.md
    for one in sorted(found, key=lambda one: one.line):
        headings = [line.lstrip("# ") for line in lines[: one.line] if re.match(r"##+ ", line)]
        yield headings[-1] if headings else "", one


class BlockKinds(unittest.TestCase):
    def test_each_block_is_indented_and_not_fenced(self):
        for document in documents():
            self.assertNotRegex(read_document(document), "(?m)^ *(```|~~~)", document)

    def test_each_block_is_classified(self):
        for block in all_blocks():
            with self.subTest(block.where):
                self.assertTrue(
                    kind_of(block),
                    f"{block.where} contains neither settings nor known commands. Correct it, add its program to"
                    f" COMMANDS, or add the block to OTHERS with the reason, in {os.path.relpath(__file__, ROOT)}:\n"
                    f"{block.text}",
                )

    def test_each_table_entry_matches_exactly_one_block(self):
        for place in [*OTHERS, *BEFORE]:
            with self.subTest(place):
                matches = [
                    block.where for block in all_blocks()
                    if block.document == place.document and place.words in block.text + "\n"
                ]  # fmt: skip
                self.assertEqual(len(matches), 1, matches)

    def test_documents_contain_examples_of_each_kind(self):
        kinds = [kind_of(block) for block in all_blocks()]
        for kind, least in (("settings", 20), ("unit", 3), ("variables", 2), ("commands", 60), ("others", 20)):
            self.assertGreaterEqual(kinds.count(kind), least, kind)


class SettingsBlocks(unittest.TestCase):
    """Each block of settings is accepted by its program, including the objects created from it."""

    def setUp(self):
        self.file = os.path.join(temp_folder(self), "settings.toml")

    def load(self, text, load):
        with open(self.file, "w", encoding="utf-8") as file:
            file.write(text)
        return load(SimpleNamespace(config=self.file), {}, ())

    def test_each_settings_block_is_accepted(self):
        for block in all_blocks():
            if kind_of(block) == "settings":
                with self.subTest(block.where, text=block.text):
                    self.check((entry_for(BEFORE, block) or "") + block.text)

    def check(self, text):
        for words, filled in FILLED_IN.items():
            text = text.replace(words, filled)
        tables = {(name, isinstance(table, list)) for name, table in tomllib.loads(text).items()}
        checks = [(load_node, check_node, tables_of(NODE, NODE_ARRAYS)),
                  (load_server, check_server, tables_of(SERVER, SERVER_ARRAYS))]  # fmt: skip
        programs = [(load, check) for load, check, known in checks if tables <= known]
        self.assertTrue(programs, f"no program knows all of the tables {sorted(tables)}")
        for load, check in programs:
            check(self.load(text, load))

    def test_invalid_key_is_detected(self):
        for text in (
            '[node]\nnmae = "x"\n',
            '[[sensor]]\nkind = "kernel"\n[sensor.channels.a]\nform = "w1/28-1"\n',
            '[[alert]]\nsilnt = 1\n',
            '[[limits]]\nnode = "a"\nsensor = "b"\nlowest = 1\n',
            '[[node]]\nname = "a"\naddr = "b"\n',
            '[[location]]\nname = "a"\nzones = "b"\n',
            '[[forward]]\nname = "a"\nkind = "influxdb"\ndatabse = "b"\n',
            "[webs]\n",
        ):  # fmt: skip
            with self.subTest(text), self.assertRaises((PigeonpostError, AssertionError)):
                self.check(text)


def tables_of(settings, arrays):
    """Return the names of a program's tables, each with True if it is an array of tables."""
    return {*((setting.table, False) for setting in settings), *((name, True) for name in arrays)}


def check_node(settings):
    """Create the objects that a node creates from its tables."""
    if settings.tables.get("sensor"):
        node.make_sources(settings)


def check_server(settings):
    """Create the objects that a server creates from its tables."""
    read_nodes(settings)
    read_rules(settings.tables.get("limits", ()), settings.file)
    report_plans(settings)
    if alert_rules(settings) or settings["report", "every"]:
        alert_channels(settings)
    for target in read_forward_tables(settings.tables.get("forward", ()), settings.file, KINDS):
        with contextlib.suppress(MissingLibrary):  # paho-mqtt: the values of the keys are checked before
            KINDS[target.kind](target.table, target.where, SimpleNamespace(name="home", names=None)).close()
    for table in settings.tables.get("location", ()):
        read_options(table, pimonitor.LOCATION, settings.file)


class Variables(unittest.TestCase):
    def test_each_variable_is_known_and_its_value_is_accepted(self):
        for block in all_blocks():
            kind = kind_of(block)
            for text in (
                [block.text] if kind == "variables" else command_lines(block.text) if kind == "commands" else ()
            ):
                with self.subTest(block.where, text=text):
                    self.check(text)

    def check(self, text):
        words = shlex.split(text, comments=True)
        variables = dict(word.split("=", 1) for word in words if re.match(r"PIGEONPOST_[A-Z_]+=", word))
        variables = {name: value for name, value in variables.items() if not name.startswith("PIGEONPOST_TEST_")}
        self.assertEqual(unknown_variables(variables), [])
        variables = {name: "0" * 32 if value == "..." else value for name, value in variables.items()}
        nobody = SimpleNamespace(config=None)
        check_node(load_node(nobody, variables, ()))
        check_server(load_server(nobody, variables, ()))


@functools.cache
def control_parser():
    return control.make_parser()


def control_commands():
    """Return the parsers of the commands of control.py by name."""
    (actions,) = [one for one in control_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return actions.choices


class CommandLines(unittest.TestCase):
    """Each Pigeonpost command line is accepted by the parser of its program."""

    def setUp(self):
        folder = temp_folder(self)
        self.empty = os.path.join(folder, "empty.toml")
        with open(self.empty, "w", encoding="utf-8"):
            pass

    def check(self, program, arguments):
        """Parse the arguments, for node and server including the values. A failure shows the parser's message."""
        if program == "control":
            status, _, told = main_here(SimpleNamespace(main=self.parse_control), *arguments)
        else:
            is_given = "--config" in arguments
            arguments = [self.empty if word == "FILE" else word for word in arguments]
            more = ["--show"] if is_given else ["--show", "--config", self.empty]
            status, _, told = main_here({"node": node, "server": server}[program], *arguments, *more)
        self.assertEqual(status, 0, told)

    @staticmethod
    def parse_control(arguments):
        control_parser().parse_args(arguments)
        return 0

    def test_each_command_in_a_block_is_accepted(self):
        count = 0
        for block in all_blocks():
            if kind_of(block) == "commands":
                for line, program, arguments in own_commands(block.text):
                    with self.subTest(block.where, line=line):
                        self.check(program, arguments)
                    count += 1
        self.assertGreater(count, 60)

    def test_each_inline_command_is_accepted(self):
        count = 0
        for document in documents():
            for code in inline_code(document):
                if re.match(r"(PIGEONPOST_\w+=\S+ |sudo )*python3 \S*(control|node|server)\.py( |$)", code.text):
                    with self.subTest(code.where, code=code.text):
                        for _, program, arguments in own_commands(code.text):
                            self.check(program, arguments)
                    count += 1
        self.assertGreater(count, 20)

    def test_each_mentioned_command_and_flag_exists(self):
        for document in documents():
            for code in inline_code(document):
                if match := re.match(r"control\.py ([a-z-]+)(.*)", code.text):
                    with self.subTest(code.where, code=code.text):
                        self.check_named(match[1], re.findall(r"(?<= )--[a-z0-9-]+", match[2]))

    def check_named(self, command, flags):
        if command.startswith("--"):
            self.assertTrue(any(command in one._option_string_actions for one in control_commands().values()))
            return
        self.assertIn(command, control_commands())
        self.assertLessEqual(set(flags), set(control_commands()[command]._option_string_actions))

    def test_invalid_command_line_is_detected(self):
        for program, arguments in (
            ("control", ["tokn", "a"]), ("control", ["token"]), ("control", ["export", "--form", "csv", "--x"]),
            ("node", ["--evry", "5"]), ("node", ["--every", "soon"]), ("server", ["--node", "a b@c"]),
        ):  # fmt: skip
            with self.subTest(arguments), self.assertRaises(AssertionError):
                self.check(program, arguments)

    def test_each_module_in_an_example_exists(self):
        count = 0
        examples = [*all_blocks(), *(code for document in documents() for code in inline_code(document))]
        for example in examples:
            for module, named in re.findall(r"python3? -m ([a-z_.]+)((?: [a-z_]+(?:\.[a-z_0-9]+)+)*)", example.text):
                for name in [module, *named.split()]:
                    with self.subTest(example.where, module=name):
                        self.assertIsNotNone(importlib.util.find_spec(name))
                    count += 1
        self.assertGreater(count, 20)


class UnitBlocks(unittest.TestCase):
    def test_each_unit_key_occurs_in_the_units_of_deploy(self):
        known = set()
        for folder, _, names in os.walk(os.path.join(ROOT, "deploy")):
            for name in names:
                if name.endswith((".service", ".socket", ".conf")):
                    with open(os.path.join(folder, name), encoding="utf-8") as file:
                        known |= set(re.findall(r"^([A-Z]\w+)=", file.read(), re.MULTILINE))
        for block in all_blocks():
            if kind_of(block) == "unit":
                for line in block.text.split("\n")[1:]:
                    with self.subTest(block.where, line=line):
                        self.assertRegex(line, r"^[A-Z]\w+=")
                        self.assertIn(line.partition("=")[0], known)


class DocumentPlays(unittest.TestCase):
    """tests/install/document_plays.py matches the documents."""

    def test_every_document_with_commands_has_a_play(self):
        with_commands = {document for document in documents() if any(commands_of(document))}
        self.assertEqual(with_commands, {*PLAYS, *ELSEWHERE})

    def test_each_play_is_executed_by_a_test(self):
        with open(os.path.join(ROOT, "tests", "install", "test_documents_run.py"), encoding="utf-8") as file:
            played = re.findall(r'self\.play\("(.+)"\)', file.read())
        self.assertCountEqual(played, PLAYS)

    def test_each_step_belongs_to_a_command(self):
        for document, play in PLAYS.items():
            commands = list(commands_of(document))
            used = {play.step_of(command.text)[0] for _, command in commands} | {heading for heading, _ in commands}
            for words in (*play.steps, *play.elsewhere):
                with self.subTest(document, words=words):
                    self.assertIn(words, used, "no command of the document contains this text")

    def test_each_referenced_test_file_exists(self):
        for path in (*ELSEWHERE.values(), *(path for play in PLAYS.values() for path in play.elsewhere.values())):
            self.assertTrue(os.path.exists(os.path.join(ROOT, path)), path)


class BlockParser(unittest.TestCase):
    """tests/document_blocks.py itself."""

    def test_shell_line_is_split_into_commands(self):
        for line, commands in (
            ("python3 control.py check || mail -s x a@b  # told", [["python3", "control.py", "check"],
                                                                    ["mail", "-s", "x", "a@b"]]),
            ("*/5 * * * * out=$(python3 c.py check 2>&1) || echo \"$out\"", [["out=$"], ["python3", "c.py", "check"],
                                                                             ["echo", "$out"]]),
            ("python3 control.py scan > node.toml", [["python3", "control.py", "scan"]]),
            ("sed -i 's/a|b/c/' f", [["sed", "-i", "s/a|b/c/", "f"]]),
        ):  # fmt: skip
            with self.subTest(line):
                self.assertEqual(simple_commands(line), commands)

    def test_pigeonpost_command_is_found_in_another_command(self):
        for line, own in (
            ("sudo python3 /opt/pigeonpost/control.py --data D check", ("control", ["--data", "D", "check"])),
            ("A=1 python3 node.py --name x", ("node", ["--name", "x"])),
            ("docker compose exec server python3 control.py password", ("control", ["password"])),
            ("docker compose run --rm --entrypoint python3 server control.py restore F", ("control", ["restore", "F"])),
            ("sudo cp -r node.py server.py control.py /opt", None),
            ("pigeonpost-server --demo", ("server", ["--demo"])),
        ):
            with self.subTest(line):
                self.assertEqual(own_command(simple_commands(line)[0]), own)

    def test_block_ends_with_its_indentation(self):
        blocks = blocks_of("README.md")
        self.assertEqual(blocks[0].text, "python3 server.py --demo")
        self.assertIsInstance(blocks[0], Block)
        self.assertEqual([command_lines("a \\\n  b\n\nc")], [["a b", "c"]])


if __name__ == "__main__":
    unittest.main()
