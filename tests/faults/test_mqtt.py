"""Node, server and broker of the MQTT transport are killed at random times: no sample is lost or stored twice.

PIGEONPOST_TEST_MQTT is the number of kills (8). Requires Mosquitto and paho-mqtt; .ci/run has a Python with it.
"""

import csv
import os
import random
import shutil
import sqlite3
import time
import unittest
from collections import Counter

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.node.ring_file import Ring
from tests.libraries import need_broker
from tests.libraries.test_mqtt_transport import MqttCase, stored
from tests.support import rounds, temp_folder, wait_until

KILLS = rounds("PIGEONPOST_TEST_MQTT", 2, 60)


def setUpModule():
    need_broker()


def held(card):
    """Return the samples in a node's outbox, read from a copy, since the node may be running."""
    copy = os.path.join(card, "copy")
    os.makedirs(copy, exist_ok=True)
    shutil.copy(os.path.join(card, "outbox.ring"), copy)
    runs = Ring(copy, 64, 128).runs
    return {(run.epoch, seq) for run in runs for seq in range(run.first, run.last + 1)}


class Kills(MqttCase):
    def broker_lines(self):
        return ["allow_anonymous true", "persistence false"]

    def check(self, data):
        rows = stored(data)
        for epoch in {epoch for epoch, _ in rows}:
            seqs = [seq for at, seq in rows if at == epoch]
            self.assertEqual(seqs, list(range(1, len(seqs) + 1)), epoch)
        logged = Counter()
        folder = os.path.join(data, "logs")
        for name in (name for name in os.listdir(folder) if name.endswith(".csv")):
            with open(os.path.join(folder, name), encoding="utf-8", newline="") as file:
                logged.update((parse_rfc3339(row["time"]), row["sensor"]) for row in csv.DictReader(file))
        with sqlite3.connect(f"file:{data}/pigeonpost.sqlite3?mode=ro", uri=True) as database:
            times = [time_ms for (time_ms,) in database.execute("SELECT time_ms FROM samples")]
        # Times may repeat: after a stall two samples may be taken within a millisecond.
        self.assertEqual(logged, Counter((time_ms, name) for time_ms in times for name in ("temperature", "light")))
        return len(rows)

    def test_no_sample_is_lost_or_stored_twice(self):
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        print(f"seed {seed}, {KILLS} kills", end=" ", flush=True)
        data, card = temp_folder(self), temp_folder(self)
        server, node = self.start_server(data), self.start_node(card)
        wait_until(lambda: stored(data))
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.2, 4.0))
            victim = rng.choice(("node", "server", "broker", "all"))
            with self.subTest(victim=victim, seed=seed):
                if victim in ("node", "all"):
                    node.kill()
                if victim in ("server", "all"):
                    server.kill()
                if victim in ("broker", "all"):
                    self.broker._process.kill()
                    self.broker._process.wait()
                    time.sleep(rng.uniform(0.0, 2.0))
                    self.broker.start()
                node = self.start_node(card) if victim in ("node", "all") else node
                server = self.start_server(data) if victim in ("server", "all") else server
        node.kill()
        accepted = held(card)
        self.start_node(card)
        wait_until(lambda: accepted <= set(stored(data)), "everything that was accepted is stored", 180.0)
        server.terminate()
        server.wait()
        print(f"{self.check(data)} samples,", end=" ")


if __name__ == "__main__":
    unittest.main()
