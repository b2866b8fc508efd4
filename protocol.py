"""Protocol of the TCP link: samples, gaps and batches, the messages, and their encoding; no I/O, no clock.

One table, WORDS, says what each word takes; both ends write and read by it. docs/protocol.md describes the same in
prose. Errors: the WireError family of core.errors, each with its code on the wire.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping

from pigeonpost.core.clock import parse_rfc3339, rfc3339
from pigeonpost.core.errors import BadArgument, NotUtf8, TooLong, UnknownWord, WireError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from pigeonpost.core.strict_json import finite, read_json, read_json_with, write_json

# What the messages carry is this module's too, for all who use it.
from pigeonpost.link.samples import Gap as Gap
from pigeonpost.link.samples import Number as Number
from pigeonpost.link.samples import Sample as Sample
from pigeonpost.link.samples import SampleBatch as SampleBatch
from pigeonpost.link.samples import Values as Values
from pigeonpost.link.samples import batches_of

if TYPE_CHECKING:
    from typing import Any, TypeGuard

VERSION = 1
IMPORTED = "imported"  # the outbox of samples that were read from a file; no node's is called so
DEFAULT_PORT = 5003

LINE_BYTES = 65_536  # a line at most, its LF included
BATCH_SAMPLES = 500  # samples in one SENSORS line at most
WINDOW_SAMPLES = 5_000  # samples that a node sends ahead of the last ACK at most
CHECK_AFTER_S = 15.0  # a server that said nothing for so long says CHECK
SILENCE_S = 45.0  # who hears nothing for so long closes
AUTH_S = 5.0  # authentication is done within this, or the connection is closed
LONGEST_WHY = 80  # characters of the reason of a gap
LARGEST_INTEGER = 2**63 - 1  # of a value, either sign
LARGEST_SEQ = 10**18 - 1  # what an ACK can say; also of every other count, so that the sum of two fits 64 bits

SENSOR_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}").fullmatch
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}").fullmatch
UNIT = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,32}").fullmatch
HEX_16 = re.compile(r"[0-9a-f]{16}").fullmatch


def _ignore_answer(*_: object) -> None:
    """Do nothing: the default of both callbacks of a Batch."""


class Batch(NamedTuple):
    """What a transport submits to the server's ingestor: samples of one epoch, or a gap in it.

    samples       None: it is a gap
    gap           None: it is samples
    base          the running number of seq 0 of this epoch within its outbox; None if the node did not send it
    units         sensor name to unit, as the node sent them
    on_committed  called with (epoch, seq) when everything up to seq is durable; returns at once, from any thread
    on_rejected   called instead, with the error, when the samples would leave a hole
    """

    node: str
    outbox: str
    epoch: str
    base: int | None
    samples: SampleBatch | None
    gap: Gap | None
    units: Mapping[str, str]
    on_committed: Callable[[str, int], Any] = _ignore_answer
    on_rejected: Callable[[WireError], Any] = _ignore_answer

    @property
    def sample_count(self) -> int:
        """How many samples it brings."""
        return 0 if self.samples is None else len(self.samples)

    @property
    def ends(self) -> tuple[int, int]:
        """The first and the last sequence number that it speaks of."""
        if self.samples is not None:
            return self.samples.seq, self.samples.last
        assert self.gap is not None, "a batch brings samples or a gap"
        return self.gap.first, self.gap.last


class Message(NamedTuple):
    """A decoded line: the word in capitals, and its arguments as the shapes in WORDS return them."""

    word: str
    args: tuple[Any, ...]


class Word(NamedTuple):
    """A row of the table: who may say it, the shapes of its arguments, what it means."""

    said_by: str
    shapes: tuple[Shape, ...]
    meaning: str


class Shape(NamedTuple):
    """One kind of argument: how it is read from text and written to it, and what it takes, in words."""

    takes: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]


# ---------------------------------------------------------------------------------------------------------- lines


def encode(word: str, *args: Any) -> bytes:
    """Return the line of `word` with `args` (one for each shape in WORDS), with its LF.

    Raises TooLong when the line would pass LINE_BYTES; KeyError or ValueError for an invalid word or argument.
    """
    shapes = WORDS[word].shapes
    parts = [shape.write(arg) for shape, arg in zip(shapes, args, strict=True)]
    line = " ".join((word, *parts)).encode() + b"\n"
    if len(line) > LINE_BYTES:
        raise TooLong(f"{word}: a line of {len(line)} bytes; at most {LINE_BYTES}")
    return line


def decode(line: bytes) -> Message | None:
    """Decode one line, with or without its end (CR, LF). Returns None for an empty one.

    Raises one of the WireError family, whose text names what was wrong and what would be right.
    """
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise NotUtf8(f"byte {error.start} is not UTF-8: {error.reason}") from None
    said, _, rest = text.partition(" ")
    word = WORDS.get(said)
    if word is None:
        if not text.strip():
            return None
        said = _capitals(said)
        said = _READ_AS.get(said, said)
        word = WORDS.get(said)
        if word is None:
            raise UnknownWord(f"unknown word {preview(text.split(' ')[0])}; the words are {', '.join(WORDS)}")
    shapes = word.shapes
    parts = rest.split(" ", len(shapes) - 1) if rest else []
    if len(parts) != len(shapes):
        raise BadArgument(f"{said} takes {' and '.join(shape.takes for shape in shapes) or 'no argument'}")
    return Message(said, tuple([shape.read(part) for shape, part in zip(shapes, parts)]))


def error_line(error: WireError, line: bytes) -> bytes:
    """Return the ERROR line that tells the peer the fault of `line`."""
    text = str(error)[:_LONGEST_TEXT].encode(errors="replace").decode()
    shown = line[:400].decode(errors="replace").rstrip("\r\n")[:80]
    return encode("ERROR", error.code, {"text": text, "line": shown})


def _capitals(text: str) -> str:
    """Return `text` in capitals where it is ASCII: some other letters have ASCII capitals too, as the long s."""
    return text.upper() if text.isascii() else text


_LONGEST_TEXT = 1000  # letters of an ERROR's text; each may need six bytes


# ----------------------------------------------------------------------------------------------------------- JSON


# For arrays of samples, all in C: `_sample` looks at the numbers, `_read_sample_array` at the keys.
_SAMPLES_DECODER = json.JSONDecoder(parse_constant=finite)


# -------------------------------------------------------------------------------------------------------- samples


def read_samples(items: Any) -> list[Sample]:
    """Return the samples of one epoch in a decoded JSON array: one or more, `seq` without holes.

    Every transport carries samples in this form. Raises BadArgument, naming the sample and the key.
    """
    if type(items) is not list or not 0 < len(items) <= BATCH_SAMPLES:
        raise BadArgument(f"samples come as a JSON array of 1 to {BATCH_SAMPLES}")
    samples = [_sample(item) for item in items]
    first = samples[0].seq
    for expected, sample in enumerate(samples, first):
        if sample[0] != expected:
            raise BadArgument(f"sample {sample.seq} follows {expected - 1}; seq has no holes within one line")
    return samples


def _sample(item: Any) -> Sample:
    try:
        seq, time, up_ms, values = item["seq"], item["time"], item["up"], item["values"]
    except (KeyError, TypeError):
        raise BadArgument("a sample is an object with seq, time, up and values") from None
    if type(seq) is not int or not 0 < seq <= LARGEST_SEQ:
        raise BadArgument(f"seq is a whole number from 1, not {preview(seq)}")
    if type(up_ms) is not int or not 0 <= up_ms <= LARGEST_INTEGER:
        raise BadArgument(f"sample {seq}: up is milliseconds since boot, a whole number from 0, not {preview(up_ms)}")
    try:
        time_ms = parse_rfc3339(time)
    except (ValueError, TypeError, OverflowError):
        raise BadArgument(f"sample {seq}: time is like 2026-11-20T15:36:10.123Z, not {preview(time)}") from None
    _check_values(seq, values)
    if len(item) == 4:  # the usual case, made without the detour of a NamedTuple's constructor
        return _new_tuple(Sample, (seq, time_ms, up_ms, values, _NO_ERRORS, ""))
    clock = item.get("clock", "")
    if clock not in _CLOCKS:
        raise BadArgument(f'sample {seq}: clock is "unset" or "server" or absent, not {preview(clock)}')
    return Sample(seq, time_ms, up_ms, values, _errors(seq, item.get("errors"), values), clock)


def _check_values(seq: int, values: Any) -> None:
    if type(values) is not dict or not values:
        raise BadArgument(f"sample {seq}: values is an object of sensor names and numbers")
    names = tuple(values)
    if names not in _good_names:
        for name in names:
            if not SENSOR_NAME(name):
                raise BadArgument(f"sample {seq}: {preview(name)} is no sensor name ({SENSOR_NAME_TAKES})")
        if len(_good_names) >= _MOST_REMEMBERED:
            _good_names.clear()
        if len(names) <= _MOST_REMEMBERED:
            _good_names.add(names)
    for name, value in values.items():
        kind = type(value)
        if (kind is float and value - value == 0) or (kind is int and -LARGEST_INTEGER <= value <= LARGEST_INTEGER):
            continue
        if value is not None:
            raise BadArgument(f"sample {seq}: {name} is a finite number or null, not {preview(value)}")


def _errors(seq: int, errors: Any, values: Values) -> Mapping[str, str]:
    if errors is None:
        return _NO_ERRORS
    if type(errors) is not dict or not all(name in values and type(text) is str for name, text in errors.items()):
        raise BadArgument(f"sample {seq}: errors is an object of sensor names of this sample and texts")
    return errors


def sample_body(values: Mapping[str, Number | None], errors: Mapping[str, str]) -> str:
    """Return the part of a sample's JSON that never changes: `"values":{...}` and, if any, `,"errors":{...}`."""
    body = '"values":' + write_json(values)
    return body + ',"errors":' + write_json(errors) if errors else body


def sample_text(seq: int, time_ms: int, up_ms: int, body: str, clock: str) -> str:
    """Return a sample as JSON, from the `body` that `sample_body` made when it was taken."""
    flag = f',"clock":"{clock}"' if clock else ""
    return f'{{"seq":{seq},"time":"{rfc3339(time_ms)}","up":{up_ms},{body}{flag}}}'


def preview(value: Any) -> str:
    """Return an untrusted value for an error text: short, and in one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


SENSOR_NAME_TAKES = "a small letter, then up to 31 small letters, digits and _"
NODE_NAME_TAKES = "a letter or digit, then up to 62 letters, digits, dots, _ and -"
_CLOCKS = ("", "unset", "server")
_NO_ERRORS: Mapping[str, str] = {}
_new_tuple = tuple.__new__
_good_names: set[tuple[str, ...]] = set()  # the names of a sample's values, found right before
_MOST_REMEMBERED = 256  # of them, and of names in each: a peer may make them up


# --------------------------------------------------------------------------------------------- shapes and the table


def _read_switch(text: str) -> bool:
    state = _capitals(text)
    if state not in ("ON", "OFF"):
        raise BadArgument(f"ON or OFF, not {preview(text)}")
    return state == "ON"


def _read_clock_time(text: str) -> str | None:
    if text == "-":
        return None
    if not _CLOCK_TIME(text):
        raise BadArgument(f"a time of day is like 15:36:10, or - for none, not {preview(text)}")
    return text


def _read_epoch(text: str) -> str:
    if not HEX_16(text):
        raise BadArgument(f"an epoch is 16 hex digits (0-9, a-f), not {preview(text)}")
    return text


def _read_seq(text: str) -> int:
    if not _SEQ(text):
        raise BadArgument(f"a sequence number is a whole number from 0, not {preview(text)}")
    return int(text)


def _read_code(text: str) -> str:
    if not _CODE(text):
        raise BadArgument(f"an error code is small letters and -, not {preview(text)}")
    return text


def _read_object(text: str) -> dict[str, Any]:
    value = read_json(text)
    if type(value) is not dict:
        raise BadArgument(f"a JSON object, not {preview(value)}")
    return value


def _read_sample_array(text: str) -> list[SampleBatch]:
    items = read_json_with(text, _SAMPLES_DECODER)
    samples = read_samples(items)
    # This decoder lets a key stand twice, for speed. So the quotes in the text are counted: each key and each text has
    # two. Where there are more (a key twice, one that is not known, a quote in a text) the strict decoder decides.
    if text.count('"') != 10 * len(samples) + sum([
        2 * len(values) + (2 + 4 * len(errors) if errors else 0) + (4 if clock else 0)
        for _, _, _, values, errors, clock in samples
    ]):  # fmt: skip
        samples = read_samples(read_json(text))
    return batches_of(samples)


def _write_sample_array(texts: Iterable[str]) -> str:
    return "[" + ",".join(texts) + "]"


_CLOCK_TIME = re.compile(r"[0-2][0-9]:[0-5][0-9]:[0-6][0-9]").fullmatch
_SEQ = re.compile(r"[0-9]{1,18}").fullmatch
_CODE = re.compile(r"[a-z][a-z0-9-]{0,31}").fullmatch

_SWITCH = Shape("ON or OFF", _read_switch, lambda on: "ON" if on else "OFF")
_CLOCK = Shape("HH:MM:SS or -", _read_clock_time, lambda text: text or "-")
_EPOCH = Shape("an epoch (16 hex digits)", _read_epoch, str)
_NUMBER = Shape("a sequence number", _read_seq, str)
_ERROR = Shape("a code", _read_code, str)
_OBJECT = Shape("a JSON object", _read_object, write_json)
_SAMPLES = Shape("a JSON array of samples", _read_sample_array, _write_sample_array)

WORDS: Mapping[str, Word] = {
    "HELLO": Word("both", (_OBJECT,), "opens a collecting session"),
    "AUTH": Word("server", (_OBJECT,), "proves that the server knows the node's token"),
    "HELD": Word("node", (_OBJECT,), "goes on with HELLO's list of what the outbox holds"),
    "RESUME": Word("server", (_OBJECT,), "what the server has of each epoch; the node starts sending on it"),
    "SEND": Word("server", (_SWITCH,), "turns the node's sampling and sending on or off"),
    "SENDBACK": Word("node", (_SWITCH,), "acknowledges SEND with the state now in force"),
    "CHECK": Word("server", (), "are you active?"),
    "STATUS": Word("node", (_SWITCH, _CLOCK, _OBJECT), "answer to CHECK: on or off, last sample sent, details"),
    "SENSORS": Word("node", (_EPOCH, _SAMPLES), "samples of one epoch, oldest first, seq without holes"),
    "GAP": Word("node", (_EPOCH, _OBJECT), "these samples will never come"),
    "ACK": Word("server", (_EPOCH, _NUMBER), "everything of this epoch up to here is durably stored"),
    "ERROR": Word("both", (_ERROR, _OBJECT), "what was wrong, in words"),
    "BYE": Word("both", (), "closes on purpose"),
}

_READ_AS = {"SENDACK": "SENDBACK"}  # some older programs say it so


def is_count(value: Any) -> TypeGuard[int]:
    """Return True if an untrusted JSON value is a whole number from 0 that can be calculated with and stored."""
    return type(value) is int and 0 <= value <= LARGEST_SEQ
