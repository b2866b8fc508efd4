"""Tests of `control.py rename`, `retire`, `relabel` and `export --format excel`, with and without a running server."""

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import unittest

from pigeonpost.core.data_folder import DATABASE, RUNNING
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.cli.test_data_commands import fill
from tests.page_support import Node, Server, set_zone, use_memory_disk
from tests.storage.test_contract import E2, batch
from tests.support import LIMIT_S, ROOT, clean_environment, free_port, rounds, temp_folder, wait_until
from tests.test_control import ControlCase

FAR_MS = 1 << 60


def setUpModule():
    use_memory_disk()


class WithoutServer(ControlCase):
    def seqs(self, node):
        store = SqliteStore(self.data, look_only=True)
        try:
            return [point.seq for point in store.points(node, 0, FAR_MS, 1000)]
        finally:
            store.close()

    def test_rename_keeps_samples_and_token_of_the_node(self):
        fill(self.data, batch(1, 5))
        token = self.done("token", "a")
        out = self.done("rename", "a", "b")
        self.assertIn("a is now called b, with all its stored data", out)
        self.assertIn('[node] name = "b" in node.toml', out)
        self.assertEqual(self.seqs("b"), [1, 2, 3, 4, 5])
        for name in ("b", "a"):  # with its own token, the former name would become a separate node
            self.assertEqual(self.done("get-token", name), token)
        self.assertEqual(self.done("rotate", "a"), self.done("get-token", "b"))
        self.assertEqual(self.done("tokens"), "b\n")
        self.done("revoke", "a")
        self.assertEqual(self.done("tokens"), "")
        self.assertRegex(self.done("verify"), "^5 samples of 1 node: none missing, none stored twice")
        fill(self.data, batch(4, 7))  # under its former name
        self.assertEqual(self.seqs("b"), list(range(1, 8)))
        self.assertRegex(self.done("verify"), "^7 samples of 1 node: none missing, none stored twice")
        self.assertIn("no longer a former name", self.done("rename", "a", "--release"))
        fill(self.data, batch(1, 2, epoch=E2))
        self.assertEqual(self.seqs("a"), [1, 2])

    def test_token_for_a_former_name_creates_a_separate_node(self):
        fill(self.data, batch(1, 5))
        self.done("rename", "a", "b")
        status, _, told = self.run_("token", "a")
        self.assertEqual(status, 0)
        self.assertIn("a is a former name of b. With this token, a is a separate node from now on.", told)

    def test_tokens_work_with_a_damaged_database(self):
        with open(os.path.join(self.data, "pigeonpost.sqlite3"), "wb") as file:
            file.write(b"damaged" * 1000)
        token = self.done("get-token", "a")
        self.assertEqual(self.done("get-token", "a"), token)

    def test_export_accepts_a_former_name(self):
        fill(self.data, batch(1, 2))
        self.done("rename", "a", "b")
        self.assertIn(",b,light,1,\n", self.done("export", "--node", "a"))
        self.assertEqual(self.done("export", "--node", "a"), self.done("export", "--node", "b"))
        fill(self.data, batch(1, 1, node="c", epoch=E2))
        self.assert_fails(1, "no samples of node d are stored; the nodes are: b, c", "export", "--node", "d")

    def test_samples_are_exported_if_the_labels_are_damaged(self):
        fill(self.data, batch(1, 3))
        with contextlib.closing(sqlite3.connect(os.path.join(self.data, DATABASE))) as database:
            ((page,),) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'labels'").fetchall()
            ((size,),) = database.execute("PRAGMA page_size").fetchall()
        with open(os.path.join(self.data, DATABASE), "r+b") as file:
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)
        status, out, told = self.run_("export")
        self.assertEqual((status, len(out.splitlines())), (1, 7))
        self.assertIn("the readable data was written", told)

    def test_retire_can_be_undone_and_labels_are_exported(self):
        fill(self.data, batch(1, 5))
        self.assertIn("a is retired", self.done("retire", "a"))
        self.assertIn("retired", self.done("list"))
        self.assertIn("a is in use again", self.done("retire", "a", "--undo"))
        self.assertIn(
            "temperature of a is now shown as North wall", self.done("relabel", "a", "temperature", "North wall")
        )
        rows = self.done("export", "--labels").splitlines()
        self.assertEqual(rows[0], "time,node,sensor,value,unit,label")
        self.assertTrue(rows[1].endswith(",a,temperature,20.5,°C,North wall"), rows[1])
        self.assertTrue(rows[2].endswith(",a,light,1,,"), rows[2])
        self.assert_fails(2, "--labels can be used with --format csv only", "export", "--labels", "--format", "wide")
        head = self.done("export", "--format", "excel").splitlines()[0]
        self.assertEqual(head, "\ufefftime,node,light,North wall (°C)")
        fill(self.data, batch(1, 1, node="b", epoch=E2, units={"light": "°C", "temperature": "°C"}))
        self.done("relabel", "b", "light", "North wall")
        self.done("relabel", "b", "temperature", "North wall")
        head = self.done("export", "--format", "excel", "--node", "b").splitlines()[0]
        self.assertEqual(head, '\ufefftime,node,"North wall (°C), light","North wall (°C), temperature"')

    def test_settings_that_contain_the_old_name_are_listed(self):
        fill(self.data, batch(1, 5))
        out = self.done("rename", "a", "b", PIGEONPOST_SERVER_NODES="a@10.0.0.5")
        self.assertIn(
            "[server] nodes (PIGEONPOST_SERVER_NODES) still contains a, which continues to work; change it to b", out
        )
        out = self.done("retire", "b", PIGEONPOST_SERVER_NODES="b@10.0.0.5")
        self.assertIn("still contains b: the server collects from it until", out)

    def test_invalid_requests_are_rejected(self):
        fill(self.data, batch(1, 5), batch(1, 1, node="b", epoch=E2))
        self.assert_fails(1, "a node b exists already", "rename", "a", "b")
        self.assert_fails(1, "nothing is stored for a node z", "retire", "z")
        self.assert_fails(1, "has never had a sensor x", "relabel", "a", "x", "X")
        self.assert_fails(1, "rename needs NODE and its NEW name", "rename", "a")
        self.assert_fails(1, "a is not a former name", "rename", "a", "--release")

    def test_killed_rename_leaves_either_the_old_or_the_new_name(self):
        chance = random.Random(14)
        fill(self.data, batch(1, 30))
        token = self.done("token", "a").strip()
        old, new = "a", "b"
        for number in range(rounds("PIGEONPOST_TEST_RENAMES", 2, 40)):
            command = [sys.executable, "control.py", "--data", self.data, "rename", old, new]
            process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.DEVNULL)
            try:
                process.wait(chance.uniform(0.15, 0.6))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait(LIMIT_S)
            found = [name for name in ("a", "b") if self.seqs(name)]
            self.assertEqual(len(found), 1, f"round {number}")
            self.assertEqual(self.seqs(found[0]), list(range(1, 31)))
            self.assertEqual(self.done("get-token", found[0]).strip(), token)
            old, new = found[0], "b" if found[0] == "a" else "a"
        self.done("rename", old, new)
        self.assertRegex(self.done("verify"), "^30 samples of 1 node: none missing, none stored twice")
        with open(os.path.join(self.data, "tokens.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file), {new: token})


class WithServer(ControlCase):
    def test_renamed_node_is_collected_without_interruption(self):
        token = self.done("token", "alpha").strip()
        node = Node(self, name="alpha", PIGEONPOST_NODE_TOKEN=token)
        server = Server(self, "--node", node.at, data=self.data)
        server.page  # noqa: B018  # wait until it listens
        wait_until(lambda: self.count(server, "alpha") > 3, "samples of alpha")
        self.done("rename", "alpha", "beta")
        before = self.count(server, "beta")
        self.assertGreater(before, 3)
        wait_until(lambda: self.count(server, "beta") > before + 3, "more samples, under the new name")
        self.done("relabel", "beta", "temperature", "North wall")
        self.assertEqual(self.node(server, "alpha")["name"], "beta")  # the old address is redirected
        self.assertEqual(self.node(server, "beta")["sensors"][0]["label"], "North wall")
        self.assertRegex(self.done("nodes"), r"NODE +STATE .*\nbeta +reporting +\S+ +127\.0\.0\.1:\d+ +[+-]\d")
        self.assertEqual(json.loads(self.done("nodes", "--json"))[0]["name"], "beta")
        self.done("retire", "beta")
        self.assertEqual(self.node(server, "beta")["state"], "retired")
        self.assertEqual(self.done("check"), "")
        self.done("retire", "beta", "--undo")
        self.assert_fails(1, "nothing is stored for a node zeta", "rename", "zeta", "eta")
        events = self.get(server, "/happenings.json")["happenings"]
        self.assertEqual(
            [one["text"] for one in events if one["kind"] in ("renamed", "relabelled", "retired")][::-1],
            ["was called alpha until now", "temperature is shown as North wall", "retired", "in use again"],
        )
        server.kill()
        self.assertRegex(self.done("verify"), "none missing, none stored twice")

    def test_node_renamed_on_its_pi_first_waits_and_loses_nothing(self):
        token, folder, place = self.done("token", "alpha").strip(), temp_folder(self), f"127.0.0.1:{free_port()}"
        more = {"PIGEONPOST_NODE_TOKEN": token}
        node = Node(self, "--data", folder, "--listen", place, name="alpha", **more)
        soon = {"pigeonpost.transports.tcp_server.RETRY_S": 0.05}
        server = Server(self, "--node", f"alpha@{place}", data=self.data, constants=soon)
        server.page  # noqa: B018  # wait until it listens
        wait_until(lambda: self.count(server, "alpha") > 3, "samples of alpha")
        node.kill()
        Node(self, "--data", folder, "--listen", place, name="beta", **more)
        wait_until(lambda: "answers as node beta" in self.node(server, "alpha")["fault"], "that it is refused")
        before = self.count(server, "alpha")
        self.done("rename", "alpha", "beta")
        wait_until(lambda: self.count(server, "beta") > before + 3, "more samples, under the new name")
        self.assertEqual(self.count(server, "alpha"), 0)
        self.assertEqual(self.node(server, "beta")["missing"], 0)
        server.kill()
        self.assertRegex(self.done("verify"), "of 1 node: none missing, none stored twice")

    def test_renamed_node_can_push_with_its_old_name(self):
        token = self.done("token", "alpha").strip()
        server = Server(self, data=self.data)
        more = {"PIGEONPOST_NODE_TOKEN": token, "PIGEONPOST_PUSH_TO": "http://{}:{}".format(*server.page)}
        Node(self, name="alpha", **more)
        wait_until(lambda: self.count(server, "alpha") > 3, "samples of alpha")
        self.done("rename", "alpha", "beta")
        before = self.count(server, "beta")
        wait_until(lambda: self.count(server, "beta") > before + 3, "more samples, under the new name")
        self.done("send", "beta", "off")
        self.assertEqual([one["name"] for one in self.get(server, "/api/v1/nodes")["nodes"]], ["beta"])

    def get(self, server, path):
        with open(os.path.join(self.data, RUNNING), encoding="utf-8") as file:
            key = json.load(file)["key"]
        status, text = server.get(path, {"Authorization": f"Bearer {key}"})
        self.assertEqual(status, 200, text)
        return json.loads(text)

    def node(self, server, name):
        return self.get(server, f"/api/v1/nodes/{name}")

    def count(self, server, name):
        nodes = self.get(server, "/api/v1/nodes")["nodes"]
        return next((node["samples"] for node in nodes if node["name"] == name), 0)


class Excel(ControlCase):
    def test_export_to_excel_has_labels_and_local_times(self):
        set_zone(self, "Europe/Vienna")
        fill(self.data, batch(1, 2))
        path = os.path.join(self.data, "x.csv")
        self.done("export", "--format", "excel", "--out", path)
        with open(path, "rb") as file:
            content = file.read()
        self.assertTrue(content.startswith(b"\xef\xbb\xbftime,node,light,temperature (\xc2\xb0C)\r\n"))
        rows = content.decode("utf-8-sig").split("\r\n")
        self.assertRegex(rows[1], r"^2026-\d\d-\d\d \d\d:\d\d:\d\d,a,1,20\.5$")
        out = self.done("export", "--format", "excel", "--decimal", "comma")
        self.assertTrue(re.search(r";a;1;20,5\r?$", out, re.M), out)


if __name__ == "__main__":
    unittest.main()
