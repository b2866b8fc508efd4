"""Format of the CSV log: rows of samples and gaps, written and read."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.link.samples import Gap, SampleBatch
from pigeonpost.storage.models import HOUR_MS, FormerName, LogEntry, LostRows, stretches

HEADER = "time,node,sensor,value,unit\n"

TAIL_BYTES = 4096
_LOST_BYTES = 16 << 20  # that are read for the rows of damaged entries: a log is synced after so many


def names_as_one(former: Iterable[FormerName]) -> Mapping[str, str]:
    """Return of each name of renamed nodes the one under which their readings are counted.

    A log keeps the name that its node had. A former name may have been given to another node since, so that a row does
    not tell whose it is: nodes that ever shared a name are counted together.
    """
    alias: dict[str, str] = {}
    for one in former:
        first, second = (alias.get(name, name) for name in (one.node, one.name))
        alias.update({name: first for name, known in alias.items() if known == second})
        alias.update({one.node: first, one.name: first})
    return alias


def rows_written(
    fd: int, at: int, wanted: Sequence[bytes | LostRows], alias: Mapping[str, str] = MappingProxyType({})
) -> list[bytes]:
    """Return the first items of `wanted` as a log has them from byte `at` on, up to the first that differs.

    wanted  whole rows in their order, one or several in each item; LostRows are found where what follows them is right,
            else as b""
    alias   see names_as_one: rows may stand there under a former name, where another server has renamed the node
    """
    found: list[bytes] = []
    while len(found) < len(wanted):
        rows = wanted[len(found)]
        if isinstance(rows, bytes):
            there = os.pread(fd, 2 * len(rows), at)
            length = _says_the_same(there, rows, alias)
            if not length:
                break
            some = [rows if there.startswith(rows) else there[:length]]
        else:
            lost = [one for one in takewhile(_is_lost, wanted[len(found) :]) if isinstance(one, LostRows)]
            following = next((one for one in wanted[len(found) + len(lost) :] if isinstance(one, bytes) and one), b"")
            some = _lost_rows(os.pread(fd, _LOST_BYTES, at), lost, following, alias)
        found += some
        at += sum(map(len, some))
    return found


def _is_lost(rows: bytes | LostRows) -> bool:
    return isinstance(rows, LostRows)


def _lost_rows(there: bytes, lost: Sequence[LostRows], following: bytes, alias: Mapping[str, str]) -> list[bytes]:
    """Return the rows of damaged entries that follow each other, each b"" where they are not there.

    there      what the log has at their place
    following  the rows of the entry after them; empty: there is none
    """
    if following and _says_the_same(there[: 2 * len(following)], following, alias):
        return [b""] * len(lost)
    lines = there.splitlines(keepends=True)
    found = _as_told(lines, lost, alias)
    end = sum(map(len, found))
    if _begins(there[end : end + 2 * len(following)] if following else there[end:], following, alias):
        return found
    # What is told of one of them was changed, too: then all that is there before what follows is theirs.
    end = _begin_of(following, there, lines, alias)
    lines = there[:end].splitlines(keepends=True)
    if not all(line.endswith(b"\n") and isinstance(meaning(line), tuple) for line in lines):
        return found
    shared: list[bytes] = []
    for left in reversed(range(len(lost))):  # at least one line each; they are only written again, and as one
        count = min(max(lost[len(shared)].lines, 1), max(len(lines) - left, 1)) if left else len(lines)
        shared.append(b"".join(lines[:count]))
        del lines[:count]
    return shared


def _as_told(lines: Sequence[bytes], lost: Iterable[LostRows], alias: Mapping[str, str]) -> list[bytes]:
    """Return the rows of damaged entries by what is told of each; b"" where the next lines are others."""
    found: list[bytes] = []
    at = 0
    for one in lost:
        some = lines[at : at + max(one.lines, 0)]
        name = alias.get(one.node, one.node)
        said = [_under_one_name(meaning(line), alias) for line in some if line.endswith(b"\n")]
        is_there = len(said) == one.lines and all(
            isinstance(row, tuple) and row[1] == name and one.first_ms <= row[0] <= one.last_ms for row in said
        )
        found.append(b"".join(some) if is_there else b"")
        at += len(some) if is_there else 0
    return found


def _begin_of(rows: bytes, there: bytes, lines: Sequence[bytes], alias: Mapping[str, str]) -> int:
    """Return the byte of `there`, in lines, at which rows begin that are written wholly, or as far as a crash let them:
    its end where they are not."""
    if rows and (place := there.find(b"\n" + rows)) >= 0:
        return place + 1
    first = rows[: rows.find(b"\n") + 1]
    at = 0
    for line in lines if rows else ():
        if _begins(line, first, alias) and _begins(there[at : at + 2 * len(rows)], rows, alias):
            return at
        at += len(line)
    return len(there)


def _begins(there: bytes, rows: bytes, alias: Mapping[str, str]) -> bool:
    """Return True if rows stand at the beginning of `there`, wholly or as far as a crash let them."""
    return is_left_by_crash(there[: len(rows)] if rows else there, rows) or _says_the_same(there, rows, alias) > 0


def _says_the_same(there: bytes, rows: bytes, alias: Mapping[str, str]) -> int:
    """Return how many bytes of `there` have the meaning of `rows`; 0 where they have another.

    Time zone and unit may differ from those when a row was written, and the length with them.
    """
    if there.startswith(rows):
        return len(rows)
    wanted = rows.splitlines(keepends=True)
    found = there.splitlines(keepends=True)[: len(wanted)]
    same = len(found) == len(wanted) and all(_is_same_row(*rows, alias) for rows in zip(found, wanted, strict=True))
    return sum(map(len, found)) if same else 0


def _is_same_row(one: bytes, other: bytes, alias: Mapping[str, str]) -> bool:
    return one.endswith(b"\n") and _under_one_name(meaning(one), alias) == _under_one_name(meaning(other), alias)


def _under_one_name(said: Any, alias: Mapping[str, str]) -> Any:
    return (said[0], alias.get(said[1], said[1]), *said[2:]) if isinstance(said, tuple) else said


def meaning(row: bytes) -> Any:
    """Return the meaning of a row: time (ms), node, sensor, value as text; the row itself when it is invalid."""
    try:
        time_text, node, sensor, value, _ = next(csv.reader([row.decode()]))
        return parse_rfc3339(time_text), node, sensor, value
    except (ValueError, csv.Error):  # the latter: of a cell longer than 128 KiB, as blocks of zeros are
        return row


def is_left_by_crash(there: bytes, wanted: bytes) -> bool:
    """Return True if every byte of `there` is the wanted one, or zero (a block that was never written)."""
    wanted = wanted[: len(there)].ljust(len(there), b"\0")
    step = 4096
    return all(
        there[k : k + step] == wanted[k : k + step]
        or all(a in (0, b) for a, b in zip(there[k : k + step], wanted[k : k + step], strict=True))
        for k in range(0, len(there), step)
    )


def lacking(filed: Collection[int]) -> str:
    """Return what is said of damaged entries that the log lacks. filed: their numbers, one at least"""
    more = f", and {len(filed) - 1} more" if len(filed) > 1 else ""
    return (
        f"the CSV log lacks damaged rows of fresh, and later samples of their nodes do not expire: {min(filed)}{more}"
    )


def logged_rows(logged: LogEntry) -> bytes:
    """Return the rows of an entry that the log owes."""
    return b"".join([
        log_rows(logged.node, logged.epoch, item, logged.units, logged.noted_ms) for item in logged.items
    ])  # fmt: skip


def log_rows(node: str, epoch: str, item: SampleBatch | Gap, units: Mapping[str, str], noted_ms: int) -> bytes:
    """Return the rows of samples, one per value, empty where a sensor failed; or of a gap, one with the count."""
    if isinstance(item, SampleBatch):
        return b"".join([_sample_rows(node, stretch, units) for stretch in stretches(item)])
    count = item.last - item.first + 1 + item.before
    which = f"samples {item.first} to {item.last} of epoch {epoch}"
    more = f" and {item.before} of earlier epochs" if item.before else ""
    return f"{local_time(noted_ms)},{node},gap,{count},{cell(f'{which}{more}: {item.why}')}\n".encode()


def _sample_rows(node: str, samples: SampleBatch, units: Mapping[str, str]) -> bytes:
    """Return the rows of samples of one hour of UTC.

    All cells are put into one list, a column at a time, and joined once: the interpreter does nothing for each row.
    """
    count, width = len(samples), 4 * len(samples.values)
    times = local_times(samples.times)
    pieces = [""] * (count * width)
    for place, (name, texts) in enumerate(zip(samples.values, samples.texts, strict=True)):
        pieces[4 * place :: width] = times
        pieces[4 * place + 1 :: width] = [_one_per_byte(f",{node},{name},")] * count
        pieces[4 * place + 2 :: width] = (
            ["" if text == "None" else text for text in texts] if "None" in texts else texts
        )  # fmt: skip
        pieces[4 * place + 3 :: width] = [_one_per_byte(f",{cell(units.get(name, ''))}\n")] * count
    return "".join(pieces).encode("latin-1")  # which copies; UTF-8 would look at every character


def _one_per_byte(text: str) -> str:
    """Return a text that has a character for each byte of `text` in UTF-8."""
    return text if text.isascii() else text.encode().decode("latin-1")


def cell(text: str) -> str:
    """Return a text as a CSV cell (RFC 4180) that no spreadsheet takes for a formula."""
    text = guarded(text)
    if "," in text or '"' in text or "\r" in text or "\n" in text:
        text = '"' + text.replace('"', '""') + '"'
    return text


def guarded(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def log_name(time_ms: int) -> str:
    """Return the name of a log that begins at this time: `sensorlog_DDMMYY_HHMM.csv`."""
    return time.strftime("sensorlog_%d%m%y_%H%M.csv", time.localtime(time_ms / 1000))


def local_time(time_ms: int) -> str:
    """Return RFC 3339 with this machine's offset from UTC at that time: `2026-11-20T16:36:10.123+01:00`."""
    minute, rest = divmod(time_ms, 60_000)
    begin, offset = _minute_ends(minute)
    return "%s%06.3f%s" % (begin, rest / 1000, offset)


def local_times(times: Sequence[int]) -> list[str]:
    """Return the `local_time` of each of these times, which lie in one hour of UTC."""
    if len(times) == 1:
        return [local_time(times[0])]
    hour = times[0] // HOUR_MS
    (begin, offset), (end, later) = _minute_ends(60 * hour), _minute_ends(60 * hour + 59)
    if offset != later:  # no zone changes its offset and back within an hour: where both are equal, all are
        return [local_time(time_ms) for time_ms in times]
    start_ms = hour * HOUR_MS - int(begin[14:16]) * 60_000  # of the hour by the local clock
    seconds, heads = _seconds_of_hour(), (begin[:14], end[:14])
    if heads[0] == heads[1]:
        head = heads[0]
        return [
            "%s%s%s%s" % (head, seconds[(ms := time_ms - start_ms) // 1000], _MILLISECONDS[ms % 1000], offset)
            for time_ms in times
        ]
    return [
        "%s%s%s%s"
        % (heads[(ms := time_ms - start_ms) // HOUR_MS], seconds[ms // 1000 % 3600], _MILLISECONDS[ms % 1000], offset)
        for time_ms in times
    ]


@cache
def _seconds_of_hour() -> list[str]:
    """Return how each second of an hour is written, with a point for what follows: `36:10.`."""
    return [f"{second // 60:02d}:{second % 60:02d}." for second in range(3600)]


_MILLISECONDS = [f"{ms:03d}" for ms in range(1000)]


def _minute_ends(minute: int) -> tuple[str, str]:
    """Return how times in a minute (since 1970) begin, and their offset: `2026-11-20T16:36:` and `+01:00`."""
    ends = _minutes.get(minute)
    if ends is None:
        if len(_minutes) >= 4096:
            _minutes.clear()
        t = time.localtime(minute * 60)
        # A town's own time of long ago, and years before 1 and after 9999, which RFC 3339 cannot write.
        if t.tm_gmtoff % 60 or not 1 <= t.tm_year <= 9999:
            t = time.gmtime(minute * 60)
        hours, minutes = divmod(abs(t.tm_gmtoff) // 60, 60)
        sign = "-" if t.tm_gmtoff < 0 else "+"
        ends = _minutes[minute] = "%04d-%02d-%02dT%02d:%02d:" % t[:5], f"{sign}{hours:02d}:{minutes:02d}"
    return ends


# Minutes since 1970 to how their times begin and end: the zone is asked once a minute of log, not once a row.
_minutes: dict[int, tuple[str, str]] = {}
