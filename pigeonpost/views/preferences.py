"""Preferences of users: units, order and visibility of the charts on the front page, and the chosen node.

They are in `preferences.json` in the data folder, by user. While no password is set, there is only one user, with or
without the one-time key. Any thread may use this module. Each change is applied to the stored preferences while the
data folder is locked (flock), so that concurrent changes are not lost.

Errors: HTTPError 503 if a change cannot be saved. A damaged file is replaced by its copy. If the copy is damaged too,
the pages show the fault, and all users have the defaults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pigeonpost.core.data_folder import PREFERENCES
from pigeonpost.core.errors import DamagedFile, DiskError
from pigeonpost.core.faults import Faults
from pigeonpost.core.json_file import JsonFile, changes_locked
from pigeonpost.core.units import shown_units
from pigeonpost.http.message import HTTPError
from pigeonpost.web.access import LOCAL, ONE_TIME_KEY
from protocol import NODE_NAME, SENSOR_NAME

MOST_USERS = 1000  # beyond this, the users with the oldest changes are removed
MOST_UNITS = 64
MOST_SENSORS = 1024  # in `order`, and in `folded`


class Preferences(NamedTuple):
    """Preferences of one user.

    Attributes:
        units: Unit to show by measured unit, for example {"°C": "°F"}.
        order: Sensors whose charts are first on the front page, as NODE/SENSOR; the others follow in their usual order.
        folded: Sensors whose charts are hidden on the front page, as NODE/SENSOR.
        node: Node that the buttons on the front page control; empty for the first one.
    """

    units: Mapping[str, str] = MappingProxyType({})
    order: tuple[str, ...] = ()
    folded: frozenset[str] = frozenset()
    node: str = ""


DEFAULTS = Preferences()


class PreferenceStore:
    """The preferences of all users, in a file that only its owner may read."""

    def __init__(self, data: str, faults: Faults | None = None) -> None:
        """Open the preferences.

        Args:
            data: Path of the data folder.
            faults: Current faults of the server, to which a damaged file is added; None if faults are not reported.
        """
        self._folder = data
        self._file = JsonFile(
            os.path.join(data, PREFERENCES), "a list of preferences", _decoded, faults or Faults(), auto_restore=True
        )

    def of(self, user: str) -> Preferences:
        """Return the preferences of `user`, the name in RequestContext.user."""
        try:
            return self._file.now().get(one_owner(user), DEFAULTS)
        except DamagedFile:  # recorded as a fault, which the pages show
            return DEFAULTS

    def save(self, user: str, change: Callable[[Preferences], Preferences]) -> None:
        """Change the preferences of a user. If they stay the same, the file is not written.

        Args:
            user: The name in RequestContext.user.
            change: Function that returns the new preferences for the current ones. It is called while the data folder
                is locked. Invalid and surplus values in its result are removed.

        Raises:
            HTTPError: 503 if the change cannot be saved.
        """
        owner = one_owner(user)
        try:
            with changes_locked(self._folder):
                found = dict(self._file.now())
                before = found.pop(owner, DEFAULTS)  # moves the user to the end
                found[owner] = _decoded(_encoded(change(before)))  # removes invalid values
                if found[owner] == before:
                    return
                kept = list(found.items())[-MOST_USERS:]
                self._file.write({name: _encoded(one) for name, one in kept})
        except (DamagedFile, DiskError) as error:
            raise HTTPError(503, f"Nothing was changed: {error}.", "disk", {"Retry-After": "10"}) from None


def one_owner(user: str) -> str:
    """Return the name under which data of `user` is stored: the same with the one-time key as without it."""
    return LOCAL.name if user == ONE_TIME_KEY else user


def _encoded(preferences: Preferences) -> Mapping[str, Any]:
    return {
        "units": dict(preferences.units), "order": list(preferences.order), "folded": sorted(preferences.folded),
        "node": preferences.node,
    }  # fmt: skip


def _decoded(entry: Any) -> Preferences:
    """Decode one entry of the file. Raises AttributeError, TypeError or KeyError if it is invalid."""
    units = {
        measured: shown for measured, shown in list(entry["units"].items())[:MOST_UNITS]
        if shown in shown_units(measured)
    }  # fmt: skip
    order, folded = (list(dict.fromkeys(filter(_is_sensor, entry[key])))[:MOST_SENSORS] for key in ("order", "folded"))
    node = entry.get("node", "")
    return Preferences(MappingProxyType(units), tuple(order), frozenset(folded), node if NODE_NAME(node) else "")


def _is_sensor(text: str) -> bool:
    """Return True if `text` is NODE/SENSOR with valid names."""
    node, _, sensor = text.partition("/")
    return bool(NODE_NAME(node) and SENSOR_NAME(sensor))
