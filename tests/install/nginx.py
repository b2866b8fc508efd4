"""Reverse proxies as processes of a test, and nginx from Debian's package.

They need no root, and use their own ports.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import unittest
from pathlib import Path

from tests.install import find_command
from tests.support import LIMIT_S, ROOT, free_port, temp_folder, wait_until

_STOP_S = 1.0  # Apache waits for the end of event streams
_CERTIFIED = "DNS:localhost,DNS:sensors.example.org,DNS:example.org,IP:127.0.0.1"
_CONFIGURATION = """\
{user}daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
}}
"""


class Proxy:
    """A reverse proxy as a process on its own port. It ends with the test.

    A subclass defines `configuration` and `command`.

    Attributes:
        address: Its (host, port).
        url: Its URL for a browser.
        certificate: File with its certificate and key, with `is_tls`.
        folder: Folder of its files.
    """

    def __init__(self, test: unittest.TestCase, is_tls: bool = False) -> None:
        self.folder = temp_folder(test)
        self.address = "127.0.0.1", free_port()
        self.url = f"{'https' if is_tls else 'http'}://127.0.0.1:{self.address[1]}"
        self.certificate = _certificate(self.folder) if is_tls else ""
        path = os.path.join(self.folder, "configuration")
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.configuration())
        self._process = subprocess.Popen(
            self.command(path), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "HOME": self.folder},
        )  # fmt: skip
        test.addCleanup(self.stop)
        wait_until(self._is_listening, "the proxy listens")

    def configuration(self) -> str:
        """Return the content of its configuration file."""
        raise NotImplementedError

    def command(self, path: str) -> list[str]:
        """Return the command that runs it in the foreground with that configuration file."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the process; safe to call again."""
        self._process.terminate()
        try:
            self._process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _is_listening(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"the proxy has ended: {self._process.communicate()[1]}")
        with socket.socket() as probe:
            return probe.connect_ex(self.address) == 0


class Nginx(Proxy):
    """nginx with one server.

    nginx = Nginx(self, "location / { proxy_pass http://127.0.0.1:8080; }", is_tls=True)
    """

    def __init__(self, test: unittest.TestCase, locations: str = "", is_tls: bool = False, server: str = "") -> None:
        """Start nginx.

        Args:
            test: The test after which it ends.
            locations: Content of its `server` block.
            is_tls: Use TLS, with its own certificate for localhost and 127.0.0.1.
            server: A complete `server` block instead of these, with {port} and {certificate} in place of port and file.
        """
        self._locations, self._is_tls, self._server = locations, is_tls, server
        super().__init__(test, is_tls)

    def configuration(self) -> str:
        port = self.address[1]
        tls = f"ssl_certificate {self.certificate}; ssl_certificate_key {self.certificate};" if self._is_tls else ""
        own = f"server {{ listen 127.0.0.1:{port}{' ssl' if self._is_tls else ''}; {tls} {self._locations} }}"
        given = self._server.replace("{port}", str(port)).replace("{certificate}", self.certificate)
        user = "user root;\n" if os.geteuid() == 0 else ""  # otherwise its workers cannot write to the test's folder
        return _CONFIGURATION.format(user=user, folder=self.folder, http=given or own)

    def command(self, path: str) -> list[str]:
        return [str(find_command("nginx")), "-p", self.folder, "-e", f"{self.folder}/error.log", "-c", path]


def documented(first: str) -> str:
    """Return the block of docs/web.md that begins with this line, without its indentation."""
    text = (Path(ROOT) / "docs" / "web.md").read_text(encoding="utf-8")
    found = re.search(rf"^    {re.escape(first)}\n(?:    .*\n|\n(?=    ))*", text, re.MULTILINE)
    if not found:
        raise AssertionError(f"docs/web.md has no block that begins with {first!r}")
    return re.sub("^    ", "", found[0], flags=re.MULTILINE)


def _certificate(folder: str) -> str:
    """Make a certificate with its key in one file, and return its path."""
    path = os.path.join(folder, "both.pem")
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", f"subjectAltName={_CERTIFIED}",
        "-keyout", path, "-out", f"{path}.crt",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)
    with open(f"{path}.crt", encoding="ascii") as crt, open(path, "a", encoding="ascii") as both:
        both.write(crt.read())
    return path
