"""Gaps page (`/gaps`) and events page (`/happenings`), of all nodes, the latest first.

Two kinds of events are durable: gaps, which are in the store, and starts of the server, each of which began a CSV log.
All others are of this run, and the page says so.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.data_folder import LOGS
from pigeonpost.core.format import clock
from pigeonpost.http.message import Response
from pigeonpost.server.event_log import Event
from pigeonpost.storage.csv.checksums import logs_in
from pigeonpost.views.context import RequestContext
from pigeonpost.views.table_page import TablePage, render_table

if TYPE_CHECKING:
    from pigeonpost.server.event_log import EventLog

SHOWN = 500


def gaps(context: RequestContext) -> Response:
    """`/gaps`: samples of all nodes that are known to be lost for ever."""
    found, now_ms = context.app.store.gaps(SHOWN), context.app.clock.wall_ms()
    count = sum(_count(gap) for gap in found)
    more = f" These are the latest {SHOWN} stretches." if len(found) == SHOWN else ""
    lead = f"{_samples(count)} known to be lost, in {_stretches(len(found))}: numbered, with the reason.{more}"
    return render_table(context, TablePage(
        title="What is missing, and why",
        lead=lead if found else "Every sample that a node has accepted is here, or still on its card.",
        head=("known since", "node", "samples", "which", "why"),
        rows=[(clock(gap["noted_ms"], now_ms), gap["node"], f"{_count(gap):,}", gap_text(gap), gap["why"])
              for gap in found],
        keys=("noted", "node", "epoch", "from", "to", "before", "count", "why"),
        data=[(rfc3339(gap["noted_ms"]), gap["node"], gap["epoch"], gap["from"], gap["to"], gap["before"], _count(gap),
               gap["why"]) for gap in found],
        none="Nothing is missing.",
        live=True,
    ))  # fmt: skip


def _count(gap: Mapping[str, Any]) -> int:
    return int(max(0, gap["to"] - gap["from"] + 1) + gap["before"])


def _samples(count: int) -> str:
    return "One sample is" if count == 1 else f"{count:,} samples are"


def _stretches(count: int) -> str:
    return "one stretch" if count == 1 else f"{count:,} stretches"


def happenings(event_log: EventLog) -> Callable[[RequestContext], Response]:
    """`/happenings`: nodes reached and lost, turned on and off, restarted; faults; starts of the server; gaps."""

    def answer(context: RequestContext) -> Response:
        app, now_ms = context.app, context.app.clock.wall_ms()
        missing = [
            Event(gap["noted_ms"], gap["node"], "gap", f"{_count(gap):,} of its samples are lost: {gap['why']}")
            for gap in app.store.gaps(SHOWN)
        ]
        own = Event(app.started_ms, "", "started", "this server was started")
        found = [*event_log.all(), *missing, *_starts(os.path.join(app.data, LOGS), app.started_ms), own]
        found.sort(key=lambda one: one.time_ms, reverse=True)
        found = found[:SHOWN]
        return render_table(context, TablePage(
            title="Events",
            lead="Starts of the server and missing samples are kept for ever; the rest is told since the last start, at"
                 f" {clock(app.started_ms, now_ms)}.",
            head=("when", "who", "what"),
            rows=[(_when(one, now_ms), one.node or "this server", one.words) for one in found],
            keys=("time", "node", "kind", "text"),
            data=[(rfc3339(one.time_ms), one.node, one.kind, one.words) for one in found],
            none="Nothing has happened yet.",
            live=True,
        ))  # fmt: skip

    return answer


def _when(one: Event, now_ms: int) -> str:
    """Return the time of an event: to the second, of an earlier start to the minute."""
    said = clock(one.time_ms, now_ms)
    return said + time.strftime(":%S", time.localtime(one.time_ms // 1000)) if one.time_ms % 60_000 else said


def _starts(folder: str, started_ms: int) -> Sequence[Event]:
    """Return the starts of this server before `started_ms`, by the names of its logs: to the minute."""
    found = []
    for name in logs_in(folder):
        told = _LOG(name)
        try:
            time_ms = int(time.mktime(time.strptime(told[1], "%d%m%y_%H%M"))) * 1000 if told else 0
        except (ValueError, OverflowError):
            continue
        if 0 < time_ms < started_ms - started_ms % 60_000:
            found.append(Event(time_ms, "", "started", f"this server was started ({name})"))
    return sorted(found)[-SHOWN:]


_LOG = re.compile(r"sensorlog_([0-9]{6}_[0-9]{4})(?:_[0-9]+)?\.csv").fullmatch


def gap_text(gap: Mapping[str, Any]) -> str:
    """Return the samples that a gap of the store leaves out, in words."""
    own = [f"{gap['from']} to {gap['to']} of epoch {gap['epoch']}"] if gap["to"] >= gap["from"] else []
    earlier = [f"{gap['before']} of earlier epochs"] if gap["before"] else []
    return " and ".join(own + earlier)
