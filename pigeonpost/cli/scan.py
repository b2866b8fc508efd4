"""Command `scan`, which lists all sensors that this machine can read, as settings with their current values.

The output is a complete node.toml, in which values and explanations are comments. A sensor that cannot be read is
listed as a comment, with the reason.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pigeonpost.cli.contract import Command, Context
from pigeonpost.core.config import as_toml
from pigeonpost.core.errors import PigeonpostError, SensorError
from pigeonpost.sensors.contract import FoundDevice, SensorSource
from pigeonpost.sensors.registry import SCANS, make_source
from protocol import Number

_LONGEST_NAME = 32


def _scan(context: Context) -> int:
    """List all sensors that this machine can read, with their current values, as settings for node.toml.

    The output is a complete settings file: python3 control.py scan > node.toml
    """
    for line in lines(context.arguments.root):
        print(line)
    return 0


def lines(root: str) -> Iterator[str]:
    """Yield the lines of a node.toml with all sensors that can be read below `root`, which is `/` except in tests."""
    yield f"# Sensors that {os.uname().nodename} can read now. Keep those that you want; you can rename their channels."
    taken: set[str] = set()
    for kind, scan in SCANS.items():
        for found in scan(root):
            yield ""
            yield from _block(found, kind, taken)
    for remark in _buses(root):
        yield ""
        yield f"# {_plain(remark)}"
    if glob.glob(os.path.join(root, "dev/gpiochip[0-9]*")):
        yield ""
        yield '# Pulse counters on GPIO lines cannot be found by a scan: docs/sensors.md, kind = "counter"'


def _block(found: FoundDevice, kind: str, taken: set[str]) -> Iterator[str]:
    """Yield the lines of one [[sensor]] table. They are comments if none of its channels can be read."""
    yield f"# {_plain(found.about)}"
    if not found.table:
        return
    table = _renamed(found.table, taken)
    units: dict[str, str] = {}
    try:
        source = _source(table, kind)
        units = {channel.name: channel.unit for channel in source.channels}
        readings: Mapping[str, Number | SensorError] = _read(source)
    except PigeonpostError as error:
        yield f"# cannot be read: {_plain(str(error))}"
        readings = {}
    comment = "" if any(not isinstance(value, SensorError) for value in readings.values()) else "# "
    taken.update(units)
    texts = {name: _value_text(value, units[name]) for name, value in readings.items()}
    for line in _table_lines(table, texts):
        yield comment + line
    if "channels" not in table:
        yield from (f"#     {name}: {text}" for name, text in texts.items())


def _source(table: Mapping[str, Any], kind: str) -> SensorSource:
    options = {key: value for key, value in table.items() if key != "kind"}
    return make_source(kind, options, "scan")


def _read(source: SensorSource) -> Mapping[str, Number | SensorError]:
    try:
        return source.read()
    finally:
        source.close()


def _renamed(table: Mapping[str, Any], taken: set[str]) -> dict[str, Any]:
    """Return a copy of a [[sensor]] table in which no channel has a name in `taken`."""
    renamed = dict(table)
    if "channels" in table:
        renamed["channels"] = {}
        for name, options in table["channels"].items():
            count, free = 1, name
            while free in taken or free in renamed["channels"]:
                count += 1
                free = f"{name[: _LONGEST_NAME - len(f'_{count}')]}_{count}"
            renamed["channels"][free] = options
    return renamed


def _table_lines(table: Mapping[str, Any], texts: Mapping[str, str]) -> Iterator[str]:
    yield "[[sensor]]"
    for key, value in table.items():
        if key != "channels":
            yield f"{key} = {as_toml(value)}"
    for name, options in table.get("channels", {}).items():
        yield (
            f"[sensor.channels.{name}]".ljust(48) + f" # {texts[name]}"
            if name in texts
            else f"[sensor.channels.{name}]"
        )
        for key, value in options.items():
            yield f"{key} = {as_toml(value)}"


def _value_text(value: Number | SensorError, unit: str) -> str:
    if isinstance(value, SensorError):
        return f"cannot be read now: {_plain(str(value))}"
    return f"{value:g} {_plain(unit)}".rstrip()


def _buses(root: str) -> Iterator[str]:
    """Yield a line per I2C bus, with the chips that have a kernel driver. The kind `kernel` reads these chips."""
    folder = os.path.join(root, "sys/bus/i2c/devices")
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        bus = re.fullmatch(r"i2c-([0-9]+)", name)
        if not bus:
            continue
        chips = [f"{chip} {_name(os.path.join(folder, chip))}" for chip in names
                 if re.fullmatch(rf"{bus[1]}-[0-9a-f]{{4}}", chip)]  # fmt: skip
        drivers = f"chips with a driver: {', '.join(chips)}" if chips else "no chip on it has a driver"
        more = f"`i2cdetect -y {bus[1]}` lists all chips; docs/sensors.md describes how to enable a driver"
        yield f"I2C bus {bus[1]} ({_name(os.path.join(folder, name))}): {drivers}. {more}"


def _name(path: str) -> str:
    try:
        with open(os.path.join(path, "name"), encoding="utf-8", errors="replace") as file:
            return file.read(100).strip()
    except OSError:
        return "?"


def _plain(text: str) -> str:
    """Return text with spaces in place of control characters, which could end a comment or move the cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


COMMANDS: Mapping[str, Command] = {
    "scan": Command(
        "list all sensors that this machine can read, with their current values, as settings for node.toml",
        [("--root", {"metavar": "FOLDER", "default": "/", "help": "folder with dev, proc and sys (default: /)"})],
        _scan,
    ),
}
