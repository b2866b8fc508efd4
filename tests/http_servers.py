"""Web servers with the responses that a test chooses, for tests of HTTP clients; and certificates."""

import contextlib
import http.server
import json
import shutil
import socket
import tempfile
import threading

from tests.support import LIMIT_S
from tests.web.test_tls import make_certificate


def unanswering_ports(test):
    """Return (scheme, port) of servers with which a connection is never complete: one for http and one for https."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)  # it drops the first packet of further connections
    silent = socket.create_server(("127.0.0.1", 0))  # it never answers the TLS handshake
    for listener in (full, silent):
        test.addCleanup(listener.close)
    for _ in range(4):
        waiting = socket.socket()
        test.addCleanup(waiting.close)
        waiting.setblocking(False)
        waiting.connect_ex(full.getsockname())
    return ("http", full.getsockname()[1]), ("https", silent.getsockname()[1])


class Server:
    """A web server on its own port. `answers` maps paths to responses, as JSON or (status, headers, bytes)."""

    def __init__(self, test, tls=None):
        self.answers = {}
        self.asked = []  # (method, path with query, headers, body)
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.asked.append((self.command, self.path, self.headers, body))
                answer = server.answers.get(self.path.partition("?")[0], (404, {}, b"not here"))
                answer = answer() if callable(answer) else answer
                status, headers, data = answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":  # a body would be read as the beginning of the next answer
                    self.wfile.write(data)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # who was sent too much does not read on
        if tls:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.http.server_address[1]}"
        thread = threading.Thread(target=self.http.serve_forever, args=(0.002,), daemon=True)
        thread.start()

        def stop():
            self.http.shutdown()
            self.http.server_close()
            thread.join(LIMIT_S)

        test.addCleanup(stop)


def raw_server(test, talk):
    """Return the address of a server that calls `talk(socket)` after a request, for unusual responses."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted = []

    def run():
        try:
            while True:
                sock, _ = listener.accept()
                accepted.append(sock)
                with sock:
                    sock.settimeout(LIMIT_S)
                    sock.recv(65_536)
                    talk(sock)
        except OSError:
            pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def stop():
        for sock in (listener, *accepted):  # shutdown(2) wakes a thread that accepts or receives, close(2) does not
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(LIMIT_S)

    test.addCleanup(stop)
    return f"http://127.0.0.1:{listener.getsockname()[1]}/"


def says(head, body=b""):
    return lambda sock: sock.sendall(b"HTTP/1.1 " + head + b"\r\n\r\n" + body)


def certificates(test_class, *names):
    """Return the paths of a new certificate and its key for each name.

    They are removed after the tests of the class.
    """
    folder = tempfile.mkdtemp(prefix="pigeonpost-test-")
    test_class.addClassCleanup(shutil.rmtree, folder)
    return [make_certificate(folder, name) for name in names]
