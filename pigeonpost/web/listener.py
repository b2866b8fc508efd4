"""Listening socket of the HTTP server for one address, opened here or by systemd.

Threads: one for each listening address, which the owner runs (`serve_forever`); one for each connection.
Errors: OSError when the address cannot be bound. A connection is not served if there is no free file descriptor or
thread for it.
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
    """Server that accepts connections on one address and runs a RequestHandler in a new thread for each.

    Args:
        address: Address as `(host, port)`.
        handler: Factory of the RequestHandler.
        connections: Open connections of all listeners.
        limits: Limits on time and number.
        tls: Certificate for HTTPS, or None for plain HTTP.

    Raises:
        OSError: The address cannot be bound.
    """

    block_on_close = False  # Connections.stop waits instead, with a time limit
    request_queue_size = 256

    def __init__(
        self,
        address: tuple[str, int],
        handler: Callable[[Any, Any, Listener], socketserver.BaseRequestHandler],
        connections: Connections,
        limits: Limits,
        tls: Tls | None = None,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.connections = connections
        self.limits = limits
        self.tls = tls
        self.rare_log = RareLog(log, Clock())
        self.date = (0, "")  # time in seconds and text of the latest Date header
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind the socket, or use the one that systemd has passed.

        Unlike HTTPServer, this does not look up the host name, which can take a minute when no DNS server answers.
        """
        passed = passed_socket((str(self.server_address[0]), int(self.server_address[1])))
        if passed is None:
            socketserver.TCPServer.server_bind(self)
        else:
            self.socket.close()
            self.socket = passed
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection and return its socket and address. Pause if there is no free file descriptor.

        Without the pause, the library would retry in an endless loop.
        """
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in SHORTAGE:
                self._pause(error)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection, or close the connection if the thread cannot be started.

        Args:
            request: Socket of the connection.
            client_address: Address of the client.
        """
        try:
            super().process_request(request, client_address)
        except (RuntimeError, MemoryError) as error:  # threading raises RuntimeError
            self.shutdown_request(request)
            self._pause(error)

    def _pause(self, error: Exception) -> None:
        self.rare_log.log(logging.ERROR, "shortage", f"a connection to the web server was not accepted: {error}")
        time.sleep(PAUSE_S)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an exception of the connection `request` of the client `client_address`."""
        log.exception("%s: internal error", client_address[0])
