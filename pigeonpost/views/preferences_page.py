"""Preferences page (`/settings`): the units in which a user wants to see values.

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

_FIELD = "unit:"  # begins the names of the form's fields, before the unit measured


def preferences_page(context: RequestContext) -> Response:
    """`/settings`"""
    chosen = context.preferences.units
    if not context.request.wants_html:
        lines = [f"{measured:<8}shown in {chosen.get(measured, measured)}" for measured in _offered(context)]
        return text_page("\n".join([*lines, "", "They are changed with a browser."]) + "\n")
    saved = Html('<p class="notice" role="status">{}</p>\n').format(_SAVED) if "saved" in context.request.query else ""
    body = Html(
        "<h1>Preferences</h1>\n{saved}<p>{whose} What is stored, downloaded or read by programs stays as measured.</p>"
        '\n{notice}<form method="post" action="/settings"><input type="hidden" name="csrf" value="{csrf}">'
        '<h2>Units</h2>\n<div class="choices">{units}</div>'
        '<div class="buttons"><button{off}>Save</button></div></form>\n'
        "<h2>Front page</h2>\n<p>Charts can be moved and hidden on it. This shows all of them again, in their"
        ' usual order:</p>\n<form class="buttons" method="post" action="/settings/reset"><input type="hidden"'
        ' name="csrf" value="{csrf}"><button{off}>Reset the charts</button></form>\n'
    ).format(
        saved=saved, whose=_whose(context), notice=key_notice(context), csrf=context.csrf, off=disabled(context),
        units=join_html(_choice(measured, chosen.get(measured, measured)) for measured in _offered(context)),
    )  # fmt: skip
    return html_page("Preferences", body, context)


def save_preferences(context: RequestContext) -> Response:
    """`POST /settings`, with a field `unit:MEASURED` for each unit."""
    fields = form_of(context.request).items()
    chosen = {name.removeprefix(_FIELD): shown for name, shown in fields if name.startswith(_FIELD)}
    units = {
        measured: shown for measured, shown in list(chosen.items())[:MOST_UNITS]
        if shown != measured and shown in shown_units(measured)
    }  # fmt: skip
    context.save_preferences(lambda preferences: preferences._replace(units=units))
    return see_other("/settings?saved")


def reset_front_page(context: RequestContext) -> Response:
    """`POST /settings/reset`"""
    context.save_preferences(lambda preferences: preferences._replace(order=DEFAULTS.order, folded=DEFAULTS.folded))
    return see_other("/settings?saved")


_SAVED = "Saved."


def _whose(context: RequestContext) -> str:
    if context.user in (LOCAL.name, ONE_TIME_KEY):
        return "How values are shown to all who use this page, while no password is set."
    return f"How values are shown to {context.user}."


def _offered(context: RequestContext) -> list[str]:
    """Return the units that sensors have and that can be shown in others, and common ones."""
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
