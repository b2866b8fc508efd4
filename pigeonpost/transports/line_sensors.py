"""Permanent names of the sensors for the series of the line protocol, in a file, so that no two series share a sensor.

Any thread may use it. `_lock` guards the names, and is held while the file is written.
Errors: DamagedFile and DiskError. With new names, values could be stored under the name of another series.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.core.data_folder import LINE_SENSORS
from pigeonpost.core.json_file import JsonFile
from pigeonpost.transports.line_protocol import unique_name

if TYPE_CHECKING:
    from pigeonpost.core.faults import Faults

MOST_NAMES = 20_000  # names of all nodes: the file is written completely for each new one


class LineSensors:
    """Names of the sensors by node and series.

    Args:
        data: Path of the data folder.
        faults: Faults of the server, for JsonFile.
    """

    def __init__(self, data: str, faults: Faults) -> None:
        self._lock = threading.Lock()
        self._file = JsonFile(
            os.path.join(data, LINE_SENSORS), "the names of sensors", _read, faults, auto_restore=True
        )

    def of(self, nodes: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
        """Return the names of series that have one, and suggestions for the others while there is room for more.

        Args:
            nodes: The current name of the node, then its former ones: a series keeps its sensor after a renaming.
            wanted: By series (its key in the file): a readable name, which may be too long or taken.

        Raises:
            DamagedFile: The file cannot be read.
        """
        all_names = self._file.now()
        known = _names(all_names, nodes)
        found = {key: known[key] for key in wanted if key in known}
        if len(found) < len(wanted):
            taken, room = set(known.values()), max(0, MOST_NAMES - sum(map(len, all_names.values())))
            for key in [key for key in wanted if key not in found][:room]:
                found[key] = unique_name(wanted[key], key, taken)
                taken.add(found[key])
        return found

    def keep(self, nodes: Sequence[str], names: Mapping[str, str], used: Iterable[str]) -> bool:
        """Make names permanent.

        Args:
            nodes: The current name of the node, then its former ones: a series keeps its sensor after a renaming.
            names: Result of `of`.
            used: The series whose names are needed.

        Returns:
            False if another request has taken one of them for another series since `of`; then call `of` again.

        Raises:
            DamagedFile: The file cannot be read.
            DiskError: The file cannot be written.
        """
        with self._lock:
            all_names = self._file.now()
            known = _names(all_names, nodes)
            new = {key: names[key] for key in used if known.get(key) != names[key]}
            if not new:
                return True
            if not new.keys().isdisjoint(known) or not set(new.values()).isdisjoint(known.values()):
                return False
            self._file.write({**all_names, nodes[0]: {**all_names.get(nodes[0], {}), **new}})
            return True


def _names(all_names: Mapping[str, Mapping[str, str]], nodes: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in reversed(nodes):
        found.update(all_names.get(node, {}))
    return found


def _read(entry: Any) -> dict[str, str]:
    return {key: str(name) for key, name in entry.items()}
