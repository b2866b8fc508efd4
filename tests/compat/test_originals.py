"""Tests of the behaviour of Practical 6, the TCP node and server from which this project has developed.

The messages of the unchanged old programs are written here by hand, over a socket or HTTP. The tests of the other
systems' clients are in tests/compat.
"""

import csv
import http.client
import os
import re
import socket
import threading
import time
import unittest
from urllib.parse import urlencode

from pigeonpost.node.ring_file import Ring, slot_bytes_for
from protocol import encode
from tests.page_support import Node, Server, StartedNode, StartedServer, control_here, for_class, use_memory_disk
from tests.support import BOOT, EPOCH, LIMIT_S, Program, Talk, free_port, sensors_line, taken, temp_folder, wait_until

CLOCK = "[0-2][0-9]:[0-5][0-9]:[0-6][0-9]"


def setUpModule():
    use_memory_disk()


def logs(data):
    folder = os.path.join(data, "logs")
    return sorted(name for name in os.listdir(folder) if name.endswith(".csv")) if os.path.isdir(folder) else []


def rows(data, name=None):
    """Return the rows of a log (default: the newest one) without its header."""
    names = logs(data)
    if not names:
        return []
    with open(os.path.join(data, "logs", name or names[-1]), newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


SOON = {
    "pigeonpost.transports.tcp_server.RETRY_S": 0.05,
    "webui._POLL_S": 0.02,
}  # how soon a node is tried again, and the page ends


class ButtonPresser:
    """Browser at the address that the server has printed, which presses buttons."""

    def __init__(self, server):
        self.server = server
        self.cookie = server.sign_in()

    def press(self, path, **fields):
        """Press a button, and return the redirect or the page."""
        page = self.server.get("/", {"Accept": "text/html", "Cookie": self.cookie})[1]
        fields["csrf"] = re.search(r'name="csrf" value="([^"]+)"', page)[1]
        link = http.client.HTTPConnection(*self.server.page, timeout=LIMIT_S)
        try:
            kind = {"Accept": "text/html", "Content-Type": "application/x-www-form-urlencoded"}
            link.request("POST", path, urlencode(fields), {**kind, "Cookie": self.cookie})
            answer = link.getresponse()
            return answer.headers["Location"] if answer.status == 303 else answer.read().decode()
        finally:
            link.close()


def talk_to(node):
    """Return a new connection to a node."""
    return Talk(tuple(node.place.rsplit(":", 1)))


def switch_on(node):
    """Switch sampling on, and wait for the node's SENDBACK."""
    with talk_to(node) as talk:
        talk.send(b"SEND ON\n")
        talk.until("SENDBACK")


class OldServer(unittest.TestCase):
    """Messages of the old server, unchanged, with our node."""

    @classmethod
    def setUpClass(cls):
        cls.node = Node(for_class(cls))

    def setUp(self):
        self.addCleanup(switch_on, self.node)
        self.talk = self.enterContext(talk_to(self.node))

    def read(self, pattern):
        """Return the next line that begins with the same word as `pattern`. It must match `pattern`."""
        word = pattern.split(" ")[0]
        while not (line := self.talk.line().decode()).startswith(word):
            pass
        self.assertRegex(line, f"^{pattern}")
        return line

    def test_send_turns_sending_on_or_off_and_sendback_acknowledges_it(self):
        for state in ("OFF", "ON", "OFF"):
            self.talk.send(f"SEND {state}\n".encode())
            self.read(f"SENDBACK {state}$")

    def test_check_is_answered_by_status_with_state_and_last_time(self):
        self.talk.send(b"CHECK\n")
        self.read(f"STATUS ON (-|{CLOCK}) ")
        self.talk.send(b"SEND ON\n")
        self.read("SENSORS ")
        self.talk.send(b"CHECK\n")
        self.read(f"STATUS ON {CLOCK} ")
        self.talk.send(b"SEND OFF\nCHECK\n")
        self.read(f"STATUS OFF {CLOCK} ")

    def test_sensors_contains_temperature_light_and_time(self):
        self.talk.send(b"SEND ON\n")
        line = self.read(r'SENSORS [0-9a-f]{16} \[\{"seq":\d+,"time":"[-0-9]+T[0-9:.]+Z"')
        self.assertRegex(line, r'"values":\{"temperature":-?[0-9.]+,"light":[0-9]+\}')

    def test_sending_is_on_at_start_up(self):
        self.talk = self.enterContext(talk_to(Node(self)))
        self.talk.send(b"CHECK\n")
        self.read("STATUS ON ")

    def test_split_messages_are_joined_correctly(self):
        self.talk.send(b"SEND OFF\nCHECK\nSEND ON\r\n\r\ncheck\n")
        for pattern in ("SENDBACK OFF$", "STATUS OFF ", "SENDBACK ON$", "STATUS ON "):
            self.read(pattern)
        for letter in b"SEND OFF\nCHECK\n":
            self.talk.send(bytes([letter]))
        self.read("SENDBACK OFF$")
        self.read("STATUS OFF ")

    def test_reconnecting_client_is_served_again(self):
        for _ in range(20):
            with socket.create_connection(self.talk.sock.getpeername(), LIMIT_S) as sock:
                sock.sendall(b"SEND ON\nCHE")  # and disconnects in the middle of a word
        self.talk.send(b"CHECK\n")
        self.read("STATUS ON ")
        self.assertIsNone(self.node.process.poll())

    def test_waiting_uses_no_cpu_time(self):
        """The original polled its socket every microsecond, with 100 % CPU load."""
        used = ~self.node.process.pid << 3 | 2  # clock of the CPU time of that process: clock_getcpuclockid(3)
        self.talk.send(b"SEND OFF\n")
        self.read("SENDBACK OFF$")
        before_s, began_s = time.clock_gettime(used), time.monotonic()
        time.sleep(0.25)
        self.assertLess(time.clock_gettime(used) - before_s, (time.monotonic() - began_s) / 10)


class OldNode(unittest.TestCase):
    def test_sendack_is_read_as_sendback(self):
        """Some handouts call the acknowledgement SENDACK. The page still shows the acknowledged state."""
        received = []

        def serve():
            sock, _ = listening.accept()
            with sock, sock.makefile("rb") as lines:
                sensors = [{"name": "temperature", "unit": "°C"}]
                for line in lines:
                    word = line.split()[0].decode()
                    received.append(line)
                    if word == "HELLO":
                        hello = {"link": 1, "node": "pi1", "outbox": EPOCH, "held": [[EPOCH, 1, 1, 1]]}
                        sock.sendall(encode("HELLO", hello | {"every": 10.0, "sensors": sensors}))
                    elif word == "RESUME":
                        sock.sendall(sensors_line(EPOCH, 1, 1))
                    elif word == "CHECK":
                        sock.sendall(b"STATUS ON 15:36:10 {}\n")
                    elif word == "SEND":
                        sock.sendall(line.replace(b"SEND", b"SENDACK"))

        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        threading.Thread(target=serve, daemon=True).start()
        server = Server(self, "--node", f"pi1@127.0.0.1:{listening.getsockname()[1]}")
        wait_until(lambda: rows(server.data))
        # The notice is not `silent`, because the node has answered.
        self.assertEqual(ButtonPresser(server).press("/nodes/pi1/off"), "/nodes/pi1?notice=off")
        self.assertIn(b"SEND OFF\n", received)


class NodeAndServer(unittest.TestCase):
    """Our node and our server, used like the two programs of the practical."""

    def test_the_node_samples_every_10_s_an_mcp3008_with_temperature_and_light(self):
        shown = Program(self, "node.py", "--show")
        self.assertEqual(shown.wait(), 0)
        self.assertIn("[node] every = 10.0  # default", "\n".join(shown.said))
        node = StartedNode(self)
        self.assertIn("temperature, light", node.logs("node basement:"))

    def test_node_that_starts_before_its_server_waits(self):
        node = Node(self, "--every", "0.02")
        with talk_to(node) as talk:
            talk.send(b"SEND ON\n")
            for _ in range(5):
                talk.until("SENSORS")  # samples taken while no server is running
        server = Server(self, "--node", node.at)
        wait_until(lambda: len(rows(server.data)) > 20)
        export = server.get("/api/v1/samples?node=basement&limit=1000")[1]
        self.assertIn('"seq":1,', export.replace('"seq": ', '"seq":'))

    def test_log_is_created_at_start_with_date_and_time(self):
        before = time.strftime("%d%m%y_%H%M")
        server = StartedServer(self)
        self.assertTrue(server.page)
        names = {f"sensorlog_{before}.csv", time.strftime("sensorlog_%d%m%y_%H%M.csv")}
        self.assertTrue(set(logs(server.data)) <= names and logs(server.data), logs(server.data))

    def test_restart_does_not_truncate_the_log(self):
        node, data = Node(self, "--every", "0.02"), temp_folder(self)
        server = Server(self, "--node", node.at, data=data, constants=SOON)
        wait_until(lambda: rows(data))
        (first,) = logs(data)
        server.terminate()
        self.assertEqual(server.wait(), 0)
        kept = rows(data, first)
        again = Server(self, "--node", node.at, data=data)
        wait_until(
            lambda: len(logs(data)) == 2 and any(len(rows(data, name)) > 5 for name in logs(data) if name != first)
        )
        self.assertEqual(rows(data, first), kept)
        self.assertIsNone(again.process.poll())

    def test_the_buffer_is_saved_when_it_is_full(self):
        card = temp_folder(self)
        ring = Ring(card, 4096, slot_bytes_for(["temperature", "light"]))
        for first in range(1, 3001, 100):
            samples = [taken(values={"temperature": 21.5, "light": n}, up_ms=n) for n in range(first, first + 100)]
            ring.append(EPOCH, first, BOOT, samples)
        ring.close()
        node = Node(self, "--data", card, "--every", "600")
        server = Server(self, "--node", node.at, PIGEONPOST_STORE_COMMIT="600", PIGEONPOST_STORE_BUFFER="1000")
        # The first commit is immediate, with the samples received so far: fewer than the buffer plus one batch of 500.
        wait_until(lambda: len(rows(server.data)) >= 2 * 1500, "rows long before the commit interval of ten minutes")

    def test_sigterm_saves_the_buffer(self):
        node = Node(self, "--every", "0.01")
        server = Server(self, "--node", node.at, constants=SOON, PIGEONPOST_STORE_COMMIT="600")
        wait_until(lambda: rows(server.data), "the first commit, which is immediate")
        with talk_to(node) as talk:
            talk.send(b"SEND ON\n")
            for _ in range(40):
                talk.until("SENSORS")
        ButtonPresser(server).press("/nodes/basement/status")  # answered after the samples, so they have arrived
        few = len(rows(server.data))
        server.terminate()
        self.assertEqual(server.wait(), 0)
        self.assertGreater(len(rows(server.data)), few + 20)

    def test_terminating_either_program_loses_no_sample(self):
        card, data = temp_folder(self), temp_folder(self)

        def count():
            return sum(len(rows(data, name)) for name in logs(data))

        for _ in range(3):
            node = Node(self, "--data", card, "--every", "0.02")
            server = Server(self, "--node", node.at, data=data, constants=SOON)
            before = count()
            wait_until(lambda n=before: count() > n + 20)
            node.terminate()
            self.assertEqual(node.wait(), 0)
            server.terminate()
            self.assertEqual(server.wait(), 0)
        node = Node(self, "--data", card, "--every", "0.02")
        held = int(re.search(r"([\d,]+) samples? in the outbox", node.logs(" in the outbox"))[1].replace(",", ""))
        server = Server(self, "--node", node.at, data=data, constants=SOON)
        wait_until(lambda: count() > 2 * held, "those, and new ones")
        server.terminate()
        self.assertEqual(server.wait(), 0)
        # Compared by sequence numbers: on a busy machine, two samples may have the same time in milliseconds.
        status, said, _ = control_here("--data", data, "verify")
        self.assertEqual((status, said), (0, f"{count() // 2} samples of 1 node: none missing, none stored twice\n"))

    def test_programs_reconnect_after_a_crash_of_either(self):
        data = temp_folder(self)
        node = Node(self, "--every", "0.02", "--listen", f"127.0.0.1:{free_port()}")
        server = Server(self, "--node", node.at, data=data)
        wait_until(lambda: rows(data))
        server.kill()
        server = Server(self, "--node", node.at, data=data, constants=SOON)
        wait_until(lambda: len(rows(data)) > 10)
        node.kill()
        before = len(rows(data))
        Node(self, "--listen", node.place, "--every", "0.02")
        wait_until(lambda: len(rows(data)) > before + 10)
        self.assertIsNone(server.process.poll())


class PageButtons(unittest.TestCase):
    """The buttons of the old page."""

    @classmethod
    def setUpClass(cls):
        cls.node = Node(for_class(cls), "--every", "0.02")
        cls.server = Server(for_class(cls), "--node", cls.node.at)
        cls.browser = ButtonPresser(cls.server)

    def setUp(self):
        self.addCleanup(switch_on, self.node)
        wait_until(lambda: len(rows(self.server.data)) > 30)

    def state(self):
        with talk_to(self.node) as talk:
            talk.send(b"CHECK\n")
            return talk.until("STATUS").args

    def test_sensor_buttons_switch_sampling(self):
        for word, on in (("off", False), ("on", True)):
            self.assertEqual(self.browser.press(f"/nodes/basement/{word}"), f"/nodes/basement?notice={word}")
            self.assertEqual(self.state()[0], on)

    def test_status_asks_the_node(self):
        leads_to = self.browser.press("/nodes/basement/status")
        self.assertEqual(leads_to, "/nodes/basement?notice=status")
        self.assertRegex(self.server.get(leads_to, {"Accept": "text/html"})[1], CLOCK)

    def test_log_check_shows_the_last_ten_samples_and_not_the_first(self):
        self.browser.press("/nodes/basement/off")
        wait_until(lambda: len(rows(self.server.data)) == 2 * self.state()[2]["taken"], "all are in the log")
        text = self.server.get("/log")[1]
        shown = re.findall(r"\d\d:\d\d:\d\d", text)
        times = [row[0] for row in rows(self.server.data) if row[2] == "temperature"]
        self.assertEqual(shown, [when[11:19] for when in reversed(times[-10:])])

    def test_log_download_is_the_complete_log_of_this_run(self):
        status, text = self.server.get("/log.csv")
        self.assertEqual(status, 200)
        self.assertEqual(text.splitlines()[0], "time,node,sensor,value,unit")
        self.assertGreater(len(text.splitlines()), 30)

    def test_exit_stops_the_server_and_prints_exited(self):
        node = Node(self)
        server = Server(self, "--node", node.at, constants=SOON)
        wait_until(lambda: rows(server.data))
        self.assertIn("<h1>exited</h1>", ButtonPresser(server).press("/exit", sure="yes"))
        self.assertEqual(server.wait(), 0)
        self.assertIsNone(node.process.poll())


if __name__ == "__main__":
    unittest.main()
