"""Encoder of samples in the InfluxDB line protocol: `readings,node=basement temperature=21.5,light=512 TIME`.

Source: docs.influxdata.com, "Line protocol". Errors: none.
"""

from __future__ import annotations

from collections.abc import Mapping

from pigeonpost.core.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pigeonpost.link.samples import SampleBatch

NANOSECONDS = "000000"  # end of a time in nanoseconds, after its milliseconds
_RENAMED: Mapping[str, str] = {"time": "time_"}


def influx_lines(node: str, batch: SampleBatch, time_end: str = "") -> str:
    """Return one line per sample that has at least one value, each with its line end.

    The names of nodes and sensors contain no characters that the protocol would require to be escaped. InfluxDB rejects
    a field named `time`, so it becomes `time_`. All numbers are floats (21 instead of 21i), since InfluxDB rejects a
    field that is an integer in one line and a float in another.

    Args:
        node: Name of the node.
        batch: The samples.
        time_end: Digits after the milliseconds of each time: NANOSECONDS, or empty for times in milliseconds.
    """
    head = f"readings,node={node} "
    fields = [[f"{_RENAMED.get(name, name)}={text}" if text != "None" else "" for text in texts]
              for name, texts in zip(batch.values, batch.texts, strict=True)]  # fmt: skip
    return "".join([f"{head}{','.join(filter(None, some))} {time_ms}{time_end}\n"
                    for time_ms, *some in zip(batch.times, *fields) if any(some)])  # fmt: skip
