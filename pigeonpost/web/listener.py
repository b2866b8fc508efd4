"""Listening socket of the HTTP server: one address, opened here or by systemd, and a thread for each connection.

Threads: one for each listening address, which the owner runs (`serve_forever`); one for each connection.
Errors: OSError when the address cannot be bound; a connection for which there is no descriptor or thread is not served.
"""

from __future__ import annotations

import http.server
import logging
import socket
import socketserver
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import Clock
from pigeonpost.core.rare_log import RareLog
from pigeonpost.core.shortage import PAUSE_S, SHORTAGE
from pigeonpost.web.connection_limits import Connections, Limits
from pigeonpost.web.socket_activation import passed_socket

if TYPE_CHECKING:
    from pigeonpost.web.tls import Tls

log = logging.getLogger(__name__)


class Listener(http.server.ThreadingHTTPServer):
    """Accepts connections on one address and runs a RequestHandler in a new thread for each."""

    block_on_close = False  # Connections.stop waits, with a limit
    request_queue_size = 256

    def __init__(
        self,
        address: tuple[str, int],
        handler: Callable[[Any, Any, Listener], socketserver.BaseRequestHandler],
        connections: Connections,
        limits: Limits,
        tls: Tls | None = None,
    ) -> None:
        """Raises OSError when the address cannot be bound. tls: None for plain HTTP."""
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.connections = connections
        self.limits = limits
        self.tls = tls
        self.rare_log = RareLog(log, Clock())
        self.date = (0, "")  # the Date header of the last response, with the second in which it was made
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's lookup of the host's name, which can take a minute where no DNS server answers."""
        passed = passed_socket((str(self.server_address[0]), int(self.server_address[1])))
        if passed is None:
            socketserver.TCPServer.server_bind(self)
        else:
            self.socket.close()
            self.socket = passed
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Without a descriptor for it the library would try again at once, for ever."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in SHORTAGE:
                self._wait_for_room(error)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection, which is closed where that cannot be done."""
        try:
            super().process_request(request, client_address)
        except (RuntimeError, MemoryError) as error:  # threading raises RuntimeError
            self.shutdown_request(request)
            self._wait_for_room(error)

    def _wait_for_room(self, error: Exception) -> None:
        self.rare_log.say(logging.ERROR, "no room", f"a connection to the page is not accepted: {error}")
        time.sleep(PAUSE_S)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("%s: internal error", client_address[0])
