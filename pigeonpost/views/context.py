"""What a page is given: the parts of the server (WebContext), and one request (RequestContext); the type of a route.

Every request has its thread; the parts in a WebContext may be used by all of them.
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
    from pigeonpost.alerts.rules import Rule
    from pigeonpost.auth.api_tokens import ApiTokens
    from pigeonpost.auth.throttle import LoginThrottle
    from pigeonpost.auth.users import Users
    from pigeonpost.core.clock import Clock
    from pigeonpost.core.faults import Faults
    from pigeonpost.server.damage_check import DamageCheck
    from pigeonpost.server.disk_usage import DiskUsageMonitor
    from pigeonpost.server.ingest import Ingestor
    from pigeonpost.server.node_admin import NodeAdmin
    from pigeonpost.server.node_status import NodeLink
    from pigeonpost.server.quality import QualityChecks
    from pigeonpost.storage.contract import Store
    from pigeonpost.transports.contract import Transport


class WebContext(NamedTuple):
    """The parts of the server that pages use. They get nothing from anywhere else.

    name        this server's name
    data        the folder of its data
    links       one for each node it collects from: `state` to read, `ask` to send
    users       who may sign in; without any, only this machine may
    api_tokens  the tokens of programs
    control     the key by which control.py on this machine is known (Authorization: Bearer ...)
    names       by which browsers may call this server, beside the usual ones; names_origin: where they are set
    proxies     addresses and networks of proxies on other machines that are trusted
    prefix      path below which a proxy has this server; empty: none, or the proxy tells
    stop        asks the program to end; the reason is logged
    disk        how full the disk is
    faults      what is wrong with this server
    throttle    counts failed attempts with every kind of secret
    transports  the server's transports beside TCP, by name: `report` returns their state
    quality     the quality checks; None: there are none
    check       the check of what is stored; None: there is none
    rules       the alert rules of the settings
    admin       renames, retires and relabels nodes; None: nobody may
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
    admin: NodeAdmin | None = None


class RequestContext(NamedTuple):
    """One authorized request to one page.

    args      what the route's pattern found in the path
    snapshot  returns the status snapshot
    role      "viewer", "writer" (programs only) or "operator"
    user      name of the user, for people
    csrf      what forms carry; empty where none is needed
    needs_key this client may read only, until it shows the one-time key: buttons are shown, disabled
    store     the preferences of all users; None: there are none, and none can be saved
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
        """Change the preferences of the user of this request, see PreferenceStore.save.

        Raises HTTPError 503 where the disk takes no change.
        """
        if self.store is not None:
            self.store.save(self.user, change)


class Route(NamedTuple):
    """One address.

    path     NAME in it stands for a node's name, WORD for letters, digits, dots, _ and -
    role     required role: "viewer", "operator", or none ("")
    answer   makes the answer
    kept     the answer is the same for the same user as long as the snapshot is
    changes  the snapshot changes with the request
    """

    method: str
    path: str
    role: str
    answer: Callable[[RequestContext], Response]
    kept: bool = False
    changes: bool = False


TABLE_FORMS = ("", ".json", ".csv")  # endings of the addresses of a page that is one table
