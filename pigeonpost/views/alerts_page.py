"""Alerts page (`/alerts`) and `/api/v1/alerts`: active alerts, recent messages, channels, and the rules of the page.

Operators acknowledge alerts, send a test message, and edit the rules that are kept in the data folder.
Errors: HTTPError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.alerts.contract import ActiveAlert, AlertRule
from pigeonpost.alerts.rule_sets import ON_PAGE
from pigeonpost.core.clock import parse_rfc3339, rfc3339
from pigeonpost.core.config import as_toml
from pigeonpost.core.errors import DiskError, SettingsError
from pigeonpost.core.format import aligned, clock, counted
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.redact import hide_secrets
from pigeonpost.http.message import HTTPError, Response, form_of
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.html import (
    button,
    disabled,
    html_page,
    json_answer,
    json_body,
    key_notice,
    see_other,
    text_page,
)

if TYPE_CHECKING:
    from pigeonpost.alerts.notifier import Notifier
    from pigeonpost.server.event_log import EventLog

SHOWN = 20  # recent messages on the page
_SHORT = 12  # a cell with up to this number of characters is not wrapped

_NO_CHANNEL = (
    "No alerts are sent: there is no recipient. Set [mail] to or [webhook] url, or write a [[channel]], in the"
    " settings of the server, and restart it (docs/alerts.md)."
)
_OTHER_CHANGE = (
    "The present rules differ from those that you opened. The text below is yours. Save again to replace the present"
    " rules by it."
)


def routes(events: EventLog) -> list[Route]:
    """Return the routes of this page; `events` is the event log."""
    return [
        Route("GET", "/alerts", "viewer", alerts_page),
        Route("POST", "/alerts/test", "operator", _test),
        Route("POST", "/alerts/rules", "operator", _save_rules(events), changes=True),
        Route("POST", "/alerts/WORD/acknowledge", "operator", _acknowledge_button(events), changes=True),
        Route("GET", "/api/v1/alerts", "viewer", alerts_json),
        Route("POST", "/api/v1/alerts/acknowledge", "operator", _acknowledge_json(events), changes=True),
    ]


# -------------------------------------------------------------------------------------------------------- content


def _active(context: RequestContext) -> Sequence[ActiveAlert]:
    engine = context.app.alerts
    return [] if engine is None else engine.active()


def _rules(context: RequestContext) -> Sequence[AlertRule]:
    engine = context.app.alerts
    return [] if engine is None else engine.rules()


def _channel_name(context: RequestContext, key: str) -> str:
    """Return the name of a channel. Viewers do not see the addresses of the recipients."""
    kind, _, address = key.partition(":")
    return address if address and context.role == "operator" else kind


def _seen(context: RequestContext, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state or the result of one channel, for viewers without the addresses of recipients."""
    found = {**entry, "channel": _channel_name(context, entry["channel"])}
    for key in ("fault", "refused", "reason"):
        if key in found and context.role != "operator":
            found[key] = _ADDRESS.sub("(address)", found[key])
    return found


_ADDRESS = re.compile(r"[^\s@<>(]+@[^\s@<>:;,)]+")


def _recent(context: RequestContext, notifier: Notifier) -> list[dict[str, Any]]:
    """Return the recent messages, newest first."""
    found = reversed(notifier.recent.all())
    return [{**one, "results": [_seen(context, result) for result in one["results"]]} for one in found]


def _channels(context: RequestContext, notifier: Notifier) -> list[dict[str, Any]]:
    return [_seen(context, one) for one in notifier.states()]


def alerts_json(context: RequestContext) -> Response:
    """Return the active alerts, rules, channels and recent messages for `context`: `GET /api/v1/alerts`."""
    notifier = context.app.notifier
    return json_answer({
        "active": [_alert_json(one) for one in _active(context)],
        "rules": [{"name": one.name, "origin": one.origin, "table": dict(one.table)} for one in _rules(context)],
        "channels": [] if notifier is None else _channels(context, notifier),
        "recent": [] if notifier is None else _recent(context, notifier),
    })  # fmt: skip


def _alert_json(one: ActiveAlert) -> dict[str, Any]:
    acknowledged = None if one.acknowledged_ms is None else rfc3339(one.acknowledged_ms)
    return {
        "id": one.id, "rule": one.rule, "kind": one.kind, "node": one.node, "sensor": one.sensor,
        "severity": one.severity, "since": rfc3339(one.since_ms), "text": one.text, "held": one.is_held,
        "acknowledged_by": one.acknowledged_by, "acknowledged": acknowledged,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------- changes


def _acknowledge(context: RequestContext, events: EventLog, alert_id: str) -> None:
    """Acknowledge an alert. Raise HTTPError 404 if it does not exist."""
    engine = context.app.alerts
    alert = next((one for one in _active(context) if one.id == alert_id), None)
    if engine is None or alert is None or not engine.acknowledge(alert_id, context.user):
        raise HTTPError(404, "There is no such alert: it has ended.", "no-alert")
    events.record(alert.node, "alert", f"acknowledged by {context.user}: {alert.text}")


def _acknowledge_button(events: EventLog) -> Callable[[RequestContext], Response]:
    """Return the function for `POST /alerts/ID/acknowledge`."""

    def answer(context: RequestContext) -> Response:
        _acknowledge(context, events, context.args[0])
        return see_other("/alerts")

    return answer


def _acknowledge_json(events: EventLog) -> Callable[[RequestContext], Response]:
    """Return the function for `POST /api/v1/alerts/acknowledge {"id": ID}`."""

    def answer(context: RequestContext) -> Response:
        alert_id = json_body(context.request).get("id")
        if not isinstance(alert_id, str):
            raise HTTPError(400, "`id` must be a string: the id of an active alert.", "id")
        _acknowledge(context, events, alert_id)
        return json_answer({"acknowledged": alert_id})

    return answer


def _test(context: RequestContext) -> Response:
    """Send a test message on every channel for `context`: `POST /alerts/test`. Return a redirect."""
    notifier = context.app.notifier
    if notifier is None:
        raise HTTPError(409, _NO_CHANNEL, "no-channel")
    if not notifier.test(context.app.name, context.user):
        raise HTTPError(409, "Another test is running. Try again in a minute.", "test")
    return see_other("/alerts#test")


def _save_rules(events: EventLog) -> Callable[[RequestContext], Response]:
    """Return the function for `POST /alerts/rules` with `rules`, a TOML text of [[alert]] tables.

    `before` is the state of the rules that the form showed. Without it, the rules are replaced in any state.
    """

    def answer(context: RequestContext) -> Response:
        engine = context.app.alerts
        if engine is None:
            raise HTTPError(409, _NO_CHANNEL, "no-channel")
        form = form_of(context.request)
        text = form.get("rules", "").replace("\r\n", "\n")
        present = _page_rules(context)
        before = form.get("before", _state_of(present))
        try:
            tables = read_rules_text(text)
            # The same rules again are no conflict: a button that was pressed twice sends the form twice.
            is_same = tables == [dict(one.table) for one in present]
            if not is_same and before != _state_of(present):
                return _page(context, text, _OTHER_CHANGE, 409)
            engine.set_rules(tables)
        except SettingsError as error:
            return _page(context, text, _with_line(str(error), text), 400, before)
        except DiskError as error:
            raise HTTPError(503, f"Nothing was changed: {error}.", "disk", {"Retry-After": "10"}) from None
        events.record("", "alert", f"the alert rules were changed by {context.user}: {counted(len(tables), 'rule')}")
        return see_other("/alerts?saved#rules")

    return answer


def _page_rules(context: RequestContext) -> list[AlertRule]:
    """Return the rules of the page."""
    return [one for one in _rules(context) if one.origin == "page"]


def _state_of(rules: Sequence[AlertRule]) -> str:
    """Return a text that differs if the `rules` differ."""
    from hashlib import sha256

    return sha256(rules_text(rules).encode()).hexdigest()[:16]


def read_rules_text(text: str) -> list[Mapping[str, Any]]:
    """Return the [[alert]] tables in a TOML `text`.

    Raises:
        SettingsError: The text is not valid TOML, or contains something else.
    """
    from pigeonpost.core.settings_file import parse

    content = parse(text, ON_PAGE)
    tables = content.pop("alert", [])
    if content:
        key = next(iter(content))
        raise SettingsError(f"{ON_PAGE}: {key!r} is not allowed: write only [[alert]] tables here")
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise SettingsError(f"{ON_PAGE}: write [[alert]] with two brackets, one table per rule")
    return tables


def _with_line(message: str, text: str) -> str:
    from pigeonpost.core.settings_file import with_line

    return hide_secrets(with_line(message, text, ON_PAGE))


def rules_text(rules: Sequence[AlertRule]) -> str:
    """Return `rules` as a TOML text of [[alert]] tables."""
    tables = ["\n".join(["[[alert]]", *(f"{key} = {as_toml(value)}" for key, value in one.table.items())])
              for one in rules]  # fmt: skip
    return "\n\n".join(tables) + ("\n" if tables else "")


# ---------------------------------------------------------------------------------------------------------- page


def alerts_page(context: RequestContext) -> Response:
    """Return the page for `context`: `GET /alerts`."""
    if not context.request.wants_html:
        return text_page("\n".join(_text(context)) + "\n", context=context)
    return _page(context, rules_text(_page_rules(context)))


def _page(context: RequestContext, text: str, fault: str = "", status: int = 200, before: str = "") -> Response:
    """Return the HTML page.

    Args:
        context: The request.
        text: Content of the text area with the rules.
        fault: Reason why these rules could not be saved, or an empty string.
        status: HTTP status.
        before: State of the rules that the form replaces; empty for the present one.
    """
    notifier = context.app.notifier
    body = Html("<h1>Alerts</h1>\n{}{}{}{}{}").format(
        key_notice(context),
        _fault_notice(_NO_CHANNEL if notifier is None else f"The rules were not saved. {fault}" if fault else ""),
        _active_table(context),
        _delivery(context, notifier) if notifier is not None else "",
        _rule_section(context, text, fault, before or _state_of(_page_rules(context)))
        if context.app.alerts is not None
        else "",
    )
    return html_page("Alerts", body, context, status=status)


def alerts_notice(context: RequestContext) -> Html:
    """Return the notice on the front page about active alerts that are not acknowledged, with a link to this page.

    The element exists without alerts, too, so that the script can show them on an open page. For `context`.
    """
    text = alerts_sentence(context)
    notice = Html('<p class="notice bad"><a href="/alerts">{}</a></p>').format(text) if text else Html("")
    return Html('<div data-piece="alerts">{}</div>').format(notice)


def alerts_sentence(context: RequestContext) -> str:
    """Return a sentence about the active alerts that are not acknowledged, for `context`; empty if there are none."""
    found = [one for one in _active(context) if one.acknowledged_ms is None]
    more = f"; and {len(found) - 1:,} more" if len(found) > 1 else ""
    return f"{counted(len(found), 'active alert')}: {found[0].text}{more}." if found else ""


def _fault_notice(text: str) -> Html:
    return Html('<p class="notice bad" role="alert">{}</p>\n').format(text) if text else Html("")


def _active_table(context: RequestContext) -> Html:
    now_ms, may_change = context.app.clock.wall_ms(), context.role == "operator"
    rows = []
    for one in _active(context):
        if one.acknowledged_ms is not None:
            last: object = f"acknowledged by {one.acknowledged_by}, {clock(one.acknowledged_ms, now_ms)}"
        elif may_change:
            last = button(f"/alerts/{one.id}/acknowledge", "Acknowledge", context, one.text)
        else:
            last = "not acknowledged"
        held = " (its message is held back until the quiet hours end)" if one.is_held else ""
        rows.append((clock(one.since_ms, now_ms), one.severity, f"{one.text}{held}", one.rule, last))
    if not rows:
        return Html("<h2>Active alerts</h2>\n<p>There are none.</p>\n")
    note = "An acknowledged alert is not repeated. Its end is still reported."
    return Html("<h2>Active alerts</h2>\n{}<p>{}</p>\n").format(
        _table(("since", "severity", "alert", "rule", ""), rows), note
    )


def _delivery(context: RequestContext, notifier: Notifier) -> Html:
    now_ms = context.app.clock.wall_ms()
    channels = [
        (one["channel"], one["place"], f"{one['sent']:,}", f"{one['waiting']:,}", _state(one))
        for one in _channels(context, notifier)
    ]
    messages = [
        (clock(parse_rfc3339(one["time"]), now_ms), one["severity"], one["subject"],
         "; ".join(_result(result) for result in one["results"]))
        for one in _recent(context, notifier)[:SHOWN]
    ]  # fmt: skip
    test = button("/alerts/test", "Send a test message", context) if context.role == "operator" else ""
    return Html(
        '<h2>Channels</h2>\n{}<div class="buttons" id="test">{}</div>\n{}<h2>Recent messages</h2>\n{}'
    ).format(
        _table(("recipient", "server", "sent", "waiting", "state"), channels), test, _last_test(context, notifier),
        _table(("time", "severity", "message", "result"), messages) if messages
        else Html("<p>No message was sent yet.</p>\n"),
    )  # fmt: skip


def _state(channel: Mapping[str, Any]) -> str:
    if channel["fault"]:
        return f"{channel['fault']}; next attempt in {channel['next_attempt_s']} s"
    return channel["refused"] or "works"


def _result(result: Mapping[str, str]) -> str:
    """Return the result of a message on one channel: `sent to you@example.org`."""
    reason = f": {result['reason']}" if result["reason"] else ""
    return f"{'sent to' if result['result'] == 'sent' else 'refused by'} {result['channel']}{reason}"


def _last_test(context: RequestContext, notifier: Notifier) -> Html:
    if notifier.last_test is None:
        return Html("")
    time_ms, results = notifier.last_test
    lines = [f"{_channel_name(context, channel.key)}: {why or 'accepted'}" for channel, why in results]
    return Html('<div class="notice" role="status"><p>Test at {}:</p><ul>{}</ul></div>\n').format(
        clock(time_ms, context.app.clock.wall_ms(), seconds=True),
        join_html(Html("<li>{}</li>").format(line) for line in lines),
    )


def _rule_section(context: RequestContext, text: str, fault: str, before: str) -> Html:
    settings = [one for one in _rules(context) if one.origin == "settings"]
    usual = [one for one in _rules(context) if one.origin == "default"]
    parts = [Html('<h2 id="rules">Rules</h2>\n')]
    if usual:
        names = "; ".join(one.name for one in usual)
        parts.append(Html("<p>Default rule, as long as no other rule is about silent nodes: {}.</p>\n").format(names))
    if settings:
        parts.append(Html("<h3>In the settings file</h3>\n<pre>{}</pre>\n").format(rules_text(settings)))
    if context.role != "operator":
        shown = Html("<pre>{}</pre>\n").format(text) if text else Html("<p>There are none.</p>\n")
        return join_html([*parts, Html("<h3>Set on this page</h3>\n"), shown])
    saved = Html('<p class="notice" role="status">Saved.</p>\n') if "saved" in context.request.query else Html("")
    if fault == _OTHER_CHANGE:
        parts.append(
            Html("<h3>Present rules of this page</h3>\n<pre>{}</pre>\n").format(rules_text(_page_rules(context)))
        )
    form = Html(
        '<h3><label for="rule-text">Set on this page</label></h3>\n{saved}{fault}'
        '<form method="post" action="/alerts/rules"><input type="hidden" name="csrf" value="{csrf}">'
        '<input type="hidden" name="before" value="{before}">'
        '<textarea id="rule-text" name="rules" rows="{rows}" cols="72" spellcheck="false" autocapitalize="off"'
        ' placeholder="{example}">\n{text}</textarea>'
        '<div class="buttons"><button{off}>Save the rules</button></div></form>\n'
        "<p>One [[alert]] table per rule, with the same keys as in the settings file"
        ' (<a href="/help/alerts.md">manual</a>). They apply immediately. Comments are not stored.</p>\n'
    ).format(
        saved=saved, fault=_fault_notice(fault), csrf=context.csrf, before=before,
        rows=max(8, min(30, text.count("\n") + 3)),
        example='[[alert]]\nsensor = "temperature"\nabove = 40', text=text, off=disabled(context),
    )  # fmt: skip
    return join_html([*parts, form])


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Html:
    body = join_html(
        Html("<tr>{}</tr>\n").format(join_html(
            Html('<td data-label="{}"{}>{}</td>').format(
                label, Html(' class="short"') if not label or len(str(value)) <= _SHORT else "", value
            ) for label, value in zip(head, row)
        ))
        for row in rows
    )  # fmt: skip
    heads = join_html(Html("<th>{}</th>").format(text) if text else Html("<td></td>") for text in head)
    return Html('<table class="list"><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table>\n').format(heads, body)


def _text(context: RequestContext) -> Iterator[str]:
    """Yield the lines of the page for a terminal."""
    now_ms, notifier = context.app.clock.wall_ms(), context.app.notifier
    if notifier is None:
        yield _NO_CHANNEL
        return
    yield "Active alerts:"
    for one in _active(context):
        by = f", acknowledged by {one.acknowledged_by}" if one.acknowledged_ms is not None else ""
        yield f"  {clock(one.since_ms, now_ms)}  {one.severity}  {one.text}{by}"
    if not _active(context):
        yield "  none"
    rows = [(one["channel"], f"{one['sent']:,}", f"{one['waiting']:,}", _state(one))
            for one in _channels(context, notifier)]  # fmt: skip
    yield from ("", *aligned(("recipient", "sent", "waiting", "state"), rows, "<>><"))
    if found := _recent(context, notifier)[:SHOWN]:
        yield from ("", "Recent messages:")
        yield from (f"  {clock(parse_rfc3339(one['time']), now_ms)}  {one['subject']}" for one in found)
    yield from ("", *(rules_text(list(_rules(context))) or "There are no rules.").splitlines())
