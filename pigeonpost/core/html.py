"""HTML text: escaping, and markup that is not escaped again.

Runs on: server.
"""

from __future__ import annotations

from collections.abc import Iterable


class Html(str):
    """Text that is markup already. `Html("<b>{}</b>").format(x)` escapes what it is given, unless that is Html."""

    __slots__ = ()

    def format(self, *args: object, **named: object) -> Html:
        """As str.format, escaping."""
        return Html(super().format(*map(escaped, args), **{name: escaped(value) for name, value in named.items()}))


def escaped(value: object) -> str:
    """`value` as text that is no markup, in an element or in a quoted attribute."""
    return value if isinstance(value, Html) else str(value).translate(_ESCAPES)


def join_html(parts: Iterable[object], between: str = "") -> Html:
    """The parts in a row, each escaped unless it is Html."""
    return Html(between.join(map(escaped, parts)))


_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;", ord("'"): "&#39;"}

# What XML and HTML take for no character at all is shown as such.
_ESCAPES.update(dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127), "\ufffd"))
