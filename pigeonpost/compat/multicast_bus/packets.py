"""Encoder and decoder of the packets of the multicast bus. They use neither I/O nor a clock.

    0         4         8                  16   17      19    21      24         28
    | sequence | (empty) | time, ms u64     |flag| from  | to  |(empty)| length   | payload ...
      u32                  since 1970 UTC    1    2       2             u32         `length` bytes

A codifier is the two-character id of a component of the bus or of one of its values. The header contains the codifiers
of the sender (from) and of the receiver (to). The table FLAGS defines the payload of each flag for both directions.
docs/protocol.md describes the same in prose.
Errors: BadPacket, which describes the error. Decoding a packet takes a few microseconds and no more memory than its
1500 bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from pigeonpost.core.errors import BadPacket

PACKET_BYTES = 1500  # maximum length including the header
ALL_COMPONENTS = "@@"  # receiver of packets to all components
# Numbering starts at a random number from FIRST_SEQUENCE to LAST_SEQUENCE. After LAST_SEQUENCE it continues with 0.
FIRST_SEQUENCE, LAST_SEQUENCE = 1, 2**31 - 1

CONTROL, DATA = "control", "data"
_MOST_BRACKETS = 64  # maximum number of opening brackets in a JSON text, at all levels together
_LARGEST_TIME = 2**64 - 1

Value = int | float | str | dict[str, Any]


class Packet(NamedTuple):
    """Decoded packet.

    Attributes:
        sequence: Sequence number of the sender on this channel. On the data channel, each codifier has its own numbers.
        time_ms: Time of the sender's clock in milliseconds since 1970 (UTC), unchecked.
        flag: Letter in FLAGS.
        source: Codifier of the sender: two characters.
        to: Codifier of the receiver: two characters.
        value: In a control packet, a number. In a data packet, a value of the type that the flag defines.
        active: In a control packet, True if the sender sends readings on the data channel. In a data packet, None.
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
        """Channel of the packet: CONTROL or DATA."""
        return FLAGS[self.flag].channel


class Flag(NamedTuple):
    """Row of the table FLAGS.

    Attributes:
        channel: CONTROL or DATA.
        payload: Kind of payload.
        meaning: Description for people.
    """

    channel: str
    payload: Payload
    meaning: str


class Payload(NamedTuple):
    """Kind of payload.

    Attributes:
        description: Description for people.
        read: Function that decodes a payload and returns `value` and `active` of the packet.
        write: Function that encodes `value` and `active`.
    """

    description: str
    read: Callable[[bytes], tuple[Value, bool | None]]
    write: Callable[[Any, bool], bytes]


def encode(packet: Packet) -> bytes:
    """Return the bytes of `packet`. Raise BadPacket if a codifier is invalid or the value does not fit the flag."""
    try:
        payload = FLAGS[packet.flag].payload.write(packet.value, bool(packet.active))
    except KeyError:
        raise BadPacket(f"{packet.flag!r:.20} is not a flag of the bus") from None
    except (struct.error, TypeError, OverflowError, ValueError) as error:
        description = FLAGS[packet.flag].payload.description
        raise BadPacket(f"the payload of {packet.flag} must be {description}, not {packet.value!r:.80}") from error
    if len(payload) > PACKET_BYTES - _HEADER.size:
        raise BadPacket(f"{packet.flag}: the payload has {len(payload)} bytes, more than {PACKET_BYTES - _HEADER.size}")
    source, to = codifier(packet.source), codifier(packet.to)
    if not (0 <= packet.sequence < 2**32 and 0 <= packet.time_ms <= _LARGEST_TIME):
        raise BadPacket(f"sequence {packet.sequence} or time {packet.time_ms} is out of range")
    head = packet.sequence, packet.time_ms, packet.flag.encode(), source.encode(), to.encode(), len(payload)
    return _HEADER.pack(*head) + payload


def decode(data: bytes) -> Packet:
    """Return the packet in the datagram `data`, which is untrusted input. Raise BadPacket if it is invalid."""
    if not _HEADER.size <= len(data) <= PACKET_BYTES:
        raise BadPacket(f"the datagram has {len(data)} bytes, not {_HEADER.size} to {PACKET_BYTES}")
    sequence, time_ms, letter, source, to, length = _HEADER.unpack_from(data)
    if length != len(data) - _HEADER.size:
        raise BadPacket(f"the payload has {len(data) - _HEADER.size} bytes, not {length} as declared")
    entry = _BY_BYTE.get(letter)
    if entry is None:
        raise BadPacket(f"{letter!r} is not a flag of the bus")
    flag, payload = entry
    try:
        value, active = payload.read(data[_HEADER.size :])
    except (struct.error, ValueError, RecursionError) as error:
        raise BadPacket(f"the payload of {flag} must be {payload.description}: {error}") from None
    packet = (
        sequence,
        time_ms,
        flag,
        _CODIFIERS.get(source) or _new_codifier(source),
        _CODIFIERS.get(to) or _new_codifier(to),
    )
    return _new_tuple(Packet, (*packet, value, active))


def codifier(text: str) -> str:
    """Return `text` if it is a valid codifier: two visible ASCII characters. Otherwise raise BadPacket."""
    if len(text) == 2 and text.isascii() and all("!" <= letter <= "~" for letter in text):
        return text
    raise BadPacket(f"a codifier must be two visible ASCII characters, such as C4, not {text!r:.20}")


def following(sequence: int) -> int:
    """Return the sequence number after `sequence`."""
    return sequence + 1 if sequence < LAST_SEQUENCE else 0


def _read_control(payload: bytes) -> tuple[Value, bool | None]:
    number, active = _CONTROL.unpack(payload)
    if not math.isfinite(number):
        raise ValueError("the number is not finite")
    if active > 1:
        raise ValueError(f"the last byte is {active}, not 0 or 1")
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
        raise ValueError(f"the text has {len(payload) - _U32.size} bytes, not {length} as declared")
    return payload[_U32.size :].decode()


def _read_text(payload: bytes) -> tuple[Value, bool | None]:
    return _text_of(payload), None


def _write_text(value: Any, active: bool) -> bytes:
    if not isinstance(value, str):
        raise TypeError("not a string")
    text = value.encode()
    return _U32.pack(len(text)) + text


def _read_json(payload: bytes) -> tuple[Value, bool | None]:
    text = _text_of(payload)
    if text.count("[") + text.count("{") > _MOST_BRACKETS:  # the parser is recursive, and a thread's stack is small
        raise ValueError(f"more than {_MOST_BRACKETS} brackets")
    found = json.loads(text, object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_finite)
    if not isinstance(found, dict) or "value" not in found:
        raise ValueError("`value` is missing")
    json.dumps(found, ensure_ascii=False).encode()  # rejects half of a surrogate pair, which later steps cannot encode
    return found, None


def _write_json(value: Any, active: bool) -> bytes:
    if not isinstance(value, dict) or "value" not in value:
        raise TypeError("not an object with `value`")
    return _write_text(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")), active)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal:.20} is not finite")
    return number


def _new_codifier(raw: bytes) -> str:
    """Decode a codifier that was received for the first time, and cache it. There are at most 8,836 valid codifiers."""
    found = codifier(raw.decode("latin-1"))
    _CODIFIERS[raw] = found
    return found


_HEADER = struct.Struct("<I4xQ1s2s2s3xI")
_CONTROL = struct.Struct("<dB")  # B instead of ?, so that a byte other than 0 and 1 is detected
_U32 = struct.Struct("<I")
_F32 = struct.Struct("<f")
_CODIFIERS: dict[bytes, str] = {}
_new_tuple = tuple.__new__  # faster than the constructor of a NamedTuple: this is called 20,000 times per second

_NUMBER = Payload("a 64-bit number and one byte, 0 or 1", _read_control, _write_control)
_INTEGER = Payload("a whole number from 0 to 4294967295", _read_u32, _write_u32)
_FLOAT = Payload("a 32-bit number", _read_f32, _write_f32)
_TEXT = Payload("a length and a UTF-8 text of that length", _read_text, _write_text)
_JSON = Payload("a length and a JSON object of that length with `value`", _read_json, _write_json)

FLAGS: dict[str, Flag] = {
    "N": Flag(CONTROL, _NUMBER, "numbering restarts here; the number is the time of the sender's configuration"),
    "I": Flag(CONTROL, _NUMBER, "the sender is alive; the number is the time of its configuration"),
    "C": Flag(CONTROL, _NUMBER, "read the configuration again and restart"),
    "P": Flag(CONTROL, _NUMBER, "ping: answer with T and the same number"),
    "T": Flag(CONTROL, _NUMBER, "answer to P"),
    "S": Flag(CONTROL, _NUMBER, "start the data channel"),
    "H": Flag(CONTROL, _NUMBER, "halt the data channel"),
    "A": Flag(CONTROL, _NUMBER, "set the value to this number"),
    "E": Flag(CONTROL, _NUMBER, "step the value by this number"),
    "n": Flag(DATA, _INTEGER, "numbering of this codifier restarts here"),
    "i": Flag(DATA, _INTEGER, "a reading, as a whole number"),
    "f": Flag(DATA, _FLOAT, "a reading"),
    "s": Flag(DATA, _TEXT, "a reading as text"),
    "j": Flag(DATA, _JSON, "a reading with additional values"),
}
_BY_BYTE = {flag.encode(): (flag, row.payload) for flag, row in FLAGS.items()}
