"""The smallest server that receives pushes, as upper bound for bench.push (`python3 -m bench.push floor100`).

An http.server handler that parses the JSON of a body and responds. With `commit` it first stores the body as text, in
one transaction with all bodies waiting at that time. It validates nothing, knows no nodes and writes no log.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ANSWER = b'{"ack":1234}\n'


class Writer:
    """A thread that stores texts; `_changed` guards the waiting texts."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._waiting: list[tuple[bytes, threading.Lock]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def store(self, text: bytes) -> None:
        """Return once `text` is durable."""
        stored = threading.Lock()
        stored.acquire()
        with self._changed:
            self._waiting.append((text, stored))
            self._changed.notify()
        stored.acquire()

    def _run(self) -> None:
        db = sqlite3.connect(self._path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE bodies (text BLOB)")
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                batch, self._waiting = self._waiting, []
            db.execute("BEGIN")
            db.executemany("INSERT INTO bodies VALUES (?)", [(text,) for text, _ in batch])
            db.execute("COMMIT")
            for _, stored in batch:
                stored.release()


class Handler(BaseHTTPRequestHandler):
    """Parses each body, stores it if the server has a Writer, and responds."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 << 10
    writer: Writer | None = None

    def do_POST(self) -> None:
        """Respond to a push."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        json.loads(body)
        if self.writer is not None:
            self.writer.store(body)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(_ANSWER)))
        self.end_headers()
        self.wfile.write(_ANSWER)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing; `format` and `args` are those of http.server."""


def main() -> None:
    """Serve until the process is ended."""
    folder, *more = sys.argv[1:]
    if more == ["commit"]:
        Handler.writer = Writer(os.path.join(folder, "bodies.sqlite3"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
