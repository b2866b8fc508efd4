"""The old senders of the file drop: their requests byte for byte, and their bodies as sent by urllib.

This module does not use the tested program, so that the requests are independent of it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os

PI = "10000000a1b2c3d4"
OTHER_PI = "10000000deadbeef"
UNKNOWN_PI = "ffffffffffffffff"


def accept(data, *ids, node="attic"):
    """Add ids to the list of accepted Pis in a data folder."""
    from pigeonpost.compat.file_drop.storage import Pi, PiIds

    with PiIds(data).changing() as known:
        known.update({pi_id: Pi(node if pi_id == PI else pi_id) for pi_id in ids})


def checksum(content):
    return hashlib.sha256(content).hexdigest()


def form(content, name, field="sensor_data_file", boundary="4f1c2d0f6a7b8c9d"):
    """Return (Content-Type, body) as `requests` encodes one file."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", body


def upload_request(letters, content, name, headers, path="/upload/", field="sensor_data_file"):
    """Return a complete upload request as bytes. A value of None in `headers` removes a usual header."""
    kind, body = form(content, name, field)
    wanted = {
        "Host": "server:3500", "User-Agent": "python-requests/2.25.1", "Accept-Encoding": "gzip, deflate",
        "Accept": "*/*", "Connection": "close", "pi_id": PI, "checksum": checksum(content), "num_files": "1",
        "Content-Length": str(len(body)), "Content-Type": kind, **headers,
    }  # fmt: skip
    lines = "".join(f"{key}: {value}\r\n" for key, value in wanted.items() if value is not None)
    return f"POST {path}{letters} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


class Sender:
    """Sender of either dialect, based on http.client."""

    def __init__(self, address, pi_id=PI, second=False):
        self.address, self.pi_id, self.second = address, pi_id, second
        self.letters = ""

    def ask(self, method, path, headers, body=None):
        """Send one request and return (status, body)."""
        link = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            link.request(method, path, body, {key: value for key, value in headers.items() if value is not None})
            answer = link.getresponse()
            return answer.status, answer.read().decode()
        finally:
            link.close()

    def open(self, count=1, **headers):
        """Begin a session and return the body of the response."""
        usual = {"pi_id": self.pi_id, "pi_num": "1"} if self.second else {"pi_id": self.pi_id, "num_files": str(count)}
        status, said = self.ask("GET", "/upload/" if self.second else "/", {**usual, **headers})
        assert status == 200, (status, said)
        self.letters = said.removeprefix("301 ")
        return said

    def send(self, content, name="log.csv", count=1, letters=None, field="sensor_data_file", **headers):
        """Send one file and return the body of the response."""
        kind, body = form(content, name, field)
        usual = {
            "pi_id": self.pi_id, "checksum": checksum(content), "num_files": str(count), "Content-Type": kind,
            "pi_num": "1" if self.second else None,
        }  # fmt: skip
        path = "/upload/" + (self.letters if letters is None else letters)
        status, said = self.ask("POST", path, {**usual, **headers}, body)
        assert status == 200, (status, said)
        return said


def files(data):
    """Return the contents of the uploaded files by name. Check their .sha256 files; other files are an error."""
    found, sums = {}, {}
    folder = os.path.join(data, "files")
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            content = file.read()
        if name.endswith(".sha256"):
            for line in content.decode().splitlines():
                total, _, stored = line.partition(" ")
                sums[stored] = total
        else:
            found[name] = content
    assert sums == {name: checksum(content) for name, content in found.items()}, (sums, list(found))
    return found


def ids_on_disk(data):
    with open(os.path.join(data, "pi_ids.json"), encoding="utf-8") as file:
        return json.load(file)
