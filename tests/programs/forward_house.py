"""A node and a server that forwards its samples, for tests that kill them and the program that receives the samples."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from pigeonpost.link.samples import Number
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.faults.house import House
from tests.support import LIMIT_S, stored_samples, wait_until

KILLS = int(os.environ.get("PIGEONPOST_TEST_FORWARD_KILLS", "10"))


class Killable(Protocol):
    """A program that can be killed and started again."""

    def kill(self) -> None: ...
    def start(self) -> Any: ...


class ForwardHouse(House):
    """The server has [[forward]] tables."""

    def __init__(self, folder: str, settings: str, **options: Any) -> None:
        super().__init__(folder, **{"every_s": 0.05, **options})
        self.server.environment["PIGEONPOST_SERVER_TOML"] = f'[server]\nname = "home"\n{settings}'

    def readings(self) -> dict[tuple[str, str], dict[int, Number]]:
        """Return the stored values by node and sensor, and by time in ms."""
        return readings_of(str(self.data / "server"))

    def finish(self, is_complete: Callable[[], object], what: str) -> None:
        """Stop the node once the server has all samples, wait until the target has them, and stop the server."""
        for program in (self.node, self.server):
            if not program.is_running():
                program.start()
        with self._opening:
            self._ended.set()
        self.drain()
        wait_until(is_complete, what, 2 * LIMIT_S)
        wait_until(self.is_up, "the server has started")
        assert self.server.stop() == 0, self.server.log.read_text()[-3000:]


def readings_of(folder: str) -> dict[tuple[str, str], dict[int, Number]]:
    """Return the values in the data folder of a server by node and sensor, and by time in ms."""
    store = SqliteStore(folder, look_only=True)
    try:
        found: dict[tuple[str, str], dict[int, Number]] = {}
        for sample in stored_samples(store.every_batch()):
            for sensor, value in sample.values.items():
                if value is not None:
                    found.setdefault((sample.node, sensor), {})[sample.time_ms] = value
        return found
    finally:
        store.close()


@contextmanager
def forwarding(settings: str, **options: Any) -> Iterator[tuple[ForwardHouse, random.Random]]:
    """Yield a running house and a random generator. After a failure, the seed and the logs are printed."""
    seed = random.randrange(1 << 32)
    with tempfile.TemporaryDirectory(prefix="pigeonpost-test-") as folder:
        house = ForwardHouse(folder, settings, **options)
        try:
            house.start()
            yield house, random.Random(seed)
        except BaseException:
            print(f"seed {seed}\n{house.server.log.read_text()[-6000:]}\n{house.node.log.read_text()[-2000:]}")
            raise
        finally:
            house.close()


def kill_at_random(house: ForwardHouse, others: Sequence[Killable], kills: int, chance: random.Random) -> None:
    """Kill the server, the receiving programs or both, and start them again, `kills` times while samples flow.

    At the end the node is killed once too.
    """
    for done in range(kills):
        wait_until(lambda done=done: len(house.heard) > 4 * done, "samples flow between the kills")
        time.sleep(chance.uniform(0.02, 0.6))  # faults at random times, not a wait for an event
        victims: Sequence[Killable] = chance.choice(([house.server], others, [house.server, *others]))
        for victim in victims:
            victim.kill()
        time.sleep(chance.uniform(0, 0.3))
        for victim in victims:
            victim.start()
    house.node.kill()
    house.node.start()
    heard = len(house.heard)
    wait_until(lambda: len(house.heard) > heard + 4, "samples flow again")
