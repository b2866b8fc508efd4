"""Dates that step while both programs run, independently: to 1970, by a year, by seconds, forwards and backwards.

A few lines of C, loaded before libc, shift the date that the kernel returns, and leave the other clocks unchanged.
"""

import mmap
import os
import shutil
import struct
import subprocess
import time
import unittest
from unittest import mock

from tests.faults.house import House, trial
from tests.support import rounds, temp_folder, wait_until

STEPS = rounds("PIGEONPOST_TEST_STEPS", 3, 200)
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
        self.enterContext(mock.patch("tests.faults.house.IS_FORKED", False))  # loaded before libc
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            (self.fail if os.environ.get("CI") else self.skipTest)("there is no C compiler (Debian package gcc)")
        self.folder = temp_folder(self)
        self.shim = os.path.join(self.folder, "shim.so")
        command = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", self.shim]
        environment = {"PATH": os.defpath, **os.environ}  # the compiler finds its linker there
        subprocess.run(command, input=SHIM.encode(), check=True, env=environment)

    def shifted(self, folder, **options):
        """Yield a House whose programs' dates can be shifted. Its `shifts` are the shared memory with the seconds."""
        house = House(folder, **options)
        house.shifts = []
        for program in (house.node, house.server):
            path = os.path.join(self.folder, program.log.name)
            with open(path, "w+b") as file:
                file.truncate(mmap.PAGESIZE)
                house.shifts.append(mmap.mmap(file.fileno(), mmap.PAGESIZE))
            program.environment |= {"LD_PRELOAD": self.shim, "PIGEONPOST_TEST_SHIFT": path}
        return house

    def years_between(self, house):
        """Return the number of years between the earliest and the latest stored sample."""
        dates = [time_ms / 1000 for (time_ms,) in house.query("SELECT time_ms FROM samples")]
        return (max(dates) - min(dates)) / YEAR_S

    def test_a_date_that_steps_loses_and_repeats_nothing(self):
        with trial(f"{STEPS} steps of the date", kind=self.shifted, every_s=0.01) as (house, chance):
            wait_until(lambda: house.is_stored(1), "samples are stored")
            house.shifts[0][:8] = struct.pack("q", YEAR_S)  # the node's date, by a visible amount
            wait_until(lambda: self.years_between(house) > 0.5, "the step is seen")
            for number in range(1, STEPS):
                step_s = chance.choice((-int(time.time()), YEAR_S, -YEAR_S, 0, 3600, -3600, -5, 1))
                chance.choice(house.shifts)[:8] = struct.pack("q", step_s)
                if (
                    number % 10 == 9 or number == STEPS - 1
                ):  # it starts with a wrong date, like a Pi without a real-time clock
                    victim = chance.choice((house.node, house.server))
                    victim.kill()
                    victim.start()
                wanted = len(house.heard) + chance.randrange(1, 10)
                wait_until(lambda wanted=wanted: len(house.heard) >= wanted, "the node goes on sampling")
            wanted = len(house.heard)
            wait_until(lambda: house.is_stored(wanted), "the server goes on storing")


if __name__ == "__main__":
    unittest.main()
