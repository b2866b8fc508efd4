"""Check of everything stored, in the background and in small pieces: the database, and the closed CSV logs.

One thread. It pauses after each piece so long that it takes at most SHARE_PERCENT of one core, and begins a new pass
PASS_S after the last one. `checked_ms` and the present faults may be read by any thread.
Errors: none; what is wrong is a fault in `Faults`, with the remedy.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

from csvbuffer import CsvLog
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import LOGS
from pigeonpost.core.errors import DiskError, StoreDamaged
from pigeonpost.core.faults import Faults
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.checksums import check_open_log, check_pieces
from pigeonpost.storage.damaged_store import DamagedStore
from pigeonpost.storage.registry import open_store
from pigeonpost.storage.sqlite.integrity import damage_text

log = logging.getLogger(__name__)

DATABASE_FAULT, LOGS_FAULT = "database", "logs"  # subjects in Faults
LOST_FAULT = "lost rows"  # that the start found to be missing: until the next one, since no check finds them again
SHARE_PERCENT = 2.0  # of one core, at most
PASS_S = 21_600.0  # from the end of a pass to the next one: a day of a 2 GB database on a Pi has room for it
LOOK_S = 60.0  # between two looks whether it is still the same database
FIRST_S = 5.0  # after the start: connecting to the nodes comes first
_MOST_TEXTS = 3  # faults that are told of one subject; `control.py verify` tells all

Pieces = Callable[[], Iterator[str]]  # yields after each piece of work: a fault, or ""


def open_despite_damage(settings: Settings, data: str, faults: Faults) -> Store:
    """Open the store that the settings name. Of a damaged one what can be read is shown, and nothing is stored: the
    nodes keep everything, and a person sees what is wrong. Ending would only have the supervisor start it again.
    """
    store = _opened(settings, data)
    if store.damage:  # SQLite takes a page for damaged also where the disk failed to read it: is it so again?
        store.close()
        store = _opened(settings, data)
    store.on_damage = functools.partial(faults.set, DATABASE_FAULT)
    if store.damage:
        store.on_damage(store.damage)
    return store


def _opened(settings: Settings, data: str) -> Store:
    try:
        return open_store(settings, data)
    except StoreDamaged as error:
        return DamagedStore(str(error))


def show_lost_rows(store: Store, csv: CsvLog, faults: Faults) -> None:
    """Show what a start finds to be missing of what was stored."""
    faults.add_check(lambda: faults.set(LOST_FAULT, store.found_at_start or csv.beyond_store))


def make_check(data: str, store: Store, csv: CsvLog, faults: Faults, clock: Clock) -> DamageCheck:
    """Make the check of a server's data folder."""
    control = f"python3 control.py --data {os.path.abspath(data)}"

    def logs() -> Iterator[str]:
        yield from check_pieces(os.path.join(data, LOGS), control)
        yield from check_open_log(csv.digest, control)

    return DamageCheck(store, logs, faults, clock, functools.partial(damage_text, data, ends_writing=False))


class DamageCheck:
    """The thread that checks, and the time and cost of its last complete pass."""

    def __init__(
        self, store: Store, logs: Pieces, faults: Faults, clock: Clock, words: Callable[[str], str] = lambda text: text
    ) -> None:
        """
        logs   checks the CSV logs
        words  what is said of faults in the rows of the database, with the remedy
        """
        self.checked_ms: int | None = None  # the end of the last complete pass; None: there was none in this run
        self.took_s = 0.0  # of processor time
        self._store, self._logs, self._faults, self._clock, self._words = store, logs, faults, clock, words
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="damage check", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """End after the present piece."""
        self._stopping.set()
        self._thread.join(limit_s)
        return "still checking what is stored" if self._thread.is_alive() else None

    def run_pass(self) -> None:
        """Check everything once, and set or clear the faults."""
        self.took_s = 0.0
        is_whole = self._check(LOGS_FAULT, self._logs, lambda text: text)
        if not self._store.damage:
            is_whole &= self._check(DATABASE_FAULT, self._store.check_pieces, self._words)
        if is_whole:
            self.checked_ms = self._clock.wall_ms()

    def _check(self, subject: str, pieces: Pieces, words: Callable[[str], str]) -> bool:
        """Check one subject. Returns True if it came to its end."""
        found: list[str] = []
        try:
            for text in self._slowly(pieces()):
                if text and text not in found:
                    found.append(text)
                    self._faults.set(subject, words(_short(found)))
        except (StoreDamaged, DiskError) as error:
            self._faults.set(subject, str(error))
            return True  # that is the result
        except OSError as error:  # NotStored; or too many open files, and the like
            log.debug("the check waits: %s", error)
            return False
        if self._stopping.is_set():
            return False
        if not found and not (subject == DATABASE_FAULT and self._store.damage):
            self._faults.set(subject, "")
        return True

    def _slowly(self, pieces: Iterator[str]) -> Iterator[str]:
        while True:
            began_s = time.thread_time()
            text = next(pieces, None)
            spent_s = time.thread_time() - began_s
            self.took_s += spent_s
            if text is None:
                return
            yield text
            if self._stopping.wait(spent_s * (100 / SHARE_PERCENT - 1)):
                return

    def _run(self) -> None:
        next_s = self._clock.monotonic() + FIRST_S
        while not self._stopping.wait(min(LOOK_S, max(0.0, next_s - self._clock.monotonic()))):
            if self._clock.monotonic() >= next_s:
                self.run_pass()
                next_s = self._clock.monotonic() + PASS_S
            elif not self._store.damage:
                self._look()

    def _look(self) -> None:
        """Do the first piece only: is it still the same file? What is wrong the store tells itself."""
        try:
            next(self._store.check_pieces(), "")
        except OSError as error:
            log.debug("%s", error)


def _short(found: list[str]) -> str:
    more = f"; and {len(found) - _MOST_TEXTS} more" if len(found) > _MOST_TEXTS else ""
    return "; ".join(found[:_MOST_TEXTS]) + more
