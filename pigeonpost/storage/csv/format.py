"""Format of the CSV log: writing and reading of rows of samples and gaps."""

from __future__ import annotations

import csv
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from pigeonpost.core.clock import parse_rfc3339, rfc3339
from pigeonpost.link.samples import Gap, SampleBatch
from pigeonpost.storage.models import HOUR_MS, FormerName, LogEntry, LostRows, stretches

# Characters with which a formula begins. Spreadsheets in Japanese and Chinese also accept their full-width forms.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")

HEADER = "time,node,sensor,value,unit\n"

TAIL_BYTES = 4096
# Number of bytes that are searched for rows of damaged entries: as many as are written between two syncs.
_LOST_BYTES = 16 << 20


def names_as_one(former: Iterable[FormerName]) -> Mapping[str, str]:
    """Return a mapping from each present and former name of renamed nodes to one name for all of them.

    A row of a log contains the name that the node had when the row was written. That name may belong to another node
    now, so a row does not identify its node. Therefore all nodes that ever shared a name are counted under one name.

    Args:
        former: Former names of nodes.
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
    """Return the first items of `wanted` as a log contains them, up to the first item that differs.

    Args:
        fd: File descriptor of the log.
        at: Position of the first item in the log, in bytes.
        wanted: Complete rows in their order, one or several in each item. The rows of a LostRows item are identified by
            its description and by the item after it. The result has b"" in its place if the log does not contain them.
        alias: Result of `names_as_one`. The log may contain rows under a former name if another server renamed the
            node.
    """
    found: list[bytes] = []
    while len(found) < len(wanted):
        rows = wanted[len(found)]
        if isinstance(rows, bytes):
            content = os.pread(fd, 2 * len(rows), at)
            length = _matching_length(content, rows, alias)
            if not length:
                break
            some = [rows if content.startswith(rows) else content[:length]]
        else:
            lost = [one for one in takewhile(_is_lost, wanted[len(found) :]) if isinstance(one, LostRows)]
            following = next((one for one in wanted[len(found) + len(lost) :] if isinstance(one, bytes) and one), b"")
            some = _lost_rows(os.pread(fd, _LOST_BYTES, at), lost, following, alias)
        found += some
        at += sum(map(len, some))
    return found


def _is_lost(rows: bytes | LostRows) -> bool:
    return isinstance(rows, LostRows)


def _lost_rows(content: bytes, lost: Sequence[LostRows], following: bytes, alias: Mapping[str, str]) -> list[bytes]:
    """Return the rows of consecutive damaged entries, with b"" for an entry that the log does not contain.

    `content` is the content of the log from their position on. `following` are the rows of the next entry, or b"" if
    there is none.
    """
    if following and _matching_length(content[: 2 * len(following)], following, alias):
        return [b""] * len(lost)
    lines = content.splitlines(keepends=True)
    found = _rows_as_described(lines, lost, alias)
    end = sum(map(len, found))
    if _begins(content[end : end + 2 * len(following)] if following else content[end:], following, alias):
        return found
    # The description of one of the entries is damaged too. But all rows before `following` belong to these entries.
    end = _start_of(following, content, lines, alias)
    lines = content[:end].splitlines(keepends=True)
    if not all(line.endswith(b"\n") and isinstance(meaning(line), tuple) for line in lines):
        return found
    shared: list[bytes] = []
    # Each entry gets at least one line. The exact division does not matter, because all rows are written together.
    for left in reversed(range(len(lost))):
        count = min(max(lost[len(shared)].lines, 1), max(len(lines) - left, 1)) if left else len(lines)
        shared.append(b"".join(lines[:count]))
        del lines[:count]
    return shared


def _rows_as_described(lines: Sequence[bytes], lost: Iterable[LostRows], alias: Mapping[str, str]) -> list[bytes]:
    """Return the rows of damaged entries that match their descriptions, with b"" where the next lines do not match."""
    found: list[bytes] = []
    at = 0
    for one in lost:
        some = lines[at : at + max(one.lines, 0)]
        name = alias.get(one.node, one.node)
        rows = [_under_one_name(meaning(line), alias) for line in some if line.endswith(b"\n")]
        is_match = len(rows) == one.lines and all(
            isinstance(row, tuple) and row[1] == name and one.first_ms <= row[0] <= one.last_ms for row in rows
        )
        found.append(b"".join(some) if is_match else b"")
        at += len(some) if is_match else 0
    return found


def _start_of(rows: bytes, content: bytes, lines: Sequence[bytes], alias: Mapping[str, str]) -> int:
    """Return the position in `content` at which `rows` begin, complete or cut off by a crash, or else its length."""
    if rows and (index := content.find(b"\n" + rows)) >= 0:
        return index + 1
    first = rows[: rows.find(b"\n") + 1]
    at = 0
    for line in lines if rows else ():
        if _begins(line, first, alias) and _begins(content[at : at + 2 * len(rows)], rows, alias):
            return at
        at += len(line)
    return len(content)


def _begins(content: bytes, rows: bytes, alias: Mapping[str, str]) -> bool:
    """Return True if `content` begins with `rows`, complete or cut off by a crash."""
    if is_left_by_crash(content[: len(rows)] if rows else content, rows):
        return True
    return _matching_length(content, rows, alias) > 0


def _matching_length(content: bytes, rows: bytes, alias: Mapping[str, str]) -> int:
    """Return the number of bytes at the start of `content` that have the meaning of `rows`, or 0 if there are none.

    The length may differ from that of `rows`, because time zone and unit may have changed since the row was written.
    """
    if content.startswith(rows):
        return len(rows)
    wanted = rows.splitlines(keepends=True)
    found = content.splitlines(keepends=True)[: len(wanted)]
    same = len(found) == len(wanted) and all(_is_same_row(*rows, alias) for rows in zip(found, wanted, strict=True))
    return sum(map(len, found)) if same else 0


def _is_same_row(one: bytes, other: bytes, alias: Mapping[str, str]) -> bool:
    return one.endswith(b"\n") and _under_one_name(meaning(one), alias) == _under_one_name(meaning(other), alias)


def _under_one_name(row: Any, alias: Mapping[str, str]) -> Any:
    return (row[0], alias.get(row[1], row[1]), *row[2:]) if isinstance(row, tuple) else row


def meaning(row: bytes) -> Any:
    """Return the meaning of `row`: time (ms since 1970, UTC), node, sensor, and value as text.

    Return an invalid row unchanged.
    """
    try:
        time_text, node, sensor, value, _ = next(csv.reader([row.decode()]))
        return parse_rfc3339(time_text), node, sensor, value
    except (ValueError, csv.Error):  # csv.Error: a cell longer than 128 KiB, such as a block of zeros
        return row


def is_left_by_crash(content: bytes, wanted: bytes) -> bool:
    """Return True if `content` can be the result of a crash while `wanted` was written.

    Then each byte equals that of `wanted`, or is zero, as in a block that was never written. Bytes after the end of
    `wanted` are zero.
    """
    wanted = wanted[: len(content)].ljust(len(content), b"\0")
    step = 4096
    return all(
        content[k : k + step] == wanted[k : k + step]
        or all(a in (0, b) for a, b in zip(content[k : k + step], wanted[k : k + step], strict=True))
        for k in range(0, len(content), step)
    )


def lacking(filed: Collection[int]) -> str:
    """Return the fault text for damaged entries that the log lacks. `filed` contains their filing numbers."""
    more = f", and {len(filed) - 1} more" if len(filed) > 1 else ""
    return (
        f"the CSV log lacks damaged rows of the table fresh, and later samples of their nodes do not expire:"
        f" row {min(filed)}{more}"
    )


def logged_rows(logged: LogEntry) -> bytes:
    """Return the rows of `logged`, an entry that the log lacks."""
    return b"".join([
        log_rows(logged.node, logged.epoch, item, logged.units, logged.noted_ms) for item in logged.items
    ])  # fmt: skip


def log_rows(node: str, epoch: str, item: SampleBatch | Gap, units: Mapping[str, str], noted_ms: int) -> bytes:
    """Return the CSV rows of samples or of a gap.

    Samples have one row per value, which is empty if the sensor failed. A gap has one row with the number of lost
    samples.

    Args:
        node: Name of the node.
        epoch: Name of the epoch.
        item: The samples or the gap.
        units: Unit of each sensor.
        noted_ms: Time at which a gap was stored, in milliseconds since 1970 (UTC).
    """
    if isinstance(item, SampleBatch):
        return b"".join([sample_rows(node, stretch, units, local_times) for stretch in stretches(item)])
    count = item.last - item.first + 1 + item.before
    which = f"samples {item.first} to {item.last} of epoch {epoch}"
    more = f" and {item.before} of earlier epochs" if item.before else ""
    return f"{local_time(noted_ms)},{node},gap,{count},{cell(f'{which}{more}: {item.why}')}\n".encode()


def sample_rows(
    node: str, samples: SampleBatch, units: Mapping[str, str], as_texts: Callable[[Sequence[int]], list[str]]
) -> bytes:
    """Return the CSV rows of samples that were taken in one UTC hour.

    For speed, the cells are put into one list, column by column, and joined once. So no Python statement runs per row.

    Args:
        node: Name of the node.
        samples: The samples.
        units: Unit of each sensor.
        as_texts: Function that writes times: `local_times` or `utc_times`.
    """
    count, width = len(samples), 4 * len(samples.values)
    times = as_texts(samples.times)
    pieces = [""] * (count * width)
    for column, (name, texts) in enumerate(zip(samples.values, samples.texts, strict=True)):
        pieces[4 * column :: width] = times
        pieces[4 * column + 1 :: width] = [_one_per_byte(f",{node},{name},")] * count
        pieces[4 * column + 2 :: width] = (
            ["" if text == "None" else text for text in texts] if "None" in texts else texts
        )  # fmt: skip
        pieces[4 * column + 3 :: width] = [_one_per_byte(f",{cell(units.get(name, ''))}\n")] * count
    return "".join(pieces).encode("latin-1")  # latin-1 just copies the bytes; UTF-8 would test each character


def _one_per_byte(text: str) -> str:
    """Return a text with one character for each byte of `text` in UTF-8."""
    return text if text.isascii() else text.encode().decode("latin-1")


def cell(text: str) -> str:
    """Return `text` as a CSV cell (RFC 4180) that no spreadsheet reads as a formula."""
    text = guarded(text)
    if "," in text or '"' in text or "\r" in text or "\n" in text:
        text = '"' + text.replace('"', '""') + '"'
    return text


def guarded(text: str) -> str:
    """Return `text` with a leading apostrophe if a spreadsheet would read it as a formula."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


_LOG_NAME = re.compile(r"sensorlog_[0-9]{6}_[0-9]{4}(?:_[0-9]+)?\.csv").fullmatch


def log_name(time_ms: int) -> str:
    """Return the name of a log that begins at `time_ms` (ms since 1970, UTC): `sensorlog_DDMMYY_HHMM.csv`.

    The name contains the local time.
    """
    return time.strftime("sensorlog_%d%m%y_%H%M.csv", time.localtime(time_ms / 1000))


def is_log_name(name: str) -> bool:
    """Return True if `name` is the name of a log: one of `log_name`, which may have a number."""
    return _LOG_NAME(name) is not None


def local_time(time_ms: int) -> str:
    """Return `time_ms` (ms since 1970, UTC) as local time in RFC 3339: `2026-11-20T16:36:10.123+01:00`."""
    minute, rest = divmod(time_ms, 60_000)
    begin, offset = _minute_ends(minute)
    return "%s%06.3f%s" % (begin, rest / 1000, offset)


def local_times(times: Sequence[int]) -> list[str]:
    """Return the `local_time` of each of `times` (ms since 1970, UTC), which must be in the same UTC hour."""
    if len(times) == 1:
        return [local_time(times[0])]
    hour = times[0] // HOUR_MS
    (begin, offset), (end, later) = _minute_ends(60 * hour), _minute_ends(60 * hour + 59)
    # No zone changes its offset twice within an hour: if both ends are equal, the hour has one offset.
    if offset != later:
        return [local_time(time_ms) for time_ms in times]
    start_ms = hour * HOUR_MS - int(begin[14:16]) * 60_000  # start of the hour in local time
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


def utc_times(times: Sequence[int]) -> list[str]:
    """Return `times` (ms since 1970, UTC), which must be in the same UTC hour, as RFC 3339 texts in UTC."""
    start_ms = times[0] // HOUR_MS * HOUR_MS
    head, seconds = rfc3339(start_ms)[:14], _seconds_of_hour()
    return [f"{head}{seconds[(ms := time_ms - start_ms) // 1000]}{_MILLISECONDS[ms % 1000]}Z" for time_ms in times]


@cache
def _seconds_of_hour() -> list[str]:
    """Return the text of each second of an hour, with minutes and a point: `36:10.`."""
    return [f"{second // 60:02d}:{second % 60:02d}." for second in range(3600)]


_MILLISECONDS = [f"{ms:03d}" for ms in range(1000)]


def _minute_ends(minute: int) -> tuple[str, str]:
    """Return the beginning and the offset of the times in a minute since 1970: `2026-11-20T16:36:` and `+01:00`."""
    ends = _minutes.get(minute)
    if ends is None:
        if len(_minutes) >= 4096:
            _minutes.clear()
        t = time.localtime(minute * 60)
        # RFC 3339 cannot express the local mean time of the past, nor years before 1 or after 9999: use UTC.
        if t.tm_gmtoff % 60 or not 1 <= t.tm_year <= 9999:
            t = time.gmtime(minute * 60)
        hours, minutes = divmod(abs(t.tm_gmtoff) // 60, 60)
        sign = "-" if t.tm_gmtoff < 0 else "+"
        ends = _minutes[minute] = "%04d-%02d-%02dT%02d:%02d:" % t[:5], f"{sign}{hours:02d}:{minutes:02d}"
    return ends


# Cache of _minute_ends by minute: the time zone is read once per minute of the log, not once per row.
_minutes: dict[int, tuple[str, str]] = {}
