"""Forward target "influxdb": InfluxDB 1, 2 and 3, by the line protocol over HTTP.

    version 1   POST /write?db=DATABASE&precision=ms                        user and password (Basic)
    version 2   POST /api/v2/write?org=ORG&bucket=BUCKET&precision=ms       Authorization: Token TOKEN
    version 3   POST /api/v3/write_lp?db=DATABASE&precision=millisecond     Authorization: Bearer TOKEN

A sample that is sent twice is stored once, because a point with the same measurement, tags and time is overwritten.
Errors: NotDelivered and RefusedData.
Sources: docs.influxdata.com, "InfluxDB API" of the versions 1.8, 2.7 and 3 Core; influxd 1.6.7 (Debian 12), tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from pigeonpost.core.config import Option, text
from pigeonpost.core.errors import SettingsError
from pigeonpost.integrations.contract import ForwardBatch, ForwardTarget
from pigeonpost.integrations.forward_http import HttpPoster, base_url, gzip
from pigeonpost.integrations.forward_settings import own_keys
from pigeonpost.link.influx_lines import influx_lines
from pigeonpost.transports.contract import ServerContext


def _version(value: Any) -> int:
    if type(value) is not int or value not in (1, 2, 3):
        raise ValueError("takes 1, 2 or 3")
    return value


OPTIONS = (
    Option("url", base_url, "http://127.0.0.1:8086", "address of InfluxDB"),
    Option("version", _version, 0,
           "version of InfluxDB: 1, 2 or 3; without it, 2 with a bucket, 3 with a token, otherwise 1"),
    Option("database", text, "", "database of InfluxDB 1 or 3"),
    Option("user", text, "", "user of InfluxDB 1"),
    Option("password", text, "", "password of this user"),
    Option("org", text, "", "organisation of InfluxDB 2"),
    Option("bucket", text, "", "bucket of InfluxDB 2"),
    Option("token", text, "", "token of InfluxDB 2 or 3 that may write"),
    Option("ca", text, "", "PEM file of the authority that signed the certificate of the server"),
)  # fmt: skip
_NEEDED: Mapping[int, tuple[str, ...]] = {1: ("database",), 2: ("org", "bucket", "token"), 3: ("database",)}
_OF_OTHERS: Mapping[int, tuple[str, ...]] = {
    1: ("org", "bucket", "token"), 2: ("database", "user", "password"), 3: ("org", "bucket", "user", "password"),
}  # fmt: skip
_HEADERS = {"Content-Type": "text/plain; charset=utf-8", "Content-Encoding": "gzip"}


def make(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    """Return the target of a [[forward]] table.

    Args:
        table: The table.
        where: File and table, for errors.
        context: Context of the server.

    Raises:
        SettingsError: A key is unknown or missing, belongs to another version, or has an invalid value.
    """
    found = own_keys(table, OPTIONS, where)
    version = found["version"] or (2 if found["bucket"] else 3 if found["token"] else 1)
    if missing := [key for key in _NEEDED[version] if not found[key]]:
        raise SettingsError(f"{where}: InfluxDB {version} needs {' and '.join(missing)}")
    if extra := [key for key in _OF_OTHERS[version] if found[key]]:
        raise SettingsError(f"{where}: InfluxDB {version} has no {' and no '.join(extra)}")
    poster = HttpPoster(
        found["url"], found["token"], found["user"], found["password"], "Token" if version == 2 else "Bearer",
        found["ca"],
    )  # fmt: skip
    return InfluxTarget(poster, version, found["database"], found["bucket"], found["org"])


class InfluxTarget(ForwardTarget):
    """InfluxDB of one version. It syncs its disk before it acknowledges, unless its setting wal-fsync-delay is set."""

    again_s = 300.0

    def __init__(self, poster: HttpPoster, version: int, database: str = "", bucket: str = "", org: str = "") -> None:
        """Initialise the target.

        Args:
            poster: Sender of the requests, with the URL and the credentials.
            version: Version of InfluxDB: 1, 2 or 3.
            database: Database of version 1 or 3.
            bucket: Bucket of version 2.
            org: Organisation of version 2.
        """
        self.place = poster.place
        self._poster = poster
        path, query = {
            1: ("/write", {"db": database, "precision": "ms"}),
            2: ("/api/v2/write", {"org": org, "bucket": bucket, "precision": "ms"}),
            3: ("/api/v3/write_lp", {
                "db": database, "precision": "millisecond", "accept_partial": "false", "no_sync": "false",
            }),
        }[version]  # fmt: skip
        self._target = f"{poster.url.target.rstrip('/')}{path}?{urlencode(query)}"
        place, login = ("bucket", "token") if version == 2 else ("database", "token" if version == 3 else "user")
        self._remedies = {
            401: f"set {'user and password' if version == 1 else 'token'} to one that InfluxDB knows",
            403: f"give this {login} the permission to write to the {place}",
            404: f"create the {place} {bucket or database} in InfluxDB, or correct url and version",
        }

    def send(self, batches: Sequence[ForwardBatch]) -> None:
        lines = "".join([influx_lines(batch.node, batch.samples) for batch in batches])
        if lines:  # otherwise all sensors failed
            self._poster.post(self._target, gzip(lines.encode()), _HEADERS, self._remedies)

    def check(self) -> None:
        self._poster.check()

    def close(self) -> None:
        self._poster.close()
