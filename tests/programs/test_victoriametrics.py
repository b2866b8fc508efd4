"""Forwarding to the real VictoriaMetrics: both sides are killed at random, and every stored sample arrives once.

VictoriaMetrics is Debian's victoria-metrics; `-retentionPeriod` covers the times of the samples. Its export API returns
what it has stored.
"""

import json
import os
import random
import signal
import time
import unittest
import urllib.request

from pigeonpost.storage.sqlite.store import SqliteStore
from tests.programs import RealProgram, need_programs
from tests.support import Program, free_port, temp_folder, wait_until

NODES = 3


def setUpModule():
    need_programs("victoria-metrics")


def victoria_metrics(test, port):
    """Return a VictoriaMetrics on `port`, not started. It syncs its data about every second."""

    def is_ready():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200

    return RealProgram(test, [
        "victoria-metrics", "-storageDataPath", "{folder}/data", f"-httpListenAddr=127.0.0.1:{port}",
        "-retentionPeriod=100y", "-dedup.minScrapeInterval=1ms", "-memory.allowedBytes=100MB", "-loggerLevel=ERROR",
        "-search.latencyOffset=0s",
    ], is_ready)  # fmt: skip


def exported(port):
    """Return the values of every series as {(node, name): {time_ms: [values]}}, after VictoriaMetrics has flushed."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/internal/force_flush", timeout=20):
        pass
    url = f"http://127.0.0.1:{port}/api/v1/export?match[]={{__name__!=%22%22}}&reduce_mem_usage=1"
    found = {}
    with urllib.request.urlopen(url, timeout=60) as answer:
        for line in answer:
            one = json.loads(line)
            series = found.setdefault((one["metric"]["node"], one["metric"]["__name__"]), {})
            for time_ms, value in zip(one["timestamps"], one["values"], strict=True):
                series.setdefault(time_ms, []).append(value)
    return found


class KillTest(unittest.TestCase):
    """Nodes that sample 20 times per second, a server that forwards, and VictoriaMetrics."""

    def setUp(self):
        self.port, self.folder = free_port(), temp_folder(self)
        self.metrics = victoria_metrics(self, self.port)
        self.settings = os.path.join(temp_folder(self), "server.toml")
        with open(self.settings, "w", encoding="utf-8") as file:
            url = f"http://127.0.0.1:{self.port}"
            file.write(f'[[forward]]\nname = "vm"\nkind = "victoriametrics"\nurl = "{url}"\nagain = 20\n')
        self.nodes = []
        for number in range(NODES):
            node = Program(
                self, "node.py", "--simulate", "--name", f"n{number}", "--every", "0.05", "--listen", "127.0.0.1:0",
                "--data", temp_folder(self),
            )  # fmt: skip
            self.nodes.append((node, "{}:{}".format(*node.address())))

    def serve(self):
        nodes = [part for number, (_, place) in enumerate(self.nodes) for part in ("--node", f"n{number}@{place}")]
        return Program(
            self, "server.py", "--config", self.settings, "--data", self.folder, "--web", "127.0.0.1:0", *nodes,
            PIGEONPOST_STORE_COMMIT="0.1",
        )  # fmt: skip

    def stored(self):
        """Return all stored values, in the form of `exported`."""
        found = {}
        store = SqliteStore(self.folder, look_only=True)
        try:
            for node, _, samples in store.every_batch():
                for name, column in samples.values.items():
                    series = found.setdefault((node, name), {})
                    for time_ms, value in zip(samples.times, column, strict=True):
                        if value is not None:
                            series.setdefault(time_ms, []).append(value)
        finally:
            store.close()
        return found

    def check_all_arrived(self):
        """Wait until VictoriaMetrics has every stored time, then compare the values."""
        stored = self.stored()

        def are_there():
            time.sleep(0.2)
            there = exported(self.port)
            return there if {key: set(one) for key, one in there.items()} == {
                key: set(one) for key, one in stored.items()
            } else None  # fmt: skip

        there = wait_until(are_there, "all samples")
        for key, series in stored.items():
            for time_ms, (value,) in series.items():
                (received,) = there[key][time_ms]
                self.assertAlmostEqual(received, value, delta=abs(value) * 1e-14)
        return sum(map(len, stored.values()))

    def test_every_stored_sample_arrives_once_although_both_sides_are_killed(self):
        chance = random.Random(os.environ.get("PIGEONPOST_TEST_SEED", "1"))
        self.metrics.start()
        server = self.serve()
        kills = ["metrics", "server", "both", "metrics", "server", "metrics"]
        chance.shuffle(kills)
        for victim in kills:
            time.sleep(chance.uniform(1.0, 3.0))  # the moment of the kill is what this test varies
            if victim != "server":
                self.metrics.kill()
            if victim != "metrics":
                server.kill()
            time.sleep(chance.uniform(0.0, 1.5))
            if victim != "server":
                self.metrics.start()
            if victim != "metrics":
                server = self.serve()
        server.line()
        for node, _ in self.nodes:
            node.terminate()
            node.wait()
        time.sleep(0.5)
        count = self.check_all_arrived()
        self.assertGreater(count, 1000)
        self.metrics.kill()  # it may lose what it has acknowledged just now
        self.metrics.start()
        self.assertEqual(self.check_all_arrived(), count)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.wait(), 0)
