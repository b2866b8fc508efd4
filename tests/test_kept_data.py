"""A data folder and settings made by an older version start unchanged.

tests/kept/1b8238e.tar.gz was made by the programs of commit 1b8238e: a node with 256 slots that sampled for some
seconds, a server that collected from it over TCP with a token, two users, a saved chart and the id of a Pi.
"""

import json
import os
import shutil
import tarfile
import unittest

from pigeonpost.auth.users import Users
from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.core.data_folder import RUNNING
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.forked import Forked
from tests.page_support import Server, control_here, use_memory_disk
from tests.support import ROOT, temp_folder, wait_until

FAR_MS = 1 << 60


def setUpModule():
    use_memory_disk()


class KeptData(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        with tarfile.open(os.path.join(ROOT, "tests", "kept", "1b8238e.tar.gz")) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not in Python 3.11.2
            archive.extractall(self.folder)
        self.data = os.path.join(self.folder, "server")
        self.token = self.read("token").strip()
        copy = os.path.join(self.folder, "copy")
        shutil.copytree(self.data, copy)
        store = SqliteStore(copy)  # which brings it up to date
        self.before = store.points("basement", 0, FAR_MS, 10_000)
        store.close()

    def read(self, name):
        with open(os.path.join(self.folder, name), encoding="utf-8") as file:
            return file.read()

    def run_both(self):
        """Start node and server on the kept folder, wait for a new sample, stop both."""
        node = Forked(
            self, "node.py", "--config", os.path.join(self.folder, "node.toml"), "--listen", "127.0.0.1:0",
            "--data", os.path.join(self.folder, "node"), PIGEONPOST_NODE_TOKEN=self.token,
        )  # fmt: skip
        place = "{}:{}".format(*node.address())
        config = os.path.join(self.folder, "server.toml")
        server = Server(self, "--config", config, "--node", f"basement@{place}", data=self.data)
        server.page  # noqa: B018  # waits until it listens
        key = json.loads(self.read(f"server/{RUNNING}"))["key"]

        def has_new_sample():
            path = "/api/v1/nodes/basement"
            status, text = server.get(path, {"Authorization": f"Bearer {key}"})
            self.assertEqual(status, 200, text)
            last = json.loads(text).get("last_sample")
            return last and parse_rfc3339(last["time"]) > self.before[-1].time_ms

        wait_until(has_new_sample)
        for program in (node, server):
            program.terminate()
            self.assertEqual(program.wait(), 0)

    def test_new_samples_follow_those_that_were_kept(self):
        self.run_both()
        store = SqliteStore(self.data, look_only=True)
        self.addCleanup(store.close)
        after = store.points("basement", 0, FAR_MS, 10_000)
        self.assertEqual(after[: len(self.before)], self.before)
        new = after[len(self.before) :]
        self.assertEqual([point.seq for point in new], list(range(1, len(new) + 1)))
        self.assertEqual(len({point.epoch for point in new} - {self.before[0].epoch}), 1)  # one for each start

    def test_the_store_and_the_logs_of_both_runs_say_the_same(self):
        self.run_both()
        status, out, told = control_here("--data", self.data, "verify")
        self.assertEqual((status, told), (0, ""), out)
        self.assertTrue(os.path.exists(os.path.join(self.data, "pigeonpost.sqlite3.v2")))  # before it was changed

    def test_former_roles_of_users_are_read(self):
        self.assertIn('"role": "look"', self.read("server/users.json"))
        self.assertEqual(Users(self.data).roles(), {"admin": "operator", "guest": "viewer"})

    def test_saved_charts_and_ids_of_pis_are_read(self):
        self.run_both()
        self.assertEqual(json.loads(self.read("server/graphs.json"))["graphs"][0]["name"], "Basement")
        status, out, _ = control_here("--data", self.data, "file-id")
        self.assertEqual(status, 0)
        self.assertIn("00112233445566ff", out)


if __name__ == "__main__":
    unittest.main()
