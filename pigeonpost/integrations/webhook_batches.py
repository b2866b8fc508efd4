"""Forward target "webhook": samples as JSON to a URL, for programs of one's own and for automation services.

    POST url   {"server": "home", "units": {"basement": {"temperature": "°C"}},
                "gaps": [{"node": "basement", "epoch": "8d1f03a2c4b5e697", "from": 101, "to": 340}],
                "samples": [{"node": "basement", "epoch": "8d1f03a2c4b5e697", "seq": 341,
                             "time": "2026-11-20T15:36:10.123Z", "values": {"temperature": 23.4}}]}

Any status from 200 to 299 is an acknowledgement. A value is null if the sensor failed. Node, epoch and seq identify a
sample: a receiver that stores each of them once has no duplicates. The header Idempotency-Key is the same whenever the
same samples are sent.
Errors: NotDelivered and RefusedData. Source: RFC 9110, section 15 (status codes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.config import Option, matching
from pigeonpost.core.strict_json import write_json
from pigeonpost.integration_settings import HEADER_TAKES, is_header, is_url
from pigeonpost.integrations.contract import ForwardBatch, ForwardTarget
from pigeonpost.integrations.forward_http import IDLE_S, LOGIN_OPTIONS, HttpPoster, headers_in, make_poster
from pigeonpost.integrations.forward_settings import list_of, own_keys
from pigeonpost.transports.contract import ServerContext

OPTIONS = (
    Option("url", matching(is_url, "a URL that begins with https:// or http://"), None, "address of the receiver"),
    *LOGIN_OPTIONS,
    Option("headers", list_of(matching(is_header, HEADER_TAKES)), (), "additional HTTP headers"),
)


def make(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    """Return the target of a [[forward]] table.

    Args:
        table: The table.
        where: File and table, for errors.
        context: Context of the server, with its name.

    Raises:
        SettingsError: A key is unknown or missing, or a value is invalid.
    """
    found = own_keys(table, OPTIONS, where)
    headers = headers_in(found.pop("headers"))
    poster = make_poster(found, where, "https://example.org/readings", idle_s=IDLE_S)
    return WebhookTarget(poster, context.name, headers)


class WebhookTarget(ForwardTarget):
    """Receiver of JSON. It must store the samples durably before it answers."""

    most = 1_000

    def __init__(self, poster: HttpPoster, server: str, headers: Mapping[str, str]) -> None:
        """Initialise the target.

        Args:
            poster: Sender of the requests, with the URL.
            server: Name of this server.
            headers: Additional HTTP headers.
        """
        self.place = poster.place
        self._poster, self._server = poster, server
        self._headers = {"Content-Type": "application/json", **headers}

    def send(self, batches: Sequence[ForwardBatch]) -> None:
        key = {"Idempotency-Key": _key(batches)}
        self._poster.post(self._poster.url.target, self._body(batches).encode(), {**self._headers, **key})

    def close(self) -> None:
        self._poster.close()

    def _body(self, batches: Sequence[ForwardBatch]) -> str:
        units: dict[str, dict[str, str]] = {}
        gaps: list[dict[str, Any]] = []
        texts: list[str] = []
        for batch in batches:
            samples = batch.samples
            units.setdefault(batch.node, {}).update({
                name: batch.units[name] for name in samples.values if batch.units.get(name)
            })  # fmt: skip
            if samples.seq > batch.after + 1:
                numbers = {"from": batch.after + 1, "to": samples.seq - 1}
                gaps.append({"node": batch.node, "epoch": batch.epoch, **numbers})
            texts += _texts(batch)
        head = write_json({"server": self._server, "units": units, "gaps": gaps})
        return f'{head[:-1]},"samples":[{",".join(texts)}]}}'


def _texts(batch: ForwardBatch) -> list[str]:
    """Return each sample as JSON."""
    samples, found = batch.samples, []
    head = f'{{"node":{write_json(batch.node)},"epoch":"{batch.epoch}","seq":'
    clock = f',"clock":"{samples.clock}"' if samples.clock else ""
    for sample in samples:
        errors = f',"errors":{write_json(sample.errors)}' if sample.errors else ""
        found.append(
            f'{head}{sample.seq},"time":"{rfc3339(sample.time_ms)}","values":{write_json(sample.values)}{errors}'
            f"{clock}}}"
        )
    return found


def _key(batches: Sequence[ForwardBatch]) -> str:
    """Return an id of the samples, made from their identities."""
    ids = [[batch.node, batch.epoch, batch.samples.seq, batch.samples.last] for batch in batches]
    return hashlib.sha256(write_json(ids).encode()).hexdigest()[:32]
