"""Dates that step while both programs run, each by itself: to 1970, by a year, by seconds, both ways.

A few lines of C, loaded before libc, shift what the kernel says of the date, and leave the other clocks alone.
"""

import mmap
import os
import shutil
import struct
import subprocess
import time
import unittest

from tests.faults.house import trial
from tests.support import temp_folder, wait_until

STEPS = int(os.environ.get("PIGEONPOST_TEST_STEPS", "10"))
YEAR_S = 365 * 86_400
SHIM = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *shift_s;

__attribute__((constructor)) static void begin(void)
{
    shift_s = mmap(0, sizeof *shift_s, PROT_READ, MAP_SHARED, open(getenv("PIGEONPOST_TEST_SHIFT"), O_RDONLY), 0);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME)
        now->tv_sec += *shift_s;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    now->tv_sec = t.tv_sec;
    now->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return now ? (*now = t.tv_sec) : t.tv_sec;
}
"""


class Steps(unittest.TestCase):
    def setUp(self):
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            (self.fail if os.environ.get("CI") else self.skipTest)("there is no C compiler (Debian package gcc)")
        self.folder = temp_folder(self)
        self.shim = os.path.join(self.folder, "shim.so")
        command = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", self.shim]
        subprocess.run(command, input=SHIM.encode(), check=True)

    def shift(self, program):
        """Let a program's date be shifted; the memory in which the seconds stand."""
        path = os.path.join(self.folder, program.log.name)
        with open(path, "w+b") as file:
            file.truncate(mmap.PAGESIZE)
            shifted = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        program.environment |= {"LD_PRELOAD": self.shim, "PIGEONPOST_TEST_SHIFT": path}
        program.kill()
        program.start()
        return shifted

    def test_a_date_that_steps_loses_and_repeats_nothing(self):
        with trial(f"{STEPS} steps of the date") as (house, chance):
            shifts = [self.shift(house.node), self.shift(house.server)]
            for number in range(STEPS):
                step_s = chance.choice((-int(time.time()), YEAR_S, -YEAR_S, 0, 3600, -3600, -5, 1))
                stepping = chance.choice(shifts)
                if not number:
                    step_s, stepping = YEAR_S, shifts[0]  # the node's, and so far that it must be seen in the end
                stepping[:8] = struct.pack("q", step_s)
                if number % 10 == 9:  # and it starts with a wrong date, as a Pi does that has no battery
                    victim = chance.choice((house.node, house.server))
                    victim.kill()
                    victim.start()
                wanted = len(house.heard) + chance.randrange(1, 10)
                wait_until(lambda wanted=wanted: len(house.heard) >= wanted, "the node goes on sampling")
            wanted = len(house.heard)
            wait_until(lambda: house.is_stored(wanted), "the server goes on storing")
            dates = [time_ms // 1000 for (time_ms,) in house.query("SELECT time FROM samples")]
        self.assertGreater(max(dates) - min(dates), YEAR_S / 2)  # the steps were seen


if __name__ == "__main__":
    unittest.main()
