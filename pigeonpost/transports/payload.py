"""JSON body of a batch of samples, as HTTP push and MQTT carry it, and its signature; encoding and decoding, no I/O.

    {"node": "basement", "outbox": "<16 hex>", "epoch": "<16 hex>", "base": 150, "every": 10.0,
     "sensors": [{"name": "temperature", "unit": "°C"}], "gaps": [{"from": 1, "to": 8, "why": "overwritten"}],
     "samples": [{"seq": 9, "time": "...", "up": 48211903, "values": {"temperature": 23.4}}]}

`node`, `outbox` and `epoch` are required. `base` is the running number, within the outbox, of the epoch's seq 0.
`samples` may also be one object of columns (link/columns.py), for a server that has said that it takes them. Gaps and
samples follow each other by their numbers without a hole. A body without either asks what is stored.

Errors: BadArgument, TooLong and NotUtf8, which name the sample and the key.
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

PAYLOAD_BYTES = 1 << 20  # a body at most
MOST_SAMPLES = WINDOW_SAMPLES  # in the array of a body; columns have their own limit
MOST_GAPS = 500
MOST_SENSORS = 1000
MOST_EPOCHS = 400  # in one question of HTTP push: an address has 8 KiB at most
_FEW = 3  # samples that are read faster one by one
_LONGEST_EVERY_S = 1e9

# All in C, for arrays of samples: it lets a key stand twice, and makes infinities of numbers too large for a float.
_DECODER = json.JSONDecoder(parse_constant=finite)

_SEAL = re.compile(rb'\{"mac":"([0-9a-f]{64})",').match

Piece = SampleBatch | Gap


class BatchPayload(NamedTuple):
    """A decoded body.

    pieces  samples and gaps, in the order of their numbers
    said    all but the samples, for what one transport adds
    """

    node: str
    outbox: str
    epoch: str
    base: int | None
    every_s: float | None
    sensors: list[dict[str, Any]]
    pieces: list[Piece]
    said: Mapping[str, Any]

    @property
    def units(self) -> dict[str, str]:
        """Sensor name to unit, as far as the body tells them."""
        return {sensor["name"]: sensor["unit"] for sensor in self.sensors}

    @property
    def last(self) -> int:
        """The highest seq that it speaks of; 0 when it only asks."""
        if not self.pieces:
            return 0
        piece = self.pieces[-1]
        return piece.last

    def tell(self, state: NodeState, now_ms: int) -> None:
        """Record in `state` that the node is connected, and what the body reports of it beside the samples."""
        state.record_contact(now_ms)
        state.checked_ms = now_ms
        state.every_s, state.sensors = self.every_s or state.every_s, self.sensors or state.sensors
        if type(on := self.said.get("on")) is bool:
            state.on = on
        try:
            state.offset_ms = parse_rfc3339(self.said["time"]) - now_ms
        except (KeyError, TypeError, ValueError, OverflowError):
            state.offset_ms = None

    def stored_seq(self, ingestor: Ingestor) -> int:
        """Return the highest seq stored of its epoch; 0: none."""
        marks = ingestor.marks(self.node, self.outbox, [self.epoch])[1]
        return marks[self.epoch][0] if self.epoch in marks else 0

    def batches(self) -> list[Batch]:
        """The batches for the ingestor, in their order, without callbacks."""
        units = self.units
        return [
            Batch(
                self.node, self.outbox, self.epoch, self.base, None if isinstance(piece, Gap) else piece,
                piece if isinstance(piece, Gap) else None, units,
            )
            for piece in self.pieces
        ]  # fmt: skip


def node_head(info: NodeInfo, outbox: Outbox, clock: Clock) -> dict[str, Any]:
    """Return what every body of a node begins with, beside its epoch."""
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
    """The body with these gaps and samples of one epoch.

    head     the node_head, and what one transport adds
    base     the running number of the epoch's seq 0; None: not told
    gaps     as the link's GAP has them
    samples  their JSON, as OutgoingBatch has it: an array, or columns
    """
    more = {} if base is None else {"base": base}
    rest = write_json({**head, "epoch": epoch, **more, "gaps": list(gaps)})
    return f'{rest[:-1]},"samples":{samples}}}'.encode()


def read_body(data: bytes | bytearray | memoryview) -> BatchPayload:
    """Return the body in `data`, which is untrusted. Raises BadArgument, NotUtf8 or TooLong, with the fault."""
    if len(data) > PAYLOAD_BYTES:
        raise TooLong(f"a body is at most {PAYLOAD_BYTES} bytes long, not {len(data)}")
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise NotUtf8(f"byte {error.start} is not UTF-8: {error.reason}") from None
    said, batches = _decode(text)
    node, base = said.get("node"), said.get("base")
    if type(node) is not str or not NODE_NAME(node):
        raise BadArgument(f"node is the node's name ({NODE_NAME_TAKES}), not {preview(node)}")
    if base is not None and (type(base) is not int or abs(base) > LARGEST_SEQ):
        raise BadArgument(f"base is a whole number, not {preview(base)}")
    every_s = _interval(said.get("every"))
    pieces = _in_order(_gaps(said.get("gaps", [])), batches)
    outbox, epoch, sensors = _hex_16(said, "outbox"), _hex_16(said, "epoch"), read_sensors(said.get("sensors", []))
    return BatchPayload(node, outbox, epoch, base, every_s, sensors, pieces, said)


def _interval(value: Any) -> float | None:
    """Seconds between samples, where they are told in a way that can be believed."""
    return float(value) if type(value) in (int, float) and 0 < value < _LONGEST_EVERY_S else None


def _hex_16(said: Mapping[str, Any], key: str) -> str:
    value = said.get(key)
    if type(value) is not str or not HEX_16(value):
        raise BadArgument(f"{key} is 16 hex digits (0-9, a-f), not {preview(value)}")
    return value


def read_sensors(items: Any) -> list[dict[str, Any]]:
    """Return of each sensor what is known here: name and unit, whether it is a simulated one, what it is judged by.

    items  an untrusted JSON value, as HELLO and bodies have it. Raises BadArgument.
    """
    if type(items) is not list or len(items) > MOST_SENSORS:
        raise BadArgument(f'sensors is a list of up to {MOST_SENSORS} {{"name": ..., "unit": ...}}')
    sensors = []
    for item in items:
        name, unit = (item.get("name"), item.get("unit", "")) if type(item) is dict else (None, None)
        if type(name) is not str or not SENSOR_NAME(name) or type(unit) is not str or not UNIT(unit):
            raise BadArgument(
                'sensors is a list of {"name": ..., "unit": ...}, a unit up to 32 printable characters,'
                f" not {preview(item)}"
            )
        more = {"simulated": True} if item.get("simulated") is True else {}
        limits = {"limits": _limits(item["limits"])} if type(item.get("limits")) is dict else {}
        sensors.append({"name": name, "unit": unit} | more | limits)
    return sensors


def _limits(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what server.quality may read of a sensor's limits: numbers, and one pair of them. It is kept in memory."""
    kept = {key: told[key] for key in ("low", "high", "jump", "stuck") if type(told.get(key)) in (int, float)}
    rail = told.get("rail")
    if type(rail) is list and len(rail) == 2 and all(type(end) in (int, float) for end in rail):
        kept["rail"] = rail
    return kept


def _gaps(items: Any) -> list[Gap]:
    if type(items) is not list or len(items) > MOST_GAPS:
        raise BadArgument(f'gaps is a list of up to {MOST_GAPS} {{"from": ..., "to": ..., "why": ...}}')
    gaps = []
    for item in items:
        numbers = [item.get(key, 0) for key in ("from", "to", "before")] if type(item) is dict else [0]
        if not all(type(number) is int and 0 <= number <= LARGEST_SEQ for number in numbers):
            numbers = [0]
        if numbers[0] < 1 or numbers[1] < numbers[0] - 1:
            raise BadArgument(f'a gap is {{"from": first seq, "to": last seq, "why": text}}, not {preview(item)}')
        gaps.append(Gap(numbers[0], numbers[1], numbers[2], str(item.get("why", ""))[:LONGEST_WHY]))
    return gaps


def _decode(text: str) -> tuple[dict[str, Any], list[SampleBatch]]:
    """Return the JSON object in `text` without its samples, and these."""
    said = read_json_with(text, _DECODER)
    batches = _samples(said)
    if not _is_strict(text, said, batches):
        said = read_json(text)
        batches = _samples(said)
    said.pop("samples", None)  # an object for each of them, which would stay until they are committed
    return said, batches


def _samples(said: Any) -> list[SampleBatch]:
    if type(said) is not dict:
        raise BadArgument("a body is a JSON object with node, outbox, epoch and samples")
    samples = said.get("samples", [])
    if type(samples) is dict:
        return [read_columns(samples)]
    if type(samples) is not list or len(samples) > MOST_SAMPLES:
        raise BadArgument(f"samples is an array of up to {MOST_SAMPLES} samples, or an object of columns")
    alike = read_alike(samples) if len(samples) > _FEW else None
    return batches_of(read_samples([item])[0] for item in samples) if alike is None else [alike]


def _is_strict(text: str, said: Mapping[str, Any], batches: Sequence[SampleBatch]) -> bool:
    """Return True if the strict decoder would decode `text` to `said` too, whose samples are `batches`.

    Its numbers are finite where it can be encoded; those of the samples were checked. A key that stands twice is in the
    text, but not in what was decoded: the text has more quotes then. Where a string may have a quote in it, or samples
    have keys that are not known here, this returns False: the strict decoder decides.
    """
    try:
        rest = write_json({**said, "samples": None} if "samples" in said else said)
    except ValueError:
        return False
    if "\\" in rest or has_escaped(text, '"'):
        return False
    count = _quotes_of_columns if type(said.get("samples")) is dict else _quotes_of_array
    return text.count('"') == rest.count('"') + sum(map(count, batches))


def _quotes_of_array(batch: SampleBatch) -> int:
    """Return the number of quotes in a JSON array of these samples."""
    texts = sum(map(len, batch.errors.values()))
    with_errors = len({place for of_sensor in batch.errors.values() for place in of_sensor})
    each = 10 + 2 * len(batch.values) + (4 if batch.clock else 0)
    return each * len(batch) + 2 * with_errors + 4 * texts


def _quotes_of_columns(batch: SampleBatch) -> int:
    """Return the number of quotes in a JSON object of columns of these samples."""
    texts = sum(map(len, batch.errors.values()))
    errors = 2 + 2 * len(batch.errors) + 4 * texts if batch.errors else 0
    return 8 + 2 * len(batch.values) + errors + (4 if batch.clock else 0)


def _in_order(gaps: Iterable[Gap], batches: Iterable[SampleBatch]) -> list[Piece]:
    """Gaps and samples in the order of their numbers; BadArgument when these leave a hole, or overlap."""
    pieces: list[Piece] = []
    left = list(batches)[::-1]
    for gap in gaps:
        while left and left[-1].seq < gap.first:
            batch = left.pop()
            if gap.first <= batch.last:  # right for a gap without samples, which only counts those of earlier epochs
                left.append(batch.part(gap.first - batch.seq))
                batch = batch.part(0, gap.first - batch.seq)
            pieces.append(batch)
        pieces.append(gap)
    pieces += reversed(left)
    expected = 0
    for piece in pieces:
        first, what = (piece.first, "a gap from") if isinstance(piece, Gap) else (piece.seq, "sample")
        if first != (expected or first):
            raise BadArgument(f"{what} {first} where {expected} comes next; seq has no holes within one body")
        expected = piece.last + 1
    return pieces


def sign(body: bytes, mac: str) -> bytes:
    """`body` (a JSON object with at least one key) with its `mac` as the first key."""
    return b'{"mac":"%s",%s' % (mac.encode(), body[1:])


def split_signature(data: bytes) -> tuple[str, bytes]:
    """The mac that `data` begins with (empty when it begins with none), and the body that it was made for.

    The mac is that of bytes, not of their meaning; so it is in one place and in one form, as `sign` writes it.
    """
    found = _SEAL(data)
    return (found[1].decode(), b"{" + data[found.end() :]) if found else ("", data)
