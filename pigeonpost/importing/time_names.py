"""Names that columns with times have in people's files."""

from __future__ import annotations

import re

from pigeonpost.importing.cells import underscored
from pigeonpost.importing.time_forms import ZONES

_NAMES = (
    "time", "_time", "timestamp", "datetime", "date_time", "time_stamp", "last_updated", "last_changed",
    "last_updated_ts",
    "last_changed_ts", "created_at", "ts", "date", "date_time_utc", "utc", "recorded_at", "received_at", "measured_at",
    "observed_at", "sampled_at", "taken", "taken_at", "time_taken", "created", "added", "added_at", "dtimestamp",
    "start",
    "start_ts", "tmstamp", "epoch", "unixtime", "unix_time", "unix", "datum", "zeit", "zeitpunkt", "zeitstempel",
    "datum_zeit",
    "datum_uhrzeit", "messzeit", "uhrzeit", "fecha", "fecha_hora", "hora", "date_heure", "horodatage", "heure", "tijd",
    "tijdstip", "datum_tijd", "dato", "tid", "tidspunkt", "data_ora", "ora", "czas", "cas", "date_and_time", "when",
    "at",
)  # fmt: skip
_RANKS = {name: rank for rank, name in enumerate(_NAMES)}
_ALIKE = re.compile(
    r"(?:time|timestamp|date|datetime|datum|zeit|zeitstempel|zeitpunkt)_.+"
    r"|.+_(?:time|timestamp|date|datetime|zeit|datum|zeitstempel|ts|at)|datetime.*|(?:utc|local)_?time"
).fullmatch
_NOT_ALIKE = re.compile(
    r"(?:up|run|on|off|response|elapsed|delta|lead|down|boot|real|loop)_?time.*|time_(?:since|to|on|left).*"
).fullmatch
_ZONE = re.compile(r"(?<![a-z])(?:utc|gmt) ?([+-][0-9]{1,2}(?::?[0-9]{2})?)?(?![a-z0-9])", re.IGNORECASE).search
_COUNTER = re.compile(
    r"(?:.*_)?(?:counts?|counter|pulses?|impulses?|ticks?|total|energy|m?[wv]h|kwh|bytes|packets|id|serial|number|nr"
    r"|seq|sequence|zaehler|zahler|zahlerstand)(?:_.*)?"
).fullmatch
_PLACE = re.compile(
    r"(?<![A-Za-z])(?:Africa|America|Antarctica|Asia|Atlantic|Australia|Europe|Indian|Pacific)(?:/[A-Za-z_]+){1,2}"
).search
_ABBREVIATIONS = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(ZONES)})(?![A-Za-z])").findall
_PAIRS = {  # winter and summer time of a place
    "Europe/Berlin": {"CET", "CEST"}, "Europe/Vienna": {"MEZ", "MESZ"}, "Europe/London": {"GMT", "BST"},
    "Europe/Lisbon": {"WET", "WEST"}, "Europe/Helsinki": {"EET", "EEST"}, "America/New_York": {"EST", "EDT"},
    "America/Chicago": {"CST", "CDT"}, "America/Denver": {"MST", "MDT"}, "America/Los_Angeles": {"PST", "PDT"},
}  # fmt: skip
_UNIT = re.compile(r"[(\[][^()\[\]]*[)\]]\s*$").sub


def plain(heading: str) -> str:
    """Return a `heading` in lower case, with underscores for other characters and without a unit in brackets."""
    text = _UNIT("", heading.strip()[:200]) or heading
    return underscored(text)


def time_rank(heading: str) -> int:
    """Return how usual a `heading` is for a column with times: 0 is the most usual, -1 is not usual."""
    name = plain(heading)
    if name in _RANKS:
        return _RANKS[name]
    return len(_RANKS) if _ALIKE(name) and not _NOT_ALIKE(name) else -1


def heading_zone(heading: str) -> str:
    """Return the time zone that a `heading` names.

    It is `UTC` for `time (UTC)`, `-05:00` for `Date Time, GMT-05:00`, `+02:00` for `time (CEST)`, and `Europe/Berlin`
    for `time (Europe/Berlin)` and `time (CET/CEST)`. The result is empty if it names none.
    """
    if found := _PLACE(heading):
        return found[0]
    names = set(_ABBREVIATIONS(heading))
    for place, pair in _PAIRS.items():
        if names >= pair:
            return place
    if found := _ZONE(heading.replace("−", "-")):
        return found[1] or "UTC"
    offsets = {ZONES[name] for name in names}
    return f"{offsets.pop():+03d}:00" if len(offsets) == 1 else ""


def is_counter_name(heading: str) -> bool:
    """Return True if a `heading` is usual for a column with counts or ids, which may look like times."""
    return bool(_COUNTER(plain(heading)))


def is_time_name(heading: str) -> bool:
    """Return True if a `heading` is usual for a column with times."""
    return time_rank(heading) >= 0
