"""The part of the front page that is asked for: search, state, page, span of the charts, chosen node.

An address that makes no sense shows the page as without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode

from protocol import NODE_NAME

SPANS = (("10m", "10 minutes"), ("1h", "hour"), ("24h", "day"), ("7d", "week"), ("30d", "30 days"), ("366d", "year"))
STATES = ("lost", "trouble", "waiting", "off", "reporting", "past")  # of nodes, those with a fault first
_LONGEST_SEARCH = 63  # letters, as the longest name has
_LAST_PAGE = 9999


class FrontQuery(NamedTuple):
    """What is asked for.

    q      part of the names of the nodes; empty: all
    state  one of STATES; empty: all
    page   of the nodes, from 1 on
    span   one of SPANS, for all charts; empty: each has one that shows something
    node   the node that the buttons are for; empty: that of the preferences
    """

    q: str = ""
    state: str = ""
    page: int = 1
    span: str = ""
    node: str = ""

    def path(self, **changes: object) -> str:
        """Return the address of the front page with these changes."""
        said = {
            key: value for key, value in (self._asdict() | changes).items() if value and (key, value) != ("page", 1)
        }
        return f"/?{urlencode(said)}" if said else "/"


def read_query(query: Mapping[str, str]) -> FrontQuery:
    """Return what a query string asks for."""
    page, state, span, node = (query.get(key, "") for key in ("page", "state", "span", "node"))
    is_number = page.isascii() and page.isdigit() and len(page) < 5
    return FrontQuery(
        query.get("q", "").strip()[:_LONGEST_SEARCH],
        state if state in STATES else "",
        min(max(1, int(page)), _LAST_PAGE) if is_number else 1,
        span if span in dict(SPANS) else "",
        node if NODE_NAME(node) else "",
    )
