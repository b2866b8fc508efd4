"""Command that finds everything that this machine can read, and prints it with its present value as settings to paste.

The output is a complete node.toml: everything meant for people is behind a #. What cannot be read is listed with the
reason.
"""

from __future__ import annotations

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


def scan(context: Context) -> int:
    """List everything that this machine can read, with its value now, and as settings for its node.toml.

    The whole output is such a file: python3 control.py scan > node.toml
    """
    for line in lines(context.arguments.root):
        print(line)
    return 0


def lines(root: str) -> Iterator[str]:
    """A node.toml with everything that can be read below `root`, line by line."""
    yield f"# What {os.uname().nodename} can read now. Keep what you want of it in node.toml, and call it as you like."
    taken: set[str] = set()
    for kind, look in SCANS.items():
        for found in look(root):
            yield ""
            yield from _block(found, kind, taken)
    for remark in _buses(root):
        yield ""
        yield f"# {_plain(remark)}"


def _block(found: FoundDevice, kind: str, taken: set[str]) -> Iterator[str]:
    """One [[sensor]] table; behind # where nothing of it reads."""
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
        yield f"# does not read: {_plain(str(error))}"
        readings = {}
    dark = "" if any(not isinstance(value, SensorError) for value in readings.values()) else "# "
    taken.update(units)
    said = {name: _value_text(value, units[name]) for name, value in readings.items()}
    for line in _table_lines(table, said):
        yield dark + line
    if "channels" not in table:
        yield from (f"#     {name}: {words}" for name, words in said.items())


def _source(table: Mapping[str, Any], kind: str) -> SensorSource:
    options = {key: value for key, value in table.items() if key != "kind"}
    return make_source(kind, options, "scan")


def _read(source: SensorSource) -> Mapping[str, Number | SensorError]:
    try:
        return source.read()
    finally:
        source.close()


def _renamed(table: Mapping[str, Any], taken: set[str]) -> dict[str, Any]:
    """The same with channels whose names nobody else has."""
    renamed = dict(table)
    if "channels" in table:
        renamed["channels"] = {}
        for name, its in table["channels"].items():
            count, free = 1, name
            while free in taken or free in renamed["channels"]:
                count += 1
                free = f"{name[: _LONGEST_NAME - len(f'_{count}')]}_{count}"
            renamed["channels"][free] = its
    return renamed


def _table_lines(table: Mapping[str, Any], said: Mapping[str, str]) -> Iterator[str]:
    yield "[[sensor]]"
    for key, value in table.items():
        if key != "channels":
            yield f"{key} = {as_toml(value)}"
    for name, options in table.get("channels", {}).items():
        yield (
            f"[sensor.channels.{name}]".ljust(48) + f" # {said[name]}" if name in said else f"[sensor.channels.{name}]"
        )
        for key, value in options.items():
            yield f"{key} = {as_toml(value)}"


def _value_text(value: Number | SensorError, unit: str) -> str:
    if isinstance(value, SensorError):
        return f"does not read now: {_plain(str(value))}"
    return f"{value:g} {_plain(unit)}".rstrip()


def _buses(root: str) -> Iterator[str]:
    """I2C buses, and which of the chips on them have a kernel driver: for these, `kernel` has listed what it reads."""
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
        known = f"chips with a driver: {', '.join(chips)}" if chips else "no chip on it has a driver"
        more = f"`i2cdetect -y {bus[1]}` shows all that answer; docs/sensors.md: how a driver is switched on"
        yield f"I2C bus {bus[1]} ({_name(os.path.join(folder, name))}): {known}. {more}"


def _name(path: str) -> str:
    try:
        with open(os.path.join(path, "name"), encoding="utf-8", errors="replace") as file:
            return file.read(100).strip()
    except OSError:
        return "?"


def _plain(text: str) -> str:
    """On one line, without what would end a comment or move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


COMMANDS: Mapping[str, Command] = {
    "scan": Command(
        "list everything that this machine can read, with its value now, as settings for its node.toml",
        [("--root", {"metavar": "FOLDER", "default": "/", "help": "where dev, proc and sys are (/)"})],
        scan,
    ),
}
