"""Migration killed in its k-th write, sync, rename and similar calls, for every k.

The next start completes it without loss.

strace does it, as in test_syscalls. The quick suite kills once; PIGEONPOST_TEST_MIGRATION_CALLS is the highest k.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import unittest

from pigeonpost.core.data_folder import DATABASE
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.faults.test_syscalls import injecting, may_trace
from tests.old_store import OldStore
from tests.storage.sqlite.test_migration import UNITS, history
from tests.support import LIMIT_S, ROOT, clean_environment, memory_disk, rounds, stored_samples, temp_folder

CALLS = ("pwrite64", "fdatasync", "fsync", "link", "rename", "unlink", "ftruncate")
LAST = rounds("PIGEONPOST_TEST_MIGRATION_CALLS", 0, 1000)  # 0: one call only
_CODE = """
import sys
from pigeonpost.storage.sqlite import migration, row_conversion
row_conversion._PIECE_ROWS = 100
if sys.argv[2] == "in place":
    migration._SPARE_BYTES = 1 << 60
from pigeonpost.storage.sqlite.store import SqliteStore
SqliteStore(sys.argv[1]).close()
"""


@unittest.skipUnless(may_trace(), "strace is not here, or may not trace")
class KilledInACall(unittest.TestCase):
    def setUp(self):
        self.origin, self.folder = temp_folder(self, memory_disk()), temp_folder(self, memory_disk())
        commits = history(7)
        with OldStore(self.origin) as old:
            for node, epoch, items in commits[:-5]:
                old.put(node, epoch, *items, units=UNITS)
            old.record("a.csv", 100, 7, sum(len(items) for _, _, items in commits[:-8]))
            for node, epoch, items in commits[-5:]:
                old.put(node, epoch, *items, units=UNITS)
            for end in ("", "-wal"):  # as after a kill: some rows are in the WAL only
                shutil.copy(old.path + end, self.folder)
        shutil.rmtree(self.origin)
        shutil.copytree(self.folder, self.origin)
        self.wanted = sorted(
            (node, epoch, sample.seq, sample.time_ms, sample.values)
            for node, epoch, items in commits for item in items if isinstance(item, list) for sample in item
        )  # fmt: skip

    def is_reached(self, call, k, how):
        """Kill the process in the k-th call. Returns False if it ended before."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.origin, self.folder)
        done = subprocess.run(
            [*injecting(f"{call}:signal=KILL:when={k}"), sys.executable, "-c", _CODE, self.folder, how],
            capture_output=True, timeout=LIMIT_S, env=clean_environment(PYTHONPATH=ROOT), cwd=ROOT,
        )  # fmt: skip
        self.assertIn(done.returncode, (0, -9), done.stderr)
        return done.returncode == -9

    def assert_whole(self):
        self.assertTrue(os.path.exists(os.path.join(self.folder, DATABASE)))
        with contextlib.closing(SqliteStore(self.folder)) as store:
            found = sorted((p.node, p.epoch, p.seq, p.time_ms, p.values) for p in stored_samples(store.every_batch()))
            self.assertEqual(found, self.wanted)
            self.assertEqual((store.damage, list(store.verify())), ("", []))
        self.assertFalse([name for name in os.listdir(self.folder) if "migrating" in name])

    def kill_in(self, calls, how):
        for call in calls:
            reached = 0
            for k in range(1, LAST + 1, 3 if call == "pwrite64" else 1) if LAST else (30,):
                with self.subTest(call=call, k=k):
                    if not self.is_reached(call, k, how):
                        break
                    reached = k
                    self.assert_whole()
            self.assertTrue(reached or LAST, call)

    def test_into_a_new_file(self):
        self.kill_in(CALLS if LAST else ("pwrite64",), "new file")

    @unittest.skipUnless(LAST, "runs with PIGEONPOST_TEST_LONG=1 or PIGEONPOST_TEST_MIGRATION_CALLS")
    def test_in_place(self):
        self.kill_in(("pwrite64", "fdatasync", "ftruncate"), "in place")


if __name__ == "__main__":
    unittest.main()
