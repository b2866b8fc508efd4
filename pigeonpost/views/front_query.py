"""Query of the front page: search, state, page, range of the charts, and chosen node. Invalid fields are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode

from protocol import NODE_NAME

SPANS = (("10m", "10 minutes"), ("1h", "hour"), ("24h", "day"), ("7d", "week"), ("30d", "30 days"), ("366d", "year"))
STATES = ("lost", "trouble", "waiting", "off", "reporting", "past")  # faults first, as on the pages
_LONGEST_SEARCH = 63  # characters: the length of the longest name
_LAST_PAGE = 9999


class FrontQuery(NamedTuple):
    """Query of the front page.

    Attributes:
        q: Text that the names of the nodes must contain; empty for all nodes.
        state: State of the nodes, one of STATES; empty for all.
        page: Number of the page of nodes, from 1.
        span: Range of all charts, one of SPANS; if empty, each chart has a range that contains values.
        node: Node that the buttons control; empty for the one in the preferences.
    """

    q: str = ""
    state: str = ""
    page: int = 1
    span: str = ""
    node: str = ""

    def path(self, **changes: object) -> str:
        """Return the address of the front page with these `changes`."""
        fields = {
            key: value for key, value in (self._asdict() | changes).items() if value and (key, value) != ("page", 1)
        }
        return f"/?{urlencode(fields)}" if fields else "/"


def read_query(query: Mapping[str, str]) -> FrontQuery:
    """Return the front page's query from the fields `query`."""
    page, state, span, node = (query.get(key, "") for key in ("page", "state", "span", "node"))
    is_number = page.isascii() and page.isdigit() and len(page) < 5
    return FrontQuery(
        query.get("q", "").strip()[:_LONGEST_SEARCH],
        state if state in STATES else "",
        min(max(1, int(page)), _LAST_PAGE) if is_number else 1,
        span if span in dict(SPANS) else "",
        node if NODE_NAME(node) else "",
    )
