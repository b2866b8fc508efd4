"""Tests of control.py against a real server and a real node."""

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


def samples_in_log_check(server):
    """Return the number of samples on the page Log Check, which has a line for each that begins with its time."""
    return len(re.findall(r"(?m)^\d{4}-", server.get("/log")[1]))


class ControlCase(unittest.TestCase):
    def setUp(self):
        self.data = temp_folder(self)

    def run_(self, *arguments, said="", data=None, **environment):
        """Run a command in this process, and return the exit status, standard output and standard error."""
        return page_support.control_here("--data", data or self.data, *arguments, said=said, **environment)

    def done(self, *arguments, **more):
        """Run a command that must succeed, and return its standard output."""
        status, out, told = self.run_(*arguments, **more)
        self.assertEqual(status, 0, told)
        return out

    def assert_fails(self, status, text, *arguments, **more):
        found, out, told = self.run_(*arguments, **more)
        self.assertEqual(found, status, told)
        self.assertIn(text, told or out)
        self.assertNotIn("Traceback", told)


class DataFolder(unittest.TestCase):
    def test_data_folder_is_local_or_that_of_the_installed_service(self):
        folder = temp_folder(self)
        service = os.path.join(folder, "service")
        settings = control.load_server(argparse.Namespace(config=None), {}, ())
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        with mock.patch.object(control, "SERVICE_DATA", service), mock.patch.dict(os.environ):
            os.environ.pop("STATE_DIRECTORY", None)
            self.assertEqual(control.data_folder(settings), "data")
            os.symlink("/nonexistent/private", service)  # like a link into a folder that only root may read
            self.assertEqual(control.data_folder(settings), service)
            os.environ["STATE_DIRECTORY"] = "/state"
            self.assertEqual(control.data_folder(settings), "/state")
            del os.environ["STATE_DIRECTORY"]
            os.mkdir("data")
            self.assertEqual(control.data_folder(settings), "data")


class Tokens(ControlCase):
    def test_token_is_shown_once(self):
        status, token, told = self.run_("token", "basement")
        self.assertEqual(status, 0)
        self.assertRegex(token, r"^[0-9a-f]{32}\n$")
        self.assertIn("PIGEONPOST_NODE_TOKEN", told)
        self.assertIn("--node basement@ADDRESS", told)
        self.assert_fails(1, "basement already has a token: `get-token basement` shows it", "token", "basement")
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.data, "tokens.json")).st_mode), 0o600)

    def test_get_token_prints_the_same_each_time(self):
        token = self.done("get-token", "basement")
        self.assertRegex(token, r"^[0-9a-f]{32}\n$")
        self.assertEqual(self.done("get_token", "basement"), token)
        self.assertNotEqual(self.done("get_token", "attic"), token)

    def test_tokens_are_listed_and_revoked(self):
        self.assertEqual(self.done("tokens"), "")
        first = self.done("token", "basement")
        self.done("token", "attic")
        self.assertEqual(self.done("tokens"), "attic\nbasement\n")
        self.assertEqual(self.done("revoke", "basement"), "")
        self.assertEqual(self.done("tokens"), "attic\n")
        self.assert_fails(1, "basement has no token; `tokens` lists the nodes that have one", "revoke", "basement")
        self.assertNotEqual(self.done("token", "basement"), first)

    def test_rotate_shows_the_new_token_with_instructions(self):
        self.assert_fails(1, "basement has no token; `token basement` creates one", "rotate", "basement")
        old = self.done("token", "basement")
        status, new, told = self.run_("rotate", "basement")
        self.assertEqual(status, 0)
        self.assertRegex(new, r"^[0-9a-f]{32}\n$")
        self.assertNotEqual(new, old)
        self.assertIn("accepted until the node uses the new one, for 1 h at most", told)
        self.assertEqual(self.done("get-token", "basement"), new)

    def test_token_set_reads_the_token_from_standard_input(self):
        self.done("token", "basement", "--set", said="a token of the node's own\n")
        self.assertEqual(self.done("get-token", "basement"), "a token of the node's own\n")
        for said in ("", "short\n", "x" * 1025, "with a\ttab in its middle\n"):
            self.assert_fails(
                1,
                "the token is not valid: it must be 16 to 1024 printable characters",
                "token",
                "attic",
                "--set",
                said=said,
            )
        text = "this is the token of basement: each node needs its own token"
        self.assert_fails(1, text, "token", "attic", "--set", said="a token of the node's own\n")

    def test_invalid_node_names_are_rejected(self):
        for name in ("../x", "a b", "", "x" * 64, "-x"):
            self.assertEqual(self.run_("token", "--", name)[0], 2, name)
        self.assert_fails(2, "'a b' is not a valid node name", "token", "a b")

    def test_damaged_token_file_is_reported(self):
        with open(os.path.join(self.data, "tokens.json"), "w", encoding="utf-8") as file:
            file.write("[")
        self.assert_fails(2, "tokens.json is damaged", "tokens")


class Passwords(ControlCase):
    def test_password_is_read_from_a_pipe(self):
        """The command runs in a separate process, as in scripts."""
        status, out, told = page_support.control(self, "--data", self.data, "password", said="correct horse\nmore\n")
        self.assertEqual((status, out), (0, ""))
        self.assertEqual(told, "The password of admin was set. The page now asks for user name and password.\n")
        path = os.path.join(self.data, "users.json")
        with open(path, encoding="utf-8") as file:
            content = file.read()
        self.assertNotIn("correct horse", content)
        self.assertEqual((list(json.loads(content)), stat.S_IMODE(os.stat(path).st_mode)), (["admin"], 0o600))

    def test_password_of_another_user_is_set(self):
        self.done("password", "guest", said="correct horse")
        with open(os.path.join(self.data, "users.json"), encoding="utf-8") as file:
            self.assertEqual(list(json.load(file)), ["guest"])

    def test_invalid_passwords_and_user_names_are_rejected(self):
        self.assert_fails(2, "a password must have 8 to 1024 characters, not 5", "password", said="short\n")
        self.assert_fails(2, "a password must have 8 to 1024 characters, not 0", "password")
        self.assert_fails(
            2, "a user name must consist of at most 63 letters, digits", "password", "a/b", said="correct horse"
        )
        self.assertFalse(os.path.exists(os.path.join(self.data, "users.json")))

    def test_password_is_typed_twice_at_a_terminal(self):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        for answers, status in ((["correct horse"] * 2, 0), (["correct horse", "wrong horse"], 1)):
            with mock.patch("getpass.getpass", side_effect=answers), mock.patch("io.StringIO", Terminal):
                found, _, told = self.run_("password")
            self.assertEqual(found, status, told)
        self.assertIn("the two passwords differ; nothing was changed", told)


class Running(ControlCase):
    """A running server that collects from a node."""

    @classmethod
    def setUpClass(cls):
        # Shared by all tests of the class: each test undoes its changes.
        cls.node = Node(for_class(cls))
        cls.server = Server(for_class(cls), "--node", cls.node.at)
        cls.server.page  # noqa: B018  # wait for it
        wait_until(lambda: "is reporting" in cls.server.get("/")[1], "the node reports")

    def setUp(self):
        self.data = self.server.data

    def test_status_shows_the_state_of_a_node(self):
        line = self.done("status")
        self.assertRegex(line, r"^basement: on; last sample 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d\n$")
        self.assertRegex(self.done("status", "basement"), r"^basement: on; ")
        self.assert_fails(1, "the server has no node 'attic'; its nodes are: basement", "status", "attic")

    def test_send_turns_a_node_off_and_on(self):
        try:
            self.assertEqual(self.done("send", "basement", "off"), "basement is off\n")
            self.assertRegex(self.done("status"), r"^basement: OFF; last sample ")
            self.assertIn("Node basement is switched off", self.server.get("/")[1])
        finally:
            self.assertEqual(self.done("send", "basement", "on"), "basement is on\n")
        self.assertRegex(self.done("status"), r"^basement: on; ")
        self.assert_fails(1, "does not collect from a node with that name", "send", "attic", "on")
        self.assert_fails(2, "invalid choice: 'maybe'", "send", "basement", "maybe")

    def test_check_prints_nothing_without_faults(self):
        """The command runs in a separate process, as in cron."""
        wait_until(lambda: "is reporting" in self.server.get("/")[1], "the node reports")
        self.assertEqual(page_support.control(self, "--data", self.data, "check"), (0, "", ""))

    def test_alive_succeeds_with_a_running_server(self):
        self.assertEqual(self.run_("alive"), (0, "", ""))

    def test_verify_works_while_the_server_is_running(self):
        wait_until(lambda: samples_in_log_check(self.server) >= 2, "two samples are stored")
        status, out, told = self.run_("verify")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"^\d+ samples of 1 node: none missing, none stored twice\n$")
        self.assertIn("the server is running, so the logs are not compared with the store", told)

    def test_link_contacts_the_node_directly(self):
        """`--link` does not use the server."""
        self.assertRegex(self.done("status", "--link", self.node.place), r'^STATUS ON \d\d:\d\d:\d\d \{.*"held":')
        try:
            self.assertEqual(self.done("send", "basement", "off", "--link", self.node.place), "SENDBACK OFF\n")
            self.assertRegex(self.done("status", "--link", self.node.place), r"^STATUS OFF ")
        finally:
            self.assertEqual(self.done("send", "basement", "on", "--link", self.node.place), "SENDBACK ON\n")

    def test_alive_without_a_server_contacts_the_node_in_the_settings(self):
        port = self.node.place.rpartition(":")[2]
        for listen in (f"127.0.0.1:{port}", f"0.0.0.0:{port}"):
            found = self.run_("alive", data=temp_folder(self), PIGEONPOST_NODE_LISTEN=listen)
            self.assertEqual(found, (0, "", ""))

    def test_wrong_key_is_rejected(self):
        with open(os.path.join(self.data, "running.json"), encoding="utf-8") as file:
            about = json.load(file)
        self.assertEqual((about["pid"], about["web"]), (self.server.process.pid, [list(self.server.page)]))
        link = http.client.HTTPConnection(*self.server.page, timeout=LIMIT_S)
        self.addCleanup(link.close)
        link.request("GET", "/api/v1/nodes", headers={"Authorization": f"Bearer {about['key'][:-1]}?"})
        self.assertEqual(link.getresponse().status, 401)


class Failures(ControlCase):
    def test_commands_fail_without_a_server(self):
        for command in (("status",), ("send", "basement", "on"), ("check",)):
            self.assert_fails(
                1, f"no running server uses the data folder {self.data} (--data DIR selects another folder)", *command
            )

    def test_damaged_running_json_is_reported(self):
        for text in ("", "{", "[]", "5", '{"pid": 1}', '{"pid": 1, "web": 5, "key": "x"}', '{"web": [[1]], "key": 2}'):
            with open(os.path.join(self.data, "running.json"), "w", encoding="ascii") as file:
                file.write(text)
            self.assert_fails(1, "running.json is damaged: restart the server", "status")
            self.assertNotIn("Traceback", self.run_("doctor", "server")[2])

    def pretend(self, port):
        with open(os.path.join(self.data, "running.json"), "w", encoding="utf-8") as file:
            json.dump({"pid": 1, "web": [["0.0.0.0", port]], "key": "x"}, file)

    def test_commands_fail_after_the_server_was_killed(self):
        port = free_port()
        self.pretend(port)
        for command in ("status", "check", "alive"):
            self.assert_fails(1, f"the server at 127.0.0.1:{port} does not answer: Connection refused", command)

    def test_check_fails_if_another_program_uses_the_port(self):
        """After a server was killed, any program may use its port."""
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

    def test_status_fails_if_the_node_cannot_be_reached(self):
        place = f"127.0.0.1:{free_port()}"
        self.assert_fails(1, f"control.py: {place}: Connection refused", "status", "--link", place)
        self.assert_fails(2, "--link: takes HOST:PORT", "status", "--link", "127.0.0.1:99999")

    def test_check_prints_one_line_per_fault(self):
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

    def test_link_uses_the_token_of_the_node(self):
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

    def test_wrong_usage_ends_with_status_2(self):
        self.assert_fails(2, "invalid choice: 'dance'", "dance")
        self.assert_fails(2, "required: COMMAND")
        self.assert_fails(2, "/nowhere/server.toml: No such file", "--config", "/nowhere/server.toml", "tokens")


class Verify(ControlCase):
    @classmethod
    def setUpClass(cls):
        cls.sound = {}

    def setUp(self):
        """Create the data folder of a stopped server with at least ten samples. It is created once, then copied."""
        super().setUp()
        if not self.sound:
            node = Node(self, "--every", "0.02")
            server = Server(self, "--node", node.at)
            self.assertTrue(server.page)
            wait_until(lambda: samples_in_log_check(server) >= 10, "ten samples are stored")
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

    def test_complete_data_has_no_faults(self):
        status, out, told = self.run_("verify")
        self.assertEqual((status, told), (0, ""))
        self.assertRegex(out, r"^\d\d+ samples of 1 node: none missing, none stored twice\n$")

    def test_deleted_sample_is_found(self):
        self.change("DELETE FROM fresh WHERE first <= 5 AND first + count > 5")
        first, *_ = self.faults()
        self.assertRegex(first, r"^node basement, epoch [0-9a-f]{16}: \d+ samples and 0 in gaps do not add up to \d+$")

    def test_changed_value_is_found(self):
        """Changed by the disk, which the checksum detects; and by a program, which only the logs show."""
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
        self.assertRegex(line, r"^the logs contain ([\d,]+) readings and the store \1; they differ")

    def test_changed_row_of_a_log_is_found(self):
        self.rewrite(lambda text: re.sub(r",temperature,[^,]+,", ",temperature,99.5,", text, count=1))
        (line,) = self.faults()
        self.assertIn("they differ (was a log changed?)", line)

    def test_duplicate_row_of_a_log_is_found(self):
        self.rewrite(lambda text: text + text.splitlines()[-1] + "\n")
        (line,) = self.faults()
        self.assertIn("they differ", line)

    def test_torn_row_of_a_log_is_found(self):
        self.rewrite(lambda text: text[:-9])
        first, second = self.faults()
        self.assertRegex(first, r"^sensorlog_\d{6}_\d{4}(_\d+)?\.csv: a torn row: '20")
        self.assertIn("they differ", second)

    def test_missing_log_is_found(self):
        os.unlink(self.log)
        (line,) = self.faults()
        self.assertIn("the logs contain 0 readings and the store", line)

    def test_damaged_database_is_reported(self):
        path = os.path.join(self.data, "pigeonpost.sqlite3")
        size = os.path.getsize(path)
        for damage in (b"this is not a database    " * 200, None):
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

    def test_missing_database_is_reported(self):
        self.assert_fails(2, "there is no database in the folder", "verify", data=temp_folder(self))


class Help(ControlCase):
    def test_help_has_examples_and_all_commands(self):
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
