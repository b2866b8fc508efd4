"""HTML text: escaping, and a type for markup that must not be escaped again."""

from __future__ import annotations

from collections.abc import Iterable


class Html(str):
    """Text that is HTML markup. `Html("<b>{}</b>").format(x)` escapes `x`, unless `x` is Html too."""

    __slots__ = ()

    def format(self, *args: object, **named: object) -> Html:
        """Return the formatted text, like str.format. All arguments that are not Html are escaped."""
        return Html(super().format(*map(escaped, args), **{name: escaped(value) for name, value in named.items()}))


def escaped(value: object) -> str:
    """Return `value` escaped for an element or a quoted attribute, or unchanged if it is Html."""
    return value if isinstance(value, Html) else str(value).translate(_ESCAPES)


def join_html(parts: Iterable[object], between: str = "") -> Html:
    """Return the `parts`, each escaped unless it is Html, joined by `between`."""
    return Html(between.join(map(escaped, parts)))


_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;", ord("'"): "&#39;"}

# Control characters that XML and HTML do not allow are shown as U+FFFD.
_ESCAPES.update(dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127), "\ufffd"))
