"""Commands of the file drop: `send-files` uploads a folder of files from a Pi, `file-id` accepts the id of a Pi.

    python3 control.py send-files server.local /home/pi/readings       on the Pi, from cron
    python3 control.py file-id 10000000a1b2c3d4 attic                  on the server

Files go to a server of the file drop, ours or an original one, over HTTP. Errors: a file that could not be sent stays
where it is, and the others are sent; the next run tries it again. The output is that of the original sender.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from pigeonpost.cli.contract import Bar, Command, Context, Failed, node_name
from pigeonpost.compat.file_drop.storage import Pi, PiIds, read_pi_id
from pigeonpost.core.addresses import split_address
from pigeonpost.core.data_folder import PI_ID
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.http_client import (
    AnswerTooLong,
    CertificateMismatch,
    HttpConnection,
    HttpError,
    ServerTrust,
    server_url,
)
from protocol import NODE_NAME

PORT = 3500
SENT_FOLDER = "sent_files"
_FILE_FIELD = "sensor_data_file"
_CONNECT_S, _ANSWER_S = 10.0, 120.0  # the latter: a card takes its time to have a long file durably
_BLOCK_BYTES = 256 << 10
_ANSWER_BYTES = 4096
_ID_VARIABLE = "PIGEONPOST_PI_ID"
_LETTERS = re.compile(r"[A-Za-z]{8,64}").fullmatch


# --------------------------------------------------------------------------------------------------- who am I


def find_pi_id(given: str | None, data: str, cpuinfo: str = "/proc/cpuinfo") -> str:
    """Return this Pi's id: as given, of the variable, of the file, or its serial number; empty where none is valid.

    The first that is set counts, valid or not: a file under another id than was meant would help nobody.
    """
    said = given or os.environ.get(_ID_VARIABLE, "")
    if said:
        return read_pi_id(said)
    for path, pattern in ((os.path.join(data, PI_ID), r"\A\s*(\S+)"), (cpuinfo, r"(?m)^Serial\s*:\s*(\S+)")):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                found = re.search(pattern, file.read(1 << 16))
        except OSError:
            continue
        if found:
            return read_pi_id(found[1])
    return ""


# ------------------------------------------------------------------------------------------------ one server


class NotReached(Failed):
    """The server cannot be reached."""


class NotLetIn(Failed):
    """The server does not accept files of this Pi."""


class Depot:
    """A server of the file drop, in the dialect that it speaks: the second, or else the first."""

    def __init__(self, host: str, port: int, pi_id: str, pi_num: str, fingerprint: str = "") -> None:
        """fingerprint: SHA-256 of the server's certificate, hex; with it HTTPS is spoken, with that server only.

        Raises ValueError for an invalid host.
        """
        self._url = server_url(host, port, secure=bool(fingerprint))
        self.address = self._url.shown
        self._trust = ServerTrust(fingerprint)
        self._pi_id, self._pi_num = pi_id, pi_num
        self._letters = ""
        self._second = False

    def begin(self, count: int) -> None:
        """Open a session for `count` files. Raises NotReached, NotLetIn."""
        try:
            status, said = self._ask("GET", "/upload/", {"pi_id": self._pi_id, "pi_num": self._pi_num})
            self._second = status == 200 and (said[:4] == "301 " or said in _CODES)
            if not self._second:
                status, said = self._ask("GET", "/", {"pi_id": self._pi_id, "num_files": str(count)})
        except HttpError as error:
            raise NotReached(f"{self.address} could not be reached") from error
        if status != 200:  # something else is there, or it wants HTTPS
            raise NotReached(f"{self.address} could not be reached")
        self._letters = said.removeprefix("301 ") if self._second else said
        if not _LETTERS(self._letters):
            raise NotLetIn("Authentication failed")

    def send(self, path: str, left: int, progress: Callable[[int, int], None]) -> bool:
        """Send one file. Returns True if the server has acknowledged it. Raises OSError, NotReached, NotLetIn.

        left      files that are still to come, with this one
        progress  called with the number of bytes sent, and of all
        """
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        for _ in range(2):
            said = self._send_once(path, size, checksum, left, progress)
            if not (self._second and said == "401"):
                break
            self.begin(left)  # the session is over, perhaps because that server was restarted
        return said == ("200" if self._second else checksum)

    def _send_once(
        self, path: str, size: int, checksum: str, left: int, progress: Callable[[int, int], None]
    ) -> str:  # fmt: skip
        boundary = os.urandom(16).hex()
        name = os.path.basename(path).encode(errors="replace").decode()
        name = name.replace("\r", " ").replace("\n", " ").replace('"', "%22")
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{_FILE_FIELD}"; filename="{name}"\r\n\r\n'.encode()
        )
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "pi_id": self._pi_id, "checksum": checksum, "num_files": str(left),
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + size + len(tail)),
        }  # fmt: skip
        if self._second:
            headers["pi_num"] = self._pi_num

        def body(file: BinaryIO) -> Iterator[bytes]:
            yield head
            gone = 0
            while gone < size:
                block = file.read(min(_BLOCK_BYTES, size - gone))
                if not block:
                    raise OSError("it became shorter while it was sent")
                yield block
                gone += len(block)
                progress(gone, size)
            yield tail

        with open(path, "rb") as file:
            return self._ask("POST", f"/upload/{self._letters}", headers, body(file))[1]

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: Iterator[bytes] | None = None
    ) -> tuple[int, str]:  # fmt: skip
        """Status and text of the server's answer, empty if that is too long. Raises HttpError, NotReached, NotLetIn."""
        link = HttpConnection(self._url, _ANSWER_S, self._trust, connect_timeout_s=_CONNECT_S)
        try:
            self._connect(link)
            answer = link.request(
                method, path, {**headers, "Connection": "close"}, body, limit_bytes=_ANSWER_BYTES, until_close=True
            )  # fmt: skip
            return answer.status, answer.body.decode("latin-1").strip()
        except AnswerTooLong as error:
            return (error.response.status if error.response else 0), ""
        finally:
            link.close()

    def _connect(self, link: HttpConnection) -> None:
        try:
            link.connect()
        except CertificateMismatch as error:
            raise NotLetIn(
                f"Authentication failed: the server's certificate is {error.found}, expected was {error.expected}"
            ) from None
        except HttpError as error:
            raise NotReached(f"{self.address} could not be reached") from error


_CODES = ("401", "412", "415", "500")


# ------------------------------------------------------------------------------------------------ send-files


def send_files(context: Context) -> int:
    """Send the files of a folder to a server of the file drop; those that it has then move to sent_files/."""
    chosen = context.arguments
    if not chosen.host or not chosen.folder:
        return _complain("Missing arguments", 2)
    folder = os.path.abspath(chosen.folder)
    if not os.path.isdir(folder):
        return _complain(f"{chosen.folder} not a valid directory", 2)
    pi_id = find_pi_id(chosen.pi_id, context.data)
    if not pi_id:
        return _complain("PI id not found", 2)
    fingerprint = _fingerprint(chosen.https)
    try:
        depot = Depot(*split_address(chosen.host, PORT), pi_id, chosen.pi_num, fingerprint)
    except ValueError as error:
        raise SettingsError(f"HOST {error}, not {chosen.host!r}") from None
    try:
        with os.scandir(folder) as entries:
            found = (one for one in entries if one.is_file(follow_symlinks=False))
            names = sorted(one.name for one in found if not one.name.startswith("."))
    except OSError:
        return _complain("Error finding files and folders", 1)
    try:
        return _send_all(depot, folder, names)
    except (NotReached, NotLetIn) as error:
        return _complain(str(error), 1)


def _send_all(depot: Depot, folder: str, names: list[str]) -> int:
    status = 0
    if names:
        depot.begin(len(names))
    for number, name in enumerate(names):
        path = os.path.join(folder, name)
        bar = Bar(name)
        try:
            is_there = depot.send(path, len(names) - number, bar.show)
        except FileNotFoundError:
            continue  # another run was quicker
        except OSError:
            is_there = False
        finally:
            bar.end()
        if not is_there:
            status = _complain(f"{name} could not be sent", 1)
            continue
        try:
            _put_away(folder, name)
        except OSError:
            status = _complain("Error finding files and folders", 1)
    return status


def _put_away(folder: str, name: str) -> None:
    """Move a sent file to sent_files/YEAR-MONTH/ beside its folder, without overwriting another one."""
    place = os.path.join(os.path.dirname(folder), SENT_FOLDER, time.strftime("%Y-%m"))
    os.makedirs(place, exist_ok=True)
    stem, ext = os.path.splitext(name)
    target, number = os.path.join(place, name), 1
    while os.path.lexists(target):
        number += 1
        target = os.path.join(place, f"{stem}_{number}{ext}")
    try:
        os.rename(os.path.join(folder, name), target)
    except OSError:
        if not os.path.exists(os.path.join(folder, name)):
            return  # another run was quicker
        import shutil

        shutil.move(os.path.join(folder, name), target)  # to another file system


def _complain(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status


def _fingerprint(said: str | None) -> str:
    plain = (said or "").replace(":", "").lower()
    if said is not None and not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise SettingsError("--https takes the SHA-256 fingerprint of the server's certificate, 64 hex digits")
    return plain


# --------------------------------------------------------------------------------------------------- file-id


def file_id(context: Context) -> int:
    """Accept the id of a Pi: its files are taken from then on, as readings of a node. Without an id: list them."""
    chosen, ids = context.arguments, PiIds(context.data)
    if chosen.ids:
        return _import_ids(ids, chosen.ids)
    if not chosen.hex:
        for pi_id, pi in sorted(ids.all().items()):
            print(" ".join((pi_id, pi.node, pi.email)).rstrip())
        return 0
    pi_id = read_pi_id(chosen.hex)
    if not pi_id:
        raise SettingsError(f"a Pi id is 16 hex digits (the Serial in its /proc/cpuinfo), not {chosen.hex!r}")
    with ids.changing() as known:
        if chosen.remove:
            if known.pop(pi_id, None) is None:
                raise Failed(f"{pi_id} is not accepted anyway; `file-id` lists those that are")
        else:
            known[pi_id] = _with(known.get(pi_id), pi_id, chosen.node)
    return 0


def _with(old: Pi | None, pi_id: str, node: str | None) -> Pi:
    """Return a Pi with the node `node`; without one, with its present node, else with one named like the id."""
    return Pi(node or (old.node if old else pi_id), old.email if old else "")


def _import_ids(ids: PiIds, path: str) -> int:
    """Import the list of the older system: one id per line, optionally with the name of a node. All or nothing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.partition("#")[0].split() for line in file]
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    wrong = [number for number, line in enumerate(lines, 1) if line and not _is_entry(line)]
    for number in wrong:
        print(f"{path}: line {number} is no Pi id (16 hex digits), or has no node's name behind it", file=sys.stderr)
    if wrong:
        raise Failed("nothing was imported")
    with ids.changing() as known:
        before = len(known)
        for line in lines:
            if line:
                pi_id = read_pi_id(line[0])
                known[pi_id] = _with(known.get(pi_id), pi_id, line[1] if len(line) > 1 else None)
        print(f"{len(known)} Pi ids are accepted, {len(known) - before} of them new")
    return 0


def _is_entry(line: list[str]) -> bool:
    return bool(read_pi_id(line[0])) and len(line) <= 2 and all(NODE_NAME(word) for word in line[1:])


COMMANDS: Mapping[str, Command] = {
    "send-files": Command(
        "send the files of a folder to a server's file drop (on the Pi)",
        [
            ("host", {"metavar": "HOST", "nargs": "?", "help": f"HOST or HOST:PORT ({PORT})"}),
            ("folder", {"metavar": "FOLDER", "nargs": "?"}),
            ("--pi-id", {"metavar": "HEX", "help": f"this Pi's id (${_ID_VARIABLE}, DATA/{PI_ID}, its serial)"}),
            ("--pi-num", {"metavar": "N", "default": "1", "help": "its number, which original servers ask for (1)"}),
            ("--https", {"metavar": "SHA256", "help": "speak HTTPS with the server that has this certificate"}),
        ],
        send_files,
    ),
    "file-id": Command(
        "accept the id of a Pi that drops files; without one: list them",
        [
            ("hex", {"metavar": "HEX", "nargs": "?", "help": "16 hex digits"}),
            ("node", {"metavar": "NODE", "nargs": "?", "type": node_name, "help": "whose readings its files are"}),
            ("--import", {"metavar": "FILE", "dest": "ids", "help": "accept every id of an old ids.txt"}),
            ("--remove", {"action": "store_true", "help": "take no more files of it"}),
        ],
        file_id,
    ),
}
