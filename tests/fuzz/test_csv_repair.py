"""The CSV log after a crash and any change: it is repaired, or left unchanged and continued in a new file."""

import csv
import json
import os
import unittest
from pathlib import Path

from csvbuffer import CsvLog
from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.storage.csv.format import HEADER, logged_rows
from tests.fuzz import Target, fuzzed, st
from tests.storage.memory_store import MemoryStore
from tests.storage.test_contract import batch, file, gap
from tests.support import temp_folder
from tests.test_csvbuffer import LogCase

END = 1 << 40  # after the end
PIECES = ["my own note\n", "\n", "\r\n", '"', ",", "x", "°", "\ufeff", "+00:00", HEADER]


def damages():
    """Return a strategy for successive changes of the log as JSON.

    [offset after the synced part, bytes removed, bytes inserted].
    """
    place = st.integers(-60, 900) | st.integers(-60, 900) | st.integers(-10_000, 0) | st.just(END)
    count = st.sampled_from([0, 0, 1, END]) | st.integers(0, 400)
    piece = st.sampled_from(["", *PIECES]).map(str.encode) | st.integers(1, 600).map(bytes) | st.binary(max_size=4)
    return st.lists(st.tuples(place, count, piece.map(bytes.hex)), max_size=3).map(json.dumps).map(str.encode)


class Repair(Target, LogCase):
    corpus = "csv_repair"

    def setUp(self):
        self.store = MemoryStore()
        super().setUp()
        self.addCleanup(lambda: self.log._sums.stop())  # of the last one; the earlier ones end with a crash
        self.commit(batch(1, 50))
        self.log.record()
        self.commit(batch(51, 52), batch(1, 3, node="b", units={"temperature": '°"C', "light": ""}))
        self.commit(batch(53, 54, temperature=None), gap(55, 57, why='a "long", gap'), batch(58, 59))
        file(self.store, batch(60, 60))  # stored, but the rows were not written
        self.note()

    def open(self):
        self.log = CsvLog(self.folder, self.store, self.clock)
        self.log.start()

    def note(self):
        """Kill the server and record the rows that belong into its log."""
        self.crash()
        mark, self.name = self.store.log_mark(), self.log.name
        self.there = Path(self.path()).read_bytes()
        self.owed = [logged_rows(logged) for logged in self.store.logged_after(mark.filed)]
        self.synced, self.whole = mark.size, self.there[: mark.size] + b"".join(self.owed)

    def check(self, data):
        there, synced = bytearray(self.there), self.synced
        for place, count, piece in json.loads(data):
            at = min(max(0, synced + place), len(there))
            there[at : at + count] = bytes.fromhex(piece)
        content, new = self.started_on(bytes(there))
        behind, wanted = bytes(there[synced:]), self.whole[synced:]
        if there[:synced] == self.whole[:synced] and is_torn(behind, wanted):
            self.assertEqual((meanings(content), new), (meanings(self.whole), []), "a crash leaves this: it is mended")
        elif content != there:
            self.assertEqual((content[:synced], new), (there[:synced], []))
            self.assertEqual(meanings(content[synced:]), meanings(wanted))
            rows, right = behind.splitlines(keepends=True), wanted.splitlines(keepends=True)
            same = next(
                n for n, row in enumerate([*rows, b""]) if [meaning(row)] != meanings(b"".join(right[n : n + 1]))
            )
            self.assertTrue(is_torn(b"".join(rows[same:]), b"".join(right[same:])), "foreign text was deleted")
        else:  # unchanged: the new file begins with the rows that this one lacks
            missing = next(k for k in range(len(self.owed) + 1) if new == meanings(b"".join(self.owed[k:])))
            has = meanings(b"".join(self.owed[:missing]))
            self.assertEqual(meanings(behind)[: len(has)], has, "lost")
            if missing < len(self.owed) and there[synced - 4096 : synced] == self.whole[synced - 4096 : synced]:
                rest = b"".join(behind.splitlines(keepends=True)[len(has) :])
                self.assertFalse(rest.startswith(self.owed[missing]), "doubled")

    def started_on(self, there):
        """Start the server twice with the log `there`. Returns its content afterwards, and the rows of the new log."""
        store, self.store = self.store, self.store.backup()
        path = Path(self.path(self.name))
        path.write_bytes(there)
        try:
            for _ in range(2):
                with self.bounded():
                    self.open()
                self.crash()
            first, second = [Path(self.path(name)).read_bytes() for name in self.names() if name != self.name]
            self.assertTrue(first.startswith(HEADER.encode()))
            self.assertEqual(second, HEADER.encode(), "the second start had more to write")
            return path.read_bytes(), meanings(first.removeprefix(HEADER.encode()))
        finally:
            self.store = store
            for name in self.names():
                os.unlink(self.path(name))

    @fuzzed(damages)
    def test_damaged_logs_are_repaired(self, data):
        self.check(data)

    def test_long_blocks_that_were_never_written(self):
        self.folder, self.store = temp_folder(self), MemoryStore()
        self.open()
        self.commit(batch(1, 4000))
        self.commit(batch(4001, 9000))
        self.note()
        self.check(b'[[50000, 140000, "%s"]]' % (b"00" * 140_000))


def is_torn(text, wanted):
    """Return True if a crash can have left this content: it breaks off, or has zeros in place of unwritten bytes."""
    return all(byte in (0, right) for byte, right in zip(text, wanted.ljust(len(text), b"\0")))


def meanings(text):
    """Return the rows without their units and the form of their times, which may have changed in the meantime."""
    return list(map(meaning, text.splitlines(keepends=True)))


def meaning(row):
    try:
        time, node, sensor, value, _ = next(csv.reader([row.decode()]))
        return (parse_rfc3339(time), node, sensor, value) if row.endswith(b"\n") else row
    except (ValueError, csv.Error):
        return row


if __name__ == "__main__":
    unittest.main()
