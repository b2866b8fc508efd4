"""Test of the real programs with 400 slow connections: the link continues, and browsers are served."""

import http.client
import json
import socket
import threading
import time
import unittest

from tests.page_support import Node, Server, use_memory_disk
from tests.support import LIMIT_S, wait_until

SLOW, BROWSERS, PAGES = 400, 10, 10
USUAL_S = LIMIT_S / 2  # for a page on a busy machine; a successful attack would delay it by minutes


def setUpModule():
    use_memory_disk()


class Attack:
    """Incomplete requests, each kept alive by single bytes. A closed connection is opened again."""

    def __init__(self, address):
        self.address = address
        self.opened = 0
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(SLOW // 4,), daemon=True) for _ in range(4)]
        for thread in self.threads:
            thread.start()

    def run(self, count):
        socks = [None] * count
        while not self.stopping.wait(0.1):
            for place, sock in enumerate(socks):
                try:
                    if sock is None:  # a full backlog answers only after a second; the next round tries again
                        socks[place] = sock = socket.create_connection(self.address, 0.2)
                        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-a: ")
                        self.opened += 1
                    sock.sendall(b"b")
                except OSError:
                    if sock is not None:
                        sock.close()
                    socks[place] = None
        for sock in socks:
            if sock is not None:
                sock.close()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(LIMIT_S)


class Browser(threading.Thread):
    """Client that opens the front page repeatedly, with a new connection each time."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address, self.statuses, self.worst_s = address, [], 0.0

    def run(self):
        for _ in range(PAGES):
            began_s = time.monotonic()
            link = http.client.HTTPConnection(*self.address, timeout=2 * LIMIT_S)
            try:
                link.request("GET", "/", headers={"Accept": "text/html"})
                answer = link.getresponse()
                whole = answer.read().endswith(b"</html>\n")
                self.statuses.append(answer.status if whole else 0)
            except OSError as error:
                self.statuses.append(error)
            finally:
                link.close()
            self.worst_s = max(self.worst_s, time.monotonic() - began_s)


class Slowloris(unittest.TestCase):
    def samples(self):
        status, text = self.server.get("/api/v1/nodes/basement")
        self.assertEqual(status, 200)
        found = json.loads(text)
        self.assertEqual((found["connected"], found["missing"], found["gaps"]), (True, 0, []))
        return found["samples"]

    def test_slow_clients_do_not_affect_link_and_browsers(self):
        node = Node(self)
        self.server = Server(self, "--node", node.at)
        page = self.server.page
        wait_until(lambda: "is reporting" in self.server.get("/")[1], "the node reports")
        attack = Attack(page)
        self.addCleanup(attack.stop)
        wait_until(lambda: attack.opened > SLOW, "all are connected; some were closed and have reconnected")
        before, since_ms = self.samples(), json.loads(self.server.get("/api/v1/nodes/basement")[1])["since"]
        began_s = time.monotonic()
        browsers = [Browser(page) for _ in range(BROWSERS)]
        for browser in browsers:
            browser.start()
        for browser in browsers:
            browser.join(PAGES * 2 * LIMIT_S)
            self.assertEqual(browser.statuses, [200] * PAGES)
            self.assertLess(browser.worst_s, USUAL_S)
        took_s = time.monotonic() - began_s
        wait_until(lambda: self.samples() >= before + 10 * took_s, "samples arrive at no less than half their rate")
        found = json.loads(self.server.get("/api/v1/nodes/basement")[1])
        self.assertEqual(found["since"], since_ms)  # its link was never lost
        self.assertLess(found["last_sample"]["age_s"], USUAL_S)
        attack.stop()
        self.assertTrue(all(not thread.is_alive() for thread in attack.threads))


if __name__ == "__main__":
    unittest.main()
