"""The operator's command line, against a real server and a real node."""

import argparse
import http.client
import io
import json
import os
import re
import socket
import sqlite3
import stat
import threading
import unittest
from contextlib import closing
from unittest import mock

import control
from pigeonpost.storage.chunks import COLUMNS, ChunkRow
from pigeonpost.storage.csv.checksums import logs_in
from tests import page_support
from tests.page_support import Node, Server, for_class, use_memory_disk
from tests.support import LIMIT_S, free_port, temp_folder, wait_until


def setUpModule():
    use_memory_disk()


class ControlCase(unittest.TestCase):
    def setUp(self):
        self.data = temp_folder(self)

    def run_(self, *arguments, said="", data=None, **environment):
        """One command, without a process of its own: exit status, standard output, standard error."""
        return page_support.control_here("--data", data or self.data, *arguments, said=said, **environment)

    def done(self, *arguments, **more):
        """The standard output of a command that succeeds."""
        status, out, told = self.run_(*arguments, **more)
        self.assertEqual(status, 0, told)
        return out

    def assert_fails(self, status, text, *arguments, **more):
        found, out, told = self.run_(*arguments, **more)
        self.assertEqual(found, status, told)
        self.assertIn(text, told or out)
        self.assertNotIn("Traceback", told)


class DataFolder(unittest.TestCase):
    def test_is_here_else_the_installed_services(self):
        folder = temp_folder(self)
        service = os.path.join(folder, "service")
        settings = control.load_server(argparse.Namespace(config=None), {}, ())
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        with mock.patch.object(control, "SERVICE_DATA", service), mock.patch.dict(os.environ):
            os.environ.pop("STATE_DIRECTORY", None)
            self.assertEqual(control.data_folder(settings), "data")
            os.symlink("/nonexistent/private", service)  # as root's own folder looks to others
            self.assertEqual(control.data_folder(settings), service)
            os.environ["STATE_DIRECTORY"] = "/state"
            self.assertEqual(control.data_folder(settings), "/state")
            del os.environ["STATE_DIRECTORY"]
            os.mkdir("data")
            self.assertEqual(control.data_folder(settings), "data")


class Tokens(ControlCase):
    def test_one_is_shown_once(self):
        status, token, told = self.run_("token", "basement")
        self.assertEqual(status, 0)
        self.assertRegex(token, r"^[0-9a-f]{32}\n$")
        self.assertIn("PIGEONPOST_NODE_TOKEN", told)
        self.assertIn("--node basement@ADDRESS", told)
        self.assert_fails(1, "basement has a token already: `get-token basement` shows it", "token", "basement")
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.data, "tokens.json")).st_mode), 0o600)

    def test_get_token_prints_the_same_each_time(self):
        token = self.done("get-token", "basement")
        self.assertRegex(token, r"^[0-9a-f]{32}\n$")
        self.assertEqual(self.done("get_token", "basement"), token)
        self.assertNotEqual(self.done("get_token", "attic"), token)

    def test_list_and_revoke(self):
        self.assertEqual(self.done("tokens"), "")
        first = self.done("token", "basement")
        self.done("token", "attic")
        self.assertEqual(self.done("tokens"), "attic\nbasement\n")
        self.assertEqual(self.done("revoke", "basement"), "")
        self.assertEqual(self.done("tokens"), "attic\n")
        self.assert_fails(1, "basement has no token; `tokens` lists those that have", "revoke", "basement")
        self.assertNotEqual(self.done("token", "basement"), first)

    def test_rotate_shows_a_new_one_and_what_to_do(self):
        self.assert_fails(1, "basement has no token to replace; `token basement` makes one", "rotate", "basement")
        old = self.done("token", "basement")
        status, new, told = self.run_("rotate", "basement")
        self.assertEqual(status, 0)
        self.assertRegex(new, r"^[0-9a-f]{32}\n$")
        self.assertNotEqual(new, old)
        self.assertIn("accepted until it uses the new one, for 1 h at most", told)
        self.assertEqual(self.done("get-token", "basement"), new)

    def test_the_token_that_a_node_has_is_read(self):
        self.done("token", "basement", "--set", said="a token of the node's own\n")
        self.assertEqual(self.done("get-token", "basement"), "a token of the node's own\n")
        for said in ("", "short\n", "x" * 1025, "with a\ttab in its middle\n"):
            self.assert_fails(1, "a token is 16 to 1024 printable characters", "token", "attic", "--set", said=said)
        text = "that is the token of basement: each node takes one of its own"
        self.assert_fails(1, text, "token", "attic", "--set", said="a token of the node's own\n")

    def test_names_that_are_none(self):
        for name in ("../x", "a b", "", "x" * 64, "-x"):
            self.assertEqual(self.run_("token", "--", name)[0], 2, name)
        self.assert_fails(2, "'a b' is no node name", "token", "a b")

    def test_a_file_that_does_not_read(self):
        with open(os.path.join(self.data, "tokens.json"), "w", encoding="utf-8") as file:
            file.write("[")
        self.assert_fails(2, "tokens.json is damaged", "tokens")


class Passwords(ControlCase):
    def test_through_a_pipe(self):
        """In a process of its own, as scripts do it."""
        status, out, told = page_support.control(self, "--data", self.data, "password", said="correct horse\nmore\n")
        self.assertEqual((status, out), (0, ""))
        self.assertEqual(told, "The page now asks for a password; the user is admin.\n")
        path = os.path.join(self.data, "users.json")
        with open(path, encoding="utf-8") as file:
            content = file.read()
        self.assertNotIn("correct horse", content)
        self.assertEqual((list(json.loads(content)), stat.S_IMODE(os.stat(path).st_mode)), (["admin"], 0o600))

    def test_of_another_user(self):
        self.done("password", "guest", said="correct horse")
        with open(os.path.join(self.data, "users.json"), encoding="utf-8") as file:
            self.assertEqual(list(json.load(file)), ["guest"])

    def test_what_is_no_password(self):
        self.assert_fails(2, "a password has 8 to 1024 characters, not 5", "password", said="short\n")
        self.assert_fails(2, "a password has 8 to 1024 characters, not 0", "password")
        self.assert_fails(2, "a user name is letters", "password", "a/b", said="correct horse")
        self.assertFalse(os.path.exists(os.path.join(self.data, "users.json")))

    def test_at_a_terminal_it_is_asked_for_twice(self):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        for answers, status in ((["correct horse"] * 2, 0), (["correct horse", "wrong horse"], 1)):
            with mock.patch("getpass.getpass", side_effect=answers), mock.patch("io.StringIO", Terminal):
                found, _, told = self.run_("password")
            self.assertEqual(found, status, told)
        self.assertIn("the two differ; nothing was changed", told)


class Running(ControlCase):
    """A server, and a node that it collects from."""

    @classmethod
    def setUpClass(cls):
        # For all tests of the class, each of which puts back what it changes.
        cls.node = Node(for_class(cls))
        cls.server = Server(for_class(cls), "--node", cls.node.at)
        cls.server.page  # noqa: B018  # wait for it
        wait_until(lambda: "is reporting" in cls.server.get("/")[1], "the node reports")

    def setUp(self):
        self.data = self.server.data

    def test_status(self):
        line = self.done("status")
        self.assertRegex(line, r"^basement: on; last sample 20\d\d-\d\d-\d\dT[\d:.]+Z\n$")
        self.assertRegex(self.done("status", "basement"), r"^basement: on; ")
        self.assert_fails(1, "the server knows no node 'attic'; it knows basement", "status", "attic")

    def test_send(self):
        try:
            self.assertEqual(self.done("send", "basement", "off"), "basement is off\n")
            self.assertRegex(self.done("status"), r"^basement: OFF; last sample ")
            self.assertIn("Node basement is switched off", self.server.get("/")[1])
        finally:
            self.assertEqual(self.done("send", "basement", "on"), "basement is on\n")
        self.assertRegex(self.done("status"), r"^basement: on; ")
        self.assert_fails(1, "does not collect from a node of that name", "send", "attic", "on")
        self.assert_fails(2, "invalid choice: 'maybe'", "send", "basement", "maybe")

    def test_check(self):
        """In a process of its own, as cron has it."""
        wait_until(lambda: "is reporting" in self.server.get("/")[1], "the node reports")
        self.assertEqual(page_support.control(self, "--data", self.data, "check"), (0, "", ""))

    def test_alive(self):
        self.assertEqual(self.run_("alive"), (0, "", ""))

    def test_verify_beside_it(self):
        status, out, told = self.run_("verify")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"^\d+ samples of 1 nodes: all there, each once\n$")
        self.assertIn("the server runs, so the logs are not compared with the store", told)

    def test_a_node_itself(self):
        """`--link` asks the node, not the server."""
        self.assertRegex(self.done("status", "--link", self.node.place), r'^STATUS ON \d\d:\d\d:\d\d \{.*"held":')
        try:
            self.assertEqual(self.done("send", "basement", "off", "--link", self.node.place), "SENDBACK OFF\n")
            self.assertRegex(self.done("status", "--link", self.node.place), r"^STATUS OFF ")
        finally:
            self.assertEqual(self.done("send", "basement", "on", "--link", self.node.place), "SENDBACK ON\n")

    def test_alive_without_a_server_asks_the_node_at_the_address_of_its_settings(self):
        port = self.node.place.rpartition(":")[2]
        for listen in (f"127.0.0.1:{port}", f"0.0.0.0:{port}"):
            found = self.run_("alive", data=temp_folder(self), PIGEONPOST_NODE_LISTEN=listen)
            self.assertEqual(found, (0, "", ""))

    def test_the_key_is_only_for_who_may_read_it(self):
        with open(os.path.join(self.data, "running.json"), encoding="utf-8") as file:
            about = json.load(file)
        self.assertEqual((about["pid"], about["web"]), (self.server.process.pid, [list(self.server.page)]))
        link = http.client.HTTPConnection(*self.server.page, timeout=LIMIT_S)
        self.addCleanup(link.close)
        link.request("GET", "/api/v1/nodes", headers={"Authorization": f"Bearer {about['key'][:-1]}?"})
        self.assertEqual(link.getresponse().status, 401)


class Trouble(ControlCase):
    def test_no_server(self):
        for command in (("status",), ("send", "basement", "on"), ("check",)):
            self.assert_fails(1, f"no server runs on {self.data} (--data DIR names another folder)", *command)

    def test_a_damaged_file_of_the_running_server_is_named(self):
        for text in ("", "{", "[]", "5", '{"pid": 1}', '{"pid": 1, "web": 5, "key": "x"}', '{"web": [[1]], "key": 2}'):
            with open(os.path.join(self.data, "running.json"), "w", encoding="ascii") as file:
                file.write(text)
            self.assert_fails(1, "running.json is damaged: restart the server", "status")
            self.assertNotIn("Traceback", self.run_("doctor", "server")[2])

    def pretend(self, port):
        with open(os.path.join(self.data, "running.json"), "w", encoding="utf-8") as file:
            json.dump({"pid": 1, "web": [["0.0.0.0", port]], "key": "x"}, file)

    def test_a_server_that_was_killed(self):
        port = free_port()
        self.pretend(port)
        for command in ("status", "check", "alive"):
            self.assert_fails(1, f"the server at 127.0.0.1:{port} does not answer: Connection refused", command)

    def test_another_program_at_its_address(self):
        """The port of a server that was killed may be anybody's."""
        for answer in (b"220 mail.example.org ESMTP\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf"):
            with socket.create_server(("127.0.0.1", 0)) as other:
                self.pretend(other.getsockname()[1])

                def serve(other=other, answer=answer):
                    sock = other.accept()[0]
                    sock.recv(1 << 16)
                    sock.sendall(answer)
                    sock.close()

                thread = threading.Thread(target=serve)
                thread.start()
                self.assert_fails(1, "does not answer", "check")
                thread.join(LIMIT_S)

    def test_a_node_that_cannot_be_reached(self):
        place = f"127.0.0.1:{free_port()}"
        self.assert_fails(1, f"control.py: {place}: Connection refused", "status", "--link", place)
        self.assert_fails(2, "--link: takes HOST:PORT", "status", "--link", "127.0.0.1:99999")

    def test_what_is_wrong_is_told_a_line_each(self):
        place = f"127.0.0.1:{free_port()}"
        server = Server(self, "--node", f"attic@{place}")
        self.assertTrue(server.page)
        wait_until(lambda: "cannot be reached" in server.get("/")[1], "the node is missed")
        self.assertEqual(
            self.run_("check", data=server.data), (1, "attic: cannot be reached: Connection refused\n", "")
        )
        self.assertEqual(self.done("status", data=server.data), "attic: cannot be reached: Connection refused\n")
        self.assert_fails(1, "The node did not answer: cannot be reached", "send", "attic", "on", data=server.data)
        self.assertEqual(self.run_("alive", data=server.data)[0], 0)

    def test_a_node_with_a_token(self):
        token = self.done("token", "attic").strip()
        node = Node(self, name="attic", PIGEONPOST_NODE_TOKEN=token)
        self.assertRegex(self.done("status", "attic", "--link", node.place), "^STATUS ON ")
        self.assertEqual(self.done("send", "attic", "on", "--link", node.place), "SENDBACK ON\n")
        environment = {"PIGEONPOST_NODE_TOKEN": token}
        self.assertRegex(
            self.done("status", "--link", node.place, data=temp_folder(self), **environment), "^STATUS ON "
        )
        environment["PIGEONPOST_NODE_TOKEN"] = "x" * 32
        self.assert_fails(1, f"control.py: {node.place}: ", "status", "--link", node.place, **environment)

    def test_what_is_no_command(self):
        self.assert_fails(2, "invalid choice: 'dance'", "dance")
        self.assert_fails(2, "required: COMMAND")
        self.assert_fails(2, "/nowhere/server.toml: No such file", "--config", "/nowhere/server.toml", "tokens")


class Verify(ControlCase):
    @classmethod
    def setUpClass(cls):
        cls.sound = {}

    def setUp(self):
        """What a server leaves behind: ten samples and more, made once and copied."""
        super().setUp()
        if not self.sound:
            node = Node(self, "--every", "0.02")
            server = Server(self, "--node", node.at)
            self.assertTrue(server.page)
            wait_until(lambda: len(server.get("/log")[1].splitlines()) >= 12, "ten samples are stored")
            server.terminate()
            self.assertEqual(server.wait(), 0)
            for name in ("pigeonpost.sqlite3", *(f"logs/{log}" for log in logs_in(f"{server.data}/logs"))):
                with open(os.path.join(server.data, name), "rb") as file:
                    self.sound[name] = file.read()
        os.mkdir(os.path.join(self.data, "logs"))
        for name, content in self.sound.items():
            with open(os.path.join(self.data, name), "wb") as file:
                file.write(content)
        self.log = os.path.join(self.data, next(name for name in self.sound if name.startswith("logs/")))

    def change(self, *statements):
        db = sqlite3.connect(os.path.join(self.data, "pigeonpost.sqlite3"))
        for statement in statements:
            db.execute(statement)
        db.commit()
        db.close()

    def faults(self):
        status, out, told = self.run_("verify")
        self.assertEqual((status, told), (1, ""))
        return out.splitlines()

    def rewrite(self, change):
        with open(self.log, encoding="utf-8") as file:
            text = file.read()
        with open(self.log, "w", encoding="utf-8") as file:
            file.write(change(text))

    def test_all_is_there(self):
        status, out, told = self.run_("verify")
        self.assertEqual((status, told), (0, ""))
        self.assertRegex(out, r"^\d\d+ samples of 1 nodes: all there, each once\n$")

    def test_a_sample_that_is_gone(self):
        self.change("DELETE FROM fresh WHERE first <= 5 AND first + count > 5")
        first, *_ = self.faults()
        self.assertRegex(first, r"^node basement, epoch [0-9a-f]{16}: \d+ samples and 0 in gaps do not add up to \d+$")

    def test_a_value_that_was_changed(self):
        """By a card; and by a program that writes a row as Pigeonpost does, which only the logs tell."""
        with closing(sqlite3.connect(os.path.join(self.data, "pigeonpost.sqlite3"), isolation_level=None)) as db:
            id, *columns = db.execute(f"SELECT id, {COLUMNS} FROM fresh ORDER BY id LIMIT 1").fetchone()
            names = [name for (text,) in db.execute("SELECT names FROM shapes") for name in json.loads(text)]
            row = ChunkRow(*columns)
            batch = row.unpack(names)
            batch.values[names[0]][0] = 99.5
            changed = ChunkRow.pack(row.node, row.epoch, row.shape, batch, row.arrived)
            db.execute("UPDATE fresh SET data = ? WHERE id = ?", (changed.data, id))
            self.assertIn("were changed", self.faults()[0])
            db.execute("UPDATE fresh SET crc = ? WHERE id = ?", (changed.crc, id))
        (line,) = self.faults()
        self.assertRegex(line, r"^the logs hold (\d+) readings and the store \1; they are not the same")

    def test_a_row_of_a_log_that_was_changed(self):
        self.rewrite(lambda text: re.sub(r",temperature,[^,]+,", ",temperature,99.5,", text, count=1))
        (line,) = self.faults()
        self.assertIn("they are not the same (was a log changed?)", line)

    def test_a_row_that_stands_twice(self):
        self.rewrite(lambda text: text + text.splitlines()[-1] + "\n")
        (line,) = self.faults()
        self.assertIn("they are not the same", line)

    def test_a_torn_row(self):
        self.rewrite(lambda text: text[:-9])
        first, second = self.faults()
        self.assertRegex(first, r"^sensorlog_\d{6}_\d{4}(_\d+)?\.csv: a torn row: '20")
        self.assertIn("they are not the same", second)

    def test_a_log_that_is_gone(self):
        os.unlink(self.log)
        (line,) = self.faults()
        self.assertIn("the logs hold 0 readings and the store", line)

    def test_a_database_that_is_damaged(self):
        path = os.path.join(self.data, "pigeonpost.sqlite3")
        size = os.path.getsize(path)
        for damage in (b"this is no database at all" * 200, None):
            with open(path, "r+b") as file:
                if damage is None:
                    file.write(self.sound["pigeonpost.sqlite3"])
                    for page in range(2, size // 4096):
                        file.seek(4096 * page)
                        file.write(b"\xff" * 100)
                else:
                    file.write(damage)
            status, out, told = self.run_("verify")
            self.assertEqual(status, 1, told)
            self.assertRegex(out + told, r"SQLite: |pigeonpost\.sqlite3 is damaged ")
            self.assertNotIn("Traceback", told)

    def test_no_database(self):
        self.assert_fails(2, "there is no database in", "verify", data=temp_folder(self))


class Help(ControlCase):
    def test_it_has_examples_and_every_command(self):
        text = self.done("--help")
        self.assertIn("examples:\n  python3 control.py token basement\n", text)
        self.assertIn("control.py check || mail", text)
        for name, command in control.COMMANDS.items():
            shown = f"{name} ({', '.join(command.aliases)})" if command.aliases else name
            self.assertRegex(text, rf"(?m)^ +{re.escape(shown)}\s+{re.escape(command.help.split()[0])}")
            self.assertIn("usage: control.py", self.done(name, "--help"))
        self.assertRegex(self.done("--version"), r"^pigeonpost \d+\.\d+")


if __name__ == "__main__":
    unittest.main()
