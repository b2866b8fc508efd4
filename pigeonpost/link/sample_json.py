"""Reader of samples as JSON objects, one per sample; the writer is sample_text.

    {"seq": 151, "time": "2026-11-20T15:36:10.123Z", "up": 48211903, "values": {"temperature": 23.4, "light": 512}}

Samples with the same sensors and clock state are checked column by column, with functions in C. Other samples, and
those with an invalid part, are checked one after another. Errors: BadArgument, whose text names the sample and the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pigeonpost.core.clock import parse_rfc3339, parse_usual_times
from pigeonpost.core.errors import BadArgument
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.strict_json import finite, read_json, read_json_with
from pigeonpost.link.checks import (
    BATCH_SAMPLES,
    INT,
    LARGEST_INTEGER,
    LARGEST_SEQ,
    are_names,
    are_ups,
    are_values,
    check_clock,
    check_names,
    check_seq,
    check_up,
    check_value,
    preview,
)
from pigeonpost.link.samples import Sample, SampleBatch, Values, batches_of

if TYPE_CHECKING:
    from typing import Any

_KEYS = ("seq", "time", "up", "values")  # keys of the usual sample, in the usual order
_QUOTES = 10  # quotation marks of the keys and the time in a usual sample; each sensor name adds two
_NO_ERRORS: Mapping[str, str] = {}
_new_tuple = tuple.__new__

# Decodes arrays of samples in C only. The checks validate the numbers, `read_sample_array` the keys.
_DECODER = json.JSONDecoder(parse_constant=finite)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def read_sample_array(text: str) -> list[SampleBatch]:
    """Return the samples of one epoch in `text`, a JSON array of one or more samples with consecutive `seq`.

    Samples that have the same sensors in the same order and the same clock state form one batch.

    Raises:
        BadArgument: The text is not valid JSON, or a sample is invalid.
    """
    items = read_json_with(text, _DECODER)
    batch = read_alike(items) if type(items) is list and 1 < len(items) <= BATCH_SAMPLES else None
    # For speed, this decoder accepts duplicate keys. So the quotation marks in the text are counted: each key and each
    # string has two. If there are more (a duplicate or unknown key, a quotation mark in a string), the strict decoder
    # decides.
    if batch is not None and text.count('"') == len(items) * (_QUOTES + 2 * len(batch.values)):
        return [batch]
    samples = read_samples(items)
    if text.count('"') != _QUOTES * len(samples) + sum([
        2 * len(values) + (2 + 4 * len(errors) if errors else 0) + (4 if clock else 0)
        for _, _, _, values, errors, clock in samples
    ]):  # fmt: skip
        samples = read_samples(read_json(text))
    return batches_of(samples) if len(samples) > 1 else [_batch_of_one(*samples[0])]


def _batch_of_one(
    seq: int, time_ms: int, up_ms: int, values: Values, errors: Mapping[str, str], clock: str
) -> SampleBatch:
    columns = {name: [value] for name, value in values.items()}
    return SampleBatch(seq, [time_ms], [up_ms], columns, {name: {0: errors[name]} for name in errors}, clock)


def read_joined(arrays: Sequence[bytes]) -> SampleBatch | None:
    """Return the samples in several JSON arrays of one sample each as one batch, decoded together.

    The samples are exactly those that `read_sample_array` returns for each array. The proof: the arrays are joined with
    commas before they are decoded. A joining comma

    - is not in a decoded string, because those are known keys, times and sensor names, which contain no commas;
    - is not in a string that the decoder dropped because of a duplicate key, because the quotation marks are counted;
    - is not within an object, because `}` before it and `{` after it would make the JSON invalid.

    So each array contains at least one complete sample. Since there are as many samples as arrays, it is exactly one.

    Args:
        arrays: JSON arrays that begin with `[{` and end with `}]`, with consecutive samples.

    Returns:
        The batch, or None if any sample is not of the usual form. Then the caller reads the arrays one after another.
    """
    joined = b"[" + b",".join([array[1:-1] for array in arrays]) + b"]"
    # Reject deeper nesting than usual before decoding: the decoder's recursion is limited only by the stack.
    if b"\\" in joined or joined.translate(None, _NO_BRACKETS) != b"[" + b"{{}}" * len(arrays) + b"]":
        return None
    try:
        items = _DECODER.decode(joined.decode())
    except ValueError:
        return None
    if len(items) != len(arrays):
        return None
    batch = read_alike(items)
    is_complete = batch is not None and joined.count(b'"') == len(items) * (_QUOTES + 2 * len(batch.values))
    return batch if is_complete else None


def read_alike(items: list[Any]) -> SampleBatch | None:
    """Return `items`, decoded samples of the usual form with the same sensors, as one batch.

    The usual form has neither errors nor a clock state.

    Returns:
        The batch, or None if a sample has another form or is invalid.
    """
    if set(map(type, items)) != {dict} or set(map(tuple, items)) != {_KEYS}:
        return None
    seqs, texts, ups, readings = zip(*map(dict.values, items))
    first = seqs[0]
    if set(map(type, seqs)) != INT or seqs != tuple(range(first, first + len(items))):
        return None
    if first < 1 or seqs[-1] > LARGEST_SEQ or not are_ups(ups) or set(map(type, readings)) != {dict}:
        return None
    times = parse_usual_times(texts)
    names = tuple(readings[0])
    if times is None or not names or set(map(tuple, readings)) != {names} or not are_names(names):
        return None
    columns = list(map(list, zip(*map(dict.values, readings))))
    if not all(map(are_values, columns)):
        return None
    return SampleBatch(first, times, list(ups), dict(zip(names, columns)))


def read_samples(items: Any) -> list[Sample]:
    """Return the samples of one epoch in `items`, a decoded JSON array of one or more samples with consecutive `seq`.

    Raises:
        BadArgument: A sample is invalid; the text names the sample and the key.
    """
    if type(items) is not list or not 0 < len(items) <= BATCH_SAMPLES:
        raise BadArgument(f"samples must be a JSON array of 1 to {BATCH_SAMPLES}")
    samples = [_sample(item) for item in items]
    first = samples[0].seq
    for expected, sample in enumerate(samples, first):
        if sample[0] != expected:
            raise BadArgument(f"sample {sample.seq} follows {expected - 1}; seq must not skip numbers within one line")
    return samples


def _sample(item: Any) -> Sample:
    try:
        seq, time, up_ms, values = item["seq"], item["time"], item["up"], item["values"]
    except (KeyError, TypeError):
        raise BadArgument("a sample must be an object with seq, time, up and values") from None
    check_seq(seq)
    check_up(seq, up_ms)
    try:
        time_ms = parse_rfc3339(time)
    except (ValueError, TypeError, OverflowError):
        raise BadArgument(f"sample {seq}: time must be like 2026-11-20T15:36:10.123Z, not {preview(time)}") from None
    if type(values) is not dict or not values:
        raise BadArgument(f"sample {seq}: values must be an object of sensor names and numbers")
    check_names(seq, tuple(values))
    for name, value in values.items():
        kind = type(value)  # the test of `check_value` inline: a call for each value is too slow
        if (kind is float and value - value == 0) or (kind is int and -LARGEST_INTEGER <= value <= LARGEST_INTEGER):
            continue
        check_value(seq, name, value)
    if len(item) == 4:  # the usual case: tuple.__new__ is faster than the constructor of a NamedTuple
        return _new_tuple(Sample, (seq, time_ms, up_ms, values, _NO_ERRORS, ""))
    clock = item.get("clock", "")
    check_clock(seq, clock)
    return Sample(seq, time_ms, up_ms, values, _errors(seq, item.get("errors"), values), clock)


def _errors(seq: int, errors: Any, values: Values) -> Mapping[str, str]:
    if errors is None:
        return _NO_ERRORS
    if type(errors) is not dict or not all(name in values and type(text) is str for name, text in errors.items()):
        raise BadArgument(f"sample {seq}: errors must map names of this sample's sensors to texts")
    return errors
