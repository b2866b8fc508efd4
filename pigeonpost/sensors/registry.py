"""Registry of all kinds of sensor sources: the values of `kind` in a [[sensor]] table.

Each function imports its module only when it is called, so that a Pi Zero needs memory only for the kinds that it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pigeonpost.core.errors import SettingsError
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.sensors.contract import FoundDevice, SensorSource, with_limits

if TYPE_CHECKING:
    from typing import Any

Options = Mapping[str, "Any"]


def make_source(kind: object, options: Options, where: str) -> SensorSource:
    """Return the source for a [[sensor]] table.

    Args:
        kind: The value of `kind` in the table.
        options: The other keys and values of the table.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: The kind does not exist, or a setting is invalid.
    """
    make = KINDS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise SettingsError(f"{where}: kind must be one of {', '.join(sorted(KINDS))}, not {kind!r}")
    return with_limits(options, where, lambda plain: make(plain, where))


def make_simulated_adc(options: Options, where: str) -> SensorSource:
    """Return a source of kind "adc" that reads a simulated chip, for --simulate.

    Args:
        options: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid.
    """
    import adc
    from pigeonpost.sensors import simulated

    chip = simulated.SimulatedChip(simulated.room())
    return with_limits(options, where, lambda plain: adc.make(plain, where, chip))


def _adc(options: Options, where: str) -> SensorSource:
    import adc

    return adc.make(options, where)


def _command(options: Options, where: str) -> SensorSource:
    from pigeonpost.sensors import command

    return command.make(options, where)


def _counter(options: Options, where: str) -> SensorSource:
    from pigeonpost.sensors import counter

    return counter.make(options, where)


def _formula(options: Options, where: str) -> SensorSource:
    from pigeonpost.sensors import formula

    return formula.make(options, where)


def _json(options: Options, where: str) -> SensorSource:
    from pigeonpost.sensors import json

    return json.make(options, where)


def _kernel(options: Options, where: str) -> SensorSource:
    from pigeonpost.sensors import kernel

    return kernel.make(options, where)


def _machine(options: Options, where: str) -> SensorSource:
    from pigeonpost.sensors import machine

    return machine.make(options, where)


def _mcp3424(options: Options, where: str) -> SensorSource:
    from pigeonpost.sensors import mcp3424

    return mcp3424.make(options, where)


def _mqtt(options: Options, where: str) -> SensorSource:
    from pigeonpost.sensors import mqtt

    return mqtt.make(options, where)


KINDS: Mapping[str, Callable[[Options, str], SensorSource]] = {
    "adc": _adc,
    "command": _command,
    "counter": _counter,
    "formula": _formula,
    "json": _json,
    "kernel": _kernel,
    "machine": _machine,
    "mcp3424": _mcp3424,
    "mqtt": _mqtt,
}


def _scan_adc(root: str) -> Iterator[FoundDevice]:
    import adc

    return adc.scan(root)


def _scan_kernel(root: str) -> Iterator[FoundDevice]:
    from pigeonpost.sensors import kernel

    return kernel.scan(root)


def _scan_machine(root: str) -> Iterator[FoundDevice]:
    from pigeonpost.sensors import machine

    return machine.scan(root)


def _scan_mcp3424(root: str) -> Iterator[FoundDevice]:
    from pigeonpost.sensors import mcp3424

    return mcp3424.scan(root)


# Scans of `control.py scan`, in this order. The machine is first, because its channel names cannot be changed.
SCANS: Mapping[str, Callable[[str], Iterator[FoundDevice]]] = {
    "machine": _scan_machine,
    "kernel": _scan_kernel,
    "adc": _scan_adc,
    "mcp3424": _scan_mcp3424,
}
