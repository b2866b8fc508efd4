"""Temperature of a 1-Wire thermometer (DS18B20 and its family) from the file `w1_slave` of its Linux driver.

    50 05 4b 46 7f ff 0c 10 1c : crc=1c YES      the nine bytes of the scratchpad, and the kernel's check of the CRC
    50 05 4b 46 7f ff 0c 10 1c t=85000           the same bytes, and the temperature in m°C

    byte  0 1          2 3              4              5          6                           7          8
          temperature  alarm: TH, TL    configuration  reserved   reserved; DS18S20: counter  reserved   CRC

A valid CRC does not prove that the chip has measured. Each of these is an error:

- nine equal bytes 00 or ff: the data line is short-circuited or open (the CRC of zeros is zero);
- a temperature that contradicts the scratchpad;
- a temperature outside the range of the chip, such as 127.94 °C, which a DS18B20 reports if a conversion has failed;
- the power-on value: see `_is_power_on_value`.

Sources: data sheets Maxim 19-7487 (DS18B20), DS18S20, DS1825, MAX31850; Documentation/ABI/testing/sysfs-driver-w1_therm
and drivers/w1/slaves/w1_therm.c of Linux; github.com/cpetrich/counterfeit_DS18B20 (power-on values of other makers).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pigeonpost.core.errors import SensorError
from pigeonpost.sensors.ranges import DS18B20_C, THERMOCOUPLE_C, ImpossibleValue, Range, shown_raw

_DS18S20, _DS1825 = 0x10, 0x3B  # families; MAX31850, an amplifier for thermocouples, has the family of the DS1825
_THERMOMETER = Range(*DS18B20_C, "DS18B20 and its family")
_THERMOCOUPLE = Range(*THERMOCOUPLE_C, "thermocouple")
_POWER_ON_C = 85.0
_NEAR_C = 5.0  # a chip does not show whether it has measured its power-on value, but the reading before it does
_SCRATCHPAD = re.compile(r"((?:[0-9a-f]{2} ){9}).*yes").fullmatch
_READING = re.compile(r"((?:[0-9a-f]{2} ){9})?t=(-?[0-9]{1,9})").fullmatch


class OneWireThermometer:
    """Decoder of the readings of one thermometer, which remembers the last one.

    Args:
        name: Id of the thermometer, such as "28-0316a2794bff", for error messages.
        possible: Possible values, instead of those of the chip.
    """

    def __init__(self, name: str, possible: Range | None = None) -> None:
        self._name = name
        self._possible = possible
        self._family = int(name[:2], 16)
        self._last_c: float | None = None
        self._shows_conversions = False  # byte 6 has changed with the temperature, as in a chip of Maxim

    def temperature(self, content: str) -> float:
        """Return the temperature in °C.

        Args:
            content: Content of the file w1_slave.

        Raises:
            SensorError: The checksum is invalid, or the content is not complete.
            ImpossibleValue: The chip has not measured.
        """
        lines = content.lower().splitlines()
        found = _READING(lines[1]) if len(lines) == 2 else None
        scratchpad = _SCRATCHPAD(lines[0]) if found else None
        if found is None or scratchpad is None:
            self._last_c = None
            raise SensorError(
                f"w1/{self._name}: invalid checksum or no answer{shown_raw(' / '.join(lines))}: check wiring and"
                " pull-up resistor"
            )
        data, temperature_c = bytes.fromhex(scratchpad[1]), int(found[2]) / 1000
        if found[1] and bytes.fromhex(found[1]) != data:
            raise ImpossibleValue(f"the two lines of w1_slave contradict each other{shown_raw(' / '.join(lines))}")
        self._check(data, temperature_c, lines[1])
        if self._family != _DS18S20 and (data[6] != 0x0C or data[0] & 0x0F != 4):
            self._shows_conversions = 0 < data[6] <= 0x10 and (data[0] + data[6]) & 0x0F == 0
        self._last_c = temperature_c
        return temperature_c

    def check_value(self, temperature_c: float, raw: str) -> None:
        """Check a temperature for which there is no scratchpad, and remember it.

        Args:
            temperature_c: Temperature in °C.
            raw: Text from which it was read.

        Raises:
            ImpossibleValue: It is out of range, or it is 85 °C and the one before was not near.
        """
        (self._possible or _THERMOMETER).check(temperature_c, "°C", raw)
        if temperature_c == _POWER_ON_C and not self._was_near(_POWER_ON_C):
            raise _power_on(temperature_c, raw)
        self._last_c = temperature_c

    def _check(self, data: bytes, temperature_c: float, raw: str) -> None:
        """Raise ImpossibleValue if the scratchpad `data` shows that the chip has not measured `temperature_c`."""
        if len(set(data)) == 1 and data[0] in (0x00, 0xFF):
            line = "short-circuited or the sensor has no supply" if data[0] == 0 else "open"
            raise ImpossibleValue(f"all bytes are {data[0]:02x}{shown_raw(raw)}: the data line is {line}")
        is_thermocouple = self._family == _DS1825 and data[4] & 0x80
        if is_thermocouple and data[0] & 1:
            raise ImpossibleValue(f"the thermocouple is open or short-circuited{shown_raw(raw)}")
        (self._possible or (_THERMOCOUPLE if is_thermocouple else _THERMOMETER)).check(temperature_c, "°C", raw)
        computed_c, tolerance_c = _computed_c(self._family, data)
        if abs(computed_c - temperature_c) > tolerance_c:
            raise ImpossibleValue(f"t= contradicts the scratchpad{shown_raw(raw)}: it contains {computed_c:g} °C")
        if self._is_power_on_value(data):
            raise _power_on(temperature_c, raw)

    def _is_power_on_value(self, data: bytes) -> bool:
        """Return True if the scratchpad is that of a chip which has not measured since it got power.

        - DS18B20 of Maxim: 85 °C with 0c in byte 6. After a conversion byte 6 is 0x10 minus the low half of byte 0.
        - Most other makers: 85 °C too, but byte 6 never changes, so a measured 85 °C looks the same.
        - Some makers (66 in byte 7): 25 °C, also after a measurement of 25 °C.
        - DS18S20: 85 °C with 0c in byte 6. A measured 85 °C has another counter there, except for one in sixteen.

        Where the scratchpad leaves this open, the value is a measurement if the reading before it was near.
        """
        value = int.from_bytes(data[:2], "little", signed=True)
        if self._family == _DS18S20:
            return value == _POWER_ON_C * 2 and data[6] == 0x0C and not self._was_near(_POWER_ON_C)
        if value == _POWER_ON_C * 16:
            if data[6] == 0x10:
                return False
            return (self._shows_conversions and data[6] == 0x0C) or not self._was_near(_POWER_ON_C)
        return value == 25 * 16 and data[7] == 0x66 and not self._was_near(25.0)

    def _was_near(self, temperature_c: float) -> bool:
        return self._last_c is not None and abs(self._last_c - temperature_c) <= _NEAR_C


def _power_on(temperature_c: float, raw: str) -> ImpossibleValue:
    reason = "the sensor's supply fails during the measurement"
    return ImpossibleValue(f"power-on value {temperature_c:g} °C{shown_raw(raw)}: {reason}")


def _computed_c(family: int, data: Sequence[int]) -> tuple[float, float]:
    """Return the temperature in the scratchpad, and the largest difference from the one that the driver reports."""
    value = int.from_bytes(bytes(data[:2]), "little", signed=True)
    if family == _DS18S20:  # the driver adds the part that the counters in bytes 6 and 7 show
        per_degree = data[7] or 16
        return (value >> 1) - 0.25 + (per_degree - data[6]) / per_degree, 0.76
    if data[4] & 0x80 and family == _DS1825:  # MAX31850; not all drivers mask the lowest two bits
        return (value & ~3) / 16, 0.25
    # A GX20MH01 with 13 or 14 bits has two more bits in byte 4, which not all drivers add.
    return value / 16, 0.05 if data[4] & 0x80 else 0.001
