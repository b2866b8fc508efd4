"""An MCP3008 without the chip: answers SPI transfers bit by bit, from voltages that change as a room's would.

Runs on: node, with --simulate.  Reached from: node.py, which puts it below adc's driver.  Hands on to: nobody.
Threads: as every source.  Errors: none.

Only the chip is simulated: the driver, the conversions and all that follows are the real ones. It is never chosen
silently: its channels say `simulated` on the link, and the page shows it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

Volts = Callable[[int], float]  # of an input, 0 to 7

_DAY_S = 86_400


class SimulatedChip:
    """The chip below the driver, as an open spidev.SpiDev. It takes bits as they come and knows nothing of samples."""

    def __init__(self, volts: Volts, vref_v: float = 3.3) -> None:
        self._volts = volts
        self._vref_v = vref_v

    def xfer2(self, values: list[int]) -> Sequence[int]:
        """Clock bytes through: one bit in, one bit out, each clock (Microchip DS21295, figure 5-1)."""
        bits_in = [value >> shift & 1 for value in values for shift in range(7, -1, -1)]
        bits_out = [1] * len(bits_in)  # while it says nothing its output floats, and is pulled up
        try:
            start = bits_in.index(1)
        except ValueError:
            return _bytes(bits_out)
        single, *select = bits_in[start + 1 : start + 5]
        code = self._convert(bool(single), select[0] << 2 | select[1] << 1 | select[2])
        # After the five bits of the command one clock to sample, then the null bit, then ten bits, highest first.
        answer = [0, *(code >> shift & 1 for shift in range(9, -1, -1))]
        bits_out[start + 6 : start + 6 + len(answer)] = answer
        return _bytes(bits_out[: len(bits_in)])

    def _convert(self, single: bool, select: int) -> int:
        volts = self._volts(select)
        if not single:  # the selected input against its neighbour
            volts -= self._volts(select ^ 1)
        return min(max(int(volts / self._vref_v * 1024), 0), 1023)

    def close(self) -> None:
        """As spidev's; there is nothing to give back."""


def _bytes(bits: Sequence[int]) -> list[int]:
    return [int("".join(map(str, bits[k : k + 8])), 2) for k in range(0, len(bits), 8)]


def room(now_s: Callable[[], float] = time.time) -> Volts:
    """The voltages of a room: an MCP9700 on input 1 that swings round 21 °C, an LDR on input 2 that sees the day.

    A day passes in ten minutes, so that somebody who watches sees it move.
    """

    def volts(number: int) -> float:
        day = now_s() * 144 / _DAY_S * 2 * math.pi
        flicker = math.sin(now_s() * 7.3 + number) * 0.001
        if number == 1:
            return 0.5 + 0.010 * (21 + 3 * math.sin(day)) + flicker
        if number == 2:
            return 1.65 + 1.3 * math.sin(day - 0.6) + 10 * flicker
        return 0.02 + 4 * abs(flicker)  # nothing is connected, and it floats

    return volts
