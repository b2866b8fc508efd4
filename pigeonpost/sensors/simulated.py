"""Simulated MCP3008: answers SPI transfers bit by bit, from voltages that change like those in a room.

Only the chip is simulated: the driver, the conversions and everything that follows are the real ones. It is never
chosen silently (--simulate): its channels say `simulated` on the link, and the page shows it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

Volts = Callable[[int], float]  # of an input, 0 to 7

_DAY_S = 86_400


class SimulatedChip:
    """The chip below the driver, in the place of an open spidev.SpiDev; it handles bits only."""

    def __init__(self, volts: Volts, vref_v: float = 3.3) -> None:
        self._volts = volts
        self._vref_v = vref_v

    def xfer2(self, values: list[int]) -> Sequence[int]:
        """Clock bytes through: one bit in, one bit out, each clock (Microchip DS21295, figure 5-1)."""
        word = int.from_bytes(values)  # what comes in, the first bit highest
        answer = (1 << 8 * len(values) + 16) - 1  # pulled up while the chip says nothing; 16 clocks more than asked for
        start = word.bit_length() - 1
        if start >= 6:  # else not even the command is complete
            command = word >> start - 4
            code = self._convert(bool(command & 0b1000), command & 0b111)
            # After the five bits of the command one clock to sample, then the null bit, then ten bits, highest first.
            answer = answer & ~(0b111_1111_1111 << start) | code << start
        return list((answer >> 16).to_bytes(len(values)))

    def _convert(self, single: bool, select: int) -> int:
        volts = self._volts(select)
        if not single:  # the selected input against its neighbour
            volts -= self._volts(select ^ 1)
        return min(max(int(volts / self._vref_v * 1024), 0), 1023)

    def close(self) -> None:
        """Do nothing, in the place of SpiDev.close."""


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
