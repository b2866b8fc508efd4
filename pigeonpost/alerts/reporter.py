"""Regular reports that are due. Each one is put into the queue exactly once, also after a restart.

It runs in the Notifier's thread. Errors: those of the store while a report is made; the report is made later then.

The end of the last report is kept in the file of the queue. A report that was missed while the server was off is made
once after the start; its range begins at the end of the last report, so no sample is in two reports, or in none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from pigeonpost.alerts.contract import AlertMessage, AlertQueue
from pigeonpost.alerts.recipients import ReportPlan
from pigeonpost.alerts.report import ReportSource, report_facts, report_text, span_text
from pigeonpost.alerts.report_html import report_html
from pigeonpost.core.clock import Clock


def make_report(source: ReportSource, plan: ReportPlan, from_ms: int, to_ms: int) -> AlertMessage:
    """Return the report of `plan` on the time range from `from_ms` to `to_ms`.

    Args:
        source: Sources of the report.
        plan: Plan of the report.
        from_ms: Start of the range in milliseconds since 1970 (UTC), inclusive.
        to_ms: End of the range in milliseconds since 1970 (UTC), exclusive.
    """
    content = source.collect(plan, from_ms, to_ms)
    subject = f"Report of {content.server}, {span_text(from_ms, to_ms)}"
    text, facts = report_text(content), report_facts(content)
    return AlertMessage(subject, text, facts, severity="info", kind="report", html=report_html(content))


_AHEAD_MS = 3_600_000  # a clock that is set back by less must not cause a second report
RETRY_S = 60.0  # time before the next attempt to make a report, which may read many samples
MakeReport = Callable[[ReportPlan, int, int], AlertMessage]


class Reporter:
    """Reports of all plans."""

    def __init__(
        self, plans: Sequence[ReportPlan], make: MakeReport, queue: AlertQueue, clock: Clock, server: str
    ) -> None:
        """Create the reporter.

        Args:
            plans: The regular reports.
            make: Function that makes the report of a plan on a time range; its arguments are the start and the end in
                ms since 1970 (UTC).
            queue: Durable queue, which also keeps the end of the last report.
            clock: Clock of the server.
            server: Name of the server.
        """
        self.plans = plans
        self._make, self._queue, self._clock, self._server = make, queue, clock, server
        self._ready: list[tuple[ReportPlan, int, AlertMessage]] = []
        self._again_s: dict[str, float] = {}  # time of the next attempt after an error, by key of the plan

    def prepare(self) -> None:
        """Make the reports that are due now. Until the clock is set, none is due."""
        if not self._clock.is_set():
            return
        now_ms, now_s = self._clock.wall_ms(), self._clock.monotonic()
        failed: Exception | None = None
        for plan in self.plans:
            if now_s < self._again_s.get(plan.key, 0.0) or any(plan == ready for ready, _, _ in self._ready):
                continue
            try:
                self._prepare(plan, now_ms)
            except Exception as error:  # the other reports are made nevertheless
                self._again_s[plan.key] = now_s + RETRY_S
                failed = error
        if failed is not None:
            raise failed

    def _prepare(self, plan: ReportPlan, now_ms: int) -> None:
        """Make the report of `plan` if it is due."""
        last_ms = self.last_ms(plan)
        due_ms = plan.last_due_ms(last_ms, now_ms)
        if last_ms is None or last_ms > now_ms + _AHEAD_MS:  # the first start, or the clock was ahead
            self._queue.note(plan.key, str(due_ms))
        elif due_ms > last_ms:
            message = self._make(plan, last_ms, due_ms)
            self._ready.append((plan, due_ms, message._replace(id=self._id(plan, due_ms), kind="report")))

    def put(self) -> None:
        """Put the reports that `prepare` has made into the queue.

        No message may be sent meanwhile: if the program is killed before the time of the report is stored, the report
        is made again, and the queue recognises its id.
        """
        while self._ready:
            plan, due_ms, message = self._ready[0]
            self._queue.put([message], plan.channels)
            self._queue.note(plan.key, str(due_ms))
            del self._ready[0]

    def last_ms(self, plan: ReportPlan) -> int | None:
        """Return the end of the last report of `plan` in ms since 1970 (UTC); None if there was none."""
        text = self._queue.noted(plan.key)
        return int(text) if text.isascii() and text.isdigit() else None

    def _id(self, plan: ReportPlan, due_ms: int) -> str:
        return f"report-{hashlib.sha256(f'{self._server} {plan.key}'.encode()).hexdigest()[:12]}-{due_ms}"
