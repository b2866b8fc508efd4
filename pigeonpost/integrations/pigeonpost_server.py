"""Forward target "pigeonpost": another Pigeonpost server, which stores each sample once with its identity.

The protocol is that of nodes over HTTP (docs/protocol.md), with the API token of the role writer and the key `relay`.
Before the first samples of an epoch, and after each error, the target asks which of them the other server has. So it
never sends a sample that is stored there, and reports exactly the missing numbers as a gap.

If this server has renamed a node, the other server may still know it by its former name, and then receives that name.

One thread calls `send`; any thread may call `close`. Errors: NotDelivered and RefusedData.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from pigeonpost.core.config import Option, text
from pigeonpost.core.errors import BadArgument, SettingsError
from pigeonpost.core.strict_json import read_json
from pigeonpost.integrations.contract import ForwardBatch, ForwardTarget, NotDelivered, RefusedData
from pigeonpost.integrations.forward_http import IDLE_S, HttpPoster, base_url, make_poster
from pigeonpost.integrations.forward_settings import own_keys
from pigeonpost.link.checks import COLUMN_SAMPLES
from pigeonpost.link.sample_text import columns_text, steps_text
from pigeonpost.link.samples import SampleBatch
from pigeonpost.settings import fingerprint
from pigeonpost.transports.contract import ServerContext
from pigeonpost.transports.payload import MOST_SENSORS, PAYLOAD_BYTES, write_body
from protocol import LONGEST_WHY, is_count

PATH = "/api/v1/samples"
UNKNOWN_OUTBOX = "0" * 16
_MOST_EPOCHS = 10_000  # epochs whose progress is kept in memory
OPTIONS = (
    Option("url", base_url, None, "address of the other server"),
    Option("token", text, "", "API token of the other server with the role writer"),
    Option("certificate", fingerprint, "", "SHA-256 fingerprint of the certificate of the other server"),
    Option("ca", text, "", "PEM file of the authority that signed this certificate"),
)
_REMEDIES = {
    401: "on the other server, `control.py api-token NAME --role writer` creates a token",
    403: "forward only nodes that the other server neither collects from nor has a token for: set nodes",
    507: "raise this limit on the other server",
}


def make(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    """Return the target of a [[forward]] table.

    Args:
        table: The table.
        where: File and table, for errors.
        context: Context of the server, with its name and the former names of its nodes.

    Raises:
        SettingsError: A key is unknown or missing, or a value is invalid.
    """
    found = own_keys(table, OPTIONS, where)
    poster = make_poster(found, where, "http://192.168.1.10:8080", idle_s=IDLE_S)
    if not found["token"]:
        raise SettingsError(f"{where}: token is missing; {_REMEDIES[401]}")
    return PigeonpostTarget(poster, context)


class _Progress:
    """State of one epoch at the other server.

    Attributes:
        name: Name of the node at the other server.
        have: Sequence number up to which the other server has stored all samples or recorded a gap.
        last_ms: Time of sample `have` in ms since 1970 (UTC), if this server has sent it.
        every_s: Interval of the last samples in seconds, or None if it is not known.
    """

    def __init__(self, name: str, have: int) -> None:
        self.name, self.have = name, have
        self.last_ms: int | None = None
        self.every_s: float | None = None

    def record(self, samples: SampleBatch) -> None:
        """Record that the other server has stored `samples`."""
        count, first_ms = len(samples) - 1, samples.times[0]
        if self.last_ms is not None:
            count, first_ms = samples.last - self.have, self.last_ms
        self.have, self.last_ms = samples.last, samples.times[-1]
        if count and self.last_ms > first_ms:
            self.every_s = (self.last_ms - first_ms) / count / 1000


class PigeonpostTarget(ForwardTarget):
    """Another Pigeonpost server. It has synced its disk when it acknowledges samples."""

    most = COLUMN_SAMPLES

    def __init__(self, poster: HttpPoster, context: ServerContext) -> None:
        """Initialise the target.

        Args:
            poster: Sender of the requests, with the URL and the token.
            context: Context of the server, with its name and the former names of its nodes.
        """
        self.place = poster.place
        self._poster, self._context = poster, context
        self._path = f"{poster.url.target.rstrip('/')}{PATH}"
        self._epochs: dict[tuple[str, str], _Progress] = {}

    def send(self, batches: Sequence[ForwardBatch]) -> None:
        try:
            for batch in batches:
                self._send(batch)
        except Exception:
            self._epochs.clear()  # the other server may have stored more or less than it has acknowledged
            raise

    def close(self) -> None:
        self._poster.close()

    def _send(self, batch: ForwardBatch) -> None:
        key = batch.node, batch.epoch
        if key not in self._epochs:
            if len(self._epochs) >= _MOST_EPOCHS:
                self._epochs.clear()
            self._epochs[key] = self._find(batch)
        progress, samples = self._epochs[key], batch.samples
        if samples.last <= progress.have:
            return
        if samples.seq <= progress.have:
            samples = samples.part(progress.have + 1 - samples.seq)
        self._post(batch, progress, samples, list(self._gaps(batch, progress.have, samples.seq)))

    def _gaps(self, batch: ForwardBatch, have: int, seq: int) -> Iterable[dict[str, Any]]:
        """Yield the gaps between the samples that the other server has and the sample `seq`."""
        server = self._context.name
        if have < batch.after:
            why = f"not forwarded by {server}"
            yield {"from": have + 1, "to": batch.after, "why": why[:LONGEST_WHY]}
        if max(have, batch.after) + 1 < seq:
            why = f"missing on {server}"
            yield {"from": max(have, batch.after) + 1, "to": seq - 1, "why": why[:LONGEST_WHY]}

    def _post(
        self, batch: ForwardBatch, progress: _Progress, samples: SampleBatch, gaps: Sequence[dict[str, Any]]
    ) -> None:
        """Send samples with the gaps before them, in several requests if they are too long for one."""
        values = {
            name: ",".join(texts).replace("None", "null")
            for name, texts in zip(samples.values, samples.texts, strict=True)
        }
        times, ups = steps_text(samples.times), steps_text([0] * len(samples))
        content = columns_text(samples.seq, times, ups, values, samples.errors, samples.clock)
        if len(samples) > 1 and len(content) > PAYLOAD_BYTES // 2:
            half = len(samples) // 2
            self._post(batch, progress, samples.part(0, half), gaps)
            self._post(batch, progress, samples.part(half), ())
            return
        units = [{"name": name, "unit": batch.units.get(name, "")} for name in list(samples.values)[:MOST_SENSORS]]
        head: dict[str, Any] = {
            "node": progress.name, "outbox": batch.outbox or UNKNOWN_OUTBOX, "relay": self._context.name,
            "sensors": units,
        }  # fmt: skip
        if progress.every_s is not None:
            head["every"] = progress.every_s
        body = write_body(head, batch.epoch, gaps=gaps, samples=content)
        fields = self._ask("POST", self._path, body)
        if fields.get("ack") != samples.last:
            raise NotDelivered(f"acknowledges {fields.get('ack')!r:.40} of epoch {batch.epoch}, not {samples.last}")
        progress.record(samples)

    # ----------------------------------------------------------------------------------------------- resuming

    def _find(self, batch: ForwardBatch) -> _Progress:
        """Return the progress of an epoch, with the name by which the other server knows the node."""
        answers = {}
        for name in self._names(batch.node):
            fields = answers[name] = self._resume(name, batch)
            if fields["have"]:
                return _Progress(name, fields["have"])
        known = (name for name, fields in answers.items() if fields.get("known") is True)
        return _Progress(next(known, batch.node), 0)

    def _names(self, node: str) -> list[str]:
        """Return the name of a node, followed by its former names, the latest first."""
        names = self._context.names
        former = [] if names is None else [each for each in names.records.former if each.node == node]
        former.sort(key=lambda each: each.until_ms, reverse=True)
        return list(dict.fromkeys([node, *(each.name for each in former if not each.is_released)]))

    def _resume(self, name: str, batch: ForwardBatch) -> dict[str, Any]:
        query = urlencode({
            "node": name, "epoch": batch.epoch, "outbox": batch.outbox or UNKNOWN_OUTBOX, "relay": self._context.name,
        })  # fmt: skip
        fields = self._ask("GET", f"{self._path}/resume?{query}", None)
        if fields.get("relay") is not True:
            raise NotDelivered("it is an older version that does not accept forwarded samples: update it")
        if not is_count(fields.get("have")):
            raise NotDelivered(f"reports an invalid mark {fields.get('have')!r:.40} of epoch {batch.epoch}")
        return fields

    def _ask(self, method: str, target: str, body: bytes | None) -> dict[str, Any]:
        """Return the JSON object of the answer. Raise NotDelivered or RefusedData if there is none."""
        headers = {"Content-Type": "application/json"} if body else {}
        answer = self._poster.request(method, target, body, headers)
        try:
            fields = read_json(answer.body.decode().strip())
        except (BadArgument, UnicodeDecodeError):
            fields = None
        try:
            self._poster.require_success(answer, _REMEDIES)
        except RefusedData as error:
            if type(fields) is not dict or "error" not in fields:
                raise NotDelivered(f"{error}; is it a Pigeonpost server?") from None
            raise
        if type(fields) is not dict:
            raise NotDelivered("the answer is not a JSON object: is it a Pigeonpost server?")
        return fields
