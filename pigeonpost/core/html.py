"""HTML text: escaping, and markup that is not escaped again."""

from __future__ import annotations

from collections.abc import Iterable


class Html(str):
    """Text that is markup already. `Html("<b>{}</b>").format(x)` escapes what it is given, unless that is Html."""

    __slots__ = ()

    def format(self, *args: object, **named: object) -> Html:
        """Format like str.format, with all arguments escaped that are not Html."""
        return Html(super().format(*map(escaped, args), **{name: escaped(value) for name, value in named.items()}))


def escaped(value: object) -> str:
    """Return `value` escaped, for an element or a quoted attribute."""
    return value if isinstance(value, Html) else str(value).translate(_ESCAPES)


def join_html(parts: Iterable[object], between: str = "") -> Html:
    """Join the parts, each escaped unless it is Html."""
    return Html(between.join(map(escaped, parts)))


_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;", ord("'"): "&#39;"}

# What XML and HTML take for no character at all is shown as such.
_ESCAPES.update(dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127), "\ufffd"))
