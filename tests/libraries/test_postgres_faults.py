"""Several servers on one PostgreSQL, with random kills of all programs: no sample is lost or stored twice.

PIGEONPOST_TEST_DB_KILLS=300 python3 -m unittest tests.libraries.test_postgres_faults
"""

from __future__ import annotations

import csv
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import unittest
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.storage.csv.checksums import logs_in
from tests.faults.house import ROOT, House, Program
from tests.libraries import Broker, need_broker
from tests.libraries.databases import Cluster, Database, need_postgres, psycopg
from tests.support import LIMIT_S, rounds, wait_until

KILLS = rounds("PIGEONPOST_TEST_DB_KILLS", 12, 90)


def setUpModule() -> None:
    need_postgres()


class ManyHouse(House):
    """Node, several servers and their database, connected by TCP or by a broker."""

    def __init__(
        self, folder: str, database: Database, servers: int = 2, broker: Broker | None = None, **options: Any
    ) -> None:
        super().__init__(folder, **options)
        self.database = database
        self._mqtt: dict[str, str] = {}
        if broker is not None:
            self._mqtt = {"PIGEONPOST_MQTT_HOST": "127.0.0.1", "PIGEONPOST_MQTT_PORT": str(broker.port)}
            self.node.environment |= self._mqtt
        self.servers = [self._server(number) for number in range(servers)]
        self.server = self.servers[0]

    def _server(self, number: int) -> Program:
        name = f"s{number}"
        (self.folder / name).mkdir()
        address = () if self._mqtt else ("--node", f"n@127.0.0.1:{self.port}")
        server = Program(
            self.folder / name, "server.py", "--name", name, *address, "--web", "127.0.0.1:0",
            "--data", str(self.folder / name),
        )  # fmt: skip
        server.environment |= self._mqtt | {
            "PIGEONPOST_STORE_COMMIT": "0.05", "PIGEONPOST_STORE_POSTGRES": self.database.address,
        }  # fmt: skip
        return server

    def start(self) -> None:
        for server in self.servers[1:]:
            server.start()
        super().start()

    def close(self) -> None:
        super().close()
        for server in self.servers:
            server.kill()

    def stored(self) -> list[tuple[str, int]]:
        return self.database.do("SELECT e.epoch, s.seq FROM samples s JOIN epochs e ON e.id = s.epoch")

    def settle(self, limit_s: float = 2 * LIMIT_S) -> None:
        for program in (self.node, *self.servers):
            if not program.is_running():
                program.start()
        with self._opening:
            self._ended.set()
        self.drain(limit_s)
        for server in self.servers:  # SIGTERM ends a program that has not set its handler yet
            wait_until(lambda server=server: self._is_up(server), "the server is up", limit_s)
            assert server.stop() == 0, server.log.read_text()[-3000:]

    def _is_up(self, server: Program) -> bool:
        if not server.is_running():  # it ended because of a lost connection at its start: restart it like a supervisor
            server.start()
        assert server.process is not None
        try:
            with open(os.path.join(server.command[-1], "running.json"), encoding="utf-8") as file:
                return bool(json.load(file)["pid"] == server.process.pid)
        except FileNotFoundError:
            return False

    def check(self, with_gaps: bool = False) -> dict[str, int]:
        stored = self.stored()
        accepted = set(self.heard) | self.held()
        missing, repeated = accepted - set(stored), len(stored) - len(set(stored))
        assert not missing, f"{len(missing)} lost: {sorted(missing)[:5]}"
        assert not repeated, f"{repeated} repeated"
        rows = Counter(row for number in range(len(self.servers)) for row in self._rows(number))
        wanted = Counter(self._wanted())
        assert rows == wanted, (
            f"the logs together lack {(wanted - rows)!r:.300}, and have too often {(rows - wanted)!r:.300}"
        )
        for server in self.servers:
            self._verify(server)
        kills = sum(program.kills for program in (self.node, *self.servers))
        by_server = [count for (count,) in self.database.do("SELECT count(*) FROM samples GROUP BY server")]
        return {
            "accepted": len(accepted),
            "lost": 0,
            "repeated": 0,
            "kills": kills,
            "least of a server": min(by_server, default=0),
        }

    def _verify(self, server: Program) -> None:
        """Run `control.py verify`."""
        command = [sys.executable, str(ROOT / "control.py"), "--data", server.command[-1], "verify"]
        done = subprocess.run(command, env=server.environment, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def _rows(self, number: int) -> Iterator[tuple[int, str, str]]:
        """Yield the rows of the logs of one server."""
        folder = self.folder / f"s{number}" / "logs"
        for name in logs_in(str(folder)):
            text = (folder / name).read_text(encoding="utf-8")
            assert text.endswith("\n") or not text, f"{name}: a torn row at its end"
            for time_text, _, sensor, value, _ in list(csv.reader(text.splitlines()))[1:]:
                yield parse_rfc3339(time_text), sensor, value

    def _wanted(self) -> Iterator[tuple[int, str, str]]:
        """Yield the rows that all logs together must contain, read from the database."""
        for time_ms, names, values in self.database.do(
            'SELECT s.time, p.names, s."values" FROM samples s JOIN shapes p ON p.id = s.shape'
        ):
            for name, value in zip(json.loads(names), values):
                yield time_ms, name, "" if value is None else repr(value)


class FaultTrial(unittest.TestCase):
    def setUp(self) -> None:
        self.cluster = Cluster()
        self.addCleanup(self.cluster.remove)
        self.database = Database(self.cluster.address)
        self.seed = random.randrange(1 << 32)
        self.chance = random.Random(self.seed)

    def trial(self, mischief: Any, **options: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            house = ManyHouse(folder, self.database, **options)
            try:
                house.start()
                wait_until(lambda: len(house.heard) > 10, "samples flow")
                wait_until(lambda: self.is_known(house), "the servers have begun")
                mischief(house)
                house.settle()
                print(f"{self._testMethodName}:", ", ".join(f"{k} {v}" for k, v in house.check().items()))
            except BaseException:
                print(f"seed {self.seed}")
                for program in (house.node, *house.servers):
                    print(program.log.read_text()[-3000:])
                raise
            finally:
                house.close()

    def is_known(self, house: ManyHouse) -> bool:
        try:
            return self.database.do("SELECT count(*) FROM servers") == [(len(house.servers),)] and bool(house.stored())
        except psycopg.Error:
            return False

    def pause(self, longest_s: float = 1.0) -> None:
        time.sleep(self.chance.uniform(0.02, longest_s))  # faults at random times: there is no condition to wait for

    def test_killed_programs_lose_and_duplicate_nothing(self) -> None:
        def mischief(house: ManyHouse) -> None:
            for _ in range(KILLS):
                self.pause()
                one, everything = [self.chance.choice(house.servers)], [house.node, *house.servers]
                victims = self.chance.choice([one, one, one, [house.node], house.servers, everything])
                for victim in victims:
                    victim.kill()
                self.pause(0.1)
                for victim in victims:
                    victim.start()

        self.trial(mischief)

    def test_killed_restarted_and_disconnected_database_loses_nothing(self) -> None:
        def mischief(house: ManyHouse) -> None:
            for number in range(max(3, KILLS // 3)):
                self.pause(1.5)
                ([self.database.cut, self.kill_database, self.cluster.restart][number % 3])()
                if self.chance.random() < 0.3:
                    victim = self.chance.choice(house.servers)
                    victim.kill()
                    victim.start()

        self.trial(mischief)

    def kill_database(self) -> None:
        self.cluster.kill()
        self.pause(0.5)
        self.cluster.start()

    def test_node_that_moves_between_servers_is_stored_once(self) -> None:
        """One server runs at a time, and is killed when the other one starts. No sample is stored by both."""

        def mischief(house: ManyHouse) -> None:
            for number in range(max(4, KILLS // 2)):
                gone, comes = house.servers[number % 2], house.servers[1 - number % 2]
                gone.kill()
                if not comes.is_running():
                    comes.start()
                seen = len(house.heard)
                wait_until(lambda seen=seen: house.has_stored_after(seen), "the other one stores", LIMIT_S)

        self.trial(mischief)

    def test_servers_broker_and_database_killed_in_turn_lose_nothing(self) -> None:
        need_broker()
        broker = Broker(self).start()

        def kill_broker() -> None:
            assert broker._process is not None
            broker._process.kill()
            broker.stop()
            self.pause(0.3)
            broker.start()

        def kill(victim: Program) -> None:
            victim.kill()
            self.pause(0.3)
            victim.start()

        def mischief(house: ManyHouse) -> None:
            victims = [*[functools.partial(kill, one) for one in (*house.servers, house.node)], kill_broker,
                       self.kill_database]  # fmt: skip
            for _ in range(max(1, KILLS // 6)):
                self.chance.shuffle(victims)
                for strike in victims:
                    seen = len(house.heard)
                    strike()
                    wait_until(lambda seen=seen: self.goes_on(house, seen), "samples are stored again", 2 * LIMIT_S)

        self.trial(mischief, servers=3, broker=broker)

    def goes_on(self, house: ManyHouse, seen: int) -> bool:
        try:
            return house.has_stored_after(seen)
        except psycopg.Error:
            return False


if __name__ == "__main__":
    unittest.main()
