"""Protocol of the TCP link: samples, gaps and batches, the messages, and their encoding; no I/O, no clock.

The table WORDS defines the arguments of each word. Both ends read and write lines with this table. docs/protocol.md
describes the same in prose. Errors: subclasses of core.errors.WireError, each with its error code on the wire.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

from pigeonpost.core.errors import BadArgument, NotUtf8, TooLong, UnknownWord, WireError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from pigeonpost.core.strict_json import read_json, write_json

# Re-exported: the contents of messages are part of this module's interface.
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
IMPORTED = "imported"  # outbox name of samples read from a file; a node's outbox is 16 hex digits and never has it
DEFAULT_PORT = 5003

LINE_BYTES = 65_536  # maximum length of a line, including its LF
# A queued sample with more values than this counts as several samples, because it needs more memory.
VALUES_PER_SAMPLE = 4
# Maximum number of samples that a node sends ahead of the last ACK:
WINDOW_SAMPLES = 5_000  # if the ends agreed on nothing else
COLUMNS_WINDOW = 65_536  # offered by this server in HELLO, together with `"columns": true`
LARGEST_WINDOW = 1_000_000  # the largest offer that a node accepts
CHECK_AFTER_S = 15.0  # a server sends CHECK after it has sent nothing for this time
SILENCE_S = 45.0  # either end closes the connection after it has received nothing for this time
AUTH_S = 5.0  # the connection is closed unless authentication is complete within this time
LONGEST_WHY = 80  # maximum length of the reason of a gap, in characters

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}").fullmatch
NODE_NAME_TAKES = "a letter or digit, then up to 62 letters, digits, dots, _ and -"
UNIT = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,32}").fullmatch
HEX_16 = re.compile(r"[0-9a-f]{16}").fullmatch


def _ignore_answer(*_: object) -> None:
    """Do nothing: the default of both callbacks of a Batch."""


class Batch(NamedTuple):
    """Samples of one epoch, or a gap in it, as a transport submits them to the server's ingestor.

    Attributes:
        node: Name of the node.
        outbox: Identifier of the node's outbox.
        epoch: The epoch, 16 hex digits.
        base: Running number of seq 0 of this epoch, or None if the node did not send it. Running numbers count the
            samples of an outbox over all epochs.
        samples: The samples, or None if the batch is a gap.
        gap: The gap, or None if the batch has samples.
        units: Sensor name to unit, as the node sent them.
        on_committed: Called with (epoch, seq) once everything up to seq is durable. It may be called from any
            thread and must return without waiting.
        on_rejected: Called with the error instead, if the ingestor rejects the batch, for example because samples
            before it are missing.
        window: Maximum number of samples that the node sends ahead of the last acknowledgement. The ingestor commits
            immediately once half of them are uncommitted. Batches from HTTP push and MQTT, which have no such window,
            have the default.
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
        """Number of samples in the batch; 0 for a gap."""
        return 0 if self.samples is None else len(self.samples)

    @property
    def weight(self) -> int:
        """Memory that the queued batch needs, in samples of up to VALUES_PER_SAMPLE values; 1 for a gap."""
        values = 0 if self.samples is None else len(self.samples) * len(self.samples.values)
        return max(self.sample_count, values // VALUES_PER_SAMPLE, 1)

    @property
    def ends(self) -> tuple[int, int]:
        """First and last sequence number of the samples or of the gap."""
        if self.samples is not None:
            return self.samples.seq, self.samples.last
        assert self.gap is not None, "a batch has samples or a gap"
        return self.gap.first, self.gap.last


class Message(NamedTuple):
    """A decoded line: the word in capitals, and its arguments as the shapes in WORDS return them."""

    word: str
    args: tuple[Any, ...]


class Word(NamedTuple):
    """A row of the table WORDS: which end sends the word, the shapes of its arguments, and its meaning."""

    sender: str
    shapes: tuple[Shape, ...]
    meaning: str


class Shape(NamedTuple):
    """A kind of argument: its description for error texts, and functions to read it from text and write it as text."""

    takes: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]


# ---------------------------------------------------------------------------------------------------------- lines


def encode(word: str, *args: Any) -> bytes:
    """Return the line of a word with its arguments and the final LF.

    Args:
        word: A word of WORDS.
        args: One value for each shape of the word.

    Raises:
        TooLong: The line would be longer than LINE_BYTES.
        KeyError: `word` is not in WORDS.
        ValueError: The number or the value of the arguments is invalid.
    """
    shapes = WORDS[word].shapes
    parts = [shape.write(arg) for shape, arg in zip(shapes, args, strict=True)]
    line = " ".join((word, *parts)).encode() + b"\n"
    if len(line) > LINE_BYTES:
        raise TooLong(f"{word}: the line has {len(line)} bytes; at most {LINE_BYTES}")
    return line


def decode(line: bytes) -> Message | None:
    """Return the message in one line, or None if the line is empty.

    Args:
        line: The line, with or without its end (CR, LF).

    Raises:
        NotUtf8: The line is not UTF-8.
        UnknownWord: The first word is not in WORDS.
        BadArgument: The number or the value of the arguments is invalid; the text names what is expected.
    """
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise NotUtf8(f"byte {error.start} is not valid UTF-8: {error.reason}") from None
    name, _, rest = text.partition(" ")
    word = WORDS.get(name)
    if word is None:
        if not text.strip():
            return None
        name = _capitals(name)
        name = _READ_AS.get(name, name)
        word = WORDS.get(name)
        if word is None:
            raise UnknownWord(f"unknown word {preview(text.split(' ')[0])}; the words are {', '.join(WORDS)}")
    shapes = word.shapes
    parts = rest.split(" ", len(shapes) - 1) if rest else []
    if len(parts) != len(shapes):
        raise BadArgument(f"{name} takes {' and '.join(shape.takes for shape in shapes) or 'no argument'}")
    return Message(name, tuple([shape.read(part) for shape, part in zip(shapes, parts)]))


def decode_joined(lines: Sequence[bytes]) -> Message | None:
    """Decode several SENSORS lines of one sample each, which were received together, as one message.

    The samples are the same as if `decode` had decoded each line separately; sample_json.read_joined gives the proof.

    Args:
        lines: The lines, without their ends. The first 27 bytes of all lines (word and epoch) are equal.

    Returns:
        The message, or None if any line is not of the usual form. Then the caller decodes each line with `decode`.
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
    """Return the ERROR line that reports `error`, caused by the received `line`, to the peer."""
    text = str(error)[:_LONGEST_TEXT].encode(errors="replace").decode()
    start = line[:400].decode(errors="replace").rstrip("\r\n")[:80]
    return encode("ERROR", error.code, {"text": text, "line": start})


def _capitals(text: str) -> str:
    """Return `text` in capitals if it is ASCII, else unchanged: other letters (the long s) can have ASCII capitals."""
    return text.upper() if text.isascii() else text


_LONGEST_TEXT = 1000  # characters of an ERROR's text; JSON may need six bytes for each


# --------------------------------------------------------------------------------------------- shapes and the table


def _read_switch(text: str) -> bool:
    state = _capitals(text)
    if state not in ("ON", "OFF"):
        raise BadArgument(f"expected ON or OFF, not {preview(text)}")
    return state == "ON"


def _read_clock_time(text: str) -> str | None:
    if text == "-":
        return None
    if not _CLOCK_TIME(text):
        raise BadArgument(f"a time of day must be like 15:36:10, or - for none, not {preview(text)}")
    return text


def _read_epoch(text: str) -> str:
    if not HEX_16(text):
        raise BadArgument(f"an epoch must be 16 hex digits (0-9, a-f), not {preview(text)}")
    return text


def _read_seq(text: str) -> int:
    if not _SEQ(text):
        raise BadArgument(f"a sequence number must be a whole number of at least 0, not {preview(text)}")
    return int(text)


def _read_code(text: str) -> str:
    if not _CODE(text):
        raise BadArgument(f"an error code must be lower-case letters, digits and -, not {preview(text)}")
    return text


def _read_object(text: str) -> dict[str, Any]:
    value = read_json(text)
    if type(value) is not dict:
        raise BadArgument(f"expected a JSON object, not {preview(value)}")
    return value


def _read_samples(text: str) -> list[SampleBatch]:
    return _readers()[0](text)


@functools.cache
def _readers() -> tuple[Callable[[str], list[SampleBatch]], Callable[[Sequence[bytes]], SampleBatch | None]]:
    """Return the readers of one line and of joined lines; a node needs neither, and saves 0.1 MiB this way."""
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
# Written either from the texts of single samples, or from the text of many samples that columns_text returned.
_SAMPLES = Shape("a JSON array of samples, or an object of columns", _read_samples, _write_samples)

WORDS: Mapping[str, Word] = {
    "HELLO": Word("both", (_OBJECT,), "opens a collecting session"),
    "AUTH": Word("server", (_OBJECT,), "proves that the server knows the node's token"),
    "HELD": Word("node", (_OBJECT,), "continues the list in HELLO of what the outbox holds"),
    "RESUME": Word(
        "server", (_OBJECT,), "lists what the server has stored of each epoch; then the node starts to send"
    ),
    "SEND": Word("server", (_SWITCH,), "turns the node's sampling and sending on or off"),
    "SENDBACK": Word("node", (_SWITCH,), "acknowledges SEND with the state now in force"),
    "CHECK": Word("server", (), "asks for the state of the node"),
    "STATUS": Word(
        "node", (_SWITCH, _CLOCK, _OBJECT), "answers CHECK: sampling on or off, time of the last sample sent, details"
    ),
    "SENSORS": Word("node", (_EPOCH, _SAMPLES), "contains samples of one epoch, oldest first, with consecutive seq"),
    "GAP": Word("node", (_EPOCH, _OBJECT), "reports samples that will never arrive"),
    "ACK": Word("server", (_EPOCH, _NUMBER), "confirms that everything of this epoch up to here is durably stored"),
    "ERROR": Word("both", (_ERROR, _OBJECT), "reports an error, with a code and a text"),
    "BYE": Word("both", (), "announces that this end closes the connection"),
}

_READ_AS = {"SENDACK": "SENDBACK"}  # some older programs send this word


def is_count(value: Any) -> TypeGuard[int]:
    """Return True if `value`, from untrusted JSON, is a whole number from 0 to LARGEST_SEQ."""
    return type(value) is int and 0 <= value <= LARGEST_SEQ
