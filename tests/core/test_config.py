"""Tests of settings: precedence, files, and errors."""

import argparse
import io
import itertools
import os
import subprocess
import sys
import unittest
from unittest import mock

from pigeonpost.core import config
from pigeonpost.core.config import Option, Setting, Written, add_flags, load, read_flags, read_options
from pigeonpost.core.errors import SettingsError
from tests.support import ROOT, temp_folder

ROWS = (
    Setting("node", "name", config.text, "nobody", "its name", "--name", "NAME"),
    Setting("node", "every", config.number(0.01, 86_400), 10.0, "seconds", "--every", "SECONDS"),
    Setting("node", "simulate", config.switch, False, "no chip", "--simulate"),
    Setting("node", "token", config.matching(lambda t: not t or len(t) > 3, "4 characters or more"), "", "its token",
            "--token", "TOKEN", secret=True),
    Setting("web", "listen", config.address(8080), ["0.0.0.0:8080"], "where", "--web", "HOST:PORT", many=True),
    Setting("outbox", "slots", config.number(64, 1 << 24, whole=True), 65_536, "how many"),
)  # fmt: skip


class Loading(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.default_file = os.path.join(self.folder, "node.toml")
        self.folders = [""]

    def write(self, text, name="node.toml"):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def load(self, *flags, **environment):
        parser = argparse.ArgumentParser()
        add_flags(parser, ROWS)
        elsewhere = {"server": "server.toml", "alert": "server.toml"}
        flags = parser.parse_args(flags)
        return load(ROWS, flags, self.default_file, ("sensor",), environment, self.folders, elsewhere)

    def refused(self, *flags, **environment):
        with self.assertRaises(SettingsError) as caught:
            self.load(*flags, **environment)
        return str(caught.exception)


class PlainFlags(unittest.TestCase):
    """Tests that arguments which are read without argparse have the meaning that argparse gives them."""

    def by_argparse(self, arguments):
        parser = argparse.ArgumentParser(exit_on_error=False)
        add_flags(parser, ROWS)
        try:
            with mock.patch.object(sys, "stderr", io.StringIO()), mock.patch.object(sys, "stdout", io.StringIO()):
                return vars(parser.parse_args(arguments))
        except (SystemExit, argparse.ArgumentError):
            return None

    def test_simple_arguments_are_read(self):
        found = read_flags(
            ROWS, ["--name", "a b", "--every=2", "--simulate", "--web", ":1", "--web", ":2", "--config", "f"]
        )
        self.assertEqual(
            vars(found),
            {
                "config": "f", "node_name": "a b", "node_every": "2", "node_simulate": True, "node_token": None,
                "web_listen": [":1", ":2"],
            },
        )  # fmt: skip
        self.assertEqual(vars(read_flags(ROWS, [])), self.by_argparse([]))

    def test_complex_arguments_are_left_to_argparse(self):
        for arguments in (
            ["--help"], ["-h"], ["--nam", "a"], ["--name"], ["--name", "-x"], ["--name", "--every"], ["--name="],
            ["--"], ["--config"], ["--simulate=1"], ["basement"], [""], ["--every", "-1"], ["--show"], ["-"],
        ):  # fmt: skip
            self.assertIsNone(read_flags(ROWS, arguments), arguments)

    def test_simple_arguments_are_read_as_by_argparse(self):
        words = (
            "--name", "--every", "--simulate", "--token", "--web", "--config", "--name=x", "--every=-1", "--web==", "a",
            "--web=a=b", "--simulate=", "--na", "", "-1", "--", "-h", "x y", "=", "--config=f", "--token=-t", "- x",
        )  # fmt: skip
        read = 0
        for length in (1, 2, 3):
            for arguments in itertools.product(words, repeat=length):
                found = read_flags(ROWS, list(arguments))
                if found is not None:
                    read += 1
                    self.assertEqual(vars(found), self.by_argparse(list(arguments)), arguments)
        self.assertGreater(read, 300)


class Precedence(Loading):
    def test_flag_overrides_environment_overrides_file_overrides_default(self):
        self.assertEqual(self.load()["node", "every"], 10.0)
        self.assertEqual(self.load().origin("node", "every"), "default")
        self.write("[node]\nevery = 4\n")
        self.assertEqual(self.load()["node", "every"], 4.0)
        self.assertEqual(self.load().origin("node", "every"), self.default_file)
        given = {"PIGEONPOST_NODE_EVERY": "3"}
        self.assertEqual(self.load(**given)["node", "every"], 3.0)
        self.assertEqual(self.load(**given).origin("node", "every"), "PIGEONPOST_NODE_EVERY")
        self.assertEqual(self.load("--every", "2", **given)["node", "every"], 2.0)
        self.assertEqual(self.load("--every", "2", **given).origin("node", "every"), "--every")

    def test_precedence_applies_to_each_key_separately(self):
        self.write('[node]\nevery = 4\nname = "file"\n')
        loaded = self.load("--name", "flag")
        self.assertEqual((loaded["node", "every"], loaded["node", "name"]), (4.0, "flag"))

    def test_config_names_another_file(self):
        self.write("[node]\nevery = 4\n")
        other = self.write("[node]\nevery = 5\n", "other.toml")
        loaded = self.load("--config", other)
        self.assertEqual((loaded["node", "every"], loaded.origin("node", "every")), (5.0, other))

    def test_without_a_file_toml_is_not_imported(self):
        code = (
            "import argparse, sys; from pigeonpost.core.config import load;"
            "load((), argparse.Namespace(config=None), '/nowhere'); assert 'tomllib' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

    def test_switches_accept_words_in_the_environment(self):
        self.assertIs(self.load()["node", "simulate"], False)
        self.assertIs(self.load("--simulate")["node", "simulate"], True)
        for word, value in (("1", True), ("yes", True), ("On", True), ("TRUE", True), ("0", False), ("off", False)):
            self.assertIs(self.load(PIGEONPOST_NODE_SIMULATE=word)["node", "simulate"], value)
        self.assertIs(self.load("--simulate", PIGEONPOST_NODE_SIMULATE="0")["node", "simulate"], True)

    def test_lists_are_read_from_file_environment_and_flags(self):
        self.assertEqual(self.load()["web", "listen"], [("0.0.0.0", 8080)])
        self.write('[web]\nlisten = ["a:1", "b"]\n')
        self.assertEqual(self.load()["web", "listen"], [("a", 1), ("b", 8080)])
        self.assertEqual(self.load(PIGEONPOST_WEB_LISTEN="c:3, d:4 ,")["web", "listen"], [("c", 3), ("d", 4)])
        self.assertEqual(self.load(PIGEONPOST_WEB_LISTEN=",")["web", "listen"], [])
        self.assertEqual(self.load("--web", "e:5", "--web", "[::1]:6")["web", "listen"], [("e", 5), ("::1", 6)])

    def test_empty_variables_are_ignored(self):
        """Docker compose and balena pass unset variables as empty ones."""
        self.write('[node]\nname = "file"\n[web]\nlisten = ["a:1"]\n')
        loaded = self.load(PIGEONPOST_NODE_NAME="", PIGEONPOST_WEB_LISTEN=" ", PIGEONPOST_NODE_EVERY="")
        self.assertEqual(loaded["node", "name"], "file")
        self.assertEqual(loaded["web", "listen"], [("a", 1)])
        self.assertEqual(loaded.origin("node", "every"), "default")

    def test_arrays_of_tables_are_returned(self):
        self.write('[[sensor]]\nkind = "machine"\n[[sensor]]\nkind = "adc"\n')
        self.assertEqual(self.load().tables, {"sensor": [{"kind": "machine"}, {"kind": "adc"}]})


class Search(Loading):
    """Tests of the search for the settings file, and of the description of its source."""

    def setUp(self):
        super().setUp()
        self.folders = [os.path.join(self.folder, name) for name in ("current", "program", "system")]
        for folder in self.folders:
            os.mkdir(folder)
        self.default_file = "node.toml"

    def load(self, *flags, **environment):
        loaded = super().load(*flags, **environment)
        return loaded["node", "every"], loaded.source

    def test_file_of_the_first_folder_is_used(self):
        nowhere = f"no node.toml in {', '.join(self.folders)}: using defaults, variables and flags"
        self.assertEqual(self.load(), (10.0, nowhere))
        for every, name in ((3, "system"), (2, "program"), (1, "current")):
            path = self.write(f"[node]\nevery = {every}\n", f"{name}/node.toml")
            self.assertEqual(self.load(), (every, path))
        other = self.write("", "other.toml")
        self.assertEqual(self.load("--config", other), (10.0, other))
        self.write("[node]\nevry = 1\n", "current/node.toml")
        self.assertIn(f"{self.folders[0]}/node.toml, line 2: [node]: unknown key", self.refused())

    def test_current_program_and_system_folders_are_searched(self):
        with mock.patch.object(sys, "argv", ["/opt/there/node.py"]):
            self.assertEqual(config.search_folders(), ("", "/opt/there", "/etc/pigeonpost"))

    def test_variable_with_the_text_replaces_the_file(self):
        path = self.write("[node]\nevery = 2\nname = 'file'\n", "system/node.toml")
        text = "node.every = 4"
        self.assertEqual(
            self.load(PIGEONPOST_NODE_TOML=text), (4.0, f"the variable PIGEONPOST_NODE_TOML, instead of {path}")
        )
        os.remove(path)
        self.assertEqual(self.load(PIGEONPOST_NODE_TOML=text), (4.0, "the variable PIGEONPOST_NODE_TOML"))
        self.assertEqual(self.load(PIGEONPOST_NODE_TOML=text, PIGEONPOST_NODE_EVERY="5")[0], 5.0)
        other = self.write("[node]\nevery = 6\n", "other.toml")
        self.assertEqual(self.load("--config", other, PIGEONPOST_NODE_TOML=text), (6.0, other))

    def test_empty_variable_does_not_replace_the_file(self):
        path = self.write("[node]\nevery = 2\n", "system/node.toml")
        for text in ("", " \n"):
            self.assertEqual(self.load(PIGEONPOST_NODE_TOML=text), (2.0, path))

    def test_the_variable_of_the_other_program_is_not_read(self):
        self.assertEqual(self.load(PIGEONPOST_SERVER_TOML="nonsense")[0], 10.0)

    def test_error_in_the_variable_contains_its_name_and_the_line(self):
        self.assertIn(
            "PIGEONPOST_NODE_TOML, line 2: [node] every takes a number",
            self.refused(PIGEONPOST_NODE_TOML="[node]\nevery = 0"),
        )
        self.assertEqual(
            'PIGEONPOST_NODE_TOML, line 1: not TOML: put text in quotes: name = "x"',
            self.refused(PIGEONPOST_NODE_TOML="name = x"),
        )

    def test_byte_order_mark_is_accepted(self):
        path = os.path.join(self.folders[0], "node.toml")
        with open(path, "wb") as file:
            file.write("[node]\nevery = 3\n".encode("utf-8-sig"))
        self.assertEqual(self.load(), (3.0, path))


class Refusals(Loading):
    """Tests that each error contains the origin, the table, the key, the accepted values and the given value."""

    def test_errors_contain_the_origin(self):
        self.write("[node]\nevery = 0\n")
        words = "[node] every takes a number from 0.01 to 86400, not"
        self.assertEqual(self.refused(), f"{self.default_file}, line 2: {words} 0")
        os.remove(self.default_file)
        self.assertEqual(self.refused(PIGEONPOST_NODE_EVERY="often"), f"PIGEONPOST_NODE_EVERY: {words} 'often'")
        self.assertEqual(self.refused("--every", "1e9"), f"--every: {words} '1e9'")

    def test_errors_contain_the_accepted_values(self):
        for text, words in (
            ("[node]\nname = 7\n", "[node] name takes a string, not 7"),
            ("[node]\nevery = true\n", "[node] every takes a number from 0.01 to 86400, not True"),
            ("[node]\nevery = nan\n", "[node] every takes a number from 0.01 to 86400, not nan"),
            ("[node]\nevery = inf\n", "[node] every takes a number"),
            ("[node]\nevery = [1]\n", "[node] every takes a number"),
            ("[node]\nevery = 1979-05-27\n", "[node] every takes a number"),
            (f"[node]\nevery = {'9' * 400}\n", "[node] every takes a number"),
            ("[node]\nsimulate = 1\n", "[node] simulate takes true or false, not 1"),
            ('[node]\nsimulate = "maybe"\n', "[node] simulate takes true or false, not 'maybe'"),
            ("[outbox]\nslots = 64.5\n", "[outbox] slots takes a whole number from 64 to 1.67772e+07, not 64.5"),
            ('[outbox]\nslots = "64.0"\n', "[outbox] slots takes a whole number from 64 to 1.67772e+07, not '64.0'"),
            ('[outbox]\nslots = "64"\n', "slots takes a whole number from 64 to 1.67772e+07, without quotes, not '64'"),
            ('[node]\nevery = "5"\n', "[node] every takes a number from 0.01 to 86400, without quotes, not '5'"),
            ('[node]\nsimulate = "on"\n', "[node] simulate takes true or false, without quotes, not 'on'"),
            (f"[outbox]\nslots = {'9' * 400}\n", "[outbox] slots takes a whole number"),
            ("[outbox]\nslots = inf\n", "[outbox] slots takes a whole number"),
            ('[web]\nlisten = "a:1"\n', "[web] listen takes a list, not 'a:1'"),
            ("[web]\nlisten = [1]\n", "[web] listen takes HOST:PORT, not 1"),
            (
                '[web]\nlisten = ["a:1", ":9"]\n',
                "[web] listen takes HOST:PORT, as in 192.168.1.20:5003 or [::]:5003 (the host is missing), not ':9'",
            ),
        ):
            with self.subTest(text[:40]):
                self.write(text)
                self.assertIn(words, self.refused())
                self.assertTrue(self.refused().startswith(f"{self.default_file}, line 2: ["))

    def test_secrets_in_tables_are_not_shown(self):
        path = os.path.join(temp_folder(self), "a.toml")
        with open(path, "w") as file:
            file.write(
                '[[sensor]]\nuser = "me"\npassword = "sesame"\nempty_token = ""\n'
                '[[sensor.list]]\nclient_secret = "sesame"\n[sensor.table.deep]\napi_key = "sesame"\n'
            )
        shown = load(ROWS, argparse.Namespace(config=path), "", ("sensor",), {}).show()
        self.assertNotIn("sesame", shown)
        for said in (
            'user = "me"',
            'password = "(set)"',
            'empty_token = ""',
            'client_secret = "(set)"',
            'api_key = "(set)"',
        ):
            self.assertIn(said, shown)

    def test_values_that_only_toml_allows_are_refused(self):
        for text, words in (
            (f"[node]\nname = {'[' * 5000}", "nested too deeply"),
            (f"[node]\n{'a.' * 3000}b = 1\n", "nested too deeply"),
            (f"[node]\nevery = 0x{'f' * 5000}\n", "node: every: the number is too large"),
            ('[node]\nname = "\\u0000"\n', "node: name: must not contain a NUL character"),
        ):
            with self.subTest(text[:40]):
                self.write(text)
                self.assertIn(words, self.refused())
                self.assertLess(len(self.refused()), 500)

    def test_unknown_keys_and_tables_are_refused(self):
        for text, words in (
            ("[node]\nevry = 1\n", "[node]: unknown key 'evry'; did you mean \"every\"?"),
            ("[node]\nx = 1\n", "[node]: unknown key 'x'; known keys: name, every, simulate, token"),
            ("[outbox]\nevery = 1\n", "[outbox]: unknown key 'every'; it belongs in [node]"),
            ("[outbox]\nx = 1\n", "[outbox]: unknown key 'x'; known keys: slots"),
            ("[nodes]\nevery = 1\n", ": unknown key 'nodes'; did you mean \"node\"?"),
            ("every = 1\n", ", line 1: every is not in a table: write [node] on a line above it"),
            ("x = 1\n", ", line 1: unknown key 'x'; known keys: node, web, outbox, sensor"),
            ("[x]\n", ", line 1: unknown key 'x'; known keys: node, web, outbox, sensor"),
            ("[server]\n", ", line 1: [server] belongs in server.toml"),
            ("server.name = 1\n", ", line 1: [server] belongs in server.toml"),
            ("\n[[alert]]\n", ", line 2: [[alert]] belongs in server.toml"),
            ("node = 1\n", ": node is a table and must be written as [node]"),
            ("sensor = 1\n", ": sensor must be written as [[sensor]], once per entry"),
            ("[sensor]\nkind = 1\n", ": sensor must be written as [[sensor]], once per entry"),
            ("[node\n", ", line 1: not TOML: write the table as [node]"),
            ("\0", ", line 1: not TOML: '\\x00' is not a valid key"),
            ("= 1", ", line 1: not TOML: a line must begin with a key"),
            (f"[node]\nevery = {'9' * 5000}\n", ": not TOML: "),
        ):
            with self.subTest(text):
                self.write(text)
                self.assertEqual(self.refused(), self.refused())
                self.assertIn(words, self.refused())
                self.assertTrue(self.refused().startswith(self.default_file))

    def test_unreadable_files_are_refused(self):
        self.assertEqual(self.refused("--config", "/nowhere.toml"), "/nowhere.toml: No such file or directory")
        self.assertEqual(self.refused("--config", self.folder), f"{self.folder}: Is a directory")
        with open(self.default_file, "wb") as file:
            file.write(b'[node]\nname = "\xff"\n')
        self.assertIn(", line 2: not TOML: byte 0xff (perhaps 'ÿ') is not UTF-8", self.refused())

    def test_invalid_secret_is_not_shown(self):
        for arguments in ({"PIGEONPOST_NODE_TOKEN": "abc"}, {}):
            if not arguments:
                self.write('[node]\ntoken = "abc"\n')
            said = self.refused(**arguments)
            self.assertNotIn("abc", said)
            self.assertIn("[node] token takes 4 characters or more, not the given value", said)
        os.remove(self.default_file)
        self.assertNotIn("abc", self.refused("--token", "abc"))


class Showing(Loading):
    def test_settings_are_shown_with_their_origin_and_without_secrets(self):
        path = self.write(
            '[node]\nname = "a \\"b\\" \\\\ °"\ntoken = "sesame"\n[[sensor]]\nkind = "adc"\nx = {y = [1, true]}\n'
        )
        shown = self.load("--web", "a:1", "--web", "[::1]:2", PIGEONPOST_NODE_EVERY="3").show()
        self.assertEqual(shown.splitlines(), [
            "[node] every = \"3\"  # PIGEONPOST_NODE_EVERY",
            f'[node] name = "a \\"b\\" \\\\ °"  # {path}',
            "[node] simulate = false  # default",
            f"[node] token = (set)  # {path}",
            "[outbox] slots = 65536  # default",
            '[web] listen = ["a:1", "[::1]:2"]  # --web',
            f'[[sensor]] {{kind = "adc", x = {{y = [1, true]}}}}  # {path}',
        ])  # fmt: skip
        self.assertNotIn("sesame", shown)
        self.assertIn("[node] token = (not set)  # default", self.load("--config", "/dev/null").show())

    def test_each_setting_is_shown_on_one_line(self):
        shown = self.load("--name", "a\nb\tc\x1b[2J").show()
        self.assertEqual(len(shown.splitlines()), len(ROWS))
        self.assertIn('name = "a\\nb\\tc\\u001b[2J"', shown)


class Options(unittest.TestCase):
    """Tests of the keys of a table in an array of tables."""

    OPTIONS = (
        Option("input", config.number(0, 7, whole=True), None, "which"),
        Option("kind", config.one_of("a", "b"), "a", "what"),
        Option("more", config.a_table, None, "a table"),
    )

    def test_missing_keys_get_their_defaults(self):
        self.assertEqual(read_options({}, self.OPTIONS, "x"), {"input": None, "kind": "a", "more": None})
        given = {"input": 3, "kind": "b", "more": {"x": 1}}
        self.assertEqual(read_options(given, self.OPTIONS, "x"), given)

    def test_errors_contain_the_position_of_the_table(self):
        where = "node.toml: [[sensor]] 2"
        for table, words in (
            ({"input": 8}, "input takes a whole number from 0 to 7, not 8"),
            ({"input": 3.5}, "input takes a whole number from 0 to 7, not 3.5"),
            ({"kind": "c"}, "kind takes 'a' or 'b', not 'c'"),
            ({"kind": ["a"]}, "kind takes 'a' or 'b', not ['a']"),
            ({"more": 1}, "more takes a table, not 1"),
            ({"inpt": 1}, "unknown key 'inpt'; did you mean \"input\"?"),
        ):
            with self.subTest(table), self.assertRaises(SettingsError) as caught:
                read_options(table, self.OPTIONS, where)
            self.assertEqual(str(caught.exception), f"{where}: {words}")


class Numbers(unittest.TestCase):
    def test_both_ends_of_a_range_are_accepted(self):
        parse = config.number(0.5, 2)
        for given, value in ((0.5, 0.5), (2, 2.0), (Written("1e0"), 1.0), (Written("0.5"), 0.5)):
            self.assertEqual(parse(given), value)
        whole = config.number(1, 3, whole=True)
        for given in (1, 3, Written("2"), 3.0):
            self.assertEqual((whole(given), type(whole(given))), (int(float(given)), int))
        texts = ("2", Written("4"), Written(""), Written(" "), Written("x"), Written("nan"), Written("9" * 5000))
        for given in (0, 4, 0.999, None, [], {}, True, float("nan"), 10**400, *texts):
            with self.assertRaises(ValueError):
                whole(given)


class DataFolder(unittest.TestCase):
    def test_data_folder_is_chosen_or_that_of_systemd_or_the_default(self):
        with mock.patch.dict(os.environ, STATE_DIRECTORY="/var/lib/a:/var/lib/b"):
            self.assertEqual(config.data_folder("/here"), "/here")
            self.assertEqual(config.data_folder(""), "/var/lib/a")
            del os.environ["STATE_DIRECTORY"]
            self.assertEqual(config.data_folder(""), "data")


if __name__ == "__main__":
    unittest.main()
