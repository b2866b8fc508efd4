"""Detection of clocks that are set between two measurements of their difference."""

import unittest

from pigeonpost.transports.clock_steps import ClockSteps

T0, DAY_MS = 1_795_188_970_000, 86_400_000


class Case(unittest.TestCase):
    def setUp(self):
        self.steps = ClockSteps()
        self.node_ms, self.up_ms, self.wall_ms, self.now_s = T0, 5_000_000, T0 + 70, 900.0
        self.steps.start(self.node_ms, self.up_ms, self.wall_ms, self.now_s)

    def after(self, seconds, node_ms=0, server_ms=0, delay_s=0.0):
        """Return the step at a sample `seconds` later; the clocks are set by `node_ms` and `server_ms` before it."""
        self.node_ms += int(seconds * 1000) + node_ms
        self.up_ms += int(seconds * 1000)
        self.wall_ms += int(seconds * 1000) + server_ms
        self.now_s += seconds
        return self.steps.step_ms(self.node_ms, self.up_ms, self.wall_ms + int(delay_s * 1000), self.now_s + delay_s)

    def test_step_of_the_node_is_found(self):
        for step_ms in (3_600_000, -3_600_000, 1000, -1500, 400 * DAY_MS, -20_000 * DAY_MS):
            self.assertEqual(self.after(10, step_ms), step_ms)
            self.assertEqual(self.after(10), 0)

    def test_step_of_the_server_is_found(self):
        for step_ms in (3_600_000, -3_600_000, 1000, 400 * DAY_MS, -20_000 * DAY_MS):
            self.assertEqual(self.after(600, 0, step_ms), -step_ms)
            self.assertEqual(self.after(600), 0)

    def test_slow_correction_and_delay_are_no_steps(self):
        for node_ms, delay_s in ((5, 0.0), (-400, 0.0), (0, 3.0), (0, 0.0), (900, 0.2)):
            self.assertEqual(self.after(10, node_ms, delay_s=delay_s), 0)

    def test_sample_of_a_backlog_is_ignored(self):
        for late_s in (6, 60, 3600, 86_400):
            self.assertEqual(
                self.steps.step_ms(self.node_ms - 9_000_000, self.up_ms - late_s * 1000, self.wall_ms, self.now_s), 0
            )
        self.assertEqual(self.steps.step_ms(self.node_ms, 12, self.wall_ms, self.now_s), 0)  # of an earlier boot
        self.assertEqual(self.after(1, 7_200_000), 7_200_000)

    def test_first_sample_is_not_compared(self):
        self.assertEqual(ClockSteps().step_ms(T0, 5, T0, 1.0), 0)
