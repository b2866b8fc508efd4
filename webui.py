"""The web page and the JSON API: table of routes, dispatch, access control of every request, error pages.

A PageHandler belongs to the thread of its connection. The event stream has its own thread. `_lock` guards the cache of
complete pages.
Errors: SettingsError if an address cannot be bound; HTTPError for invalid requests, shown as an error page.
"""

from __future__ import annotations

import importlib.resources
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pigeonpost.core.addresses import join_address
from pigeonpost.core.data_folder import EVENTS, LATE_RANGES
from pigeonpost.core.errors import PigeonpostError, SettingsError
from pigeonpost.http.credentials import may_use_any_name
from pigeonpost.http.message import BODY_BYTES, JSON, BodyConsumer, Endpoint, HTTPError, Request, Response, form_of
from pigeonpost.server.calibrations import announcement
from pigeonpost.server.event_log import EventLog
from pigeonpost.server.recent_cache import RecentCache
from pigeonpost.views import (
    about,
    alerts_page,
    api,
    csv_logs,
    dashboard,
    exit_page,
    gaps_and_events,
    help_page,
    integrations_page,
    login,
    metrics,
    node,
    node_actions,
    operators,
    preferences_page,
    service_discovery,
)
from pigeonpost.views.annotations import Annotations
from pigeonpost.views.chart import Charts
from pigeonpost.views.chart_page import ChartPage
from pigeonpost.views.context import TABLE_FORMS, RequestContext, Route, WebContext
from pigeonpost.views.excel import converted, is_wanted
from pigeonpost.views.html import see_other
from pigeonpost.views.models import StatusSnapshot
from pigeonpost.views.preferences import PreferenceStore
from pigeonpost.views.readings_api import ReadingsApi
from pigeonpost.views.routing import RouteTable
from pigeonpost.views.saved_charts import SavedCharts
from pigeonpost.views.sensor import SensorPages
from pigeonpost.views.snapshot import SnapshotBuilder
from pigeonpost.views.sse import EventStream
from pigeonpost.views.statistics import StatisticsReader
from pigeonpost.web.access import LOCAL, NOBODY, AccessControl, Principal
from pigeonpost.web.connection_limits import Connections, Limits
from pigeonpost.web.host_names import HostNames
from pigeonpost.web.http_server import RequestHandler
from pigeonpost.web.listener import Listener
from pigeonpost.web.prefix import with_prefix
from pigeonpost.web.proxies import Proxies

if TYPE_CHECKING:
    from pigeonpost.web.tls import Tls

_PASSWORD_BYTES = 16 << 10  # maximum size of the login form: the longest password, with each byte as %XX
_KEPT_PAGES = 64
_POLL_S = 0.2  # interval at which a listener checks whether it must stop


class PageHandler(RequestHandler):
    """Handler of the requests of one connection. Each request goes to an endpoint of a transport, or to a page."""

    def __init__(self, web: WebInterface, request: Any, client_address: Any, server: Listener) -> None:
        self.web = web
        super().__init__(request, client_address, server)  # serves the connection

    def parse_request(self) -> bool:
        """Read the request head, and apply the headers of a trusted proxy. Return False if the head is not valid."""
        is_read = super().parse_request()
        if self.message is not None:
            self.web.proxies.read(self.message)
        return is_read

    def send(self, response: Response) -> None:
        """Send `response`. Behind a proxy with a path prefix, the prefix is added to its addresses."""
        super().send(with_prefix(response, self.message))

    def do_GET(self) -> None:
        """Respond to GET and HEAD."""
        self._dispatch(self._get)

    def do_POST(self) -> None:
        """Respond to POST, and refuse all other methods."""
        self._dispatch(self._post)

    do_HEAD = do_GET
    do_OTHER = do_POST  # refused with 405; if a route accepted it, it would be checked as a change

    def _dispatch(self, page: Callable[[Request], Response]) -> None:
        request = self.message
        assert request is not None
        request.endpoint = self.web.routes.find_endpoint(request)
        self.serve(self._to_endpoint if request.endpoint is not None else page)

    def _to_endpoint(self, request: Request) -> Response:
        assert request.endpoint is not None
        return request.consumer.finish() if request.consumer is not None else request.endpoint.answer(request)

    def _get(self, request: Request) -> Response:
        access = self.web.access
        self._check_host(request)
        route, args = self.web.routes.find_page(request)
        if request.path == "/" and request.method == "GET" and "key" in request.query:
            return self._sign_in_with_key(request, request.query["key"])
        visitor = access.authorize(request, route.role) if route.role else NOBODY
        return self.web.page(request, route, args, visitor)

    def _post(self, request: Request) -> Response:
        """Respond to a change, which must come from one of this server's pages or from a program with a token."""
        access = self.web.access
        self._check_host(request)
        route, args = self.web.routes.find_page(request)
        self.web.hosts.check_origin(request)
        visitor = access.authorize(request, route.role) if route.role else NOBODY
        if request.path.startswith("/api/"):
            access.check_program(request, visitor)
        elif route.role:
            access.check_csrf(request, visitor)
        return self.web.page(request, route, args, visitor)

    def _check_host(self, request: Request) -> None:
        # A browser that shows the error page of this check requests its style.
        is_style = request.path == "/style.css" and "text/css" in request.headers.get("accept", "")
        if not is_style and not may_use_any_name(request):
            self.web.hosts.check_host(request)

    def _sign_in_with_key(self, request: Request, key: str) -> Response:
        session = self.web.access.open_with_key(request, key)
        if session is None:
            raise self.web.access.wrong_key()
        return see_other("/", self.web.access.cookie(request, session))

    def max_body_bytes(self, request: Request) -> int:
        if request.endpoint is not None:
            return request.endpoint.body_bytes
        return _PASSWORD_BYTES if request.path == "/login" else BODY_BYTES

    def body_consumer(self, request: Request, length: int) -> BodyConsumer | None:
        endpoint = request.endpoint
        return endpoint.receive(request, length) if endpoint is not None and endpoint.receive else None

    def takes_encoded(self, request: Request) -> bool:
        return request.endpoint is not None and request.endpoint.takes_encoded

    def error_page(self, request: Request | None, error: HTTPError) -> Response:
        """Return the response to `request` for `error`. A browser that must sign in is redirected to the login page."""
        if request is not None and request.endpoint is not None and request.endpoint.refusal is not None:
            return request.endpoint.refusal(error)
        if request is not None and exit_page.is_reloaded(request, error):
            return see_other("/")
        if (
            request is not None
            and error.code in ("log-in", "session-over")
            and not self.web.routes.is_for_programs(request.path)
        ):
            return see_other("/login", self.web.access.cookie(request, None) if error.code == "session-over" else {})
        return login.refusal_page(request, error)


class WebInterface:
    """The web server, with all parts that its handlers share. It is a component of server.py."""

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        app: WebContext,
        limits: Limits | None = None,
        endpoints: Sequence[Endpoint] = (),
        tls: Tls | None = None,
        plain: Sequence[tuple[str, int]] = (),
        pages: Sequence[Route] = (),
    ) -> None:
        """Create a web server that does not listen yet.

        Args:
            addresses: (host, port) of each address; port 0 selects a free one.
            app: The parts of the server that pages use.
            limits: Limits of connections; None for the default ones.
            endpoints: Endpoints of the transports, to which programs send readings.
            tls: Certificate and key for `addresses`, or None for plain HTTP.
            plain: Further addresses, always with plain HTTP.
            pages: Further routes: those of the older systems.
        """
        self._bindings = [(address, tls) for address in addresses] + [(address, None) for address in plain]
        self._app = app
        self.hosts = HostNames(app.names, app.names_origin, app.clock)
        self._limits = limits or Limits()
        self._connections = Connections(self._limits)
        self._recent_cache = RecentCache(app.store)
        self._snapshots = SnapshotBuilder(app, self._recent_cache.day)
        self._live = EventStream(app)
        self._charts = Charts(app.clock, app.links, os.path.join(app.data, LATE_RANGES))
        self._statistics = StatisticsReader(app.store, app.clock)
        self._chart_page = ChartPage(self._charts, self._statistics)
        self._sensors = SensorPages(self._statistics, self._chart_page.part)
        self._graphs = SavedCharts(app.data)
        self._preferences = PreferenceStore(app.data, app.faults)
        path = os.path.join(app.data, EVENTS)
        self._event_log = EventLog(app.links, self._faults, app.clock, path, [self._charts.late.save])
        self._annotations = Annotations(app, self._event_log)
        self._listeners: list[Listener] = []
        self._threads: list[threading.Thread] = []
        self.access: AccessControl
        self._lock = threading.Lock()
        self._kept: dict[object, Response] = {}
        self._kept_of: StatusSnapshot | None = None
        self.routes = RouteTable([*self._table(), *pages], endpoints)
        self.proxies = Proxies(app.proxies, app.prefix, self.routes.is_known)

    def _table(self) -> list[Route]:
        """Return all routes. In their paths, NAME is the name of a node, and WORD any other name."""
        happenings = gaps_and_events.happenings(self._event_log, self._annotations.happenings)
        return [
            *dashboard.ROUTES,
            Route("GET", "/nodes/NAME", "viewer", node.node_page, kept=True),
            Route("POST", "/nodes/NAME/on", "operator", node_actions.switch_on, changes=True),
            Route("POST", "/nodes/NAME/off", "operator", node_actions.switch_off, changes=True),
            Route("POST", "/nodes/NAME/status", "operator", node_actions.ask_status, changes=True),
            Route("GET", "/log", "viewer", csv_logs.log_check),
            Route("GET", "/log.csv", "viewer", csv_logs.log_download),
            *(Route("GET", f"/logs{form}", "viewer", csv_logs.logs) for form in TABLE_FORMS),
            Route("GET", "/logs/WORD", "viewer", csv_logs.one_log),
            Route("GET", "/nodes/NAME/WORD", "viewer", self._sensors.answer),
            Route("GET", "/chart", "viewer", self._chart_page.answer),
            Route("GET", "/chart.svg", "viewer", self._charts.answer),
            Route("GET", "/chart.json", "viewer", self._charts.as_json),
            Route("GET", "/chart.csv", "viewer", self._charts.as_csv),
            Route("GET", "/graphs", "viewer", self._graphs.shown),
            Route("POST", "/graphs", "viewer", self._graphs.save),
            Route("GET", "/graphs.json", "viewer", self._graphs.as_json),
            Route("GET", "/graphs/WORD", "viewer", self._graphs.opened),
            Route("POST", "/graphs/WORD/rename", "viewer", self._graphs.rename),
            Route("POST", "/graphs/WORD/delete", "viewer", self._graphs.delete),
            Route("POST", "/graphs/WORD/share", "viewer", self._graphs.share),
            Route("POST", "/graphs/WORD/unshare", "viewer", self._graphs.unshare),
            *(Route("GET", f"/gaps{form}", "viewer", gaps_and_events.gaps) for form in TABLE_FORMS),
            *(Route("GET", f"/happenings{form}", "viewer", happenings) for form in TABLE_FORMS),
            Route("GET", "/about", "viewer", about.about),
            Route("GET", "/about.json", "viewer", about.about),
            Route("GET", "/password", "viewer", login.password_page),
            Route("POST", "/password", "viewer", self._change_password),
            Route("GET", "/events", "viewer", self._listen),
            *preferences_page.ROUTES,
            *help_page.ROUTES,
            *integrations_page.ROUTES,
            *exit_page.ROUTES,
            Route("GET", "/login", "", login.login_page),
            Route("POST", "/login", "", self._log_in),
            Route("POST", "/logout", "viewer", self._log_out),
            *self._api_table(),
            Route("GET", "/style.css", "", _file("style.css", "text/css; charset=utf-8")),
            Route("GET", "/script.js", "", _file("script.js", "text/javascript; charset=utf-8")),
            Route("GET", "/zoom.js", "", _file("zoom.js", "text/javascript; charset=utf-8")),
            Route("GET", "/favicon.svg", "", _file("favicon.svg", "image/svg+xml")),
        ]

    def _api_table(self) -> list[Route]:
        """Return the routes for programs."""
        return [
            Route("GET", "/api/v1/nodes", "viewer", api.nodes),
            Route("GET", "/api/v1/nodes/NAME", "viewer", api.one_node),
            Route("POST", "/api/v1/nodes/NAME/send", "operator", node_actions.send, changes=True),
            Route("POST", "/api/v1/nodes/NAME/check", "operator", node_actions.check, changes=True),
            *self._annotations.routes(),
            Route("GET", "/api/v1/http_sd", "viewer", service_discovery.targets),
            *operators.routes(self._event_log),
            *alerts_page.routes(self._event_log),
            Route("GET", "/api/v1/samples", "viewer", api.samples),
            Route("GET", "/api/v1/readings", "viewer", ReadingsApi().answer),
            Route("GET", "/api/v1/statistics", "viewer", api.statistics),
            Route("GET", "/api/v1/health", "viewer", api.health),
            Route("GET", "/metrics", "viewer", lambda context: metrics.metrics(context, self._counts)),
            Route("GET", "/healthz", "", api.alive),
            Route("GET", "/api/v1/openapi.json", "viewer", _file("openapi.json", JSON)),
        ]

    # ---------------------------------------------------------------------------------------------- start and stop

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """(host, port) of each address on which the server listens."""
        return [(str(one.server_address[0]), int(one.server_address[1])) for one in self._listeners]

    @property
    def urls(self) -> list[tuple[str, str, int]]:
        """Scheme (`http` or `https`), host and port of each address on which the server listens."""
        schemes = ["https" if tls else "http" for _, tls in self._bindings]
        return [(scheme, *address) for scheme, address in zip(schemes, self.addresses)]

    @property
    def first_key(self) -> str:
        """The one-time key, which is printed with the address of the page; empty if a password was set at the start."""
        return self.access.first_key

    def start(self) -> None:
        """Start listening. Raises SettingsError if an address cannot be bound."""
        handler = partial(PageHandler, self)
        for (host, port), tls in self._bindings:
            try:
                self._listeners.append(Listener((host, port), handler, self._connections, self._limits, tls))
            except OSError as error:
                for listener in self._listeners:
                    listener.server_close()
                where = join_address(host, port)
                raise SettingsError(
                    f"cannot listen on {where} for the web page: {error.strerror or error}. Choose another address with"
                    " --web HOST:PORT, or stop the program that uses it, for example the service pigeonpost-server"
                ) from error
        app = self._app
        self.access = AccessControl(
            app.users, app.control, app.clock, self.addresses[0][1], app.throttle, app.api_tokens, app.data
        )
        for part in (self._recent_cache, self._snapshots, self._charts.late, self._live, self._event_log):
            app.ingestor.subscribe(part.on_commit)
        for renamed in (self._recent_cache, self._charts.late, self._event_log, self._annotations.notes):
            app.ingestor.names.on_rename.append(renamed.on_rename)
        if app.calibrations is not None:
            app.calibrations.on_change += [
                self._recent_cache.forget, self._charts.forget, self._statistics.forget,
                lambda node: self._live.on_commit(announcement(node)),
            ]  # fmt: skip
        self._live.start()
        self._event_log.start()
        for listener in self._listeners:
            thread = threading.Thread(target=listener.serve_forever, args=(_POLL_S,), name="page", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, limit_s: float) -> str | None:
        """Stop accepting connections, and let the requests in progress finish within `limit_s` seconds.

        Return a message if requests were still in progress after that, otherwise None.
        """
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()
        self._event_log.stop(limit_s)
        self._live.stop(limit_s)
        self._app.api_tokens.stop(limit_s)
        return self._connections.stop(limit_s)

    def _faults(self) -> dict[str, str]:
        """Return the current fault of each component, or an empty string if it has none. The event log calls this."""
        app = self._app
        transports = {name: integrations_page.read_fault(name, part) for name, part in app.transports.items()}
        return {"store": app.ingestor.fault or "", "log": app.csv.fault or "", **transports, **app.faults.present()}

    def _counts(self) -> Mapping[str, Any]:
        """Return the counts of the connections, and the number of open event streams."""
        return {**self._connections.counts(), "streams": self._live.clients}

    # --------------------------------------------------------------------------------------------------- requests

    def page(self, request: Request, route: Route, args: Sequence[str], visitor: Principal) -> Response:
        """Return the response of a route.

        Args:
            request: The request, already authorised.
            route: Its route.
            args: Values of the variable parts of the path.
            visitor: The client.

        Raises:
            HTTPError: The request is invalid.
        """
        if route.path.startswith(("/nodes/NAME", "/api/v1/nodes/NAME")) and not route.path.endswith("/rename"):
            args = (self._app.ingestor.names.current(args[0]), *args[1:])
        context = RequestContext(
            self._app, request, args, self._snapshots.snapshot, visitor.role, visitor.name, visitor.csrf,
            visitor is LOCAL, self._preferences,
        )  # fmt: skip
        if route.kept:
            return self._kept_page(context, route)
        try:
            answer = route.answer(context)
            return converted(request, answer, self._app.data) if is_wanted(request, answer) else answer
        finally:
            if route.changes:
                self._snapshots.invalidate()

    def _kept_page(self, context: RequestContext, route: Route) -> Response:
        """Return the page, from the cache if the same client has requested it since the last change of the snapshot."""
        request, snapshot = context.request, context.snapshot()
        key = request.path, request.query_text, request.wants_html, request.site, context[4:]
        with self._lock:
            if self._kept_of is not snapshot:  # an old snapshot is large and is never used again
                self._kept_of, self._kept = snapshot, {}
            kept = self._kept.get(key)
        if kept is not None:
            return kept
        answer = route.answer(context)
        with self._lock:
            if self._kept_of is snapshot and len(self._kept) < _KEPT_PAGES:
                self._kept[key] = answer
        return answer

    # ------------------------------------------------------------------------------------------- login and logout

    def _log_in(self, context: RequestContext) -> Response:
        if self._app.users.are_none():  # no password is correct, so this does not count as an attempt
            return login.login_page(context, status=403)
        fields = form_of(context.request)
        session = self.access.log_in(context.request, fields.get("user", ""), fields.get("password", ""))
        if session is None:
            return login.login_page(context, "Wrong user name or password.", 403)
        return see_other("/", self.access.cookie(context.request, session))

    def _change_password(self, context: RequestContext) -> Response:
        fields = form_of(context.request)
        if fields.get("new", "") != fields.get("again", ""):
            return login.password_page(context, "The two new passwords are not the same.", 400)
        try:
            session = self.access.change_password(context.request, fields.get("old", ""), fields.get("new", ""))
        except SettingsError as error:
            return login.password_page(context, f"{str(error)[:1].upper()}{str(error)[1:]}.", 400)
        if session is None:
            return login.password_page(context, "The old password is wrong.", 403)
        answer = login.password_changed(context)
        return answer._replace(headers={**answer.headers, **self.access.cookie(context.request, session)})

    def _log_out(self, context: RequestContext) -> Response:
        self.access.log_out(context.request)
        return see_other("/login" if self.access.has_password else "/", self.access.cookie(context.request, None))

    def _listen(self, context: RequestContext) -> Response:
        def is_signed_in() -> bool:
            try:
                return self.access.find(context.request) is not None
            except PigeonpostError:  # the file of users or tokens cannot be read, so access is denied
                return False

        return self._live.answer(context, is_signed_in)


def _file(name: str, kind: str) -> Callable[[RequestContext], Response]:
    """Return a function that responds with a file of pigeonpost/views/static/. The file is read only once, now."""
    content = importlib.resources.files("pigeonpost.views").joinpath("static", name).read_bytes()
    answer = Response(content, kind, headers={"Cache-Control": "max-age=300"})
    return lambda context: answer
