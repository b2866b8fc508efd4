"""Writer of samples as JSON, with one object per sample or one object of columns.

To save memory, a node imports only this module of the encoding, not the readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import sub

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.strict_json import write_json
from pigeonpost.link.samples import Errors, Number


def sample_body(values: Mapping[str, Number | None], errors: Mapping[str, str]) -> str:
    """Return the part of a sample's JSON that never changes: `"values":{...}` and, if any, `,"errors":{...}`.

    Args:
        values: Sensor name to value, None for a sensor that failed.
        errors: Sensor name to the reason, for the values that are None.
    """
    body = '"values":' + write_json(values)
    return body + ',"errors":' + write_json(errors) if errors else body


def write_sample_array(texts: Iterable[str]) -> str:
    """Return the JSON array of the samples whose `texts` sample_text returned."""
    return "[" + ",".join(texts) + "]"


def sample_text(seq: int, time_ms: int, up_ms: int, body: str, clock: str) -> str:
    """Return a sample as JSON.

    Args:
        seq: Sequence number of the sample.
        time_ms: Time of the sample in milliseconds since 1970 (UTC).
        up_ms: The same time in milliseconds since the node's boot.
        body: Result of `sample_body` for the sample's values and errors.
        clock: State of the node's clock: "", "unset" or "server".
    """
    clock_text = f',"clock":"{clock}"' if clock else ""
    return f'{{"seq":{seq},"time":"{rfc3339(time_ms)}","up":{up_ms},{body}{clock_text}}}'


def columns_text(
    seq: int, time_steps: str, up_steps: str, values: Mapping[str, str], errors: Errors, clock: str
) -> str:
    """Return samples as a JSON object of columns.

    Args:
        seq: Sequence number of the first sample.
        time_steps: Times in milliseconds since 1970 (UTC), as `steps_text` writes them.
        up_steps: The same times in milliseconds since the node's boot, as `steps_text` writes them.
        values: Sensor name to its values as JSON text, separated by commas.
        errors: Reasons of the null values: sensor name to {index in the batch: reason}.
        clock: State of the node's clock: "", "unset" or "server".
    """
    first_up, _, rest = up_steps.partition(",")
    up_text = first_up if rest == time_steps.partition(",")[2] else f"[{up_steps}]"
    columns = ",".join([f'"{name}":[{column}]' for name, column in values.items()])
    errors_text = ',"errors":' + write_json(errors) if errors else ""
    clock_text = f',"clock":"{clock}"' if clock else ""
    return f'{{"seq":{seq},"time":[{time_steps}],"up":{up_text},"values":{{{columns}}}{errors_text}{clock_text}}}'


def steps_text(times: Sequence[int]) -> str:
    """Return `times` as text: the first time, then the difference of each to its predecessor, separated by commas."""
    return repr([times[0], *map(sub, times[1:], times)])[1:-1].replace(" ", "")
