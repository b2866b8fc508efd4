"""Commands of the file drop: `send-files` uploads a folder of files from a Pi, `file-id` accepts the id of a Pi.

    python3 control.py send-files server.local /home/pi/readings       on the Pi, from cron
    python3 control.py file-id 10000000a1b2c3d4 attic                  on the server

Files are sent over HTTP to a server of the file drop, either Pigeonpost or the original system. The protocol and its
two dialects are described in file_drop/server.py. Errors: a file that cannot be sent stays in its folder, and the next
run sends it again; the other files are sent. The messages have the wording of the original sender.
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
from pigeonpost.core.format import counted
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
_CONNECT_S, _ANSWER_S = 10.0, 120.0  # an SD card can need a long time to make a long file durable
_BLOCK_BYTES = 256 << 10
_ANSWER_BYTES = 4096
_ID_VARIABLE = "PIGEONPOST_PI_ID"
_LETTERS = re.compile(r"[A-Za-z]{8,64}").fullmatch


# ------------------------------------------------------------------------------------------------------ Pi id


def find_pi_id(argument: str | None, data: str, cpuinfo: str = "/proc/cpuinfo") -> str:
    """Return the id of this Pi, or an empty string if there is no valid one.

    The sources are, in this order: `argument`, the environment variable PIGEONPOST_PI_ID, the file `pi_id` in the data
    folder, and the serial number of the Pi. The first one that is set is used. If it is invalid, the next source is not
    tried, because files would be sent under an unintended id.

    Args:
        argument: Id in the command line, or None.
        data: Path of the data folder.
        cpuinfo: Path of the file that contains the serial number.
    """
    text = argument or os.environ.get(_ID_VARIABLE, "")
    if text:
        return read_pi_id(text)
    for path, pattern in ((os.path.join(data, PI_ID), r"\A\s*(\S+)"), (cpuinfo, r"(?m)^Serial\s*:\s*(\S+)")):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                found = re.search(pattern, file.read(1 << 16))
        except OSError:
            continue
        if found:
            return read_pi_id(found[1])
    return ""


# ----------------------------------------------------------------------------------------------------- server


class ServerUnreachable(Failed):
    """The server cannot be reached."""


class NotAccepted(Failed):
    """The server does not accept files of this Pi."""


class FileDropClient:
    """Client of a server of the file drop. It uses the second dialect if the server supports it, else the first.

    Args:
        host: Host name or address of the server.
        port: Port of the server.
        pi_id: Id of this Pi.
        pi_num: Number of this Pi, for original servers.
        fingerprint: SHA-256 fingerprint of the server's certificate as hex digits. With a fingerprint the client uses
            HTTPS and accepts this certificate only.

    Raises:
        ValueError: The host is invalid.
    """

    def __init__(self, host: str, port: int, pi_id: str, pi_num: str, fingerprint: str = "") -> None:
        self._url = server_url(host, port, secure=bool(fingerprint))
        self.address = self._url.shown
        self._trust = ServerTrust(fingerprint)
        self._pi_id, self._pi_num = pi_id, pi_num
        self._letters = ""
        self._uses_second_dialect = False

    def begin(self, count: int) -> None:
        """Open a session for `count` files.

        Raises:
            ServerUnreachable: The server cannot be reached.
            NotAccepted: The server does not accept files of this Pi.
        """
        try:
            status, text = self._ask("GET", "/upload/", {"pi_id": self._pi_id, "pi_num": self._pi_num})
            self._uses_second_dialect = status == 200 and (text[:4] == "301 " or text in _CODES)
            if not self._uses_second_dialect:
                status, text = self._ask("GET", "/", {"pi_id": self._pi_id, "num_files": str(count)})
        except HttpError as error:
            raise ServerUnreachable(f"{self.address} could not be reached") from error
        if status != 200:  # another kind of server, or one that requires HTTPS
            raise ServerUnreachable(f"{self.address} could not be reached")
        self._letters = text.removeprefix("301 ") if self._uses_second_dialect else text
        if not _LETTERS(self._letters):
            raise NotAccepted("Authentication failed")

    def send(self, path: str, left: int, progress: Callable[[int, int], None]) -> bool:
        """Send one file. Return True if the server has acknowledged it.

        Args:
            path: Path of the file.
            left: Number of files that remain to be sent, including this one.
            progress: Function that is called with the number of bytes sent and the size of the file.

        Raises:
            OSError: The file cannot be read.
            ServerUnreachable: The server cannot be reached.
            NotAccepted: The server does not accept files of this Pi.
        """
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        for _ in range(2):
            reply = self._send_once(path, size, checksum, left, progress)
            if not (self._uses_second_dialect and reply == "401"):
                break
            self.begin(left)  # the session has ended, perhaps because the server was restarted
        return reply == ("200" if self._uses_second_dialect else checksum)

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
        if self._uses_second_dialect:
            headers["pi_num"] = self._pi_num

        def body(file: BinaryIO) -> Iterator[bytes]:
            yield head
            sent = 0
            while sent < size:
                block = file.read(min(_BLOCK_BYTES, size - sent))
                if not block:
                    raise OSError("the file became shorter while it was sent")
                yield block
                sent += len(block)
                progress(sent, size)
            yield tail

        with open(path, "rb") as file:
            return self._ask("POST", f"/upload/{self._letters}", headers, body(file))[1]

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: Iterator[bytes] | None = None
    ) -> tuple[int, str]:  # fmt: skip
        """Return the status and the text of the server's response, or an empty text if the text is too long.

        Raises:
            HttpError: The request failed.
            ServerUnreachable: The server cannot be reached.
            NotAccepted: The server has another certificate.
        """
        connection = HttpConnection(self._url, _ANSWER_S, self._trust, connect_timeout_s=_CONNECT_S)
        try:
            self._connect(connection)
            response = connection.request(
                method, path, {**headers, "Connection": "close"}, body, limit_bytes=_ANSWER_BYTES, until_close=True
            )  # fmt: skip
            return response.status, response.body.decode("latin-1").strip()
        except AnswerTooLong as error:
            return (error.response.status if error.response else 0), ""
        finally:
            connection.close()

    def _connect(self, connection: HttpConnection) -> None:
        try:
            connection.connect()
        except CertificateMismatch as error:
            raise NotAccepted(
                f"Authentication failed: the fingerprint of the server's certificate is {error.found}, not"
                f" {error.expected} as expected"
            ) from None
        except HttpError as error:
            raise ServerUnreachable(f"{self.address} could not be reached") from error


_CODES = ("401", "412", "415", "500")


# ------------------------------------------------------------------------------------------------ send-files


def send_files(context: Context) -> int:
    """Send the files of a folder to a server of the file drop. Move each acknowledged file to `sent_files/`.

    Args:
        context: Context of the command, with its arguments.

    Returns:
        The exit status.

    Raises:
        SettingsError: An argument is invalid.
    """
    arguments = context.arguments
    if not arguments.host or not arguments.folder:
        return _print_error("Missing arguments", 2)
    folder = os.path.abspath(arguments.folder)
    if not os.path.isdir(folder):
        return _print_error(f"{arguments.folder} not a valid directory", 2)
    pi_id = find_pi_id(arguments.pi_id, context.data)
    if not pi_id:
        return _print_error("PI id not found", 2)
    fingerprint = _fingerprint(arguments.https)
    try:
        client = FileDropClient(*split_address(arguments.host, PORT), pi_id, arguments.pi_num, fingerprint)
    except ValueError as error:
        raise SettingsError(f"HOST {error}, not {arguments.host!r}") from None
    try:
        with os.scandir(folder) as entries:
            found = (entry for entry in entries if entry.is_file(follow_symlinks=False))
            names = sorted(entry.name for entry in found if not entry.name.startswith("."))
    except OSError:
        return _print_error("Error finding files and folders", 1)
    try:
        return _send_all(client, folder, names)
    except (ServerUnreachable, NotAccepted) as error:
        return _print_error(str(error), 1)


def _send_all(client: FileDropClient, folder: str, names: list[str]) -> int:
    status = 0
    if names:
        client.begin(len(names))
    for number, name in enumerate(names):
        path = os.path.join(folder, name)
        bar = Bar(name)
        try:
            is_stored = client.send(path, len(names) - number, bar.show)
        except FileNotFoundError:
            continue  # another run has already sent the file
        except OSError:
            is_stored = False
        finally:
            bar.end()
        if not is_stored:
            status = _print_error(f"{name} could not be sent", 1)
            continue
        try:
            _move_to_sent(folder, name)
        except OSError:
            status = _print_error("Error finding files and folders", 1)
    return status


def _move_to_sent(folder: str, name: str) -> None:
    """Move a sent file to `sent_files/YEAR-MONTH/`, next to its folder, without overwriting another file."""
    destination = os.path.join(os.path.dirname(folder), SENT_FOLDER, time.strftime("%Y-%m"))
    os.makedirs(destination, exist_ok=True)
    stem, ext = os.path.splitext(name)
    target, number = os.path.join(destination, name), 1
    while os.path.lexists(target):
        number += 1
        target = os.path.join(destination, f"{stem}_{number}{ext}")
    try:
        os.rename(os.path.join(folder, name), target)
    except OSError:
        if not os.path.exists(os.path.join(folder, name)):
            return  # another run has already moved the file
        import shutil

        shutil.move(os.path.join(folder, name), target)  # to another file system


def _print_error(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status


def _fingerprint(text: str | None) -> str:
    plain = (text or "").replace(":", "").lower()
    if text is not None and not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise SettingsError("--https must be the SHA-256 fingerprint of the server's certificate, 64 hex digits")
    return plain


# --------------------------------------------------------------------------------------------------- file-id


def file_id(context: Context) -> int:
    """Accept files from a Pi as readings of a node, remove a Pi, or list the accepted Pis.

    Args:
        context: Context of the command, with its arguments.

    Returns:
        The exit status.

    Raises:
        SettingsError: The id is invalid.
        Failed: The id to remove is not accepted, or a list of ids cannot be imported.
    """
    arguments, ids = context.arguments, PiIds(context.data)
    if arguments.ids:
        return _import_ids(ids, arguments.ids)
    if not arguments.hex:
        for pi_id, pi in sorted(ids.all().items()):
            print(" ".join((pi_id, pi.node, pi.email)).rstrip())
        return 0
    pi_id = read_pi_id(arguments.hex)
    if not pi_id:
        raise SettingsError(f"a Pi id must have 16 hex digits (the Serial in its /proc/cpuinfo), not {arguments.hex!r}")
    with ids.changing() as pis:
        if arguments.remove:
            if pis.pop(pi_id, None) is None:
                raise Failed(f"{pi_id} is not in the list of accepted ids; `file-id` shows the list")
        else:
            pis[pi_id] = _updated_pi(pis.get(pi_id), pi_id, arguments.node)
    return 0


def _updated_pi(old: Pi | None, pi_id: str, node: str | None) -> Pi:
    """Return a Pi with the node `node`. By default, use its present node, or a node with the id as its name."""
    return Pi(node or (old.node if old else pi_id), old.email if old else "")


def _import_ids(ids: PiIds, path: str) -> int:
    """Import the list of the older system: one id per line, optionally with the name of a node.

    If a line is invalid, import nothing.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.partition("#")[0].split() for line in file]
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    invalid = [number for number, line in enumerate(lines, 1) if line and not _is_entry(line)]
    for number in invalid:
        print(
            f"{path}: line {number} must be a Pi id (16 hex digits), optionally followed by the name of a node",
            file=sys.stderr,
        )
    if invalid:
        raise Failed("nothing was imported")
    with ids.changing() as pis:
        before = len(pis)
        for line in lines:
            if line:
                pi_id = read_pi_id(line[0])
                pis[pi_id] = _updated_pi(pis.get(pi_id), pi_id, line[1] if len(line) > 1 else None)
        print(f"{counted(len(pis), 'Pi id')} accepted, {len(pis) - before} of them new")
    return 0


def _is_entry(line: list[str]) -> bool:
    return bool(read_pi_id(line[0])) and len(line) <= 2 and all(NODE_NAME(word) for word in line[1:])


COMMANDS: Mapping[str, Command] = {
    "send-files": Command(
        "send the files of a folder to a server's file drop (on the Pi)",
        [
            ("host", {"metavar": "HOST", "nargs": "?", "help": f"server as HOST or HOST:PORT (default port: {PORT})"}),
            ("folder", {"metavar": "FOLDER", "nargs": "?", "help": "folder whose files are sent"}),
            (
                "--pi-id",
                {
                    "metavar": "HEX",
                    "help": f"id of this Pi (default: ${_ID_VARIABLE}, DATA/{PI_ID} or the serial number)",
                },
            ),
            (
                "--pi-num",
                {
                    "metavar": "N",
                    "default": "1",
                    "help": "number of this Pi, required by original servers (default: 1)",
                },
            ),
            (
                "--https",
                {"metavar": "SHA256", "help": "use HTTPS, and accept only the certificate with this fingerprint"},
            ),
        ],
        send_files,
    ),
    "file-id": Command(
        "accept uploaded files of a Pi; without an id: list the accepted Pis",
        [
            ("hex", {"metavar": "HEX", "nargs": "?", "help": "id of the Pi: 16 hex digits"}),
            ("node", {"metavar": "NODE", "nargs": "?", "type": node_name, "help": "node that its readings belong to"}),
            ("--import", {"metavar": "FILE", "dest": "ids", "help": "accept all ids in an ids.txt of the old system"}),
            ("--remove", {"action": "store_true", "help": "stop accepting files of this Pi"}),
        ],
        file_id,
    ),
}
