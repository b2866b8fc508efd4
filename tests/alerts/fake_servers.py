"""Mail server and web server for tests, in threads, and an AlertQueue in memory."""

import contextlib
import http.server
import json
import socketserver
import threading

from pigeonpost.alerts.contract import QueuedMessage


class MailServer(socketserver.StreamRequestHandler):
    """Minimal mail server.

    The lines that it receives are in `server.received`, and the complete mails in `server.mails`, as (recipient, text).
    `server.responses` has responses that differ from the usual ones, by the beginning of the command; "." is the
    response after the text of a mail, and "" the greeting. An empty response closes the connection.
    """

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a client that gives up closes the connection
            self.converse()

    def converse(self):
        self.server.connections = getattr(self.server, "connections", 0) + 1
        if not self.answer("", b"220 mail"):
            return
        data, text, to = False, [], ""
        for raw in self.rfile:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            self.server.received.append(line)
            word = line[:4].upper()
            if data and line != ".":
                text.append(line)
                continue
            if data:
                data = False
                if not self.answer(".", b"250 taken"):
                    return
                if self.response(".", b"250").startswith(b"2"):
                    self.server.mails.append((to, "\n".join(text)))
                text = []
            elif word == "DATA":
                data = self.response("DATA", b"354").startswith(b"354")
                if not self.answer("DATA", b"354 go on"):
                    return
            else:
                to = line.partition("<")[2].partition(">")[0] if word == "RCPT" else to
                if not self.answer(line, b"221 bye" if word == "QUIT" else b"250 fine") or word == "QUIT":
                    return

    def response(self, command, usual):
        found = [answer for start, answer in self.server.responses.items() if self.matches(start, command)]
        return found[0] if found else usual

    @staticmethod
    def matches(start, command):
        return command.lower().startswith(start.lower()) if start else not command

    def answer(self, command, usual):
        response = self.response(command, usual)
        if response:
            self.wfile.write(response + b"\r\n")
        return bool(response)


class Hook(http.server.BaseHTTPRequestHandler):
    """Webhook that answers with `server.status` and the headers in `server.head`; requests are in `server.received`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.server.keys = [*getattr(self.server, "keys", []), self.headers["Idempotency-Key"]]
        self.send_response(self.server.status)
        for name, value in getattr(self.server, "head", {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def serve(test, handler, port=0, **info):
    """Start a server on `port` (0: a free one) until the end of `test`. Return it and its port."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", port), handler)
    server.daemon_threads, server.received = True, []
    for name, value in info.items():
        setattr(server, name, value)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    test.addCleanup(server.server_close)
    test.addCleanup(server.shutdown)
    return server, server.server_address[1]


def serve_mail(test, **responses):
    """Start a MailServer. Return it and its port."""
    return serve(test, MailServer, responses=dict(responses), mails=[])


class MemoryQueue:
    """An AlertQueue in memory. A new Notifier with the same queue is a restart."""

    fault = ""

    def __init__(self, clock, *channels):
        self.clock, self.queues, self.notes, self.last = clock, {channel: {} for channel in channels}, {}, 0

    def put(self, messages, channels=None):
        for message in messages:
            for channel in self.queues if channels is None else channels:
                self.last += 1
                if message.id not in [one.message.id for one in self.queues[channel].values() if message.id]:
                    message = message if message.id else message._replace(id=f"m-{self.last}")
                    self.queues[channel][self.last] = QueuedMessage(self.last, self.clock.wall_ms(), message)

    def waiting(self, channel):
        return list(self.queues.get(channel, {}).values())

    def remove(self, channel, number):
        self.queues[channel].pop(number, None)

    def note(self, key, value):
        self.notes[key] = value

    def noted(self, key):
        return self.notes.get(key, "")
