#!/usr/bin/env python3
r"""Send the readings of one sensor to a Pigeonpost server, without losing any while the server is away.

    client.py --server http://pi.local:8080 --node shed --sensor temperature --unit °C \
        --file /sys/bus/w1/devices/28-000005e2fdc3/temperature --scale 0.001 --every 10
    client.py --server http://pi.local:8080 --node shed --command "./read_sensor" --every 60
    client.py --server http://pi.local:8080 --node shed --sensor level --value 3.2
    tail -F meter.log | client.py --server http://pi.local:8080 --node shed --sensor power --stdin

This file needs Python 3.7 or later and nothing else. The token (`control.py api-token shed --role writer`, or the token
of the node) is read from --token-file or from the variable CLIENT_TOKEN.

Each reading is synced to the queue file before it is sent, and has an id, so that the server stores it once. A command
may print a number, or a JSON object like {"temperature": 21.5, "humidity": 40}. With --value the exit status is 0 if
the reading was stored, 1 if the server refused it, and 3 if it waits in the queue for the next call.
"""

import argparse
import collections
import contextlib
import fcntl
import hashlib
import http.client
import itertools
import json
import math
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

BATCH = 500  # readings in one request
KEPT_BYTES = 1 << 20  # the queue file is rewritten when it contains more bytes of sent readings
LONGEST_PAUSE_S = 60.0
TIMEOUT_S = 20.0
EARLIEST_S = 1_700_000_000  # an earlier time is that of a clock that is not set: the server then uses its own
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def say(text):
    """Print `text` to the log."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Queue:
    """Readings that are not stored yet, in an append-only file of lines: a reading as JSON, or `sent COUNT`.

    A reading is synced before `put` returns. Marks of sent readings are not synced: after a crash some readings are
    sent again, and the server recognises them. One process at a time may use the file.
    """

    def __init__(self, path, most):
        self.path, self.most = path, most
        self.lock = threading.Lock()  # guards everything below
        self.waiting = collections.deque()
        self.fd = _lock_file(path)
        _sync_folder(path)
        with open(path, "rb") as file:
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        os.ftruncate(self.fd, len(whole))  # without the torn line of a crash, whose reading was never accepted
        for line in whole.decode(errors="replace").split("\n")[:-1]:
            if line.startswith("{"):
                self.waiting.append(line)
            elif line.startswith("sent ") and line[5:].isdigit():
                for _ in range(min(int(line[5:]), len(self.waiting))):
                    self.waiting.popleft()
        self.sent_bytes = len(whole) - sum(map(len, self.waiting))

    def put(self, reading):
        """Make `reading` durable. The oldest ones are dropped if the queue is full."""
        line = json.dumps(reading)
        with self.lock:
            self._append(line)
            os.fsync(self.fd)
            self.waiting.append(line)
            surplus = len(self.waiting) - self.most
        if surplus > 0:
            say(f"the queue is full: {surplus} of the oldest readings dropped")
            self.remove(self.first(surplus))

    def first(self, count):
        """Return the `count` oldest readings, as lines."""
        with self.lock:
            return list(itertools.islice(self.waiting, count))

    def remove(self, lines):
        """Remove `lines`, which were the oldest ones. A full queue may have dropped some of them already."""
        with self.lock:
            while lines and self.waiting and self.waiting[0] != lines[0]:
                lines = lines[1:]
            for line in lines:
                self.waiting.popleft()
                self.sent_bytes += len(line)
            try:
                self._append(f"sent {len(lines)}")
                if self.sent_bytes > KEPT_BYTES:
                    self._rewrite()
            except OSError as error:  # without the mark, the readings are sent again after the next start
                say(f"cannot write the queue: {error}")

    def close(self):
        """Close the file. A sender that still runs then gets an error, and never the file that reuses the number."""
        with self.lock:
            os.close(self.fd)
            self.fd = -1

    def _append(self, line):
        """Append one line to the file, completely or not at all."""
        size = os.fstat(self.fd).st_size
        data = line.encode() + b"\n"
        if os.write(self.fd, data) < len(data):
            os.ftruncate(self.fd, size)
            raise OSError("the disk is full")

    def _rewrite(self):
        """Replace the file by one without the sent readings."""
        new = f"{self.path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        fd = _lock_file(new)
        with open(fd, "wb", closefd=False) as file:
            file.write("".join(f"{line}\n" for line in self.waiting).encode())
        os.fsync(fd)
        os.rename(new, self.path)
        _sync_folder(self.path)
        os.close(self.fd)
        self.fd, self.sent_bytes = fd, 0


def _lock_file(path):
    """Open and lock the file `path`, and return its descriptor. End the program if another one has locked it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"another client uses the queue {path}: choose another one with --queue")
    return fd


def _sync_folder(path):
    """Make the name of the file `path` durable."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


class Sender:
    """Posts the readings of the queue, the oldest first, until `stop` is set."""

    def __init__(self, options, queue, token):
        self.url, self.queue, self.token = urlsplit(options.server), queue, token
        self.fingerprint = re.sub("[^0-9a-f]", "", (options.fingerprint or "").lower())
        self.context = ssl.create_default_context(cafile=options.ca)
        if self.fingerprint:
            self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self.stop, self.more = threading.Event(), threading.Event()
        self.pause_s, self.most = 0.0, BATCH
        self.was_refused = False  # True if the server did not accept the last reading

    def run(self):
        """Send readings as they come. An unexpected exception sets `stop` too, so that the program ends."""
        try:
            while not self.stop.is_set():
                self.more.clear()
                if not self.send():
                    self.stop.wait(self.pause_s) if self.pause_s else self.more.wait()
        finally:
            self.stop.set()

    def send(self):
        """Send one batch. Return True if more can be sent now."""
        lines = self.queue.first(self.most)
        if not lines:
            return False
        try:
            status, answer, retry_s = self.post(f"[{','.join(lines)}]")
        except (OSError, http.client.HTTPException) as error:
            status, answer, retry_s = 0, getattr(error, "strerror", None) or str(error) or type(error).__name__, 0.0
        if status == 200:
            self.queue.remove(lines)
            self.pause_s, self.most, self.was_refused = 0.0, BATCH, False
            return True
        if status in (400, 413, 422) and len(lines) > 1:  # one of them is refused: find out which
            self.most = len(lines) // 2
            return True
        if status in (400, 413, 422):
            say(f"refused and dropped: {answer}: {lines[0]}")
            self.was_refused = True
            self.queue.remove(lines)
            self.pause_s = 0.0
            return True
        self.pause_s = max(retry_s, min(LONGEST_PAUSE_S, 2 * self.pause_s or 1.0))
        say(f"not sent, readings in the queue: {len(self.queue.waiting)}; {status or self.url.hostname}: {answer}")
        return False

    def post(self, body):
        """Post `body`, and return the status, the text of the answer and its Retry-After in seconds."""
        connection = self._connection()
        try:
            headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
            connection.request("POST", self.url.path.rstrip("/") + "/api/v1/readings", body.encode(), headers)
            answer = connection.getresponse()
            retry = answer.getheader("Retry-After", "")
            text = answer.read(2000).decode(errors="replace").strip()
            return answer.status, text, min(float(retry), 600.0) if retry.isdigit() else 0.0
        finally:
            connection.close()

    def _connection(self):
        """Return a connection to the server, whose certificate is already verified."""
        host, port = self.url.hostname, self.url.port
        if self.url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self.context)
        connection.connect()
        if self.fingerprint:
            found = hashlib.sha256(connection.sock.getpeercert(True)).hexdigest()
            if found != self.fingerprint:
                connection.close()
                raise OSError(f"the certificate of the server has the SHA-256 {found}, not {self.fingerprint}")
        return connection


def _values_of(text, options):
    """Return the values in `text`: a number, a JSON object of numbers, or the content of a w1_slave file."""
    text = text.strip()
    if text.startswith("{"):
        return json.loads(text, parse_constant=lambda _: None)  # NaN, Infinity: the sensor failed
    if " crc=" in text:
        if not re.search(r"crc=.. YES", text):
            raise ValueError("wrong checksum of the 1-wire sensor")
        return {options.sensor: int(text.rpartition("t=")[2]) / 1000}
    found = NUMBER.search(text)
    value = float(found.group()) * options.scale if found else math.nan
    if not math.isfinite(value):
        raise ValueError(f"no number in {text[:60]!r}")
    return {options.sensor: round(value, 9)}


def _read_source(options):
    """Return the values of the file or the command."""
    if options.file:
        with open(options.file, encoding="utf-8", errors="replace") as file:
            return _values_of(file.read(4096), options)
    done = subprocess.run(options.command, shell=True, stdout=subprocess.PIPE, timeout=max(10.0, options.every))
    if done.returncode:
        raise ValueError(f"the command failed with status {done.returncode}")
    return _values_of(done.stdout.decode(errors="replace"), options)


def _reading_of(options, values):
    """Return a reading of now, as the server accepts it."""
    found = {"node": options.node, "values": values, "id": os.urandom(8).hex()}
    if time.time() > EARLIEST_S:
        found["time"] = int(time.time() * 1000)
    if options.unit:
        found["units"] = dict.fromkeys(values, options.unit)
    return found


def _sample(options, queue, sender):
    """Read the source every `options.every` seconds until the sender is stopped."""
    next_s = time.monotonic()
    while not sender.stop.is_set():
        try:
            values = _read_source(options)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            say(f"cannot read: {error}")
            values = {options.sensor: None}  # the server records that the sensor failed
        queue.put(_reading_of(options, values))
        sender.more.set()
        next_s = max(next_s + options.every, time.monotonic())
        sender.stop.wait(next_s - time.monotonic())


def _is_address(text):
    """Return True if `text` is the address of a server."""
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # the port, or brackets
        return False


def _parse(arguments):
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--server", required=True, metavar="URL", help="address of the server, with http or https")
    parser.add_argument("--node", required=True, metavar="NAME", help="name under which the server stores the readings")
    parser.add_argument("--sensor", default="value", metavar="NAME", help="name of the sensor (value)")
    parser.add_argument("--unit", metavar="TEXT", help="unit of the values, such as °C")
    parser.add_argument("--scale", type=float, default=1.0, metavar="FACTOR", help="multiply each number (1)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--file", metavar="FILE", help="file with a number, or w1_slave of a 1-wire sensor")
    source.add_argument("--command", metavar="COMMAND", help="shell command that prints a number or a JSON object")
    source.add_argument("--value", type=float, metavar="NUMBER", help="send this number once")
    source.add_argument("--stdin", action="store_true", help="send each line of the standard input")
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="interval (10)")
    parser.add_argument("--queue", metavar="FILE", help="queue ($STATE_DIRECTORY or ./, pigeonpost-NODE-SENSOR.queue)")
    parser.add_argument("--most", type=int, default=50_000, metavar="COUNT", help="readings in a full queue (50000)")
    parser.add_argument("--token-file", metavar="FILE", help="file with the token (default: CLIENT_TOKEN)")
    parser.add_argument("--fingerprint", metavar="SHA256", help="fingerprint of the server's certificate")
    parser.add_argument("--ca", metavar="FILE", help="certificate that has signed that of the server")
    options = parser.parse_args(arguments)
    if not _is_address(options.server):
        parser.error(f"--server takes an address like http://pi.local:8080, not {options.server!r}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", options.node):
        parser.error(f"--node takes letters, digits, dots, _ and -, not {options.node!r}")
    if len(options.unit or "") > 32:
        parser.error("--unit takes at most 32 characters")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", options.sensor):
        parser.error(f"--sensor takes lower-case letters, digits and _, not {options.sensor!r}")
    if not 0 < options.every < 1e6 or options.most < 1 or not math.isfinite((options.value or 0) * options.scale):
        parser.error("--every and --most take numbers above 0, and --value and --scale finite ones")
    if options.queue is None:
        name = f"pigeonpost-{options.node.replace('/', '_')}-{options.sensor}.queue"
        options.queue = os.path.join(os.environ.get("STATE_DIRECTORY", "."), name)
    return options


def _read_token(options):
    """Return the token of the file or the environment."""
    token = os.environ.get("CLIENT_TOKEN", "")
    if options.token_file:
        try:
            with open(options.token_file, encoding="ascii") as file:
                token = file.read()
        except (OSError, ValueError) as error:
            sys.exit(f"cannot read the token {options.token_file}: {error}")
    token = token.strip()
    if not token:
        sys.exit("the token is missing: --token-file FILE or CLIENT_TOKEN")
    if not re.fullmatch("[!-~]+", token):
        sys.exit("the token contains other characters than letters and digits: is it one line, copied completely?")
    return token


def main(arguments=None):
    """Run the command line `arguments`, and return the exit status."""
    options = _parse(arguments)
    token = _read_token(options)
    try:
        queue = Queue(options.queue, options.most)
    except OSError as error:
        sys.exit(f"cannot open the queue {options.queue}: {error}")
    try:
        return _run(options, queue, Sender(options, queue, token))
    except OSError as error:
        sys.exit(f"cannot write the queue {options.queue}: {error}")
    finally:
        queue.close()


def _run(options, queue, sender):
    """Send the readings of the source, and return the exit status."""
    if options.value is not None:
        queue.put(_reading_of(options, {options.sensor: options.value * options.scale}))
        while sender.send():
            pass
        return 3 if queue.waiting else 1 if sender.was_refused else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    say(f"readings in the queue {options.queue}: {len(queue.waiting)}")
    threading.Thread(target=sender.run, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        if not options.stdin:
            _sample(options, queue, sender)
        for line in sys.stdin.buffer if options.stdin else ():
            try:
                queue.put(_reading_of(options, _values_of(line.decode(errors="replace"), options)))
            except ValueError as error:
                say(f"skipped: {error}")
            sender.more.set()
        while queue.waiting and not sender.pause_s and not sender.stop.is_set():  # all are sent, or the server is away
            time.sleep(0.05)
    return 3 if queue.waiting else 0


if __name__ == "__main__":
    sys.exit(main())
