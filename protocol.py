"""Protocol of the TCP link: samples, gaps and batches, the messages, and their encoding; no I/O, no clock.

One table, WORDS, says what each word takes; both ends write and read by it. docs/protocol.md describes the same in
prose. Errors: the WireError family of core.errors, each with its code on the wire.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

from pigeonpost.core.errors import BadArgument, NotUtf8, TooLong, UnknownWord, WireError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from pigeonpost.core.strict_json import read_json, write_json

# What the messages carry is this module's too, for all who use it.
from pigeonpost.link.checks import BATCH_SAMPLES as BATCH_SAMPLES
from pigeonpost.link.checks import COLUMN_SAMPLES as COLUMN_SAMPLES
from pigeonpost.link.checks import LARGEST_INTEGER as LARGEST_INTEGER
from pigeonpost.link.checks import LARGEST_SEQ as LARGEST_SEQ
from pigeonpost.link.checks import SENSOR_NAME as SENSOR_NAME
from pigeonpost.link.checks import SENSOR_NAME_TAKES as SENSOR_NAME_TAKES
from pigeonpost.link.checks import preview as preview
from pigeonpost.link.sample_text import sample_body as sample_body
from pigeonpost.link.sample_text import sample_text as sample_text
from pigeonpost.link.sample_text import write_sample_array
from pigeonpost.link.samples import Gap as Gap
from pigeonpost.link.samples import Number as Number
from pigeonpost.link.samples import Sample as Sample
from pigeonpost.link.samples import SampleBatch as SampleBatch
from pigeonpost.link.samples import Values as Values

if TYPE_CHECKING:
    from typing import Any, TypeGuard

VERSION = 1
IMPORTED = "imported"  # the outbox of samples that were read from a file; no node's is called so
DEFAULT_PORT = 5003

LINE_BYTES = 65_536  # a line at most, its LF included
VALUES_PER_SAMPLE = 4  # a sample that waits on the server counts as several if it has more: it takes more memory
WINDOW_SAMPLES = 5_000  # samples that a node sends ahead of the last ACK at most, when nothing else was agreed
COLUMNS_WINDOW = 65_536  # that this server says beside `"columns": true`
LARGEST_WINDOW = 1_000_000  # that a node believes
CHECK_AFTER_S = 15.0  # a server that said nothing for so long says CHECK
SILENCE_S = 45.0  # who hears nothing for so long closes
AUTH_S = 5.0  # authentication is done within this, or the connection is closed
LONGEST_WHY = 80  # characters of the reason of a gap

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}").fullmatch
NODE_NAME_TAKES = "a letter or digit, then up to 62 letters, digits, dots, _ and -"
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
    window        samples that its node may send ahead of the last acknowledgement; when half of them wait, they are
                  committed at once. Over MQTT, where bodies are counted, it is the smallest window of the link
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
    window: int = WINDOW_SAMPLES

    @property
    def sample_count(self) -> int:
        """How many samples it brings."""
        return 0 if self.samples is None else len(self.samples)

    @property
    def weight(self) -> int:
        """How many samples of a few values take as much memory while they wait; a gap counts as one."""
        values = 0 if self.samples is None else len(self.samples) * len(self.samples.values)
        return max(self.sample_count, values // VALUES_PER_SAMPLE, 1)

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


def decode_joined(lines: Sequence[bytes]) -> Message | None:
    """Decode SENSORS lines of one sample each that came together, all of one epoch, as if it were one line.

    lines  without their ends; the first 27 bytes of each are the same
    None if anything is not as usual: then `decode` of one after another tells. It is exact: see read_joined.
    """
    found = _JOINED_HEAD(lines[0])
    if found is None or set(map(_LAST_TWO, lines)) != {b"}]"}:
        return None
    batch = _readers()[1]([line[JOINED_HEAD_BYTES - 2 :] for line in lines])
    return Message("SENSORS", (found[1].decode(), [batch])) if batch is not None else None


JOINED_HEAD_BYTES = len("SENSORS 0123456789abcdef [{")
_JOINED_HEAD = re.compile(rb"SENSORS ([0-9a-f]{16}) \[\{").match
_LAST_TWO = itemgetter(slice(-2, None))


def error_line(error: WireError, line: bytes) -> bytes:
    """Return the ERROR line that tells the peer the fault of `line`."""
    text = str(error)[:_LONGEST_TEXT].encode(errors="replace").decode()
    shown = line[:400].decode(errors="replace").rstrip("\r\n")[:80]
    return encode("ERROR", error.code, {"text": text, "line": shown})


def _capitals(text: str) -> str:
    """Return `text` in capitals where it is ASCII: some other letters have ASCII capitals too, as the long s."""
    return text.upper() if text.isascii() else text


_LONGEST_TEXT = 1000  # letters of an ERROR's text; each may need six bytes


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


def _read_samples(text: str) -> list[SampleBatch]:
    return _readers()[0](text)


@functools.cache
def _readers() -> tuple[Callable[[str], list[SampleBatch]], Callable[[Sequence[bytes]], SampleBatch | None]]:
    """What reads one line of samples, and many together. Loaded when it is needed: no node needs its 0.1 MiB."""
    from pigeonpost.link.columns import decode_columns, read_columns
    from pigeonpost.link.sample_json import read_joined, read_sample_array

    def read(text: str) -> list[SampleBatch]:
        return [read_columns(decode_columns(text))] if text.startswith("{") else read_sample_array(text)

    return read, read_joined


def _write_samples(samples: str | Sequence[str]) -> str:
    return samples if isinstance(samples, str) else write_sample_array(samples)


_CLOCK_TIME = re.compile(r"[0-2][0-9]:[0-5][0-9]:[0-6][0-9]").fullmatch
_SEQ = re.compile(r"[0-9]{1,18}").fullmatch
_CODE = re.compile(r"[a-z][a-z0-9-]{0,31}").fullmatch

_SWITCH = Shape("ON or OFF", _read_switch, lambda on: "ON" if on else "OFF")
_CLOCK = Shape("HH:MM:SS or -", _read_clock_time, lambda text: text or "-")
_EPOCH = Shape("an epoch (16 hex digits)", _read_epoch, str)
_NUMBER = Shape("a sequence number", _read_seq, str)
_ERROR = Shape("a code", _read_code, str)
_OBJECT = Shape("a JSON object", _read_object, write_json)
# Written from the texts of single samples, or from the text that columns_text has made of many.
_SAMPLES = Shape("a JSON array of samples, or an object of columns", _read_samples, _write_samples)

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
