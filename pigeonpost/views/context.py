"""Input of pages: the parts of the server (WebContext), one request (RequestContext), and the type of a route.

Every request has its own thread. All of them may use the parts in a WebContext.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.http.message import Request, Response
from pigeonpost.views.models import StatusSnapshot
from pigeonpost.views.preferences import DEFAULTS, Preferences, PreferenceStore
from pigeonpost.web.host_names import NamesOrigin

if TYPE_CHECKING:
    from csvbuffer import CsvLog
    from pigeonpost.alerts.contract import AlertEngine
    from pigeonpost.alerts.notifier import Notifier
    from pigeonpost.alerts.rules import Rule
    from pigeonpost.auth.api_tokens import ApiTokens
    from pigeonpost.auth.throttle import LoginThrottle
    from pigeonpost.auth.users import Users
    from pigeonpost.core.clock import Clock
    from pigeonpost.core.faults import Faults
    from pigeonpost.server.calibrations import Calibrations
    from pigeonpost.server.damage_check import DamageCheck
    from pigeonpost.server.disk_usage import DiskUsageMonitor
    from pigeonpost.server.ingest import Ingestor
    from pigeonpost.server.node_admin import NodeAdmin
    from pigeonpost.server.node_status import NodeLink
    from pigeonpost.server.quality import QualityChecks
    from pigeonpost.storage.calibration import Timelines
    from pigeonpost.storage.contract import Store
    from pigeonpost.transports.contract import Transport


class WebContext(NamedTuple):
    """The parts of the server that pages use.

    Attributes:
        name: Name of this server.
        data: Path of the data folder.
        clock: Clock of the server.
        store: The store.
        csv: The CSV log of this run.
        ingestor: The ingestor.
        links: Links to the nodes from which it collects: `state` is the state of a node, `ask` sends a command to it.
        users: Users with a password. If there are none, only clients on this machine have access.
        api_tokens: Tokens of programs.
        control: Key of control.py on this machine (`Authorization: Bearer ...`).
        started_ms: Start of the program in ms since 1970.
        names: Host names that browsers may use for this server, in addition to those of this machine.
        stop: Function that requests the program to stop; its argument is the reason, for the log.
        disk: Monitor of the disk usage.
        faults: Current faults of this server.
        throttle: Counter of failed attempts with every kind of secret.
        transports: Transports other than TCP, and components such as the backup, by name.
        names_origin: Origin of `names` in the settings.
        proxies: Addresses and networks of trusted proxies on other machines.
        prefix: Path prefix of this server behind a proxy; empty if there is none, or the proxy sends it in a header.
        quality: Quality checks, or None.
        check: Check of the stored data for damage, or None.
        rules: Alert rules in the settings.
        calibrations: Calibrations of the sensors, which `store` and `ingestor` apply; None if there are none.
        alerts: Active alerts and all alert rules; None if no channel is set.
        admin: Component that renames, retires and relabels nodes; None if this is not allowed.
        notifier: Component that sends alerts and reports; None if there is no recipient.
        more: Further pages that the dashboard links to, each with its path and the text of the link.
    """

    name: str
    data: str
    clock: Clock
    store: Store
    csv: CsvLog
    ingestor: Ingestor
    links: Sequence[NodeLink]
    users: Users
    api_tokens: ApiTokens
    control: str
    started_ms: int
    names: Sequence[str]
    stop: Callable[[str], object]
    disk: DiskUsageMonitor
    faults: Faults
    throttle: LoginThrottle
    transports: Mapping[str, Transport] = MappingProxyType({})
    names_origin: NamesOrigin = NamesOrigin()
    proxies: Sequence[str] = ()
    prefix: str = ""
    quality: QualityChecks | None = None
    check: DamageCheck | None = None
    rules: Sequence[Rule] = ()
    alerts: AlertEngine | None = None
    admin: NodeAdmin | None = None
    calibrations: Calibrations | None = None
    notifier: Notifier | None = None
    more: Sequence[tuple[str, str]] = ()

    def timelines(self, node: str) -> Timelines:
        """Return the calibrated sensors of `node`."""
        return self.calibrations.of(node) if self.calibrations is not None else {}


class RequestContext(NamedTuple):
    """One authorised request to one page.

    Attributes:
        app: The parts of the server.
        request: The request.
        args: Variable parts of the path.
        snapshot: Function that returns the status snapshot.
        role: "viewer", "writer" (programs only) or "operator".
        user: Name of the client, as Principal.name.
        csrf: CSRF token for forms; empty if none is needed.
        needs_key: True if this client may only read until it presents the one-time key; buttons are shown disabled.
        store: Preferences of all users; None if all users have the defaults and cannot change them.
    """

    app: WebContext
    request: Request
    args: Sequence[str]
    snapshot: Callable[[], StatusSnapshot]
    role: str = "operator"
    user: str = ""
    csrf: str = ""
    needs_key: bool = False
    store: PreferenceStore | None = None

    @property
    def preferences(self) -> Preferences:
        """The preferences of the user of this request."""
        return self.store.of(self.user) if self.store is not None else DEFAULTS

    def save_preferences(self, change: Callable[[Preferences], Preferences]) -> None:
        """Apply `change` to the preferences of the user of this request, as PreferenceStore.save does.

        Raises HTTPError 503 if the disk does not accept the change.
        """
        if self.store is not None:
            self.store.save(self.user, change)


class Route(NamedTuple):
    """One address.

    Attributes:
        method: HTTP method.
        path: Path. NAME in it stands for a node's name, WORD for letters, digits, dots, _ and -.
        role: Required role: "viewer", "operator", or an empty string for a page without login.
        answer: Function that returns the response.
        kept: True if the response for a user changes only with the snapshot, so that it is cached.
        changes: True if the request may change what a snapshot contains, so that a new one must be made.
    """

    method: str
    path: str
    role: str
    answer: Callable[[RequestContext], Response]
    kept: bool = False
    changes: bool = False


TABLE_FORMS = ("", ".json", ".csv")  # endings of the addresses of a page that is one table
