"""Preferences of the page's users: units; of the front page the order and folding of charts, and the chosen node.

They are in `preferences.json` in the data folder, by user. While no password is set, all clients on this machine are
one user, with the one-time key and without.
May be used by any thread; each change is applied to what is stored while the data folder is locked (flock), so that of
two at the same time none is lost.
Errors: HTTPError 503 where the disk takes no change. A damaged file is replaced by its copy; where that is damaged too,
the fault is shown, and everybody has the defaults.
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

MOST_USERS = 1000  # of more, those are dropped whose last change is the oldest
MOST_UNITS = 64
MOST_SENSORS = 1024  # in the order, and folded


class Preferences(NamedTuple):
    """Preferences of one user.

    units   the unit shown, by the unit measured: "°C" to "°F"
    order   sensors that come first on the front page, as NODE/SENSOR; the others follow in their own order
    folded  sensors whose charts are folded there, as NODE/SENSOR
    node    whose buttons are shown there; empty: the first
    """

    units: Mapping[str, str] = MappingProxyType({})
    order: tuple[str, ...] = ()
    folded: frozenset[str] = frozenset()
    node: str = ""


DEFAULTS = Preferences()


class PreferenceStore:
    """The preferences of all users, in a file that only its owner may read."""

    def __init__(self, data: str, faults: Faults | None = None) -> None:
        """
        data    the data folder
        faults  of a running server, see JsonFile
        """
        self._folder = data
        self._file = JsonFile(
            os.path.join(data, PREFERENCES), "a list of preferences", _decoded, faults or Faults(), is_mended=True
        )

    def of(self, user: str) -> Preferences:
        """Return the preferences of a user, by the name in RequestContext.user."""
        try:
            return self._file.now().get(one_owner(user), DEFAULTS)
        except DamagedFile:  # recorded as a fault, which the pages show
            return DEFAULTS

    def save(self, user: str, change: Callable[[Preferences], Preferences]) -> None:
        """Change the preferences of a user; nothing is written where they stay the same.

        change  returns the new preferences for the present ones; runs while the data folder is locked. What does not
                fit, or is too much, is left out of them.
        Raises HTTPError 503.
        """
        owner = one_owner(user)
        try:
            with changes_locked(self._folder):
                found = dict(self._file.now())
                before = found.pop(owner, DEFAULTS)  # to put it last
                found[owner] = _decoded(_encoded(change(before)))  # which leaves out what does not fit
                if found[owner] == before:
                    return
                kept = list(found.items())[-MOST_USERS:]
                self._file.write({name: _encoded(one) for name, one in kept})
        except (DamagedFile, DiskError) as error:
            raise HTTPError(503, f"Nothing was changed: {error}.", "disk", {"Retry-After": "10"}) from None


def one_owner(user: str) -> str:
    """Return the name under which things of a user are kept: without a password there is one user."""
    return LOCAL.name if user == ONE_TIME_KEY else user


def _encoded(preferences: Preferences) -> Mapping[str, Any]:
    return {
        "units": dict(preferences.units), "order": list(preferences.order), "folded": sorted(preferences.folded),
        "node": preferences.node,
    }  # fmt: skip


def _decoded(entry: Any) -> Preferences:
    """Return one entry of the file. Raises AttributeError, TypeError or KeyError for what is none."""
    units = {
        measured: shown for measured, shown in list(entry["units"].items())[:MOST_UNITS]
        if shown in shown_units(measured)
    }  # fmt: skip
    order, folded = (list(dict.fromkeys(filter(_is_sensor, entry[key])))[:MOST_SENSORS] for key in ("order", "folded"))
    node = entry.get("node", "")
    return Preferences(MappingProxyType(units), tuple(order), frozenset(folded), node if NODE_NAME(node) else "")


def _is_sensor(text: str) -> bool:
    """Return True for NODE/SENSOR."""
    node, _, sensor = text.partition("/")
    return bool(NODE_NAME(node) and SENSOR_NAME(sensor))
