"""Preferences page (`/settings`): the units in which values are shown to a user.

Errors: HTTPError.
"""

from __future__ import annotations

from pigeonpost.core.html import Html, join_html
from pigeonpost.core.units import measured_units, shown_units
from pigeonpost.http.message import Response, form_of
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.html import disabled, html_page, key_notice, see_other, text_page
from pigeonpost.views.preferences import DEFAULTS, MOST_UNITS
from pigeonpost.web.access import LOCAL, ONE_TIME_KEY

_FIELD = "unit:"  # prefix of the form's fields, followed by the measured unit


def preferences_page(context: RequestContext) -> Response:
    """Return the page for `context`: `GET /settings`."""
    chosen = context.preferences.units
    if not context.request.wants_html:
        lines = [f"{measured:<8}shown in {chosen.get(measured, measured)}" for measured in _offered(context)]
        return text_page("\n".join([*lines, "", "To change them, use a browser."]) + "\n")
    saved = Html('<p class="notice" role="status">{}</p>\n').format(_SAVED) if "saved" in context.request.query else ""
    body = Html(
        "<h1>Preferences</h1>\n{saved}<p>{whose} Stored and downloaded values, and those for programs, stay as"
        " measured.</p>"
        '\n{notice}<form method="post" action="/settings"><input type="hidden" name="csrf" value="{csrf}">'
        '<h2>Units</h2>\n<div class="choices">{units}</div>'
        '<div class="buttons"><button{off}>Save</button></div></form>\n'
        "<h2>Front page</h2>\n<p>You can move and hide charts there. To show all charts again, in their"
        ' default order:</p>\n<form class="buttons" method="post" action="/settings/reset"><input type="hidden"'
        ' name="csrf" value="{csrf}"><button{off}>Reset the charts</button></form>\n'
    ).format(
        saved=saved, whose=_whose(context), notice=key_notice(context), csrf=context.csrf, off=disabled(context),
        units=join_html(_choice(measured, chosen.get(measured, measured)) for measured in _offered(context)),
    )  # fmt: skip
    return html_page("Preferences", body, context)


def save_preferences(context: RequestContext) -> Response:
    """Save the units for `context`: `POST /settings` with one field `unit:MEASURED` per unit. Return a redirect."""
    fields = form_of(context.request).items()
    chosen = {name.removeprefix(_FIELD): shown for name, shown in fields if name.startswith(_FIELD)}
    units = {
        measured: shown for measured, shown in list(chosen.items())[:MOST_UNITS]
        if shown != measured and shown in shown_units(measured)
    }  # fmt: skip
    context.save_preferences(lambda preferences: preferences._replace(units=units))
    return see_other("/settings?saved")


def reset_front_page(context: RequestContext) -> Response:
    """Show all charts of the front page in their default order for `context`: `POST /settings/reset`.

    Return a redirect.
    """
    context.save_preferences(lambda preferences: preferences._replace(order=DEFAULTS.order, folded=DEFAULTS.folded))
    return see_other("/settings?saved")


_SAVED = "Saved."


def _whose(context: RequestContext) -> str:
    if context.user in (LOCAL.name, ONE_TIME_KEY):
        return "These preferences apply to all users of this page, since no password is set."
    return f"These preferences apply to {context.user}."


def _offered(context: RequestContext) -> list[str]:
    """Return the measured units that can be shown in other units: common ones, and those of the sensors."""
    return measured_units({sensor.unit for node in context.snapshot().nodes for sensor in node.readings})


def _choice(measured: str, shown: str) -> Html:
    options = join_html(
        Html('<option value="{}"{}>{}</option>').format(unit, Html(" selected") if unit == shown else "", unit)
        for unit in shown_units(measured)
    )
    return Html('<label><span>Measured in {}, shown in</span> <select name="{}{}">{}</select></label>\n').format(
        measured, _FIELD, measured, options
    )


ROUTES = (
    Route("GET", "/settings", "viewer", preferences_page),
    Route("POST", "/settings", "viewer", save_preferences, changes=True),
    Route("POST", "/settings/reset", "viewer", reset_front_page, changes=True),
)
