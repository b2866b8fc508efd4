"""Page "Break it" of `server.py --demo` (`/demo`): buttons for the trials, and the count of the samples.

server.py imports it only for a demonstration, so no other server has these addresses.
Errors: HTTPError 404 for an unknown action, 503 if the node does not start.
"""

from __future__ import annotations

from typing import NamedTuple

from pigeonpost.core.addresses import join_address
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.format import aligned, clock, counted
from pigeonpost.core.html import Html, join_html
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.server.demo_count import SampleCount, faults
from pigeonpost.server.demo_relay import LinkState
from pigeonpost.server.demo_trials import NODE, DemoTrials
from pigeonpost.storage.calibrated_store import raw_store
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.transports.tcp_server import TcpServerTransport
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.html import button, html_page, json_answer, key_notice, see_other, text_page

PATH = "/demo"
_LEAD = (
    "Each button breaks a part of this demonstration, and nothing else on this computer. Watch the count: no sample is"
    " stored twice, and none is missing without a reason. The lesson in docs/demo.md describes the steps."
)


class _Trial(NamedTuple):
    """One part that can be broken: heading, state, buttons (action, label, if it is possible now), what happens."""

    title: str
    state: str
    buttons: tuple[tuple[str, str, bool], ...]
    done: str
    expected: str


class DemoPage:
    """The page of one demonstration.

    Args:
        trials: The parts that can be broken.

    Attributes:
        link: Address and text of the link on the dashboard.
        routes: Addresses of the page.
    """

    def __init__(self, trials: DemoTrials) -> None:
        self._trials = trials
        self._verified = ""  # result of the last verification
        self.link = (PATH, "Break it: kill the node, cut the link, fill the disk, and count the samples")
        self.routes = (
            Route("GET", PATH, "viewer", self.show),
            Route("GET", f"{PATH}.json", "viewer", self.as_json),
            Route("POST", f"{PATH}/WORD", "operator", self.act, changes=True),
        )

    def act(self, context: RequestContext) -> Response:
        """Do the action in the path of `context`: `POST /demo/WORD`. Return a redirect to the page.

        Raises HTTPError 404 for an unknown action, 503 if the node does not start.
        """
        trials, store, (action,) = self._trials, raw_store(context.app.store), context.args
        if action == "kill":
            trials.kill_node()
        elif action == "start":
            try:
                trials.start_node()
            except SettingsError as error:
                raise HTTPError(503, f"{error}.", "demo") from None
            self._reconnect(context)
        elif action in ("cut", "stall", "restore"):
            trials.set_link({"cut": LinkState.CUT, "stall": LinkState.STALLED}.get(action, LinkState.WORKING))
            if action == "restore":
                self._reconnect(context)
        elif action in ("fill", "free"):
            trials.set_full(store, action == "fill")
        elif action == "verify":
            self._verified = self._verify(context)
        else:
            raise HTTPError(404, "The demonstration has no such action.", "demo")
        trials.samples.forget()
        return see_other(PATH)

    def _reconnect(self, context: RequestContext) -> None:
        """Connect to the node now. Otherwise the server waits up to a minute before its next attempt."""
        address = self._trials.relay.address
        for link in context.app.links:
            if isinstance(link, TcpServerTransport) and link.state.address == join_address(*address):
                link.move(address)

    def _count(self, context: RequestContext) -> SampleCount:
        node = context.app.ingestor.names.current(NODE)
        return self._trials.samples.count(raw_store(context.app.store), node)

    def _verify(self, context: RequestContext) -> str:
        app = context.app
        self._trials.samples.forget()
        count = self._count(context)
        found = list(faults(raw_store(app.store), app.data))
        now_ms = app.clock.wall_ms()
        result = "; ".join(found) if found else "none"
        return f"{clock(now_ms, now_ms, seconds=True)}: {_sentence(count)} Faults found by verify: {result}."

    # ------------------------------------------------------------------------------------------ representations

    def as_json(self, context: RequestContext) -> Response:
        """Return the state of the trials and the count for `context`: `GET /demo.json`."""
        count, trials = self._count(context), self._trials
        return json_answer({
            **count._asdict(), "time": rfc3339(count.time_ms), "repeated": context.app.ingestor.repeated,
            "node_pid": trials.pid, "link": trials.relay.state.value, "is_full": trials.is_full,
            "verified": self._verified, "gaps": list(count.gaps),
        })  # fmt: skip

    def show(self, context: RequestContext) -> Response:
        """Return the page for `context`, as HTML or text."""
        count = self._count(context)
        rows = _rows(count, context.app.ingestor.repeated)
        trials = self._parts(context)
        if not context.request.wants_html:
            lines = [_sentence(count), "", *aligned(("SAMPLES", "", ""), rows, "<><"), ""]
            parts = [(one.title, one.state, _possible(one)) for one in trials]
            lines += aligned(("PART", "STATE", "POSSIBLE (POST)"), parts, "<<<")
            return text_page("\n".join(lines) + "\n", context=context)
        body = Html("<h1>Break it</h1>\n<p>{}</p>\n{}{}{}{}{}").format(
            _LEAD,
            key_notice(context),
            _numbers(count, rows),
            join_html(_section(context, one) for one in trials),
            self._verification(context),
            _gaps(count, context.app.clock.wall_ms()),
        )
        return html_page("Break it", body, context, live=True)

    def _verification(self, context: RequestContext) -> Html:
        return Html(
            '<section data-piece="demo-verify"><h2>Count and verify</h2>\n<div class="buttons">{}</div>\n<p>The button'
            " counts every row of the database again, and runs the check of <code>control.py verify</code>: content of"
            " the database, sequence numbers, and checksums of the logs.</p>\n{}</section>\n"
        ).format(
            button(f"{PATH}/verify", "Count and verify", context, off=_no_role(context)),
            Html('<p role="status">{}</p>').format(self._verified) if self._verified else "",
        )  # fmt: skip

    def _parts(self, context: RequestContext) -> list[_Trial]:
        trials = self._trials
        link = trials.relay.state
        fillable = isinstance(raw_store(context.app.store), SqliteStore)
        return [
            _Trial(
                "Node", f"running as process {trials.pid}" if trials.pid is not None else "not running",
                (("kill", "Kill the node", trials.pid is not None), ("start", "Start it again", trials.pid is None)),
                "Sends SIGKILL to the process of the node: it cannot write or send anything more, as at a power cut.",
                "The number of taken samples stops. Nothing that was taken is lost: after the start, the node reads its"
                " outbox, and sends what is not stored. No sample exists for the time without the node, so this is a"
                " hole in the chart, but not a missing sample.",
            ),
            _Trial(
                "Link", trials.relay.fault or {
                    LinkState.WORKING: "working", LinkState.CUT: "cut", LinkState.STALLED: "stalled: packets vanish",
                }[link],
                (
                    ("cut", "Cut the link", link is not LinkState.CUT),
                    ("stall", "Stall the link", link is not LinkState.STALLED),
                    ("restore", "Restore it", link is not LinkState.WORKING),
                ),
                "The connection between server and node goes through a relay. Cut: both ends see a broken connection at"
                " once. Stall: no byte passes any more, and no end is informed. Restore also makes the server connect"
                " now; otherwise it can wait up to a minute.",
                "The node keeps sampling, and the held samples increase. After the link is restored, they are stored"
                " with their true times. A stalled link is noticed after 45 s of silence. The outbox of this node has"
                " space for three minutes only. Leave the link cut for longer, and the oldest samples are overwritten:"
                " they become a gap, with numbers and reason, below.",
            ),
            _Trial(
                "Disk", "full" if trials.is_full else "has space",
                (("fill", "Fill the disk", fillable and not trials.is_full), ("free", "Free it", trials.is_full)),
                "SQLite gets no more space for the database (max_page_count), and reports SQLITE_FULL, as on a full"
                " disk. The disk of this computer is not filled."
                if fillable else "Not available: the samples are in PostgreSQL.",
                "The server reports that nothing can be stored, and acknowledges nothing. The node keeps its samples;"
                " its outbox has its full size from the first start. When there is space again, the samples are stored"
                " within seconds.",
            ),
            _Trial(
                "Server", "running", (),
                "A button cannot kill the server, because this page would end with it. Start the demonstration with"
                " --data FOLDER, and end server.py with SIGKILL (kill -9, and its process id).",
                "The node ends too. Start the demonstration again with the same folder: the held samples are stored,"
                " and the count is complete.",
            ),
        ]  # fmt: skip


def _sentence(count: SampleCount) -> str:
    """Return the equation of the count, and its result."""
    terms = [f"{count.stored:,} stored", f"{count.held:,} held"]
    terms += [
        f"{number:,} {words}"
        for number, words in (
            (count.missing, "missing with a reason"), (count.overwritten, "overwritten"), (count.lost, "lost"),
        ) if number
    ]  # fmt: skip
    others = f" (without {count.others:,} of other sources)" if count.others else ""
    return (
        f"{count.taken:,} taken = {' + '.join(terms)}{others}. Stored twice: {count.twice:,}. Missing without a trace:"
        f" {count.lost:,}."
    )


def _rows(count: SampleCount, repeated: int) -> list[tuple[str, str, str]]:
    return [
        ("taken", f"{count.taken:,}", "accepted by the node: written to its outbox file"),
        ("held", f"{count.held:,}", "in the outbox, and not stored yet"),
        ("stored", f"{count.stored:,}", "different samples in the rows of the database"),
        ("received again", f"{repeated:,}", "in this run; stored once"),
        ("missing", f"{count.missing:,}", "recorded as a gap, with numbers and reason"),
        ("overwritten", f"{count.overwritten:,}", "in the full outbox; a gap when the node is connected again"),
        ("stored twice", f"{count.twice:,}", "must be 0"),
        ("without a trace", f"{count.lost:,}", "neither stored, held nor in a gap; must be 0"),
    ]


def _numbers(count: SampleCount, rows: list[tuple[str, str, str]]) -> Html:
    table = join_html(
        Html('<tr><th scope="row">{}</th><td>{}</td><td>{}</td></tr>\n').format(*row) for row in rows
    )  # fmt: skip
    return Html(
        '<section data-piece="demo-count" data-fresh="1000"><p class="verdict {}"><b>{}</b></p>\n'
        '<table class="facts demo"><tbody>{}</tbody></table></section>\n'
    ).format("good" if count.is_exact else "bad", _sentence(count), table)


def _section(context: RequestContext, trial: _Trial) -> Html:
    buttons = join_html(
        button(f"{PATH}/{action}", label, context, off=_no_role(context) or ("" if is_possible else "Not possible now"))
        for action, label, is_possible in trial.buttons
    )
    row = Html('<div class="buttons">{}</div>\n').format(buttons) if trial.buttons else Html("")
    return Html(
        '<section data-piece="demo-{key}"><h2>{title}: {state}</h2>\n{buttons}'
        "<p>{done}</p>\n<p><b>Expect:</b> {expected}</p></section>\n"
    ).format(
        key=trial.title.lower(), title=trial.title, state=trial.state, buttons=row, done=trial.done,
        expected=trial.expected,
    )  # fmt: skip


def _possible(trial: _Trial) -> str:
    return ", ".join(f"{PATH}/{action}" for action, _, is_possible in trial.buttons if is_possible)


def _no_role(context: RequestContext) -> str:
    return "" if context.role == "operator" else "Disabled: it needs the role operator"


def _gaps(count: SampleCount, now_ms: int) -> Html:
    rows = join_html(
        Html('<tr><td>{}</td><td data-label="samples">{}</td><td data-label="reason">{}</td></tr>\n').format(
            clock(gap["noted_ms"], now_ms, seconds=True),
            counted(gap["to"] - gap["from"] + 1 + gap["before"], "sample"),
            gap["why"],
        )
        for gap in count.gaps[:20]  # /demo.json contains all of them
    )  # fmt: skip
    table = Html(
        '<table class="list"><thead><tr><th>recorded</th><th>samples</th><th>reason</th></tr></thead>'
        "<tbody>{}</tbody></table>"
    ).format(rows)
    return Html('<section data-piece="demo-gaps"><h2>Gaps</h2>\n{}</section>\n').format(
        table if count.gaps else Html("<p>No samples are missing.</p>")
    )
