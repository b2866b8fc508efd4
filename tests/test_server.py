"""Tests of server.py as a program: demonstration, invalid settings, signals, a second copy, and kill -9."""

import csv
import json
import os
import re
import signal
import socket
import sqlite3
import threading
import time
import unittest
from types import SimpleNamespace
from unittest import mock

import server
from pigeonpost.auth.users import Users
from pigeonpost.core.clock import FakeClock
from pigeonpost.server import demo_node
from pigeonpost.server.node_status import NodeState
from pigeonpost.settings import SERVER
from pigeonpost.storage.csv.checksums import logs_in
from tests.forked import Forked
from tests.page_support import Node, Server, StartedNode, StartedServer, control_here, main_here, use_memory_disk
from tests.support import LIMIT_S, temp_folder, wait_until


def setUpModule():
    use_memory_disk()


def rows(data):
    """Return all rows of all logs in a data folder, in order. An incomplete row raises AssertionError."""
    found = []
    for name in logs_in(os.path.join(data, "logs")):
        with open(os.path.join(data, "logs", name), newline="", encoding="utf-8") as file:
            text = file.read()
        head, *rest = csv.reader(text.splitlines())
        if head != ["time", "node", "sensor", "value", "unit"] or not text.endswith("\n"):
            raise AssertionError(f"{name} is torn: {text[-200:]!r}")
        found += rest
    return found


def stored(data):
    """Return the number of samples in the database."""
    path = os.path.join(data, "pigeonpost.sqlite3")
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return db.execute("SELECT count(*) FROM samples").fetchone()[0]
    finally:
        db.close()


def has(data, count):
    """Return True if the database has that many samples. It waits a short time, because it is called in a loop."""
    time.sleep(0.03)
    try:
        return stored(data) >= count
    except sqlite3.Error:
        return False  # the database is being created


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def is_there(pid):
    """Return True if the process is running and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class ServerCase(unittest.TestCase):
    def refused(self, *arguments):
        """Run server.py to its end, and return its exit status and standard error output."""
        program = Forked(self, "server.py", *arguments)
        status = program.wait()
        return status, "\n".join(program.logged)

    def told(self, *arguments, **environment):
        """Do the same in this process, for output before the start. Return the standard output, too."""
        status, said, told = main_here(server, *arguments, **environment)
        return status, told.rstrip("\n"), said

    def collect(self, server, count=10):
        try:
            wait_until(lambda: has(server.data, count), f"{count} samples are stored")
        except AssertionError as error:
            self.fail(f"{error}; its status: {server.process.poll()}; logged: {server.logged}")


class Demo(ServerCase):
    OFTEN = {
        "pigeonpost.server.demo_node._SETTINGS": demo_node._SETTINGS.replace("every = 1\n", "every = 0.1\n"),
        "webui._POLL_S": 0.02,
    }

    def test_demo_shows_live_samples_and_leaves_no_files(self):
        """It takes up to 5 s on an idle machine; the limit here is 20 s."""
        began_s = time.monotonic()
        place = temp_folder(self)
        fast = {"PIGEONPOST_STORE_COMMIT": "0.05", "TMPDIR": place}
        program = Forked(self, "server.py", "--demo", "--web", "127.0.0.1:0", constants=self.OFTEN, **fast)
        address = re.fullmatch(r"the page is at http://(127\.0\.0\.1):(\d+)/\?key=\S{16,}", program.line())
        host, port = address[1], int(address[2])

        def events():
            with socket.create_connection((host, port), LIMIT_S) as sock:
                sock.sendall(f"GET /events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
                for line in sock.makefile("r", encoding="utf-8"):
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))["samples"]

        samples = (sample for event in events() for sample in event)
        first = next(samples)
        later = next(sample for sample in samples if sample["time_ms"] > first["time_ms"])
        self.assertLess(time.monotonic() - began_s, 20)
        self.assertEqual(first["node"], "demo")
        self.assertRegex(later["values"]["temperature"], r"^−?[\d.]+ °C$")
        self.assertRegex(later["values"]["light"], r"^[\d,]+ counts$")
        with socket.create_connection((host, port), LIMIT_S) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            page = sock.makefile(encoding="utf-8").read()
        self.assertIn("Node demo is reporting; last sample", page)
        self.assertEqual(page.count("simulated"), 2)
        (node,) = children(program.process.pid)
        self.assertEqual(len(os.listdir(place)), 1)
        program.terminate()
        self.assertEqual(program.wait(), 0)
        self.assertFalse(is_there(node))
        self.assertEqual(os.listdir(place), [])

    def test_demo_keeps_its_data_in_the_given_folder(self):
        server = Server(self, "--demo", constants=self.OFTEN)
        self.collect(server, 1)
        server.terminate()
        self.assertEqual(server.wait(), 0)
        self.assertGreaterEqual(stored(server.data), 1)
        self.assertTrue(os.path.exists(os.path.join(server.data, "node", "outbox.ring")))

    def test_demo_node_ends_when_the_server_is_killed(self):
        server = StartedServer(self, "--demo")
        self.assertTrue(server.page)
        (node,) = children(server.process.pid)
        server.process.kill()
        server.process.wait(LIMIT_S)
        wait_until(lambda: not is_there(node), "the node has ended")


class Limits(unittest.TestCase):
    def test_limits_with_a_former_name_apply_to_the_renamed_node(self):
        """This also applies after a restart: `control.py rename` reports that the settings need not be changed."""
        link = SimpleNamespace(state=NodeState("10.0.0.5:5003", "b"))
        link.state.name = "b"
        tables = {"limits": [
            {"node": "a", "sensor": "one", "high": 40}, {"node": "a", "sensor": "two", "high": 40},
            {"node": "b", "sensor": "two", "high": 50},
        ]}  # fmt: skip
        ingestor = mock.Mock(clock=FakeClock(), commit_s=1.0)
        context = SimpleNamespace(
            links=[link], names=None, clock=ingestor.clock, ingestor=ingestor,
            current=lambda name: {"a": "b"}.get(name, name),
            settings=SimpleNamespace(tables=tables, file="server.toml"),
        )  # fmt: skip
        quality = server._subscribe_checks(context, SimpleNamespace(of=lambda node: {}, on_change=[]))
        self.assertEqual([quality.of("b", sensor, 0).limits["high"] for sensor in ("one", "two")], [40, 50])


class Stop(ServerCase):
    def test_signal_ends_the_server_in_time_with_all_clients_and_data_flushed(self):
        """Clients are an idle browser, one with an event stream, half a request, a sampling node and a silent node."""
        node = StartedNode(self, "--every", "0.02")
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        server = StartedServer(self, "--node", node.at, "--node", f"silent@127.0.0.1:{silent.getsockname()[1]}")
        idle_link = silent.accept()[0]
        self.addCleanup(idle_link.close)
        self.collect(server)
        talks = [b"", b"GET /log HTT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
                 b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]  # fmt: skip
        for talk in talks:
            sock = socket.create_connection(server.page, LIMIT_S)
            self.addCleanup(sock.close)
            sock.sendall(talk)
            if talk.endswith(b"\r\n\r\n"):
                self.assertTrue(sock.recv(1).startswith(b"H"))
        running = os.path.join(server.data, "running.json")
        self.assertEqual(os.stat(running).st_mode & 0o777, 0o600)
        began_s = time.monotonic()
        server.terminate()
        self.assertEqual(server.wait(), 0, server.logged)
        self.assertLess(time.monotonic() - began_s, 5.0)
        self.assertFalse(os.path.exists(running))
        self.assertEqual(len(rows(server.data)), 2 * stored(server.data))
        # No stored sample is sent again: it was acknowledged, or the server reports its high-water mark.
        again = Server(self, "--node", node.at, data=server.data)
        before = stored(server.data)
        wait_until(lambda: has(server.data, before + 1), "it goes on")
        again.process.send_signal(signal.SIGINT)
        self.assertEqual(again.wait(), 0, again.logged)
        self.assertEqual(len(rows(server.data)), 2 * stored(server.data))
        self.assertEqual(control_here("--data", server.data, "verify")[0], 0)

    def test_node_with_idle_clients_ends_in_time(self):
        node = Node(self)
        host, _, port = node.place.rpartition(":")
        sock = socket.create_connection((host, int(port)), LIMIT_S)
        self.addCleanup(sock.close)
        sock.sendall(b"SEND ON\n")
        self.assertTrue(sock.recv(1))
        began_s = time.monotonic()
        node.terminate()
        self.assertEqual(node.wait(), 0, node.logged)
        self.assertLess(time.monotonic() - began_s, 5.0)

    def test_exit_button_ends_the_server(self):
        server = Server(self)
        cookie = server.sign_in()
        status, page = server.get("/", {"Accept": "text/html", "Cookie": cookie})
        self.assertEqual(status, 200)
        csrf = re.search(r'name="csrf" value="([^"]+)"', page)[1]
        body = f"csrf={csrf}&sure=yes".encode()
        with socket.create_connection(server.page, LIMIT_S) as sock:
            sock.sendall(
                b"POST /exit HTTP/1.0\r\nAccept: text/html\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                b"Cookie: %s\r\nContent-Length: %d\r\n\r\n%s" % (cookie.encode(), len(body), body)
            )
            answer = sock.makefile(encoding="utf-8").read()
        self.assertIn("<h1>exited</h1>", answer)
        self.assertEqual(server.wait(), 0)
        self.assertIn("ended: Exit by one-time key at 127.0.0.1", server.logged[-1])

    def test_server_ends_normally_without_its_running_file(self):
        server = Server(self)
        self.assertTrue(server.page)
        os.unlink(os.path.join(server.data, "running.json"))
        server.terminate()
        self.assertEqual(server.wait(), 0, server.logged)


class Refusals(ServerCase):
    def test_second_server_on_the_same_data_exits_with_75(self):
        server = Server(self)
        self.assertTrue(server.page)
        status, said = self.refused("--data", server.data, "--web", "127.0.0.1:0")
        self.assertEqual(status, 75)
        self.assertEqual(
            said,
            f"server.py: {server.data}/server.lock is locked by process {server.process.pid}:"
            " only one program can use these data at a time",
        )
        self.assertEqual(server.get("/healthz"), (200, "ok\n"))

    def test_address_in_use_is_reported(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            place = f"127.0.0.1:{taken.getsockname()[1]}"
            status, said = self.refused("--data", temp_folder(self), "--web", place)
        self.assertEqual(status, 2)
        self.assertIn(
            f"cannot listen on {place} for the web page: Address already in use. Choose another address with --web",
            said,
        )
        self.assertNotIn("Traceback", said)

    def test_invalid_settings_are_reported_with_file_table_and_key(self):
        path = os.path.join(temp_folder(self), "my.toml")
        for content, wanted in (
            ('[store]\ncommit = "often"', "[store] commit takes a number from 0.05 to 600, not 'often'"),
            ("[store]\ncomit = 1", """[store]: unknown key 'comit'; did you mean "commit"?"""),
            ("[sotre]\ncommit = 1", """unknown key 'sotre'; did you mean "store"?"""),
            ('[web]\nlisten = "0.0.0.0:80"', "[web] listen takes a list, not '0.0.0.0:80'"),
            ('[server]\nnodes = ["b c@10.0.0.5"]', "[server] nodes takes NAME@HOST:PORT"),
            ("[server\n", "not TOML"),
        ):
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
            status, said, _ = self.told("--config", path, "--show")
            self.assertEqual(status, 2, content)
            self.assertTrue(said.startswith(f"server.py: {path}, line "), said)
            self.assertIn(wanted, said)
            self.assertNotIn("\n", said)
        self.assertEqual(self.refused("--config", path), (2, said))

    def test_invalid_flags_and_variables_are_reported(self):
        status, said, _ = self.told("--web", "here:99999", "--show")
        self.assertEqual((status, said.startswith("server.py: --web: [web] listen takes HOST:PORT")), (2, True), said)
        status, said, _ = self.told("--show", PIGEONPOST_STORE_BUFFER="12")
        self.assertEqual(status, 2)
        self.assertIn("PIGEONPOST_STORE_BUFFER: [store] buffer takes a whole number from 1000 to 1e+06, not '12'", said)
        status, said, _ = self.told("--wbe", "127.0.0.1:80")
        self.assertEqual(status, 2)
        self.assertIn("unrecognized arguments: --wbe", said)

    def test_missing_settings_file_is_reported(self):
        self.assertEqual(
            self.told("--config", "/nowhere/server.toml")[:2],
            (2, "server.py: /nowhere/server.toml: No such file or directory"),
        )

    def test_database_of_a_newer_program_is_refused(self):
        data = temp_folder(self)
        db = sqlite3.connect(os.path.join(data, "pigeonpost.sqlite3"))
        db.execute("PRAGMA user_version = 999")
        db.close()
        status, said = self.refused("--data", data, "--web", "127.0.0.1:0")
        self.assertEqual(status, 2)
        self.assertIn("was made by a newer Pigeonpost (format 999", said)


class Output(ServerCase):
    def test_show_prints_all_settings_with_their_origins(self):
        path = os.path.join(temp_folder(self), "my.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write('[server]\nname = "cellar"\n[store]\ncommit = 60\n')
        status, _, said = self.told(
            "--config", path, "--node", "a@10.0.0.5", "--show", PIGEONPOST_STORE_COMMIT="30"
        )  # fmt: skip
        lines = said.splitlines()
        self.assertEqual((status, len(lines)), (0, len(SERVER)))
        self.assertIn(f'[server] name = "cellar"  # {path}', lines)
        self.assertIn('[server] nodes = ["a@10.0.0.5"]  # --node', lines)
        self.assertRegex(said, r'(?m)^\[store\] commit = "?30"?  # PIGEONPOST_STORE_COMMIT$')
        self.assertIn("[store] buffer = 20000  # default", lines)
        self.assertIn('[web] listen = ["0.0.0.0:8080"]  # default', lines)

    def test_help_contains_examples(self):
        status, _, text = self.told("--help")
        self.assertEqual(status, 0)
        self.assertIn("python3 server.py --demo", text)
        self.assertIn("python3 server.py --node basement@192.168.1.20", text)
        self.assertRegex(self.told("--version")[2], r"^pigeonpost \d+\.\d+")

    def test_address_of_the_page_is_printed_with_a_key(self):
        server = Server(self, "--web", "127.0.0.1:0", "--web", "127.0.0.1:0")
        lines = [server.line(), server.line()]
        self.assertEqual(len(set(lines)), 2)
        for line in lines:
            self.assertRegex(line, r"^the page is at http://127\.0\.0\.1:\d+/\?key=\S{16,}$")

    def test_address_has_no_key_if_a_password_is_set(self):
        data = temp_folder(self)
        Users(data).set_password("admin", "correct horse")
        self.assertRegex(Server(self, data=data).line(), r"^the page is at http://127\.0\.0\.1:\d+/$")

    def test_addresses_for_the_network_have_a_key(self):
        server = Server(self, "--web", "0.0.0.0:0")
        self.assertTrue(server.page)
        self.assertIn("collects from 0 nodes", server.logs("collects from 0 nodes"))
        for line in server.said[1:]:  # a second line exists if this machine has a network
            self.assertRegex(
                line, r"^the page is at http://[\d.]+:\d+/\?key=\S{16,} \(from another machine; the key .*\)$"
            )


class Killed(ServerCase):
    def test_csv_log_is_completed_after_kill_9(self):
        """This includes an incomplete last row, and last rows that the disk has lost."""
        node = Node(self, "--every", "0.02")
        data = temp_folder(self)
        logs, others = os.path.join(data, "logs"), set()
        for cut in (7, 150):
            server = Server(self, "--node", node.at, data=data)
            self.assertTrue(server.page)

            def own_log(others=frozenset(others)):  # once it has more rows than the test cuts off
                for name in set(logs_in(logs)) - others:
                    path = os.path.join(logs, name)
                    if os.path.getsize(path) > 500:
                        return path
                return None

            log = wait_until(own_log, "samples are stored and logged")
            server.process.kill()
            server.process.wait(LIMIT_S)
            others = set(logs_in(logs))
            os.truncate(log, os.path.getsize(log) - cut)
            self.assertTrue(os.path.exists(os.path.join(data, "running.json")))
        last = Server(self, "--node", node.at, data=data)
        self.assertTrue(last.page)
        last.terminate()
        self.assertEqual(last.wait(), 0, last.logged)
        self.assertEqual(len(rows(data)), 2 * stored(data))
        status, said, _ = control_here("--data", data, "verify")
        self.assertEqual((status, said), (0, f"{stored(data)} samples of 1 node: none missing, none stored twice\n"))

    def test_reader_sees_only_complete_rows(self):
        node = Node(self, "--every", "0.01")
        server = Server(self, "--node", node.at)
        wrong, ended = [], threading.Event()

        def read():
            while not ended.wait(0.01):
                _, text = server.get("/log.csv")
                if not text.endswith("\n") or any(line.count(",") != 4 for line in text.splitlines()):
                    wrong.append(text[-100:])

        self.assertTrue(server.page)
        reader = threading.Thread(target=read)
        reader.start()
        self.collect(server, 40)
        ended.set()
        reader.join(LIMIT_S)
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main()
