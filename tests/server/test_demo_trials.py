"""Trials of the demonstration with the real server and node: each alone and in random order; the page and its count."""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import unittest
from urllib.parse import urlencode

from pigeonpost.server import demo_node
from pigeonpost.server.demo_count import DemoCount
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.page_support import Server, StartedServer, control_here, use_memory_disk
from tests.support import LIMIT_S, LONG, ROOT, clean_environment, long, rounds, wait_until
from tests.test_server import is_there

ROUNDS = rounds("PIGEONPOST_TEST_DEMO", 6, 100)
BREAK = {"kill": "start", "cut": "restore", "stall": "restore", "fill": "free"}  # and the action that repairs it


def constants(every_s, slots):
    settings = demo_node._SETTINGS.replace("every = 1\n", f"every = {every_s}\n")
    return {
        "pigeonpost.server.demo_node._SETTINGS": settings.replace("slots = 180", f"slots = {slots}"),
        "pigeonpost.server.demo_count._FRESH_S": 0.0,
        "webui._POLL_S": 0.02,
    }


FAST, SHORT = constants(0.02, 4096), constants(0.02, 64)


def setUpModule():
    use_memory_disk()


class Browser:
    """An operator on the pages of a demonstration."""

    def __init__(self, server):
        self.server = server
        assert server.page
        self.headers = {"Cookie": server.sign_in(), "Accept": "text/html"}

    def page(self, path="/demo"):
        return self.server.get(path, self.headers)[1]

    def state(self):
        return json.loads(self.server.get("/demo.json", self.headers)[1])

    def press(self, path, csrf=None, headers=None):
        """Press a button and return the HTTP status."""
        csrf = re.search(r'name="csrf" value="([^"]*)"', self.page("/demo"))[1] if csrf is None else csrf
        link = http.client.HTTPConnection(*self.server.page, timeout=LIMIT_S)
        try:
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            link.request("POST", path, urlencode({"csrf": csrf}), {**(headers or self.headers), **kind})
            return link.getresponse().status
        finally:
            link.close()

    def do(self, action):
        status = self.press(f"/demo/{action}")
        if status != 303:
            raise AssertionError(f"{action}: {status}; {self.server.logged}")

    def take(self, count, what="taken"):
        """Wait until `count` more samples are taken (or held)."""
        wanted = self.state()[what] + count
        wait_until(lambda: self.state()[what] >= wanted, f"{count} more samples are {what}")

    def settle(self):
        """Switch the node off, wait until it holds nothing, kill it, and return the state."""
        wait_until(lambda: self.press("/nodes/demo/off") == 303 and 'class="chosen" aria-label="Sensor Off' in
                   self.page("/"), "the node is switched off")  # fmt: skip
        wait_until(lambda: self.state()["held"] == 0, "all samples are stored")
        self.do("kill")  # it may have taken one more sample before
        return self.state()


class TrialCase(unittest.TestCase):
    def start(self, constants=FAST):
        self.server = Server(self, "--demo", constants=constants)
        self.browser = Browser(self.server)
        wait_until(lambda: self.browser.state()["stored"] > 2, "samples are stored")
        return self.browser

    def assert_exact(self, state):
        """Assert that the last `state` of the page, the database and `control.py verify` agree, and that all is there.

        The last sample of the node may be stored after the page was made.
        """
        data = self.server.data
        self.server.process.send_signal(signal.SIGINT)
        self.assertEqual(self.server.wait(), 0)
        with contextlib.closing(SqliteStore(data, look_only=True)) as store:
            count = DemoCount(os.path.join(data, "node")).count(store, "demo")
        for found in (state, count._asdict()):
            self.assertEqual((found["twice"], found["lost"], found["others"]), (0, 0, 0), found)
            total = sum(found[name] for name in ("stored", "held", "missing", "overwritten"))
            self.assertEqual(found["taken"], total, found)
        self.assertEqual((count.taken, count.missing, count.overwritten), (state["taken"], state["missing"], 0))
        self.assertLessEqual(count.stored - state["stored"], state["held"])
        db = sqlite3.connect(os.path.join(data, "pigeonpost.sqlite3"))
        self.addCleanup(db.close)
        rows = db.execute("SELECT count(*), count(DISTINCT epoch || '/' || seq) FROM samples WHERE node = 'demo'")
        self.assertEqual(rows.fetchone(), (count.stored, count.stored))
        status, said, told = control_here("--data", data, "verify")
        self.assertEqual(status, 0, said + told)


class Trials(TrialCase):
    def test_each_trial_alone_loses_nothing_and_the_count_agrees_with_verify(self):
        browser = self.start()
        for action, repair in BREAK.items():
            with self.subTest(action):
                pid = browser.state()["node_pid"]
                browser.do(action)
                if action == "kill":
                    self.assertFalse(os.path.exists(f"/proc/{pid}"), "the node is a zombie, or still runs")
                    self.assertIsNone(browser.state()["node_pid"])
                    self.assertIn("Node: not running", browser.page())
                else:
                    browser.take(5, "held")
                browser.do(repair)
                browser.take(5, "stored")
        self.assertIn("demonstration: the disk is full", "\n".join(self.server.logged))
        self.assertIn("database or disk is full", "\n".join(self.server.logged))
        browser.do("verify")
        self.assertRegex(browser.state()["verified"], r"^\d\d:\d\d:\d\d: .*Faults found by verify: none\.$")
        self.assert_exact(browser.settle())

    @long
    def test_trials_in_random_order_lose_nothing(self):
        browser, chance = self.start(), random.Random("demo")
        for _ in range(ROUNDS):
            action = chance.choice([*BREAK, *BREAK.values()])
            browser.do(action)
            if browser.state()["node_pid"] is not None:
                browser.take(chance.randrange(1, 4))
            state = browser.state()
            self.assertEqual((state["twice"], state["lost"]), (0, 0), action)
        for repair in ("start", "restore", "free"):
            browser.do(repair)
        self.assert_exact(browser.settle())

    @long
    def test_full_outbox_becomes_a_gap_with_a_reason(self):
        browser = self.start(SHORT)
        browser.do("cut")
        wait_until(lambda: browser.state()["overwritten"] >= 2, "samples are overwritten")
        self.assertEqual(browser.state()["held"], 64)
        browser.do("restore")
        wait_until(lambda: browser.state()["missing"] >= 2, "the gap is stored")
        self.assertIn("overwritten", browser.state()["gaps"][0]["why"])
        self.assertIn(browser.state()["gaps"][0]["why"], browser.page())
        self.assert_exact(browser.settle())

    @long
    def test_samples_held_when_the_server_is_killed_are_stored_after_its_next_start(self):
        browser = self.start()
        browser.do("cut")
        browser.take(5, "held")
        pid, held = browser.state()["node_pid"], browser.state()["held"]
        self.server.process.kill()
        wait_until(lambda: not is_there(pid), "the node has ended")
        self.server = Server(self, "--demo", data=self.server.data, constants=FAST)
        browser = Browser(self.server)
        browser.take(held, "stored")
        self.assert_exact(browser.settle())


class Ends(unittest.TestCase):
    def test_node_ends_when_the_server_is_killed_in_each_broken_state(self):
        server = StartedServer(self, "--demo")
        browser = Browser(server)
        browser.do("kill")
        browser.do("start")  # in a thread of a request, which has ended when the server is killed
        browser.do("fill")
        browser.do("stall")
        pid = browser.state()["node_pid"]
        self.assertTrue(is_there(pid))
        server.process.kill()
        server.process.wait(LIMIT_S)
        wait_until(lambda: not is_there(pid), "the node has ended")

    def test_interrupt_ends_everything_in_each_broken_state(self):
        alone = [[action] for action in BREAK] if LONG else []
        for actions in (*alone, ["cut", "kill"], ["stall", "fill"]):
            with self.subTest(actions):
                server = Server(self, "--demo", constants=FAST)
                browser = Browser(server)
                pid = browser.state()["node_pid"]
                for action in actions:
                    browser.do(action)
                server.process.send_signal(signal.SIGINT)
                self.assertEqual(server.wait(), 0)
                self.assertFalse(is_there(pid))


class Access(unittest.TestCase):
    def test_actions_need_the_key_and_the_token_of_the_page(self):
        server = Server(self, "--demo", constants=FAST)
        browser = Browser(server)
        self.assertEqual(browser.press("/demo/kill", csrf="wrong"), 403)
        self.assertEqual(browser.press("/demo/kill", csrf="", headers={"Accept": "text/html"}), 403)
        self.assertEqual(browser.press("/demo/explode"), 404)
        self.assertIsNotNone(browser.state()["node_pid"])
        self.assertIn('<a href="/demo">Break it', browser.page("/"))
        status, text = server.get("/demo")
        self.assertEqual(status, 200)
        self.assertIn("Stored twice: 0. Missing without a trace: 0.", text)

    def test_page_does_not_exist_without_a_demonstration_and_no_module_is_loaded(self):
        server = Server(self)
        for path in ("/demo", "/demo.json"):
            self.assertEqual(server.get(path)[0], 404)
        self.assertNotIn(
            "/demo", server.get("/", {"Accept": "text/html"})[1].partition("<main>")[2].replace("--demo", "")
        )
        code = "import sys, server; print([name for name in sys.modules if 'demo' in name])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), capture_output=True)
        self.assertEqual(done.stdout.decode().strip(), "[]", done.stderr)


if __name__ == "__main__":
    unittest.main()
