"""A node and a server as real programs in one folder, for tests that kill them; and the oracle of accepted samples.

The node itself informs the oracle, outside the disk under test: a plain session receives every sample once it is
accepted. At the end all samples that the oracle received, and all that the node's ring file holds, must be in the
server's store and in its CSV logs: once, in order.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.node.ring_file import FileOps, Ring
from tests.forked import LoggedProcess
from tests.support import LIMIT_S, LONG, clean_environment, free_port, memory_disk, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
IMPATIENT = str(ROOT / "tests" / "faults" / "impatient.py")
IS_FORKED = not LONG  # set to False by a test that requires a new interpreter
ORACLE = "127.0.0.2", 0  # the oracle's own address: faults of 127.0.0.1's connections do not affect it


def _disk() -> str | None:
    parent = memory_disk()
    if LONG or not parent or shutil.disk_usage(parent).free < 1 << 29:
        return None
    return parent


# Parent of temporary folders: in memory in the quick suite, where a sync costs nothing; None (the default) otherwise.
DISK = _disk()


class OnlyLooks(FileOps):
    """A disk that ignores writes: a ring file must not change when another process opens it."""

    pwrite = staticmethod(lambda fd, data, at: len(data))
    fdatasync = fsync = staticmethod(lambda fd: None)


class Program:
    """One of the two programs: started, killed and started again; its log is kept in one file.

    In the quick suite it is forked (tests/forked.py), which halves the processor time of most tests here. With
    PIGEONPOST_TEST_LONG=1, and in a test that requires it, an interpreter starts it as users do.
    """

    def __init__(
        self, folder: Path, script: str, *arguments: str, wrapper: tuple[str, ...] = (), is_impatient: bool = True
    ) -> None:
        """Describe the program to start. With `is_impatient` it runs with shorter pauses (impatient.py)."""
        program = [IMPATIENT, script] if is_impatient else [str(ROOT / script)]
        self.command = [sys.executable, *program, *arguments]
        self.wrapper = wrapper
        self.log = folder / f"{script}.log"
        self.environment = clean_environment()
        self.process: subprocess.Popen[bytes] | LoggedProcess | None = None
        self.kills = 0

    def start(self) -> None:
        with open(self.log, "ab") as log:
            if IS_FORKED and not self.wrapper and self.command[1] == IMPATIENT:
                folder = str(self.log.parent)
                self.process = LoggedProcess(self.command[1:], folder, self.environment, log.fileno())
                return
            self.process = subprocess.Popen(
                [*self.wrapper, *self.command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                cwd=self.log.parent,
            )

    def kill(self) -> None:
        """Kill the program (kill -9)."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.kills += 1

    def stop(self, limit_s: float = LIMIT_S) -> int:
        """Send SIGTERM and return the exit status."""
        self.terminate()
        return self.end(limit_s)

    def terminate(self) -> None:
        """Send SIGTERM, without waiting."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Wait until the program has ended, and return the exit status."""
        process = self.process
        assert process is not None
        # Popen.wait polls only every 50 ms.
        wait_until(lambda: process.poll() is not None, f"{self.log.name}: it ends", limit_s)
        self.process = None
        return process.returncode

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class House:
    """Both programs, the oracle, and the checks."""

    def __init__(
        self,
        folder: str,
        every_s: float = 0.02,
        node_options: tuple[str, ...] = (),
        data: str = "",
        slots: int = 65_536,
        is_impatient: bool = True,
    ) -> None:
        """Prepare both programs.

        Args:
            folder: Working folder of the programs, with their logs.
            every_s: Sampling interval in seconds.
            node_options: More arguments of node.py.
            data: The disk under test, with the data of both programs; empty for `folder`.
            slots: Number of slots in the node's outbox.
            is_impatient: As for Program.
        """
        self.folder = Path(folder)
        self.data = Path(data or folder)
        self.port = free_port()
        self.node = Program(
            self.folder, "node.py", "--simulate", "--name", "n", "--every", str(every_s),
            "--listen", f"127.0.0.1:{self.port}", "--data", str(self.data / "node"), *node_options,
            is_impatient=is_impatient,
        )  # fmt: skip
        self.server = Program(
            self.folder, "server.py", "--node", f"n@127.0.0.1:{self.port}", "--web", "127.0.0.1:0",
            "--data", str(self.data / "server"), is_impatient=is_impatient,
        )  # fmt: skip
        self.node.environment["PIGEONPOST_OUTBOX_SLOTS"] = str(slots)
        self.server.environment["PIGEONPOST_STORE_COMMIT"] = "0.05"
        self.opening = b""  # first lines of a plain session with a node that has a token
        self.heard: list[tuple[str, int]] = []
        self.noted: set[tuple[str, int]] = set()  # see note_card
        self.figures: dict[str, int] = {}  # the result of `check` at the end of a trial
        self._ended = threading.Event()
        self._opening = threading.Lock()  # held while the oracle sends SEND ON, which it must not do after the end
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def start(self) -> None:
        """Start both programs and wait until the oracle receives samples."""
        self.node.start()
        self.server.start()
        self._listener.start()
        wait_until(lambda: len(self.heard) > 2, "samples flow")

    def close(self) -> None:
        self._ended.set()
        self.node.kill()
        self.server.kill()

    def _listen(self) -> None:
        """Run the oracle: a plain session that is opened again after each disconnection."""
        while not self._ended.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1.0, ORACLE) as link:
                    with self._opening:
                        if self._ended.is_set():
                            return
                        link.sendall(self.opening + b"SEND ON\n")
                        lines = link.makefile("rb")
                        lines.readline()
                    link.settimeout(None)
                    for line in lines:
                        if line.startswith(b"SENSORS ") and line.endswith(b"\n"):
                            _, epoch, samples = line.split(b" ", 2)
                            self.heard += [(epoch.decode(), sample["seq"]) for sample in json.loads(samples)]
            except OSError:
                self._ended.wait(0.01)

    def ask(self, text: str, port: int = 0) -> str:
        """Send one line to the node (or to the one at `port`) in a plain session; return its reply."""
        with socket.create_connection(("127.0.0.1", port or self.port), 5.0, ORACLE) as link:
            link.sendall(self.opening + text.encode() + b"\n")
            return link.makefile("r").readline()

    def query(self, sql: str) -> list[Any]:
        """Return the rows of a query of the server's store."""
        db = sqlite3.connect(f"file:{self.data / 'server' / 'pigeonpost.sqlite3'}?mode=ro", uri=True)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    def stored(self) -> list[tuple[str, int]]:
        """Return (epoch, seq) of all stored samples, in the order of the store."""
        return self.query("SELECT epoch, seq FROM samples")

    def is_stored(self, count: int) -> bool:
        """Return True if the first `count` samples that the oracle received are stored."""
        try:
            return len(self.heard) >= count and set(self.heard[:count]) <= set(self.stored())
        except sqlite3.Error:
            return False  # the server is still creating its database

    def has_everything(self, folder: Path | None = None) -> bool:
        """Return True if all samples of the node's ring file (or of the one in `folder`) are stored."""
        try:
            return self.held(folder) <= set(self.stored())
        except sqlite3.Error:
            return False

    def has_stored_after(self, count: int) -> bool:
        """Return True if a sample is stored that the oracle received after the first `count`."""
        try:
            return not set(self.heard[count:]).isdisjoint(self.stored())
        except sqlite3.Error:
            return False

    def held(self, folder: Path | None = None) -> set[tuple[str, int]]:
        """Return (epoch, seq) of every complete sample in the node's ring file (or in the one in `folder`).

        A write torn by a power cut may have left only the mark of its sample, which was never accepted.
        """
        ring = self.ring(folder)
        found = {
            (run.epoch, seq)
            for run in ring.runs
            for seq in range(run.first, run.last + 1)
            if ring.read(run.number + seq - run.first, 1) != [None]
        }
        ring.close()
        return found

    def ring(self, folder: Path | None = None) -> Ring:
        """Return the node's ring file (or the one in `folder`), for reading while the node runs."""
        return Ring(str(folder or self.data / "node"), 1, 128, OnlyLooks())

    def note_card(self) -> None:
        """Record the samples on the node's card as accepted, even if they are overwritten later. The node has ended."""
        self.noted |= self.held()

    def drain(self, limit_s: float = 2 * LIMIT_S) -> None:
        """Turn sampling off, let the server collect all samples, and stop the node."""
        while True:
            wait_until(lambda: self.try_ask("SEND OFF").startswith("SENDBACK OFF"), "the node answers", limit_s)
            wait_until(self.has_everything, "the server has everything", limit_s)
            assert self.node.stop() == 0, self.node.log.read_text()[-3000:]
            if self.has_everything():
                return
            self.node.start()  # a sample just being taken was accepted

    def settle(self, limit_s: float = 2 * LIMIT_S) -> None:
        """Let the node stop sampling and the server collect all samples; then stop both as users do."""
        for program in (self.node, self.server):
            if not program.is_running():
                program.start()
        with self._opening:
            self._ended.set()
        self.drain(limit_s)
        wait_until(
            self.is_up, "the server has started", limit_s
        )  # SIGTERM kills a server that has not set its handler yet
        assert self.server.stop() == 0, self.server.log.read_text()[-3000:]

    def is_up(self) -> bool:
        """Return True if the server has started all of its components since its last start."""
        process = self.server.process
        try:
            with open(self.data / "server" / "running.json", encoding="utf-8") as file:
                return process is not None and bool(json.load(file)["pid"] == process.pid)
        except FileNotFoundError:
            return False

    def try_ask(self, text: str, port: int = 0) -> str:
        try:
            return self.ask(text, port)
        except OSError:
            return ""

    def check(self, with_gaps: bool = False) -> dict[str, int]:
        """Check that each accepted sample is stored once, and is in the logs once; return figures.

        With `with_gaps`, samples may be missing if gaps report the same number: the ring file was overwritten.
        """
        stored = self.stored()
        accepted = set(self.heard) | self.noted | self.held()
        if with_gaps:  # also samples taken and overwritten before the oracle connected
            tops: dict[str, int] = {}
            for epoch, seq in accepted:
                tops[epoch] = max(seq, tops.get(epoch, 0))
            accepted = {(epoch, seq) for epoch, top in tops.items() for seq in range(1, top + 1)}
        missing, repeated = accepted - set(stored), len(stored) - len(set(stored))
        assert with_gaps or not missing, f"{len(missing)} lost: {sorted(missing)[:5]}"
        assert not repeated, f"{repeated} repeated"
        store = sqlite3.connect(self.data / "server" / "pigeonpost.sqlite3")
        rows = Counter((parse_rfc3339(row[0]), row[2], row[3]) for row in self._csv_rows())
        wanted = Counter(self._wanted_rows(store))
        assert rows == wanted, (
            f"the CSV logs lack {(wanted - rows)!r:.300}, and have too often {(rows - wanted)!r:.300}"
        )
        gaps = store.execute("SELECT coalesce(sum(last - first + 1 + before), 0) FROM gaps").fetchone()[0]
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.close()
        assert gaps == len(missing), f"gaps report {gaps} missing samples, but {len(missing)} are missing"
        return {
            "accepted": len(accepted), "lost": len(missing) - gaps, "repeated": repeated, "gaps": gaps,
            "kills": self.node.kills + self.server.kills,
        }  # fmt: skip

    def _wanted_rows(self, store: sqlite3.Connection) -> Iterator[tuple[int, str, str]]:
        """Yield the rows that the logs must have according to the store."""
        for time_ms, names, values in store.execute('SELECT time_ms, sensors, "values" FROM samples'):
            for name, value in zip(json.loads(names), json.loads(values)):
                yield time_ms, name, "" if value is None else repr(value)

    def _csv_rows(self) -> list[tuple[str, ...]]:
        rows = []
        for path in sorted((self.data / "server" / "logs").glob("*.csv")):
            content = path.read_text(encoding="utf-8")
            assert content.endswith("\n") or not content, f"{path}: a torn row at its end"
            header, *found = list(csv.reader(content.splitlines())) or [[]]
            assert not content or header == ["time", "node", "sensor", "value", "unit"], path
            assert all(len(row) == 5 for row in found), f"{path}: a torn row"
            rows += [tuple(row) for row in found if row[2] != "gap"]
        return rows


@contextmanager
def trial(what: str, **options: Any) -> Iterator[tuple[House, random.Random]]:
    """Yield a running House and the random generator of its events. Finally it is stopped and checked.

    Prints one line of figures; after a failure also the seed and the programs' logs.
    """
    seed = random.randrange(1 << 32)
    with_gaps = options.pop("with_gaps", False)
    kind: Callable[..., House] = options.pop("kind", House)
    with tempfile.TemporaryDirectory(dir=DISK) as folder:
        house = kind(folder, **options)
        try:
            house.start()
            yield house, random.Random(seed)
            house.settle()
            house.figures = house.check(with_gaps)
            print(f"{what}:", ", ".join(f"{name} {value}" for name, value in house.figures.items()))
        except BaseException:
            print(f"seed {seed}\n{house.server.log.read_text()[-4000:]}\n{house.node.log.read_text()[-4000:]}")
            raise
        finally:
            house.close()


def kill_at_random(house: House, kills: int, chance: random.Random) -> None:
    """Kill one of the programs, or both, and start them again, repeatedly.

    Kills happen while a program starts and while it works: more than two samples arrive for each kill.
    """
    while (done := house.node.kills + house.server.kills) < kills:
        wait_until(lambda done=done: len(house.heard) > 2 * done, "samples flow between the kills")
        # Faults at random times, some of them during a start: this is not a wait for an event.
        time.sleep(chance.uniform(0.01, 0.25) if IS_FORKED else chance.uniform(0.02, 0.4))
        victims = chance.choice(([house.node], [house.server], [house.node, house.server]))
        for victim in victims:
            victim.kill()
        time.sleep(chance.uniform(0, 0.05))
        for victim in victims:
            victim.start()
    wait_until(lambda: len(house.heard) > 2 * kills, "samples flow again")
