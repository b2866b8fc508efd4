"""Calibrations of the sensors of all nodes, in `calibrations.json` in the data folder.

Any thread may use it. The calibrations in use are replaced as one object, so readers need no lock. `_changing` is held
while the file is written and read again. A server replaces them in the Ingestor's writer thread, between two commits
(`run_between_commits`).

The file contains one entry per node, and per sensor a list of calibrations. A node is listed by the name that it had
when the file was written. `on_rename` and the next start of a server update it.

Errors: Refused for a calibration that is not possible, DamagedFile, DiskError.
"""

from __future__ import annotations

import difflib
import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from pigeonpost.core.clock import parse_rfc3339, rfc3339
from pigeonpost.core.data_folder import CALIBRATIONS
from pigeonpost.core.errors import DamagedFile, DiskError, NotStored, StoreDamaged
from pigeonpost.core.faults import Faults
from pigeonpost.core.format import stamp
from pigeonpost.core.json_file import JsonFile, changes_locked
from pigeonpost.server.ingest import Ingestor
from pigeonpost.server.latest_samples import LatestSample
from pigeonpost.server.node_admin import Refused
from pigeonpost.storage.calibrated_store import calibrated
from pigeonpost.storage.calibration import (
    BEGINNING_MS,
    Calibration,
    CalibrationTimeline,
    Timelines,
    calibrated_commit,
    calibrated_units,
    calibrated_values,
    checked_points,
)
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import NOTHING, EpochCommit
from protocol import UNIT

log = logging.getLogger(__name__)

BEGINNING = "beginning"  # in texts: the start of a calibration that is valid for all values before the next one
LONGEST_NOTE = 200  # characters
MOST_CALIBRATIONS = 1000  # per sensor
_FUTURE_MS = 86_400_000  # maximum time from now to the start of the validity
_APPLY_S = 5.0  # maximum wait until the writer thread applies a change
_Sensors = Mapping[str, Sequence[Calibration]]
_NONE: Timelines = {}
R = TypeVar("R")


class Calibrations:
    """Calibrations of all sensors.

    Attributes:
        on_change: Functions that are called with the name of a node after its calibrations have changed.
        run_between_commits: Function that runs a function while no samples are committed.
    """

    def __init__(
        self, data: str, current: Callable[[str], str] = lambda name: name, faults: Faults | None = None
    ) -> None:
        """Read the calibrations.

        Args:
            data: Data folder of the server.
            current: Function that returns the current name of the node that had a name: see NodeRegister.
            faults: Receives damage of the file. A server then starts without calibrations. It is None for commands that
                only read; then DamagedFile is raised.
        """
        self._data, self._current, self._faults = data, current, faults
        self._file = JsonFile(
            os.path.join(data, CALIBRATIONS), "a list of calibrations", _decoded, faults, auto_restore=True
        )
        self._changing = threading.RLock()
        self.on_change: list[Callable[[str], object]] = []
        self.run_between_commits: Callable[[Callable[[], None]], None] = lambda job: job()
        self._timelines: Mapping[str, Timelines] = {}
        try:
            self._read()
            if faults is not None:
                self._save_current_names()
        except DamagedFile:
            if faults is None:
                raise

    def __bool__(self) -> bool:
        """Return True if any sensor is calibrated."""
        return bool(self._timelines)

    def of(self, node: str) -> Timelines:
        """Return the calibrated sensors of `node`."""
        return self._timelines.get(node, _NONE)

    def nodes(self) -> Mapping[str, Timelines]:
        """Return the calibrated sensors of all nodes."""
        return self._timelines

    def commits(self, raw: Sequence[EpochCommit]) -> Sequence[EpochCommit]:
        """Return the commits `raw` with true values, for their subscribers."""
        if not self._timelines:
            return raw
        return [
            calibrated_commit(one, timelines) if (timelines := self._timelines.get(one.node)) else one for one in raw
        ]

    def install(self, store: Store, ingestor: Ingestor) -> Store:
        """Apply the calibrations to all commits of `ingestor`, from its next one on.

        Returns:
            A view of `store` with calibrated values.
        """
        shown = calibrated(store, self.of)
        ingestor.calibrated = self.commits
        ingestor.names.on_rename.append(self.on_rename)  # the first one, so that others read calibrated values
        self.run_between_commits = run_in_writer_thread(ingestor)
        ingestor.newest.calibrated = self.latest
        self.on_change.append(ingestor.newest.show_again)
        return shown

    def latest(self, node: str, raw: LatestSample) -> LatestSample:
        """Return the newest values `raw` of `node` as true values."""
        timelines, sample = self.of(node), raw.sample
        if not timelines:
            return raw
        values = calibrated_values(sample.time_ms, sample.values, timelines)
        return raw._replace(sample=sample._replace(values=values), units=calibrated_units(raw.units, timelines))

    # ------------------------------------------------------------------------------------------------------ changes

    def add(self, node: str, sensor: str, new: Calibration, now_ms: int, is_dated: bool = True) -> Calibration | None:
        """Add a calibration. It replaces the calibration of the sensor with the same date.

        Args:
            node: Current name of the node.
            sensor: Name of the sensor.
            new: The calibration.
            now_ms: Current time in ms since 1970 (UTC).
            is_dated: False if `new` has no date of its own; the sensor must then have no calibration yet.

        Returns:
            The replaced calibration, or None.

        Raises:
            Refused: The calibration is not possible.
            DiskError: It cannot be saved.
        """
        try:
            new = new._replace(points=checked_points(new.points), note=new.note.strip(), entered_ms=now_ms)
        except ValueError as error:
            raise Refused(f"{sensor} of {node}: {error}") from None
        if len(new.note) > LONGEST_NOTE or not new.note.isprintable():
            raise Refused(f"a note must be one line of at most {LONGEST_NOTE} printable characters")
        if not (UNIT(new.unit) and new.unit.isprintable()):
            raise Refused(f"{new.unit!r:.80} is not a valid unit: up to 32 printable characters")
        if new.from_ms > now_ms + _FUTURE_MS:
            raise Refused(f"{start_text(new.from_ms)} is in the future: a calibration is valid from a time in the past")

        def change(before: Sequence[Calibration]) -> tuple[Sequence[Calibration], Calibration | None]:
            if before and not is_dated:
                dates = ", ".join(start_text(one.from_ms) for one in before)
                raise Refused(
                    f"{sensor} of {node} is calibrated already, from: {dates}. Add --from now for values from now on,"
                    " --from TIME for values from that time on, or --from with one of these dates to replace that"
                    " calibration"
                )
            replaced = next((one for one in before if one.from_ms == new.from_ms), None)
            others = [one for one in before if one is not replaced]
            if len(others) >= MOST_CALIBRATIONS:
                raise Refused(f"{sensor} of {node} has {MOST_CALIBRATIONS} calibrations already")
            return [*others, new], replaced

        return self._change(node, sensor, change)

    def remove(self, node: str, sensor: str, from_ms: int) -> Calibration:
        """Remove the calibration of `sensor` of `node` that is valid from `from_ms` (ms since 1970, UTC).

        Returns:
            The removed calibration.

        Raises:
            Refused: There is no such calibration.
            DiskError: The change cannot be saved.
        """

        def change(before: Sequence[Calibration]) -> tuple[Sequence[Calibration], Calibration]:
            # control.py shows whole seconds.
            removed = next((one for one in before if one.from_ms // 1000 == from_ms // 1000), None)
            if removed is None:
                dates = ", ".join(start_text(one.from_ms) for one in before)
                raise Refused(
                    f"{sensor} of {node} has no calibration from {start_text(from_ms)}; "
                    + (f"its calibrations are from: {dates}" if dates else "it has none"),
                    is_unknown=True,
                )
            return [one for one in before if one is not removed], removed

        return self._change(node, sensor, change)

    def clear(self, node: str, sensor: str) -> int:
        """Remove all calibrations of `sensor` of `node`, and return their number.

        Raises:
            Refused: There is none.
            DiskError: The change cannot be saved.
        """

        def change(before: Sequence[Calibration]) -> tuple[Sequence[Calibration], int]:
            if not before:
                raise Refused(f"{sensor} of {node} has no calibration", is_unknown=True)
            return [], len(before)

        return self._change(node, sensor, change)

    def _change(
        self, node: str, sensor: str, change: Callable[[Sequence[Calibration]], tuple[Sequence[Calibration], R]]
    ) -> R:
        with self._changing, changes_locked(self._data):
            entries = {name: dict(sensors) for name, sensors in self._present().items()}
            new, result = change(entries.get(node, {}).get(sensor, ()))
            entries.setdefault(node, {})[sensor] = new
            self._write(entries)
        self._apply(node)
        return result

    def on_rename(self, node: str, new: str) -> None:
        """Assign the calibrations of `node` to its new name `new`. Called in the Ingestor's writer thread."""
        try:
            with self._changing, changes_locked(self._data):
                entries = dict(self._file.now())
                if node in entries:
                    entries[new] = {**entries.pop(node), **entries.get(new, {})}
                    self._write(entries)
                self._read()
        except (DiskError, DamagedFile) as error:  # the former name is still resolved, until it is released
            log.warning("%s: its calibrations are still saved under its former name %s: %s", new, node, error)
            if node in self._timelines:
                self._timelines = {new if name == node else name: one for name, one in self._timelines.items()}

    def _save_current_names(self) -> None:
        """Replace former names, left in the file by a crash during a renaming, because one may be released later."""
        try:
            with changes_locked(self._data):
                present = self._present()
                if present.keys() != self._file.now().keys():
                    self._write(present)
        except DiskError as error:
            log.warning("calibrations are still saved under former names: %s", error)

    def _present(self) -> dict[str, _Sensors]:
        """Return the content of the file by the current names of the nodes."""
        found: dict[str, _Sensors] = {}
        for name, sensors in self._file.now().items():
            node = self._current(name)
            found[node] = {**sensors, **found.get(node, {})}
        return found

    def _read(self) -> None:
        self._timelines = {
            node: {sensor: CalibrationTimeline(listed) for sensor, listed in sensors.items() if listed}
            for node, sensors in self._present().items() if any(sensors.values())
        }  # fmt: skip

    def _write(self, entries: Mapping[str, _Sensors]) -> None:
        self._file.write({
            node: {sensor: list(map(as_json, sorted(listed))) for sensor, listed in sensors.items() if listed}
            for node, sensors in entries.items() if any(sensors.values())
        })  # fmt: skip

    def _apply(self, node: str) -> None:
        """Use the content of the file from now on."""

        def switch() -> None:
            with self._changing:
                self._read()
            for hook in self.on_change:
                hook(node)

        self.run_between_commits(switch)


def run_in_writer_thread(ingestor: Ingestor) -> Callable[[Callable[[], None]], None]:
    """Return the function `run_between_commits` for a server with this `ingestor`."""

    def run(job: Callable[[], None]) -> None:
        try:
            ingestor.run(lambda: None, _APPLY_S, then=job)
        except (NotStored, StoreDamaged):  # nothing is committed now, or only very slowly
            job()

    return run


def announcement(node: str) -> list[EpochCommit]:
    """Return a commit without samples of `node`, for subscribers that only look up the names of changed nodes."""
    return [EpochCommit(node, "", "", NOTHING)]


def require_sensor(store: Store, current: Callable[[str], str], node: str, sensor: str | None) -> str:
    """Return the current name of `node` if the store has samples of its `sensor`.

    Args:
        store: The store.
        current: Function that returns the current name of a node.
        node: Current or former name of the node.
        sensor: Name of the sensor; None to look up only the node.

    Raises:
        Refused: The node or the sensor is unknown.
    """
    stored = {about["name"]: about["sensors"] for about in store.nodes()}
    found = node if node in stored else current(node)
    if found not in stored:
        raise Refused(
            f"nothing is stored for a node {node}; {_hint(node, stored, 'the stored nodes')}", is_unknown=True
        )
    if sensor is not None and sensor not in stored[found]:
        hint = _hint(sensor, stored[found], "its sensors")
        raise Refused(f"node {found} has never had a sensor {sensor or '(empty name)'}; {hint}", is_unknown=True)
    return found


def _hint(name: str, known: Collection[str], what: str) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"{what} are: {', '.join(sorted(known)[:50]) or 'none'}"


# -------------------------------------------------------------------------------------------------------- the file


def from_text(from_ms: int) -> str:
    """Return the start of a validity, `from_ms` (ms since 1970, UTC), for programs: `beginning`, or a time in UTC."""
    if from_ms == BEGINNING_MS:
        return BEGINNING
    return rfc3339(from_ms).replace(".000Z", "Z")


def start_text(from_ms: int) -> str:
    """Return the start of a validity, `from_ms` (ms since 1970, UTC), for people: `beginning`, or a local time.

    `control.py calibrate --from` accepts it, also without quotes.
    """
    return BEGINNING if from_ms == BEGINNING_MS else stamp(from_ms).replace(" ", "T")


def parse_from(text: str) -> int:
    """Return the start of a validity in the text `beginning` or an RFC 3339 time, in ms since 1970 (UTC).

    Raises:
        ValueError: The text is not a valid time.
    """
    return BEGINNING_MS if text == BEGINNING else parse_rfc3339(text)


def points_text(points: Sequence[tuple[float, float]]) -> str:
    """Return `points` as text, as `control.py calibrate` accepts them: `0.2=0 99.4=100`."""
    return " ".join(f"{raw:.15g}={true:.15g}" for raw, true in points)


def as_json(one: Calibration) -> dict[str, Any]:
    """Return the calibration `one` as in the file and in the JSON API."""
    return {
        "from": from_text(one.from_ms), "points": [list(point) for point in one.points], "unit": one.unit,
        "note": one.note, "entered": rfc3339(one.entered_ms),
    }  # fmt: skip


def _decoded(entry: Any) -> _Sensors:
    """Return the sensors of one entry of the file. The errors are those that JsonFile expects."""
    return {
        sensor: [
            Calibration(
                parse_from(one["from"]), checked_points(one["points"]), str(one.get("unit", "")),
                str(one.get("note", "")), parse_rfc3339(one["entered"]),
            )
            for one in listed
        ]
        for sensor, listed in entry.items()
    }  # fmt: skip
