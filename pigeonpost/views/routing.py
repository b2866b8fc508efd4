"""Table of all addresses. It finds the page or the endpoint of a request by path and method.

Any thread may use it, since it does not change after construction.
Errors: HTTPError 404 and 405.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pigeonpost.http.message import Endpoint, HTTPError, Request
from pigeonpost.views.context import Route
from pigeonpost.web.prefix import PREFIX_HINT

Match = Callable[[str], "re.Match[str] | None"]

# Addresses for programs, which cannot use a login page: those with these endings, and two more. /log.csv has such an
# ending, but a button on the pages opens it.
_DATA_FORMS = (".json", ".csv", ".svg")
_ALSO_FOR_PROGRAMS = {"/events", "/metrics"}
_FOR_BROWSERS = {"/log.csv"}


class RouteTable:
    """Table of all addresses.

    Attributes:
        pages: For each path, the function that matches it, and its routes by HTTP method.
        endpoints: For each endpoint of a transport, the function that matches its path, and the endpoint.
    """

    def __init__(self, routes: Sequence[Route], endpoints: Sequence[Endpoint]) -> None:
        by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            by_path.setdefault(route.path, {})[route.method] = route
        self.pages: Sequence[tuple[Match, Mapping[str, Route]]] = [
            (_matcher(path), by_method) for path, by_method in by_path.items()
        ]
        self.endpoints = [(_matcher(endpoint.path), endpoint) for endpoint in endpoints]
        self._programs = _ALSO_FOR_PROGRAMS | {path for path in by_path if path.endswith(_DATA_FORMS)}
        self._programs -= _FOR_BROWSERS

    def is_known(self, path: str) -> bool:
        """Return True if there is a page or an endpoint at `path`, for any method."""
        return any(match(path) for match, _ in (*self.pages, *self.endpoints))

    def is_for_programs(self, path: str) -> bool:
        """Return True if clients of `path` are programs, which cannot use a login page."""
        is_of_sensor = path.startswith("/nodes/") and path.count("/") == 3 and path.endswith((".json", ".csv"))
        return path.startswith("/api/") or path in self._programs or is_of_sensor

    def find_endpoint(self, request: Request) -> Endpoint | None:
        """Return the endpoint for `request`, or None. Also set `request.args` to the variable parts of its path."""
        for match, endpoint in self.endpoints:
            found = match(request.path) if request.method == endpoint.method else None
            if found and endpoint.claims(request):
                request.args = found.groups()
                return endpoint
        return None

    def find_page(self, request: Request) -> tuple[Route, Sequence[str]]:
        """Return the route of `request` and the variable parts of its path. Raises HTTPError 404 or 405."""
        methods: Mapping[str, Route] = {}
        args: Sequence[str] = ()
        for match, routes in self.pages:
            found = match(request.path)
            if found:
                methods, args = routes, found.groups()
                break
        method = "GET" if request.method == "HEAD" else request.method
        if method in methods:
            return methods[method], args
        allowed = [*methods, *(["HEAD"] if "GET" in methods else [])]
        allowed += [endpoint.method for match, endpoint in self.endpoints if match(request.path)]
        allowed = list(dict.fromkeys(allowed))  # an address may be both a page and an endpoint
        if not allowed:
            may_lack_prefix = request.proxy and not request.prefix  # the proxy may have removed it
            raise HTTPError(404, f"There is no page at this address.{PREFIX_HINT if may_lack_prefix else ''}")
        raise HTTPError(405, f"This address accepts only {', '.join(allowed)}.", headers={"Allow": ", ".join(allowed)})


def _matcher(path: str) -> Match:
    """Return the function that matches a path with `path`, in which NAME and WORD are variable parts."""
    exact = re.escape(path).replace("NAME", r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})")
    return re.compile(exact.replace("WORD", r"([A-Za-z0-9._-]{1,200})")).fullmatch
