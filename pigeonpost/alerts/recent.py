"""List of the last messages that were sent or refused, with the result of each channel. It is kept in the queue's file.

Any thread may use it. `_lock` guards the list, and is held for one change.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

from pigeonpost.alerts.contract import AlertQueue, QueuedMessage
from pigeonpost.core.clock import rfc3339

MOST_RECENT = 100  # messages in the list
_KEY = "recent"  # name of the list in the queue


class RecentMessages:
    """The last messages, each as a JSON object with `id`, `time`, `kind`, `severity`, `subject` and `results`."""

    def __init__(self, queue: AlertQueue) -> None:
        self._queue = queue
        self._lock = threading.Lock()

    def all(self) -> list[dict[str, Any]]:
        """Return the messages, oldest first."""
        with self._lock:
            return self._read()

    def in_span(self, from_ms: int, to_ms: int, channels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the alerts that were queued in a time range, oldest first, including those that still wait.

        Args:
            from_ms: Start of the range in ms since 1970 (UTC), inclusive.
            to_ms: End of the range in ms since 1970 (UTC), exclusive.
            channels: Keys of the channels whose waiting and sent messages are listed.
        """
        found = [one for one in self.all() if any(result["channel"] in channels for result in one["results"])]
        known = {one["id"] for one in found}
        for channel in channels:
            for queued in self._queue.waiting(channel):
                if queued.message.id not in known:
                    known.add(queued.message.id)
                    found.append(_entry(queued))
        first, end = rfc3339(from_ms), rfc3339(to_ms)
        found = [one for one in found if first <= one["time"] < end and one["kind"] in ("alert", "over")]
        return sorted(found, key=lambda one: str(one["time"]))

    def add(self, channel: str, queued: QueuedMessage, result: str, reason: str, now_ms: int) -> None:
        """Add the result of a message.

        Args:
            channel: Key of the channel.
            queued: The message.
            result: "sent" or "refused".
            reason: Reason why it was refused, without secrets.
            now_ms: Current time, in ms since 1970 (UTC).
        """
        with self._lock:
            found, id = self._read(), queued.message.id
            entry = next((one for one in found if id and one["id"] == id), None)
            if entry is None:
                entry = _entry(queued)
                found.append(entry)
            entry["results"].append({"channel": channel, "result": result, "time": rfc3339(now_ms), "reason": reason})
            self._queue.note(_KEY, json.dumps(found[-MOST_RECENT:]))

    def _read(self) -> list[dict[str, Any]]:
        try:
            found = json.loads(self._queue.noted(_KEY) or "[]")
        except ValueError:  # written by another version
            return []
        return found if isinstance(found, list) else []


def _entry(queued: QueuedMessage) -> dict[str, Any]:
    message = queued.message
    return {"id": message.id, "time": rfc3339(queued.queued_ms), "kind": message.kind, "severity": message.severity,
            "subject": message.subject, "results": []}  # fmt: skip
