"""Packets of the multicast bus: encoding and decoding, byte for byte; no I/O, no clock.

    0         4         8                  16   17      19    21      24         28
    | sequence | (empty) | time, ms u64     |flag| from  | to  |(empty)| length   | payload ...
      u32                  since 1970 UTC    1    2       2             u32         `length` bytes

One table, FLAGS, says what each flag carries; both directions use it. docs/protocol.md describes the same in prose.
Errors: BadPacket, which names the fault; no packet costs more than its 1500 bytes and a few microseconds.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from pigeonpost.core.errors import BadPacket

PACKET_BYTES = 1500  # at most, header included
EVERYBODY = "@@"  # as a receiver: all of them
FIRST_SEQUENCE, LAST_SEQUENCE = 1, 2**31 - 1  # counting starts anywhere between, and goes on with 0 after the last

CONTROL, DATA = "control", "data"
_DEEPEST_BRACKETS = 64  # in one JSON text, open ones counted wherever they stand
_LARGEST_TIME = 2**64 - 1

Value = int | float | str | dict[str, Any]


class Packet(NamedTuple):
    """A decoded packet.

    sequence  the sender's count on this channel; on the data channel one for each codifier
    time_ms   the sender's clock, milliseconds since 1970; whatever it says
    flag      a letter of FLAGS      source, to  codifiers: two characters
    value     of a control packet a number; of a data packet what its flag says
    active    of a control packet: whether the sender's data channel is started; else None
    """

    sequence: int
    time_ms: int
    flag: str
    source: str
    to: str
    value: Value
    active: bool | None = None

    @property
    def channel(self) -> str:
        """CONTROL or DATA."""
        return FLAGS[self.flag].channel


class Flag(NamedTuple):
    """A row of the table: the channel it belongs to, what it carries, what it means."""

    channel: str
    payload: Payload
    meaning: str


class Payload(NamedTuple):
    """A kind of payload: how it is decoded and encoded, and its description."""

    takes: str
    read: Callable[[bytes], tuple[Value, bool | None]]
    write: Callable[[Any, bool], bytes]


def encode(packet: Packet) -> bytes:
    """The bytes of a packet. BadPacket where a value does not fit its flag, or a codifier is none."""
    try:
        payload = FLAGS[packet.flag].payload.write(packet.value, bool(packet.active))
    except KeyError:
        raise BadPacket(f"no flag of the bus: {packet.flag!r:.20}") from None
    except (struct.error, TypeError, OverflowError, ValueError) as error:
        takes = FLAGS[packet.flag].payload.takes
        raise BadPacket(f"{packet.flag} carries {takes}, not {packet.value!r:.80}") from error
    if len(payload) > PACKET_BYTES - _HEADER.size:
        raise BadPacket(f"{packet.flag}: {len(payload)} bytes; a packet has room for {PACKET_BYTES - _HEADER.size}")
    source, to = codifier(packet.source), codifier(packet.to)
    if not (0 <= packet.sequence < 2**32 and 0 <= packet.time_ms <= _LARGEST_TIME):
        raise BadPacket(f"sequence {packet.sequence} or time {packet.time_ms} is out of range")
    head = packet.sequence, packet.time_ms, packet.flag.encode(), source.encode(), to.encode(), len(payload)
    return _HEADER.pack(*head) + payload


def decode(data: bytes) -> Packet:
    """Decode a packet, which is untrusted. Raises BadPacket for what no sender of this bus sends."""
    if not _HEADER.size <= len(data) <= PACKET_BYTES:
        raise BadPacket(f"{len(data)} bytes; a packet has {_HEADER.size} to {PACKET_BYTES}")
    sequence, time_ms, letter, source, to, length = _HEADER.unpack_from(data)
    if length != len(data) - _HEADER.size:
        raise BadPacket(f"says {length} bytes of payload, and has {len(data) - _HEADER.size}")
    known = _BY_BYTE.get(letter)
    if known is None:
        raise BadPacket(f"no flag of the bus: {letter!r}")
    flag, payload = known
    try:
        value, active = payload.read(data[_HEADER.size :])
    except (struct.error, ValueError, RecursionError) as error:
        raise BadPacket(f"{flag} carries {payload.takes}: {error}") from None
    packet = sequence, time_ms, flag, _CODIFIERS.get(source) or _two(source), _CODIFIERS.get(to) or _two(to)
    return _new_tuple(Packet, (*packet, value, active))


def codifier(text: str) -> str:
    """`text`, when it is a codifier: two characters of ASCII, neither space nor control; else BadPacket."""
    if len(text) == 2 and text.isascii() and all("!" <= letter <= "~" for letter in text):
        return text
    raise BadPacket(f"a codifier is two characters of ASCII, as C4, not {text!r:.20}")


def following(sequence: int) -> int:
    """The sequence number after this one."""
    return sequence + 1 if sequence < LAST_SEQUENCE else 0


def _read_control(payload: bytes) -> tuple[Value, bool | None]:
    number, active = _CONTROL.unpack(payload)
    if not math.isfinite(number):
        raise ValueError("its number is not finite")
    if active > 1:
        raise ValueError(f"is active: {active}")
    return number, active == 1


def _write_control(value: Any, active: bool) -> bytes:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return _CONTROL.pack(number, active)


def _read_u32(payload: bytes) -> tuple[Value, bool | None]:
    return _U32.unpack(payload)[0], None


def _read_f32(payload: bytes) -> tuple[Value, bool | None]:
    return _F32.unpack(payload)[0], None


def _write_u32(value: Any, active: bool) -> bytes:
    return _U32.pack(value)


def _write_f32(value: Any, active: bool) -> bytes:
    return _F32.pack(value)


def _text_of(payload: bytes) -> str:
    (length,) = _U32.unpack_from(payload)
    if length != len(payload) - _U32.size:
        raise ValueError(f"says {length} bytes, and has {len(payload) - _U32.size}")
    return payload[_U32.size :].decode()


def _read_text(payload: bytes) -> tuple[Value, bool | None]:
    return _text_of(payload), None


def _write_text(value: Any, active: bool) -> bytes:
    if not isinstance(value, str):
        raise TypeError("no text")
    text = value.encode()
    return _U32.pack(len(text)) + text


def _read_json(payload: bytes) -> tuple[Value, bool | None]:
    text = _text_of(payload)
    if text.count("[") + text.count("{") > _DEEPEST_BRACKETS:  # the parser recurses, and a thread's stack is small
        raise ValueError(f"more than {_DEEPEST_BRACKETS} brackets")
    found = json.loads(text, object_pairs_hook=_no_key_twice, parse_float=_finite, parse_constant=_finite)
    if not isinstance(found, dict) or "value" not in found:
        raise ValueError("no `value` in it")
    json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair would be no text for anybody behind us
    return found, None


def _write_json(value: Any, active: bool) -> bytes:
    if not isinstance(value, dict) or "value" not in value:
        raise TypeError("no object with a value")
    return _write_text(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")), active)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal:.20} is not finite")
    return number


def _two(raw: bytes) -> str:
    """A codifier that came for the first time; those that are right are remembered, and there are 8,836 of them."""
    found = codifier(raw.decode("latin-1"))
    _CODIFIERS[raw] = found
    return found


_HEADER = struct.Struct("<I4xQ1s2s2s3xI")
_CONTROL = struct.Struct("<dB")  # B, not ?: so that a byte that is neither 0 nor 1 is seen
_U32 = struct.Struct("<I")
_F32 = struct.Struct("<f")
_CODIFIERS: dict[bytes, str] = {}
_new_tuple = tuple.__new__  # without the detour of a NamedTuple's constructor: this is done 20,000 times a second

_NUMBER = Payload("a number of 64 bits and one byte, 0 or 1", _read_control, _write_control)
_INTEGER = Payload("a whole number from 0 to 4294967295", _read_u32, _write_u32)
_FLOAT = Payload("a number of 32 bits", _read_f32, _write_f32)
_TEXT = Payload("a length and so many bytes of UTF-8", _read_text, _write_text)
_JSON = Payload("a length and so many bytes of JSON, an object with `value`", _read_json, _write_json)

FLAGS: dict[str, Flag] = {
    "N": Flag(CONTROL, _NUMBER, "numbering restarts here; carries the time of the sender's configuration"),
    "I": Flag(CONTROL, _NUMBER, "I am alive; carries the time of the sender's configuration"),
    "C": Flag(CONTROL, _NUMBER, "re-read the configuration and restart"),
    "P": Flag(CONTROL, _NUMBER, "ping: answer T with the same number"),
    "T": Flag(CONTROL, _NUMBER, "the answer to P"),
    "S": Flag(CONTROL, _NUMBER, "start the data channel"),
    "H": Flag(CONTROL, _NUMBER, "halt the data channel"),
    "A": Flag(CONTROL, _NUMBER, "set the value to this number"),
    "E": Flag(CONTROL, _NUMBER, "step the value by this number"),
    "n": Flag(DATA, _INTEGER, "numbering of this codifier restarts here"),
    "i": Flag(DATA, _INTEGER, "a reading, whole"),
    "f": Flag(DATA, _FLOAT, "a reading"),
    "s": Flag(DATA, _TEXT, "a reading in words"),
    "j": Flag(DATA, _JSON, "a reading with more beside it"),
}
_BY_BYTE = {flag.encode(): (flag, row.payload) for flag, row in FLAGS.items()}
