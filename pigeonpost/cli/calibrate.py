"""Commands that calibrate sensors on the server. The server may be running or stopped.

    python3 control.py calibrate cellar temperature 0.2=0 99.4=100 --note "ice and boiling water"
    python3 control.py calibrate cellar temperature 0.5=0 99.1=100 --from 2026-11-20
    python3 control.py calibrations cellar
    python3 control.py calibrations cellar temperature --remove 2026-11-20

Errors: Failed, with the reason and the remedy. In this case, nothing is changed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pigeonpost.auth.tokens import Tokens
from pigeonpost.cli.contract import (
    NODE,
    Command,
    Context,
    Failed,
    node_name,
    open_read_only,
    require_store,
    sensor_name,
)
from pigeonpost.cli.export import parse_time
from pigeonpost.cli.remote import ask_server
from pigeonpost.core.data_folder import SERVER_LOCK
from pigeonpost.core.errors import DamagedFile, InUse
from pigeonpost.core.files import lock_data_dir
from pigeonpost.core.format import counted
from pigeonpost.server.calibrations import (
    BEGINNING,
    Calibrations,
    from_text,
    parse_from,
    points_text,
    require_sensor,
    start_text,
)
from pigeonpost.server.node_admin import Refused
from pigeonpost.server.node_register import NodeRegister
from pigeonpost.storage.calibration import BEGINNING_MS, Calibration, checked_points

_NOW = "now"


def parse_point(text: str) -> tuple[float, float]:
    """Return the raw and the true value in the command-line argument `text`, such as `0.2=0`.

    Raises:
        ArgumentTypeError: The text is not a valid point.
    """
    raw, found, true = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(
            f"{text.strip()!r} is not a point: write RAW=TRUE, such as 0.2=0 if the sensor shows 0.2 at a true 0"
        )
    values = []
    for part in (raw, true):
        try:
            values.append(float(part))
        except ValueError:
            hint = f"; write {part.strip().replace(',', '.')}" if "," in part else ""
            raise argparse.ArgumentTypeError(f"{part.strip()!r} in {text.strip()!r} is not a number{hint}") from None
    return values[0], values[1]


def parse_start(text: str) -> int:
    """Return the start of a validity in the command-line argument `text`, in milliseconds since 1970 (UTC).

    The text is `beginning`, `now`, or a time as for `export --from`.

    Raises:
        ArgumentTypeError: The text is not a valid time.
    """
    if text == BEGINNING:
        return BEGINNING_MS
    if text == _NOW:
        return int(time.time()) * 1000
    try:
        return parse_time(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or {BEGINNING} or {_NOW}") from None


def _calibrate(context: Context) -> int:
    """Calibrate a sensor by points: the raw value that it sends, and the true value of a reference instrument.

    One point corrects an offset, two or more define a curve of straight lines, which continues beyond the outer points.
    The calibration is valid for the values taken from TIME on: `beginning` (all values; the default of the first
    calibration), `now`, or a time as 2026-11-20, 2026-11-20T15:36 (local time) or 7d (an age). It ends where the next
    calibration of the sensor begins. One with the same TIME is replaced.

    Pages, exports, the JSON API and alerts show calibrated values, also those of the past. The database and the CSV
    logs keep the raw values, so a calibration can be corrected or removed (`calibrations --remove`) at any time.
    """
    chosen = context.arguments
    try:
        points = checked_points(chosen.points)
    except ValueError as error:
        raise Failed(f"{chosen.sensor} of {chosen.node}: {error}") from None
    with _change(context) as change:
        since_ms = BEGINNING_MS if chosen.since is None else chosen.since
        new = Calibration(since_ms, points, chosen.unit.strip(), chosen.note.strip())
        replaced = change.add(new, is_dated=chosen.since is not None)
    print(f"{chosen.sensor} of {chosen.node} is calibrated {_validity(new)}: {points_text(points)}")
    if replaced:
        print(f"this replaces {replaced}")
    if new.unit and new.from_ms != BEGINNING_MS:
        print(f"all values of the sensor are shown in {new.unit}; those before this time keep their numbers")
    return 0


def _calibrations(context: Context) -> int:
    """List the calibrations, or remove those of a sensor. Its values are then the raw ones again."""
    chosen = context.arguments
    if chosen.clear or chosen.remove is not None:
        if not chosen.node or not chosen.sensor or (chosen.clear and chosen.remove is not None):
            raise Failed("write `calibrations NODE SENSOR --remove TIME` or `calibrations NODE SENSOR --clear`")
        with _change(context) as change:
            what = change.clear() if chosen.clear else change.remove(chosen.remove)
        print(f"{chosen.sensor} of {chosen.node}: {what} removed")
        return 0
    require_store(context)
    with contextlib.closing(open_read_only(context)) as store:
        names = NodeRegister(store, Tokens(context.data).text_of)
        found = _file(context, names)
        try:
            node = require_sensor(store, names.current, chosen.node, chosen.sensor) if chosen.node else ""
        except Refused as error:
            raise Failed(str(error)) from None
    listed = [
        (name, sensor, one)
        for name, timelines in sorted(found.nodes().items()) if node in ("", name)
        for sensor, timeline in sorted(timelines.items()) if chosen.sensor in (None, sensor)
        for one in timeline.calibrations
    ]  # fmt: skip
    for name, sensor, one in listed:
        print(f"{name} {sensor} {_described(one)}")
    if not listed:
        what = f"{chosen.sensor} of {node}" if chosen.sensor else f"no sensor of {node}" if node else "no sensor"
        print(f"{what} is {'not ' if chosen.sensor else ''}calibrated")
    return 0


def _described(one: Calibration) -> str:
    more = "".join([f" {one.unit}" if one.unit else "", f"  ({one.note})" if one.note else ""])
    return f"{_validity(one)}: {points_text(one.points)}{more}"


def _validity(one: Calibration) -> str:
    return "from the beginning" if one.from_ms == BEGINNING_MS else f"from {start_text(one.from_ms)}"


# -------------------------------------------------------------------------------- with and without a running server


class _Change:
    """Changes of the calibrations of one sensor, made by the running server."""

    def __init__(self, context: Context) -> None:
        self._data = context.data
        self._node, self._sensor = context.arguments.node, context.arguments.sensor

    def add(self, new: Calibration, is_dated: bool) -> str:
        """Add a calibration. Return a description of the one that it replaces, or an empty string."""
        content = {"points": [list(point) for point in new.points], "unit": new.unit, "note": new.note}
        content |= {"from": from_text(new.from_ms)} if is_dated else {}
        replaced = self._ask(content)["replaced"]
        return _described(_decoded(replaced)) if replaced else ""

    def remove(self, from_ms: int) -> str:
        """Remove the calibration from a time. Return its description."""
        return f"calibration {_described(_decoded(self._ask({'remove': from_text(from_ms)})['removed']))}"

    def clear(self) -> str:
        """Remove all calibrations of the sensor. Return their number as text."""
        return counted(self._ask({"clear": True})["cleared"], "calibration")

    def _ask(self, content: Mapping[str, Any]) -> Any:
        path = f"/api/v1/nodes/{quote(self._node)}/calibrate"
        return ask_server(self._data, "POST", path, {"sensor": self._sensor, **content})


class _ChangeWithoutServer(_Change):
    """Changes of the calibrations of one sensor, made in the file."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        with contextlib.closing(open_read_only(context)) as store:
            names = NodeRegister(store, Tokens(context.data).text_of)
            self._node = require_sensor(store, names.current, self._node, self._sensor)
            self._file = _file(context, names)

    def add(self, new: Calibration, is_dated: bool) -> str:
        replaced = self._file.add(self._node, self._sensor, new, int(time.time() * 1000), is_dated)
        return _described(replaced) if replaced else ""

    def remove(self, from_ms: int) -> str:
        return f"calibration {_described(self._file.remove(self._node, self._sensor, from_ms))}"

    def clear(self) -> str:
        return counted(self._file.clear(self._node, self._sensor), "calibration")


@contextlib.contextmanager
def _change(context: Context) -> Iterator[_Change]:
    """Yield the object that changes calibrations. Without a running server, none can start during the block."""
    require_store(context)
    try:
        lock = lock_data_dir(os.path.join(context.data, SERVER_LOCK))
    except InUse:
        yield _Change(context)
        return
    try:
        yield _ChangeWithoutServer(context)
    except Refused as error:
        raise Failed(str(error)) from None
    finally:
        os.close(lock)


def _file(context: Context, names: NodeRegister) -> Calibrations:
    try:
        return Calibrations(context.data, names.current)
    except DamagedFile as error:
        raise Failed(str(error)) from None


def _decoded(entry: Mapping[str, Any]) -> Calibration:
    points = [(float(raw), float(true)) for raw, true in entry["points"]]
    return Calibration(parse_from(entry["from"]), points, entry["unit"], entry["note"])


_SENSOR = ("sensor", {"metavar": "SENSOR", "type": sensor_name, "help": "name of the sensor"})
COMMANDS: Mapping[str, Command] = {
    "calibrate": Command(
        "calibrate a sensor by points RAW=TRUE; past values are converted, too",
        [
            NODE,
            _SENSOR,
            ("points", {"metavar": "RAW=TRUE", "nargs": "+", "type": parse_point,
                        "help": "raw value of the sensor and true value; one point is an offset"}),
            ("--from", {"metavar": "TIME", "dest": "since", "type": parse_start,
                        "help": f"first values to convert: {BEGINNING}, {_NOW}, or a time as for export (default:"
                        f" {BEGINNING}, if the sensor has no calibration yet)"}),
            ("--unit", {"metavar": "U", "default": "", "help": "unit of the true values (default: as now)"}),
            ("--note", {"metavar": "TEXT", "default": "", "help": "note, such as the reference instrument"}),
        ],
        _calibrate,
    ),
    "calibrations": Command(
        "list calibrations, or remove those of a sensor",
        [
            ("node", {"metavar": "NODE", "nargs": "?", "type": node_name, "help": "only this node"}),
            ("sensor", {"metavar": "SENSOR", "nargs": "?", "type": sensor_name, "help": "only this sensor"}),
            ("--remove", {"metavar": "TIME", "type": parse_start,
                          "help": f"remove the calibration from this time, as listed, or from the {BEGINNING}"}),
            ("--clear", {"action": "store_true", "help": "remove all calibrations of the sensor"}),
        ],
        _calibrations,
    ),
}  # fmt: skip
