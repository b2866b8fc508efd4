"""Background check of all stored data: the database and the closed CSV logs.

A separate thread checks in small steps. It pauses after each step, so that it uses at most SHARE_PERCENT of one core,
and begins a new pass PASS_S seconds after the end of the last one. Any thread may read `checked_ms` and the present
faults.
Errors: none. Damage is recorded as a fault in `Faults`, with the remedy.
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
LOST_FAULT = "lost rows"  # found only at the start, so the fault remains until the next start
LIMITS_FAULT = "log limits"
DAMAGE_FAULTS = {DATABASE_FAULT, LOGS_FAULT, LOST_FAULT}
SHARE_PERCENT = 2.0  # maximum share of one core
PASS_S = 21_600.0  # pause between two passes; a pass of 2 GB on a Pi and the pause take less than a day
LOOK_S = 60.0  # interval of the check that the database file was not replaced
FIRST_S = 5.0  # delay after the start, in which connecting to the nodes has priority
_MOST_TEXTS = 3  # faults that are shown for one subject; `control.py verify` prints all

Pieces = Callable[[], Iterator[str]]  # a check in steps, which yields a fault or an empty string after each step


def open_despite_damage(settings: Settings, data: str, faults: Faults) -> Store:
    """Open the configured store, also if it is damaged, and return it.

    A damaged store is opened so that the server can show the readable data and the damage. Nothing is stored in it, and
    the nodes keep their samples. If the program ended instead, the supervisor would start it again and again.

    Args:
        settings: Settings of the server.
        data: The data folder.
        faults: Receives the damage.
    """
    store = _opened(settings, data)
    if store.damage:  # try again: SQLite also reports damage if the disk failed to read a page once
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
    """Add a fault to `faults` for stored rows that the start found to be missing in `store` or in the log `csv`.

    Add another one for old logs that cannot be deleted, since the logs then exceed their limits.
    """
    faults.add_check(lambda: faults.set(LOST_FAULT, store.found_at_start or csv.beyond_store))
    faults.add_check(lambda: faults.set(LIMITS_FAULT, csv.limits_fault))


def make_check(data: str, store: Store, csv: CsvLog, faults: Faults, clock: Clock) -> DamageCheck:
    """Return the check of a server's data folder.

    Args:
        data: The data folder.
        store: The store.
        csv: CSV log of this run.
        faults: Receives the damage.
        clock: Clock of the server.
    """
    control = f"python3 control.py --data {os.path.abspath(data)}"

    def logs() -> Iterator[str]:
        yield from check_pieces(os.path.join(data, LOGS), control)
        yield from check_open_log(csv.digest, control)

    return DamageCheck(store, logs, faults, clock, functools.partial(damage_text, data, ends_writing=False))


class DamageCheck:
    """Thread that checks all stored data.

    Attributes:
        checked_ms: Time of the end of the last complete pass, in ms since 1970 (UTC); None if there is none in this
            run.
        took_s: Processor time of the last pass, in seconds.
    """

    def __init__(
        self,
        store: Store,
        logs: Pieces,
        faults: Faults,
        clock: Clock,
        with_remedy: Callable[[str], str] = lambda text: text,
    ) -> None:
        """Initialise the check without starting its thread.

        Args:
            store: The store.
            logs: Function that checks the CSV logs.
            faults: Receives the damage.
            clock: Clock of the server.
            with_remedy: Function that adds the remedy to a description of damaged rows in the database.
        """
        self.checked_ms: int | None = None
        self.took_s = 0.0
        self._store, self._logs, self._faults, self._clock, self._with_remedy = store, logs, faults, clock, with_remedy
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="damage check", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Stop after the current step. Return a message if that takes longer than `limit_s` seconds."""
        self._stopping.set()
        self._thread.join(limit_s)
        return "still checking the stored data" if self._thread.is_alive() else None

    def run_pass(self) -> None:
        """Check all stored data once, and set or clear the faults."""
        self.took_s = 0.0
        is_complete = self._check(LOGS_FAULT, self._logs, lambda text: text)
        if not self._store.damage:
            is_complete &= self._check(DATABASE_FAULT, self._store.check_pieces, self._with_remedy)
        if is_complete:
            self.checked_ms = self._clock.wall_ms()

    def _check(self, subject: str, pieces: Pieces, with_remedy: Callable[[str], str]) -> bool:
        """Check one subject. Return True if the check is complete."""
        found: list[str] = []
        try:
            for text in self._paced(pieces()):
                if text and text not in found:
                    found.append(text)
                    self._faults.set(subject, with_remedy(_short(found)))
        except (StoreDamaged, DiskError) as error:
            self._faults.set(subject, str(error))
            return True  # the damage is the result of the check
        except OSError as error:  # NotStored, or for example too many open files
            log.debug("the check is delayed: %s", error)
            return False
        if self._stopping.is_set():
            return False
        if not found and not (subject == DATABASE_FAULT and self._store.damage):
            self._faults.set(subject, "")
        return True

    def _paced(self, pieces: Iterator[str]) -> Iterator[str]:
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
                self._check_file()

    def _check_file(self) -> None:
        """Do only the first step: check that the database file was not replaced. The store itself reports faults."""
        try:
            next(self._store.check_pieces(), "")
        except OSError as error:
            log.debug("%s", error)


def _short(found: list[str]) -> str:
    more = f"; and {len(found) - _MOST_TEXTS} more" if len(found) > _MOST_TEXTS else ""
    return "; ".join(found[:_MOST_TEXTS]) + more
