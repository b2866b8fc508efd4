"""Writer of samples as JSON: one object each, or columns. A node has no other part of their encoding in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import sub

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.strict_json import write_json
from pigeonpost.link.samples import Errors, Number


def sample_body(values: Mapping[str, Number | None], errors: Mapping[str, str]) -> str:
    """Return the part of a sample's JSON that never changes: `"values":{...}` and, if any, `,"errors":{...}`."""
    body = '"values":' + write_json(values)
    return body + ',"errors":' + write_json(errors) if errors else body


def write_sample_array(texts: Iterable[str]) -> str:
    """Return the JSON array of samples that `sample_text` has written."""
    return "[" + ",".join(texts) + "]"


def sample_text(seq: int, time_ms: int, up_ms: int, body: str, clock: str) -> str:
    """Return a sample as JSON, from the `body` that `sample_body` made when it was taken."""
    flag = f',"clock":"{clock}"' if clock else ""
    return f'{{"seq":{seq},"time":"{rfc3339(time_ms)}","up":{up_ms},{body}{flag}}}'


def columns_text(
    seq: int, time_steps: str, up_steps: str, values: Mapping[str, str], errors: Errors, clock: str
) -> str:
    """Return samples as JSON.

    time_steps, up_steps  as `steps_text` writes them
    values                of each sensor its values, with a comma between two of them
    """
    up, _, rest = up_steps.partition(",")
    up_text = up if rest == time_steps.partition(",")[2] else f"[{up_steps}]"
    columns = ",".join([f'"{name}":[{column}]' for name, column in values.items()])
    more = ',"errors":' + write_json(errors) if errors else ""
    flag = f',"clock":"{clock}"' if clock else ""
    return f'{{"seq":{seq},"time":[{time_steps}],"up":{up_text},"values":{{{columns}}}{more}{flag}}}'


def steps_text(moments: Sequence[int]) -> str:
    """Return the first of `moments` and the differences that follow, with a comma between two of them."""
    return repr([moments[0], *map(sub, moments[1:], moments)])[1:-1].replace(" ", "")
