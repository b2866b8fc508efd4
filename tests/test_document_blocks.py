"""Every example in the documents is one that the programs accept: settings, command lines, variables, units.

What is none of these is in `OTHERS`, with its reason. tests/install/test_documents_run.py executes the commands.
"""

import argparse
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
from pigeonpost.alerts.registry import alert_channels, alert_rules
from pigeonpost.compat import pimonitor
from pigeonpost.core.config import read_options
from pigeonpost.core.errors import PigeonpostError
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

# Commands of others that an example may use. A new one is added here, or it is a spelling mistake.
COMMANDS = frozenset({
    "apt", "balena", "cat", "cd", "cp", "createdb", "createuser", "curl", "docker", "echo", "find", "grep", "groupadd",
    "gunzip", "gzip", "install", "journalctl", "ls", "mail", "mkdir", "mv", "pigeonpost", "pigeonpost-node",
    "pigeonpost-server", "pip", "pipx", "podman", "python3", "raspi-config", "scp", "sed", "sh", "ssh", "systemctl",
    "systemd-sysusers", "tar",
})  # fmt: skip


class Place(NamedTuple):
    """A block, by its document and by words that no other block of it has."""

    document: str
    words: str


_KERNEL = '[[sensor]]\nkind = "kernel"\n'
_CHANNEL = '[sensor.channels.{}]\nfrom = "iio/bme280/temp"\n'
# Settings that are a part of a table or need others: what stands before them in a file.
BEFORE = {
    Place("docs/web.md", 'names = ["sensors.example.org"]'): "[web]\n",
    Place("docs/web.md", "proxies = ["): "[web]\n",
    Place("docs/sensors.md", "[sensor.channels.greenhouse]"): _KERNEL,
    Place("docs/sensors.md", 'kind = "formula"'): _KERNEL
    + "".join(_CHANNEL.format(name) for name in ("room", "humidity", "rate", "flow", "back", "pump")),
}
# What a reader replaces by their own value, or puts elsewhere, where the programs look at the value.
FILLED_IN = {
    'certificate = "..."': f'certificate = "{"ab" * 32}"',
    '"env:NEST_SECRET"': '"secret"',
    '"file:/etc/pigeonpost/nest"': '"token"',
}
# Blocks that are no settings and no commands, with the reason why, and the test that has them where there is one.
OTHERS = {
    Place("docs/architecture.md", "node.py, on the Pi with the sensors"): "a drawing",
    Place("docs/promise.md", "sample ─→ slot in the ring"): "a drawing",
    Place("docs/coming-from-pimonitor.md", "POST /   {"): "a request: tests/compat/test_pimonitor.py",
    Place("docs/coming-from-tmon.md", "POST /temp"): "a request: tests/compat/test_tmon.py",
    Place(
        "docs/containers.md", 'volumes: ["node-data:/data'
    ): "a line of docker-compose.yml: tests/install/test_containers.py",
    Place("docs/containers.md", '"/mnt/usb:/backup"'): "a line of docker-compose.yml, in place of another",
    Place("docs/containers.md", "devices:"): "lines of docker-compose.yml: tests/install/test_containers.py",
    Place("docs/protocol.md", "$ nc 127.0.0.1 5003"): "a conversation, shortened",
    Place("docs/protocol.md", '{"seq": 151, "time": "'): "a sample",
    Place("docs/protocol.md", '{"seq": 151, "time": ['): "samples in columns: tests/link/test_columns.py",
    Place("docs/scale.md", "FROM pigeonpost.readings"): "SQL: tests/libraries/test_postgres_schema.py",
    Place("docs/protocol.md", "server  HELLO {"): "a conversation, shortened: tests/transports/test_tcp_session.py",
    Place("docs/protocol.md", "GAP 8d1f03a2c4b5e697"): "a line of the link",
    Place("docs/protocol.md", "<node's nonce>\n"): "a text that is signed",
    Place("docs/protocol.md", "<node's nonce>|tls:<SHA-256>"): "a text that is signed",
    Place("docs/protocol.md", '"pigeonpost":1'): "an announcement",
    Place("docs/protocol.md", "POST /api/v1/samples"): "requests and answers, shortened",
    Place("docs/protocol.md", '"base": 150'): "a message over MQTT, shortened",
    Place("docs/data.md", "SELECT time, sensor, value FROM readings\n"): "SQL: tests/storage/sqlite/test_schema.py",
    Place("docs/data.md", "DESC, time DESC LIMIT 100"): "SQL: tests/storage/sqlite/test_schema.py",
    Place("docs/data.md", "sum(c.count)"): "SQL: tests/storage/sqlite/test_schema.py",
    Place("docs/data.md", "FROM statistics"): "SQL: tests/storage/sqlite/test_schema.py",
    Place("docs/data.md", "import sqlite3, pandas"): "Python: tests/storage/sqlite/test_schema.py",
    Place("docs/data.md", "datasette /var/lib"): "another program, which stays until it is ended",
    Place("docs/tutorial.md", "$ nc 192.168.1.20 5003"): "a conversation: tests/install/test_documents_run.py",
    Place("docs/tutorial.md", "$ nc 127.0.0.1 5003"): "a conversation: tests/install/test_documents_run.py",
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


def found_in(table, block):
    """The entry of a table by Place that is about a block; None where there is none."""
    for place, entry in table.items():
        if place.document == block.document and place.words in block.text + "\n":
            return entry
    return None


def kind_of(block):
    """What an example is: others, settings, unit, variables or commands; empty for what nobody has classified."""
    if found_in(OTHERS, block):
        return "others"
    if found_in(BEFORE, block) or re.match(r"\[\[?[a-z]", block.text):
        return "settings"
    if re.match(r"\[[A-Z][a-z]+\]\n", block.text):
        return "unit"
    if all(re.match(r"(TZ|PIGEONPOST_[A-Z_]+)=", word) for word in shlex.split(block.text, comments=True)):
        return "variables"
    return "commands" if names_of_commands(block.text) <= COMMANDS else ""


def names_of_commands(text):
    """The names of all commands in a block, without those of variables alone."""
    commands = [plain_command(words) for line in command_lines(text) for words in simple_commands(line)]
    return {os.path.basename(words[0]) for words in commands if words}


def is_conversation(block):
    return block.text.startswith("$ nc ")


def commands_of(document):
    """Every command of a document in order, each with the heading that it is below."""
    found = [
        Block(document, block.line, line) if kind_of(block) == "commands" else block
        for block in blocks_of(document) if kind_of(block) == "commands" or is_conversation(block)
        for line in ([block.text] if is_conversation(block) else command_lines(block.text))
    ]  # fmt: skip
    lines = read_document(document).split("\n")
    found += [code for code in inline_code(document) if lines[code.line - 1].startswith("| Pi ")]  # README's table
    for one in sorted(found, key=lambda one: one.line):
        headings = [line.lstrip("# ") for line in lines[: one.line] if re.match(r"##+ ", line)]
        yield headings[-1] if headings else "", one


class Classes(unittest.TestCase):
    def test_each_block_is_classified(self):
        for block in all_blocks():
            with self.subTest(block.where):
                self.assertTrue(
                    kind_of(block),
                    f"{block.where} is neither settings nor commands that are known. Correct it; or add its program to"
                    f" COMMANDS, or the block to OTHERS with the reason, in {os.path.relpath(__file__, ROOT)}:\n"
                    f"{block.text}",
                )

    def test_each_entry_of_the_tables_is_about_one_block(self):
        for place in [*OTHERS, *BEFORE]:
            with self.subTest(place):
                matches = [
                    block.where for block in all_blocks()
                    if block.document == place.document and place.words in block.text + "\n"
                ]  # fmt: skip
                self.assertEqual(len(matches), 1, matches)

    def test_there_are_examples_of_each_kind(self):
        kinds = [kind_of(block) for block in all_blocks()]
        for kind, least in (("settings", 20), ("unit", 3), ("variables", 2), ("commands", 60), ("others", 20)):
            self.assertGreaterEqual(kinds.count(kind), least, kind)


class SettingsBlocks(unittest.TestCase):
    """Each block of settings is accepted by the program that it is for, with all that the program makes of it."""

    def setUp(self):
        self.file = os.path.join(temp_folder(self), "settings.toml")

    def load(self, text, load):
        with open(self.file, "w", encoding="utf-8") as file:
            file.write(text)
        return load(SimpleNamespace(config=self.file), {}, ())

    def test_each_is_accepted(self):
        for block in all_blocks():
            if kind_of(block) == "settings":
                with self.subTest(block.where, text=block.text):
                    self.check((found_in(BEFORE, block) or "") + block.text)

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

    def test_a_wrong_key_is_noticed(self):
        for text in (
            '[node]\nnmae = "x"\n',
            '[[sensor]]\nkind = "kernel"\n[sensor.channels.a]\nform = "w1/28-1"\n',
            '[[alert]]\nsilnt = 1\n',
            '[[limits]]\nnode = "a"\nsensor = "b"\nlowest = 1\n',
            '[[node]]\nname = "a"\naddr = "b"\n',
            '[[location]]\nname = "a"\nzones = "b"\n',
            "[webs]\n",
        ):  # fmt: skip
            with self.subTest(text), self.assertRaises((PigeonpostError, AssertionError)):
                self.check(text)


def tables_of(settings, arrays):
    """The tables of a program, each with whether it is an array."""
    return {*((setting.table, False) for setting in settings), *((name, True) for name in arrays)}


def check_node(settings):
    """Make what a node makes of its tables."""
    if settings.tables.get("sensor"):
        node.make_sources(settings)


def check_server(settings):
    """Make what a server makes of its tables."""
    read_nodes(settings)
    read_rules(settings.tables.get("limits", ()), settings.file)
    if alert_rules(settings) or settings["report", "every"]:
        alert_channels(settings)
    for table in settings.tables.get("location", ()):
        read_options(table, pimonitor.LOCATION, settings.file)


class Variables(unittest.TestCase):
    def test_each_is_known_and_its_value_is_accepted(self):
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
    """The commands of control.py, each with its parser."""
    (actions,) = [one for one in control_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return actions.choices


class CommandLines(unittest.TestCase):
    """Each command line of ours is accepted by the parser of its program."""

    def setUp(self):
        folder = temp_folder(self)
        self.empty = os.path.join(folder, "empty.toml")
        with open(self.empty, "w", encoding="utf-8"):
            pass

    def check(self, program, arguments):
        """Parse arguments, and of node and server the values too; the message of a failure is the parser's."""
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

    def test_each_of_a_block_is_accepted(self):
        count = 0
        for block in all_blocks():
            if kind_of(block) == "commands":
                for line, program, arguments in own_commands(block.text):
                    with self.subTest(block.where, line=line):
                        self.check(program, arguments)
                    count += 1
        self.assertGreater(count, 60)

    def test_each_within_a_sentence_or_a_table_is_accepted(self):
        count = 0
        for document in documents():
            for code in inline_code(document):
                if re.match(r"(PIGEONPOST_\w+=\S+ |sudo )*python3 \S*(control|node|server)\.py( |$)", code.text):
                    with self.subTest(code.where, code=code.text):
                        for _, program, arguments in own_commands(code.text):
                            self.check(program, arguments)
                    count += 1
        self.assertGreater(count, 20)

    def test_each_command_and_flag_that_is_named_exists(self):
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

    def test_a_wrong_command_line_is_noticed(self):
        for program, arguments in (
            ("control", ["tokn", "a"]), ("control", ["token"]), ("control", ["export", "--form", "csv", "--x"]),
            ("node", ["--evry", "5"]), ("node", ["--every", "soon"]), ("server", ["--node", "a b@c"]),
        ):  # fmt: skip
            with self.subTest(arguments), self.assertRaises(AssertionError):
                self.check(program, arguments)

    def test_each_module_exists(self):
        count = 0
        examples = [*all_blocks(), *(code for document in documents() for code in inline_code(document))]
        for example in examples:
            for module, named in re.findall(r"python3? -m ([a-z_.]+)((?: [a-z_]+(?:\.[a-z_0-9]+)+)*)", example.text):
                for name in [module, *named.split()]:
                    with self.subTest(example.where, module=name):
                        self.assertIsNotNone(importlib.util.find_spec(name))
                    count += 1
        self.assertGreater(count, 20)


class Units(unittest.TestCase):
    def test_each_key_is_one_that_our_own_units_have(self):
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


class Plays(unittest.TestCase):
    """tests/install/document_plays.py fits the documents."""

    def test_no_document_with_commands_is_left_out(self):
        with_commands = {document for document in documents() if any(commands_of(document))}
        self.assertEqual(with_commands, {*PLAYS, *ELSEWHERE})

    def test_each_step_is_one_of_a_command(self):
        for document, play in PLAYS.items():
            commands = list(commands_of(document))
            used = {play.step_of(command.text)[0] for _, command in commands} | {heading for heading, _ in commands}
            for words in (*play.steps, *play.elsewhere):
                with self.subTest(document, words=words):
                    self.assertIn(words, used, "no command of the document has these words any more")

    def test_each_test_that_has_the_commands_exists(self):
        for path in (*ELSEWHERE.values(), *(path for play in PLAYS.values() for path in play.elsewhere.values())):
            self.assertTrue(os.path.exists(os.path.join(ROOT, path)), path)


class Reading(unittest.TestCase):
    """tests/document_blocks.py itself."""

    def test_commands_in_a_line(self):
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

    def test_our_own_command_in_others(self):
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

    def test_a_block_ends_with_the_indentation(self):
        blocks = blocks_of("README.md")
        self.assertEqual(blocks[0].text, "python3 server.py --demo")
        self.assertIsInstance(blocks[0], Block)
        self.assertEqual([command_lines("a \\\n  b\n\nc")], [["a b", "c"]])


if __name__ == "__main__":
    unittest.main()
