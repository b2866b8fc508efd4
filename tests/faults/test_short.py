"""Short writes: the kernel limits the size of a file, and writes only the part that fits."""

import resource
import unittest

from pigeonpost.core.data_folder import DATABASE
from tests.faults.house import trial
from tests.support import rounds, wait_until

TIMES = rounds("PIGEONPOST_TEST_SHORTS", 1, 20)
_DISK_ERROR = 74


class ShortWrites(unittest.TestCase):
    def test_a_write_that_falls_short_ends_the_program_and_loses_nothing(self):
        what = f"{TIMES} writes of the node and {TIMES} of the server fell short"
        with trial(what, every_s=0.01) as (house, chance):
            for _ in range(TIMES):
                ring = house.ring()
                limit = ring._position(ring.last + chance.randrange(5, 20)) + chance.randrange(1, ring.slot_bytes)
                ring.close()
                self.cut_short(house, house.node, limit)
                wal = house.data / "server" / f"{DATABASE}-wal"
                self.cut_short(house, house.server, wal.stat().st_size + chance.randrange(1, 20_000))

    def cut_short(self, house, program, limit):
        """Limit the files of a program to `limit` bytes from now on; start it again once it has ended."""
        resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        wait_until(lambda: not program.is_running(), f"{program.log.name} meets its limit of {limit} bytes")
        self.assertEqual(program.process.returncode, _DISK_ERROR)
        program.kill()
        program.start()
        wanted = len(house.heard)
        wait_until(lambda: house.has_stored_after(wanted), "samples flow again")


if __name__ == "__main__":
    unittest.main()
