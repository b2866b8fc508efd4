"""Simulated MCP3008, which answers SPI transfers bit by bit and measures voltages like those of real sensors.

Only the chip is simulated; the driver, the conversions and all other parts are real. It is used only with --simulate.
Its channels are marked as simulated on the link and in the web interface.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

Volts = Callable[[int], float]  # returns the voltage of an input, 0 to 7

_DAY_S = 86_400


class SimulatedChip:
    """Simulated chip with the interface of an open `spidev.SpiDev`.

    Args:
        volts: Function that returns the voltage of an input, 0 to 7, in volts.
        vref_v: Reference voltage in volts.
    """

    def __init__(self, volts: Volts, vref_v: float = 3.3) -> None:
        self._volts = volts
        self._vref_v = vref_v

    def xfer2(self, values: list[int]) -> Sequence[int]:
        """Receive the bytes `values` and return the bytes sent at the same time (Microchip DS21295, figure 5-1)."""
        word = int.from_bytes(values)  # the received bits; the first bit is the most significant
        answer = (1 << 8 * len(values) + 16) - 1  # all ones (pull-up) until the chip answers; 16 additional clocks
        start = word.bit_length() - 1
        if start >= 6:  # otherwise the command is not complete
            command = word >> start - 4
            code = self._convert(bool(command & 0b1000), command & 0b111)
            # After the five bits of the command: one clock for sampling, the null bit, and ten bits of the result.
            answer = answer & ~(0b111_1111_1111 << start) | code << start
        return list((answer >> 16).to_bytes(len(values)))

    def _convert(self, single: bool, select: int) -> int:
        volts = self._volts(select)
        if not single:  # the selected input against its neighbour
            volts -= self._volts(select ^ 1)
        return min(max(int(volts / self._vref_v * 1024), 0), 1023)

    def close(self) -> None:
        """Do nothing. It is part of the interface of SpiDev."""


def room(now_s: Callable[[], float] = time.time) -> Volts:
    """Return a function that returns the voltages of two simulated sensors.

    On input 1 is an MCP9700 with about 21 °C, and on input 2 a light-dependent resistor in daylight. A simulated day
    lasts ten minutes, so that changes are visible.

    Args:
        now_s: Clock that returns seconds.
    """

    def volts(number: int) -> float:
        day = now_s() * 144 / _DAY_S * 2 * math.pi
        flicker = math.sin(now_s() * 7.3 + number) * 0.001
        if number == 1:
            return 0.5 + 0.010 * (21 + 3 * math.sin(day)) + flicker
        if number == 2:
            return 1.65 + 1.3 * math.sin(day - 0.6) + 10 * flicker
        return 0.02 + 4 * abs(flicker)  # an input without a connection, whose voltage floats

    return volts
