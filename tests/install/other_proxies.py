"""Apache and Caddy as processes of a test, from Debian's packages apache2-bin and caddy."""

from __future__ import annotations

import unittest

from tests.install import find_command
from tests.install.nginx import Proxy

_MODULES = ("mpm_event", "authz_core", "proxy", "proxy_http", "headers", "ssl")
_APACHE = """\
ServerRoot {folder}
ServerName localhost
DefaultRuntimeDir {folder}
PidFile {folder}/pid
ErrorLog {folder}/error.log
Mutex pthread
User nobody
Group nogroup
{modules}
Listen 127.0.0.1:{port}
<VirtualHost *:{port}>
SSLEngine on
SSLCertificateFile {certificate}
SSLCertificateKeyFile {certificate}
{lines}
</VirtualHost>
"""
_CADDY = """\
{{
    admin off
    auto_https off
    default_sni sensors.example.org
}}
{sites}
"""


class Apache(Proxy):
    """Apache with one virtual host with TLS."""

    def __init__(self, test: unittest.TestCase, lines: str) -> None:
        """Start Apache; `lines` are the content of its <VirtualHost>."""
        self._lines = lines
        super().__init__(test, is_tls=True)

    def configuration(self) -> str:
        modules = (f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in _MODULES)
        return _APACHE.format(
            folder=self.folder, port=self.address[1], certificate=self.certificate, lines=self._lines,
            modules="\n".join(modules),
        )  # fmt: skip

    def command(self, path: str) -> list[str]:
        return [str(find_command("apache2")), "-D", "FOREGROUND", "-f", path]


class Caddy(Proxy):
    """Caddy with the sites of a Caddyfile, all with TLS."""

    def __init__(self, test: unittest.TestCase, sites: str) -> None:
        """Start Caddy; `sites` are blocks whose first lines are `NAME {`."""
        self._sites = sites
        super().__init__(test, is_tls=True)

    def configuration(self) -> str:
        lines = []
        for line in self._sites.splitlines():
            if line.endswith(" {") and not line.startswith(" "):
                lines += [f"https://{line[:-2]}:{self.address[1]} {{", f"tls {self.certificate} {self.certificate}"]
            else:
                lines.append(line)
        return _CADDY.format(sites="\n".join(lines))

    def command(self, path: str) -> list[str]:
        return [str(find_command("caddy")), "run", "--adapter", "caddyfile", "--config", path]
