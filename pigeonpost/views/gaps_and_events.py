"""Gaps page (`/gaps`) and events page (`/happenings`) of all nodes, latest first.

Gaps are in the store, and the last events in the event log. Starts of the server before the first event there are known
from the names of the CSV logs.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.data_folder import LOGS
from pigeonpost.core.errors import StoreDamaged
from pigeonpost.core.format import clock, counted, stamp
from pigeonpost.http.message import Response
from pigeonpost.server.event_log import MOST, Event
from pigeonpost.storage.csv.checksums import logs_in
from pigeonpost.views.context import RequestContext
from pigeonpost.views.table_page import TablePage, render_table

if TYPE_CHECKING:
    from pigeonpost.server.event_log import EventLog

SHOWN = 500
_RECENT_MS = 86_400_000


def gaps(context: RequestContext) -> Response:
    """Return the list of gaps, which are the samples that are permanently lost, for `context`: `/gaps`."""
    found, now_ms = context.app.store.gaps(SHOWN), context.app.clock.wall_ms()
    count = sum(_count(gap) for gap in found)
    more = f" The latest {SHOWN} gaps are shown." if len(found) == SHOWN else ""
    lead = f"{_samples(count)} permanently lost, in {counted(len(found), 'gap')}.{more}"
    return render_table(context, TablePage(
        title="Gaps",
        lead=lead if found else "Every accepted sample is stored here, or still on the card of its node.",
        head=("recorded", "node", "samples", "numbers", "reason"),
        rows=[(clock(gap["noted_ms"], now_ms), gap["node"], f"{_count(gap):,}", gap_text(gap), gap["why"])
              for gap in found],
        keys=("noted", "node", "epoch", "from", "to", "before", "count", "why"),
        data=[(rfc3339(gap["noted_ms"]), gap["node"], gap["epoch"], gap["from"], gap["to"], gap["before"], _count(gap),
               gap["why"]) for gap in found],
        none="No samples are missing.",
        live=True,
    ))  # fmt: skip


def _count(gap: Mapping[str, Any]) -> int:
    return int(max(0, gap["to"] - gap["from"] + 1) + gap["before"])


def _samples(count: int) -> str:
    return f"{counted(count, 'sample')} {'is' if count == 1 else 'are'}"


def recent_losses(context: RequestContext) -> Sequence[str]:
    """Return a text for each node with gaps that were recorded in the last 24 hours, for `control.py check`.

    A gap never ends. So it is a fault for one day, in which a daily check reports it.

    Args:
        context: Context of the request.
    """
    now_ms = context.app.clock.wall_ms()
    of_nodes: dict[str, list[Mapping[str, Any]]] = {}
    try:
        found = context.app.store.gaps(SHOWN)
    except StoreDamaged:
        return []  # the store reports the damage, which is a fault itself
    for gap in found:
        if abs(now_ms - gap["noted_ms"]) < _RECENT_MS:
            of_nodes.setdefault(gap["node"], []).append(gap)
    return [
        f"{node}: {_samples(sum(map(_count, gaps)))} permanently lost ({gaps[0]['why']}), recorded"
        f" {stamp(gaps[0]['noted_ms'])}; this is reported for 24 hours, and /gaps lists all gaps"
        for node, gaps in of_nodes.items()
    ]


def happenings(
    event_log: EventLog, more: Callable[[], Sequence[Event]] = tuple
) -> Callable[[RequestContext], Response]:
    """Return the function for `/happenings`, the list of the gaps, of the events in `event_log`, and of the notes.

    `more` is a function that returns the notes as events.
    """

    def answer(context: RequestContext) -> Response:
        app, now_ms = context.app, context.app.clock.wall_ms()
        missing = [
            Event(gap["noted_ms"], gap["node"], "gap", f"{counted(_count(gap), 'sample')} lost: {gap['why']}")
            for gap in app.store.gaps(SHOWN)
        ]
        events = event_log.all()
        found = [*events, *missing, *more()]
        if len(events) < MOST:  # otherwise old starts are no longer known, and a log may begin without one
            first_ms = min([app.started_ms, *[event.time_ms for event in events if not event.node]])
            found += _starts(os.path.join(app.data, LOGS), first_ms)
        found.sort(key=lambda one: one.time_ms, reverse=True)
        found = found[:SHOWN]
        return render_table(context, TablePage(
            title="Events",
            lead=f"The latest events, up to {MOST}, and the latest gaps and notes. This server was started at"
                 f" {clock(app.started_ms, now_ms)}.",
            head=("time", "source", "event"),
            rows=[(_when(one, now_ms), one.node or "this server", one.words) for one in found],
            keys=("time", "node", "kind", "text"),
            data=[(rfc3339(one.time_ms), one.node, one.kind, one.words) for one in found],
            none="There are no events yet.",
            live=True,
        ))  # fmt: skip

    return answer


def _when(one: Event, now_ms: int) -> str:
    """Return the time of an event to the second. Only the minute is known of earlier starts."""
    return clock(one.time_ms, now_ms, seconds=one.time_ms % 60_000 != 0)


def _starts(folder: str, before_ms: int) -> Sequence[Event]:
    """Return the starts of this server before `before_ms`, to the minute, from the names of the logs in `folder`."""
    found = []
    for name in logs_in(folder):
        match = _LOG(name)
        try:
            time_ms = int(time.mktime(time.strptime(match[1], "%d%m%y_%H%M"))) * 1000 if match else 0
        except (ValueError, OverflowError):
            continue
        if 0 < time_ms < before_ms - before_ms % 60_000:
            found.append(Event(time_ms, "", "started", f"this server was started ({name})"))
    return sorted(found)[-SHOWN:]


_LOG = re.compile(r"sensorlog_([0-9]{6}_[0-9]{4})(?:_[0-9]+)?\.csv").fullmatch


def gap_text(gap: Mapping[str, Any]) -> str:
    """Return the sequence numbers of the missing samples in `gap` as text; of earlier epochs only their number."""
    own = [f"{gap['from']} to {gap['to']} of epoch {gap['epoch']}"] if gap["to"] >= gap["from"] else []
    earlier = [f"{gap['before']} of earlier epochs"] if gap["before"] else []
    return " and ".join(own + earlier)
