"""What a page is given: the server's parts, and one request.

Runs on: server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.http.message import Request, Response
from pigeonpost.views.models import StatusSnapshot

if TYPE_CHECKING:
    from csvbuffer import CsvLog
    from pigeonpost.auth.users import Users
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.disk_usage import DiskUsageMonitor
    from pigeonpost.server.ingest import Ingestor
    from pigeonpost.server.quality import QualityChecks
    from pigeonpost.storage.contract import Store
    from pigeonpost.transports.contract import Transport
    from pigeonpost.transports.tcp_server import TcpServerTransport


class WebContext(NamedTuple):
    """The server's parts, as they are handed to the pages. Nothing is fetched from anywhere else.

    name      this server's name
    data      the folder of its data
    links     one for each node it collects from: `state` (session_server.NodeState) to read, `ask` to send
    users     who may come in; without any, only this machine
    control   the key by which control.py on this machine is known (Authorization: Bearer ...)
    names     by which browsers may call this server, beside the usual ones
    stop      asks the program to end; the reason is logged
    disk      how full the disk is
    roads     the server's end of each open road beside TCP, by its name: `report` tells how it is
    verdicts  what is odd about the values; None: nobody judges
    """

    name: str
    data: str
    clock: Clock
    store: Store
    csv: CsvLog
    ingestor: Ingestor
    links: Sequence[TcpServerTransport]
    users: Users
    control: str
    started_ms: int
    names: Sequence[str]
    stop: Callable[[str], object]
    disk: DiskUsageMonitor
    transports: Mapping[str, Transport] = MappingProxyType({})
    quality: QualityChecks | None = None


class RequestContext(NamedTuple):
    """One request to one page, let in.

    args     what the route's pattern found in the path
    picture  how things are now
    role     "look" or "control"
    user     who is there, for people
    csrf     what forms carry; empty where none is needed
    """

    app: WebContext
    request: Request
    args: Sequence[str]
    snapshot: Callable[[], StatusSnapshot]
    role: str = "control"
    user: str = ""
    csrf: str = ""


class Route(NamedTuple):
    """One address.

    path     NAME in it stands for a node's name, WORD for letters, digits, dots, _ and -
    role     who may: "look", "control", or nobody in particular ("")
    answer   makes the answer
    kept     the answer is the same for the same visitor as long as the picture is
    changes  the picture is another one afterwards
    """

    method: str
    path: str
    role: str
    answer: Callable[[RequestContext], Response]
    kept: bool = False
    changes: bool = False


TABLE_FORMS = ("", ".json", ".csv")  # endings of the addresses of a page that is one table
