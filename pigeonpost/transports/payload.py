"""JSON body of a batch of samples, as HTTP push and MQTT use it, and its signature; encoding and decoding, no I/O.

    {"node": "basement", "outbox": "<16 hex>", "epoch": "<16 hex>", "base": 150, "every": 10.0,
     "sensors": [{"name": "temperature", "unit": "°C"}], "gaps": [{"from": 1, "to": 8, "why": "overwritten"}],
     "samples": [{"seq": 9, "time": "...", "up": 48211903, "values": {"temperature": 23.4}}]}

`node`, `outbox` and `epoch` are required. `base` is the running number, within the outbox, of the epoch's seq 0.
`samples` may also be one object of columns (link/columns.py), if the server has reported that it accepts them. The
sequence numbers of gaps and samples together are consecutive. A body without gaps and samples asks what is stored.

Errors: BadArgument, TooLong and NotUtf8; the text names what is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from pigeonpost.core.clock import Clock, parse_rfc3339, rfc3339
from pigeonpost.core.errors import BadArgument, NotUtf8, TooLong
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from pigeonpost.core.strict_json import finite, has_escaped, read_json, read_json_with, write_json
from pigeonpost.link.columns import read_columns
from pigeonpost.link.sample_json import read_alike, read_samples
from pigeonpost.link.samples import Gap, SampleBatch, batches_of
from protocol import (
    HEX_16,
    LARGEST_SEQ,
    LONGEST_WHY,
    NODE_NAME,
    NODE_NAME_TAKES,
    SENSOR_NAME,
    UNIT,
    WINDOW_SAMPLES,
    Batch,
    preview,
)

if TYPE_CHECKING:
    from typing import Any

    from pigeonpost.node.node_info import NodeInfo
    from pigeonpost.node.outbox import Outbox
    from pigeonpost.server.ingest import Ingestor
    from pigeonpost.server.node_status import NodeState

PAYLOAD_BYTES = 1 << 20  # maximum length of a body
MOST_SAMPLES = WINDOW_SAMPLES  # maximum number of samples in an array; columns have a limit of their own
MOST_GAPS = 500
MOST_SENSORS = 1000
MOST_EPOCHS = 400  # maximum number in one question of HTTP push, since a URL has at most 8 KiB
_FEW = 3  # up to this number, samples are read faster one by one than as columns
_LONGEST_EVERY_S = 1e9

# Decodes in C only. It accepts duplicate keys, and reads numbers too large for a float as infinities.
_DECODER = json.JSONDecoder(parse_constant=finite)

_SIGNATURE = re.compile(rb'\{"mac":"([0-9a-f]{64})",').match

Piece = SampleBatch | Gap


class BatchPayload(NamedTuple):
    """A decoded body.

    Attributes:
        node: Name of the node.
        outbox: Identifier of the node's outbox.
        epoch: The epoch.
        base: Running number of the epoch's seq 0 within the outbox, or None if the body does not contain it.
        every_s: Time between samples in seconds, or None if it is not known.
        sensors: Name, unit and limits of each sensor.
        pieces: Samples and gaps in the order of their numbers.
        fields: The decoded JSON object without the samples; it may have additional keys of one transport.
    """

    node: str
    outbox: str
    epoch: str
    base: int | None
    every_s: float | None
    sensors: list[dict[str, Any]]
    pieces: list[Piece]
    fields: Mapping[str, Any]

    @property
    def units(self) -> dict[str, str]:
        """Unit of each sensor that the body describes, by sensor name."""
        return {sensor["name"]: sensor["unit"] for sensor in self.sensors}

    @property
    def last(self) -> int:
        """Highest seq of the samples and gaps, or 0 if there are none."""
        if not self.pieces:
            return 0
        piece = self.pieces[-1]
        return piece.last

    @property
    def relay(self) -> str:
        """Name of the server that forwards these samples, or an empty string if they come from the node itself."""
        name: str = self.fields.get("relay", "")
        return name

    def without_ups(self) -> BatchPayload:
        """Return the payload without times since boot. A server that forwards samples does not know them."""
        pieces: list[Piece] = [
            piece if isinstance(piece, Gap)
            else SampleBatch(piece.seq, piece.times, [], piece.values, piece.errors, piece.clock)
            for piece in self.pieces
        ]  # fmt: skip
        return self._replace(pieces=pieces)

    def update_state(self, state: NodeState, clock: Clock) -> None:
        """Update the last contact, interval, sensors, sampling state and clock offset of the node in `state`.

        Args:
            state: State of the node.
            clock: Clock of this server; the body was received at its current time.
        """
        now_ms = clock.wall_ms()
        state.record_contact(now_ms, clock.monotonic())
        state.checked_ms = now_ms
        state.every_s, state.sensors = self.every_s or state.every_s, self.sensors or state.sensors
        if type(on := self.fields.get("on")) is bool:
            state.record_sampling(on, clock.monotonic())
        try:
            state.offset_ms = parse_rfc3339(self.fields["time"]) - now_ms
        except (KeyError, TypeError, ValueError, OverflowError):
            state.offset_ms = None

    def stored_seq(self, ingestor: Ingestor) -> int:
        """Return the highest seq of the body's epoch that `ingestor` has stored, or 0 if there is none."""
        marks = ingestor.marks(self.node, self.outbox, [self.epoch])[1]
        return marks[self.epoch][0] if self.epoch in marks else 0

    def batches(self) -> list[Batch]:
        """Return the batches for the ingestor, in order and without callbacks."""
        units = self.units
        return [
            Batch(
                self.node, self.outbox, self.epoch, self.base, None if isinstance(piece, Gap) else piece,
                piece if isinstance(piece, Gap) else None, units,
            )
            for piece in self.pieces
        ]  # fmt: skip


def node_head(info: NodeInfo, outbox: Outbox, clock: Clock) -> dict[str, Any]:
    """Return the keys that every body of a node contains, apart from its epoch.

    Args:
        info: Name and sensors of the node.
        outbox: The node's outbox.
        clock: Clock for the time in the body.
    """
    return {
        "node": info.name, "outbox": outbox.ring.identity, "every": info.every_s,
        "sensors": list(info.sensors), "on": outbox.on, "time": rfc3339(clock.wall_ms()),
    }  # fmt: skip


def write_body(
    head: Mapping[str, Any],
    epoch: str,
    base: int | None = None,
    gaps: Sequence[Mapping[str, Any]] = (),
    samples: str = "[]",
) -> bytes:
    """Return the body with gaps and samples of one epoch.

    Args:
        head: Result of `node_head`, and additional keys of one transport.
        epoch: The epoch.
        base: Running number of the epoch's seq 0, or None to omit it.
        gaps: Gaps as JSON objects, as in the link's GAP.
        samples: Samples as JSON text, as OutgoingBatch has it: an array, or an object of columns.
    """
    more = {} if base is None else {"base": base}
    rest = write_json({**head, "epoch": epoch, **more, "gaps": list(gaps)})
    return f'{rest[:-1]},"samples":{samples}}}'.encode()


def read_body(data: bytes | bytearray | memoryview) -> BatchPayload:
    """Return the decoded body in the untrusted `data`.

    Raises:
        BadArgument: A part of the body is missing or invalid.
        NotUtf8: The body is not UTF-8.
        TooLong: The body is longer than PAYLOAD_BYTES.
    """
    if len(data) > PAYLOAD_BYTES:
        raise TooLong(f"a body must have at most {PAYLOAD_BYTES} bytes, not {len(data)}")
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise NotUtf8(f"byte {error.start} is not valid UTF-8: {error.reason}") from None
    fields, batches = _decode(text)
    node, base = fields.get("node"), fields.get("base")
    if type(node) is not str or not NODE_NAME(node):
        raise BadArgument(f"node must be the node's name ({NODE_NAME_TAKES}), not {preview(node)}")
    if base is not None and (type(base) is not int or abs(base) > LARGEST_SEQ):
        raise BadArgument(f"base must be a whole number, not {preview(base)}")
    relay = fields.get("relay", "")
    if type(relay) is not str or (relay and not NODE_NAME(relay)):
        raise BadArgument(f"relay must be the name of a server ({NODE_NAME_TAKES}), not {preview(relay)}")
    every_s = _interval(fields.get("every"))
    pieces = _in_order(_gaps(fields.get("gaps", [])), batches)
    outbox, epoch = _hex_16(fields, "outbox"), _hex_16(fields, "epoch")
    sensors = read_sensors(fields.get("sensors", []))
    return BatchPayload(node, outbox, epoch, base, every_s, sensors, pieces, fields)


def _interval(value: Any) -> float | None:
    """Return the time between samples in seconds, or None if it is missing or not plausible."""
    return float(value) if type(value) in (int, float) and 0 < value < _LONGEST_EVERY_S else None


def _hex_16(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if type(value) is not str or not HEX_16(value):
        raise BadArgument(f"{key} must be 16 hex digits (0-9, a-f), not {preview(value)}")
    return value


def read_sensors(items: Any) -> list[dict[str, Any]]:
    """Return the name and unit of each sensor, with its limits and the marks of a simulated sensor and a total, if any.

    Args:
        items: An untrusted JSON value from HELLO or a body.

    Raises:
        BadArgument: The value is not a list of sensors.
    """
    if type(items) is not list or len(items) > MOST_SENSORS:
        raise BadArgument(f'sensors must be a list of up to {MOST_SENSORS} {{"name": ..., "unit": ...}}')
    sensors = []
    for item in items:
        name, unit = (item.get("name"), item.get("unit", "")) if type(item) is dict else (None, None)
        if type(name) is not str or not SENSOR_NAME(name) or type(unit) is not str or not UNIT(unit):
            raise BadArgument(
                'sensors must be a list of {"name": ..., "unit": ...} with up to 32 printable characters per unit,'
                f" not {preview(item)}"
            )
        more = {mark: True for mark in ("simulated", "total") if item.get(mark) is True}
        limits = {"limits": _limits(item["limits"])} if type(item.get("limits")) is dict else {}
        sensors.append({"name": name, "unit": unit} | more | limits)
    return sensors


def _limits(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sensor limits that server.quality reads; drop all other keys, because the limits stay in memory."""
    kept = {key: limits[key] for key in ("low", "high", "jump", "stuck") if type(limits.get(key)) in (int, float)}
    rail = limits.get("rail")
    if type(rail) is list and len(rail) == 2 and all(type(end) in (int, float) for end in rail):
        kept["rail"] = rail
    return kept


def _gaps(items: Any) -> list[Gap]:
    if type(items) is not list or len(items) > MOST_GAPS:
        raise BadArgument(f'gaps must be a list of up to {MOST_GAPS} {{"from": ..., "to": ..., "why": ...}}')
    gaps = []
    for item in items:
        numbers = [item.get(key, 0) for key in ("from", "to", "before")] if type(item) is dict else [0]
        if not all(type(number) is int and 0 <= number <= LARGEST_SEQ for number in numbers):
            numbers = [0]
        if numbers[0] < 1 or numbers[1] < numbers[0] - 1:
            raise BadArgument(f'a gap must be {{"from": first seq, "to": last seq, "why": text}}, not {preview(item)}')
        gaps.append(Gap(numbers[0], numbers[1], numbers[2], str(item.get("why", ""))[:LONGEST_WHY]))
    return gaps


def _decode(text: str) -> tuple[dict[str, Any], list[SampleBatch]]:
    """Return the JSON object in `text` without its samples, and the samples."""
    fields = read_json_with(text, _DECODER)
    batches = _samples(fields)
    if not _is_strict(text, fields, batches):
        fields = read_json(text)
        batches = _samples(fields)
    fields.pop("samples", None)  # these objects would stay in memory until the samples are committed
    return fields, batches


def _samples(fields: Any) -> list[SampleBatch]:
    if type(fields) is not dict:
        raise BadArgument("a body must be a JSON object with node, outbox, epoch and samples")
    samples = fields.get("samples", [])
    if type(samples) is dict:
        return [read_columns(samples)]
    if type(samples) is not list or len(samples) > MOST_SAMPLES:
        raise BadArgument(f"samples must be an array of up to {MOST_SAMPLES} samples, or an object of columns")
    alike = read_alike(samples) if len(samples) > _FEW else None
    return batches_of(read_samples([item])[0] for item in samples) if alike is None else [alike]


def _is_strict(text: str, fields: Mapping[str, Any], batches: Sequence[SampleBatch]) -> bool:
    """Return True if the strict decoder would return the same for `text`: `fields`, with the samples `batches`.

    If `fields` can be encoded, its numbers are finite; those of the samples have been checked. A duplicate key is in
    the text but not in the result, so the text then has more quotation marks than the result. If a string may contain
    a quotation mark, or a sample has an unknown key, return False; then the strict decoder decides.
    """
    try:
        rest = write_json({**fields, "samples": None} if "samples" in fields else fields)
    except ValueError:
        return False
    if "\\" in rest or has_escaped(text, '"'):
        return False
    count = _quotes_of_columns if type(fields.get("samples")) is dict else _quotes_of_array
    return text.count('"') == rest.count('"') + sum(map(count, batches))


def _quotes_of_array(batch: SampleBatch) -> int:
    """Return the number of quotation marks in a JSON array of these samples."""
    texts = sum(map(len, batch.errors.values()))
    samples_with_errors = len({index for texts_of_sensor in batch.errors.values() for index in texts_of_sensor})
    quotes_per_sample = 10 + 2 * len(batch.values) + (4 if batch.clock else 0)
    return quotes_per_sample * len(batch) + 2 * samples_with_errors + 4 * texts


def _quotes_of_columns(batch: SampleBatch) -> int:
    """Return the number of quotation marks in a JSON object of columns of these samples."""
    texts = sum(map(len, batch.errors.values()))
    errors = 2 + 2 * len(batch.errors) + 4 * texts if batch.errors else 0
    return 8 + 2 * len(batch.values) + errors + (4 if batch.clock else 0)


def _in_order(gaps: Iterable[Gap], batches: Iterable[SampleBatch]) -> list[Piece]:
    """Return gaps and samples in the order of their numbers. Raise BadArgument if these are not consecutive."""
    pieces: list[Piece] = []
    remaining = list(batches)[::-1]
    for gap in gaps:
        while remaining and remaining[-1].seq < gap.first:
            batch = remaining.pop()
            if gap.first <= batch.last:  # split the batch; this is valid only for an empty gap, which has only `before`
                remaining.append(batch.part(gap.first - batch.seq))
                batch = batch.part(0, gap.first - batch.seq)
            pieces.append(batch)
        pieces.append(gap)
    pieces += reversed(remaining)
    expected = 0
    for piece in pieces:
        first, kind = (piece.first, "a gap from") if isinstance(piece, Gap) else (piece.seq, "sample")
        if first != (expected or first):
            raise BadArgument(
                f"{kind} {first} is out of order: {expected} comes next; seq must not skip or repeat numbers"
            )
        expected = piece.last + 1
    return pieces


def sign(body: bytes, mac: str) -> bytes:
    """Return `body` (a JSON object with at least one key) with its signature `mac` as the first key."""
    return b'{"mac":"%s",%s' % (mac.encode(), body[1:])


def split_signature(data: bytes) -> tuple[str, bytes]:
    """Return the mac at the beginning of `data` (empty if there is none), and the body that was signed.

    The signature covers the bytes of the body, not its decoded value. So it must have the position and form that
    `sign` writes.
    """
    found = _SIGNATURE(data)
    return (found[1].decode(), b"{" + data[found.end() :]) if found else ("", data)
