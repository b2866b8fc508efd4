"""deploy/client/client.py: what it reads, how its queue survives, what it sends, and what it does after a refusal."""

import ast
import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
import unittest
from unittest import mock

from pigeonpost.web.tls import Tls, fingerprint_of
from tests.http_servers import certificates
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, ROOT, clean_environment, temp_folder, wait_until
from tests.transports.test_readings_server import InCase

PATH = os.path.join(ROOT, "deploy/client/client.py")


def setUpModule():
    use_memory_disk()


def load():
    spec = importlib.util.spec_from_file_location("posting_client", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


client = load()


def stdin(data):
    return mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


class ClientCase(InCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.queue = os.path.join(self.folder, "queue")
        self.said = self.enterContext(mock.patch.object(client, "say"))

    def run_client(self, *arguments, server=None, **variables):
        """Return the exit status of the client, which runs in this process."""
        host, port = self.web.address
        given = ["--server", server or f"http://{host}:{port}", "--node", "shed", "--queue", self.queue, *arguments]
        environment = {"CLIENT_TOKEN": self.writer, **variables}
        with mock.patch.dict(os.environ, environment):
            return client.main(given)

    def lines(self):
        with open(self.queue, encoding="utf-8") as file:
            return file.read().splitlines()

    def values(self):
        return [values for _, values in self.stored()]


class Sending(ClientCase):
    def setUp(self):
        super().setUp()
        self.open()

    def test_value_is_sent_once(self):
        self.assertEqual(self.run_client("--sensor", "level", "--unit", "m", "--value", "3.2"), 0)
        self.assertEqual(self.values(), [{"level": 3.2}])
        self.assertEqual(self.web.store.nodes()[0]["sensors"], {"level": "m"})
        self.assertEqual(self.run_client("--sensor", "level", "--value", "3.3"), 0)
        self.assertEqual(self.values(), [{"level": 3.2}, {"level": 3.3}])

    def test_value_waits_in_the_queue_until_the_server_is_back(self):
        self.assertEqual(self.run_client("--value", "1", server="http://127.0.0.1:1"), 3)
        self.assertEqual(self.values(), [])
        self.assertEqual(self.run_client("--value", "2"), 0)
        self.assertEqual(sorted(one["value"] for one in self.values()), [1.0, 2.0])

    def test_lines_of_the_input_are_sent(self):
        text = b'1\n\xb5 power 2.5 W\nnothing\n{"a": 3, "b": null, "c": NaN}\n'
        with stdin(text), mock.patch.object(client.signal, "signal"):
            self.assertEqual(self.run_client("--sensor", "power", "--stdin"), 0)
        found = {(name, value) for values in self.values() for name, value in values.items()}
        self.assertEqual(found, {("power", 1.0), ("power", 2.5), ("a", 3), ("b", None), ("c", None)})

    def test_file_is_sampled_and_a_failure_is_a_failed_reading(self):
        file = os.path.join(self.folder, "temperature")
        stop = threading.Event()

        class Stopped(client.Sender):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.stop = stop

        with open(file, "w", encoding="ascii") as out:
            out.write("20812\n")
        arguments = ["--sensor", "temperature", "--file", file, "--scale", "0.001", "--every", "0.01"]
        with mock.patch.object(client, "Sender", Stopped), mock.patch.object(client.signal, "signal"):
            thread = threading.Thread(target=self.run_client, args=arguments, daemon=True)
            thread.start()
            self.addCleanup(stop.set)
            wait_until(lambda: {"temperature": 20.812} in self.values(), "a reading is stored")
            os.unlink(file)
            wait_until(lambda: {"temperature": None} in self.values(), "a failed reading is stored")
            stop.set()
            thread.join(LIMIT_S)
            self.assertFalse(thread.is_alive())

    def test_client_ends_when_its_sender_has_failed(self):
        file = os.path.join(self.folder, "temperature")
        with open(file, "w", encoding="ascii") as out:
            out.write("1\n")
        statuses = []
        failing = mock.patch.object(client.Sender, "send", side_effect=ValueError)
        with failing, mock.patch.object(client.signal, "signal"), mock.patch.object(threading, "excepthook"):
            for source in (["--stdin"], ["--file", file, "--every", "0.01"]):
                with self.subTest(source), stdin(b"1\n"):
                    thread = threading.Thread(
                        target=lambda source=source: statuses.append(self.run_client(*source)), daemon=True
                    )
                    thread.start()
                    thread.join(LIMIT_S)
                    self.assertFalse(thread.is_alive())
        self.assertEqual(statuses, [3, 3])

    def test_refused_reading_is_dropped_and_the_others_are_sent(self):
        queue = client.Queue(self.queue, 100)
        for number in range(10):
            queue.put({"node": "shed", "values": {"Bad" if number == 6 else "good": number}, "time": 1e12 + number})
        os.close(queue.fd)
        self.assertEqual(self.run_client("--value", "1"), 0)
        self.assertEqual(len(self.values()), 10)
        self.assertIn("Bad", self.said.call_args[0][0])

    def test_refused_value_exits_with_1(self):
        self.web.tokens.make("shed")  # the others may not write it any more: 403 keeps the reading
        self.assertEqual(self.run_client("--value", "1"), 3)
        self.web.tokens.revoke("shed")
        self.assertEqual(self.run_client("--sensor", "a", "--value", "1", "--unit", "\x07"), 1)
        self.assertEqual(self.values(), [{"value": 1.0}])

    def test_wrong_token_keeps_the_readings(self):
        self.assertEqual(self.run_client("--value", "1", CLIENT_TOKEN="wrong"), 3)
        self.assertEqual(self.run_client("--value", "2"), 0)
        self.assertEqual(len(self.values()), 2)

    def test_token_is_read_from_a_file(self):
        path = os.path.join(self.folder, "token")
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{self.writer}\n")
        self.assertEqual(self.run_client("--value", "1", "--token-file", path, CLIENT_TOKEN=""), 0)
        with self.assertRaisesRegex(SystemExit, "token is missing"):
            self.run_client("--value", "1", CLIENT_TOKEN="")
        for token in ("a b", "a\nb", "pp_\u20ac"):
            with self.assertRaisesRegex(SystemExit, "copied completely"):
                self.run_client("--value", "1", CLIENT_TOKEN=token)

    def test_pinned_certificate_is_verified(self):
        ((certificate, key),) = certificates(type(self), "page")
        self.open(tls=Tls(certificate, key))
        server = "https://{}:{}".format(*self.web.address)
        good = fingerprint_of(certificate)
        self.assertEqual(self.run_client("--value", "1", "--fingerprint", good, server=server), 0)
        self.assertEqual(self.run_client("--value", "1", "--fingerprint", "ab" * 32, server=server), 3)
        self.assertIn(good.replace(":", "").lower(), self.said.call_args[0][0])
        self.assertEqual(self.run_client("--value", "1", server=server), 3)  # self-signed


class QueueFile(ClientCase):
    def queue_of(self, most=100):
        self.last = client.Queue(self.queue, most)
        return self.last

    def reopen(self, queue, most=100):
        os.close(queue.fd)
        return self.queue_of(most)

    def tearDown(self):
        os.close(self.last.fd)

    def test_queue_survives_and_drops_a_torn_line(self):
        queue = self.queue_of()
        for number in range(5):
            queue.put({"n": number})
        queue.remove(queue.first(2))
        with open(self.queue, "ab") as file:
            file.write(b'{"n": 5, "to')
        queue = self.reopen(queue)
        self.assertEqual([json.loads(line)["n"] for line in queue.waiting], [2, 3, 4])
        queue.put({"n": 6})
        self.assertEqual(len(self.reopen(queue).waiting), 4)

    def test_sent_readings_are_removed_from_the_file(self):
        with mock.patch.object(client, "KEPT_BYTES", 100):
            queue = self.queue_of()
            for number in range(50):
                queue.put({"n": number})
            queue.remove(queue.first(48))
        self.assertEqual(self.lines(), ['{"n": 48}', '{"n": 49}'])
        queue.put({"n": 50})
        self.assertEqual(len(self.reopen(queue).waiting), 3)

    def test_full_queue_drops_the_oldest_readings(self):
        queue = self.queue_of(3)
        for number in range(5):
            queue.put({"n": number})
        being_sent = ['{"n": 1}', '{"n": 2}', '{"n": 3}']
        queue.remove(being_sent)
        self.assertEqual(list(queue.waiting), ['{"n": 4}'])
        self.assertEqual(list(self.reopen(queue).waiting), ['{"n": 4}'])

    def test_full_disk_leaves_no_torn_line(self):
        queue = self.queue_of()
        queue.put({"n": 1})
        write = os.write
        with mock.patch.object(os, "write", lambda fd, data: write(fd, data[:3])), self.assertRaises(OSError):
            queue.put({"n": 2})
        queue.put({"n": 3})
        self.assertEqual([json.loads(line)["n"] for line in self.reopen(queue).waiting], [1, 3])

    def test_second_client_with_the_same_queue_is_refused(self):
        self.queue_of()
        with self.assertRaisesRegex(SystemExit, "another client uses"):
            client.Queue(self.queue, 10)

    def test_damaged_lines_are_skipped(self):
        with open(self.queue, "wb") as file:
            file.write(b'{"n": 1}\nsent x\n\xff\xfe\nsent 99\n{"n": 2}\n')
        self.assertEqual(list(self.queue_of().waiting), ['{"n": 2}'])


class Sources(unittest.TestCase):
    def values(self, text, *arguments):
        given = ["--server", "http://a", "--node", "n", "--sensor", "t", "--stdin", *arguments]
        return client._values_of(text, client._parse(given))

    def test_texts_of_sensors_are_read(self):
        w1 = "4e 01 4b 46 7f ff 02 10 5b : crc=5b {}\n4e 01 4b 46 7f ff 02 10 5b t=20875\n"
        for text, value in ((" 21.5\n", 21.5), ("temp=48.3'C", 48.3), ("-7", -7.0), ("1e3", 1000.0)):
            self.assertEqual(self.values(text), {"t": value})
        self.assertEqual(self.values(w1.format("YES")), {"t": 20.875})
        self.assertEqual(self.values("20812", "--scale", "0.001"), {"t": 20.812})
        self.assertEqual(self.values('{"a": 1, "b": 2.5}'), {"a": 1, "b": 2.5})
        for text in (w1.format("NO"), "", "nan", "none", "{", "1e999"):
            with self.assertRaises(ValueError):
                self.values(text)

    def test_wrong_arguments_exit_with_2(self):
        right = ["--server", "http://a", "--node", "n", "--value", "1"]
        for wrong in (
            ["--server", "ftp://a"], ["--server", "http://a:99999"], ["--server", "http://[a"], ["--node", "my shed"],
            ["--unit", "x" * 33], ["--sensor", "Temp"], ["--every", "0"], ["--value", "nan"], ["--scale", "inf"],
        ):  # fmt: skip
            with self.assertRaises(SystemExit) as caught, mock.patch("sys.stderr", io.StringIO()):
                client._parse([*right, *wrong])
            self.assertEqual(caught.exception.code, 2)

    def test_unset_clock_sends_no_time(self):
        options = client._parse(["--server", "http://a", "--node", "n", "--value", "1"])
        with mock.patch.object(client.time, "time", return_value=100.0):
            self.assertEqual(client._reading_of(options, {"a": 1}).keys(), {"node", "values", "id"})
        self.assertIn("time", client._reading_of(options, {"a": 1}))


class Program(unittest.TestCase):
    def test_file_is_valid_for_python_3_7_and_needs_only_the_standard_library(self):
        with open(PATH, encoding="utf-8") as file:
            tree = ast.parse(file.read(), feature_version=(3, 7))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        self.assertLessEqual({name.partition(".")[0] for name in names}, sys.stdlib_module_names)

    def test_help_shows_examples(self):
        done = subprocess.run(
            [sys.executable, PATH, "--help"], capture_output=True, text=True, env=clean_environment(COLUMNS="100")
        )
        self.assertEqual((done.returncode, "--sensor temperature" in done.stdout), (0, True), done.stderr)


if __name__ == "__main__":
    unittest.main()
