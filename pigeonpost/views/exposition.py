"""Text formats of Prometheus: version 0.0.4, and OpenMetrics 1.0.0.

Sources: https://prometheus.io/docs/instrumenting/exposition_formats/ and the OpenMetrics specification, version 1.0.0.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pigeonpost.http.message import Request, Response

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_UNITS = ("seconds", "bytes", "celsius", "ratio")  # units that a name may end with
_ZIPPED_BYTES = range(1 << 10, 4 << 20)  # sizes that are compressed: smaller ones gain little, larger ones take long


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: Name without the prefix; that of a counter ends with `_total`.
        kind: "gauge" or "counter".
        text: Description, for the HELP line: one line without quotes and backslashes.
        values: Labels and value of each time series. Those with the value None are left out, and so are labels that
            occur again, since Prometheus would refuse all metrics because of them.
        prefix: Prefix of the name.
    """

    name: str
    kind: str
    text: str
    values: Iterable[tuple[Mapping[str, str], float | None]]
    prefix: str = "pigeonpost_"


def metrics_response(request: Request, metrics: Iterable[Metric]) -> Response:
    """Return `metrics` in the format that the client of `request` prefers, compressed if it accepts gzip."""
    is_open = _prefers_openmetrics(request.headers.get("accept", ""))
    lines: list[str] = []
    for metric in metrics:
        lines += _lines(metric, is_open)
    if is_open:
        lines.append("# EOF")
    body = ("\n".join(lines) + "\n").encode(errors="replace")
    headers = {"Cache-Control": "no-store", "Vary": "Accept, Accept-Encoding"}
    if len(body) in _ZIPPED_BYTES and _accepts_gzip(request.headers.get("accept-encoding", "")):
        body = _zipped(body)
        headers["Content-Encoding"] = "gzip"
    return Response(body, _OPENMETRICS if is_open else _TEXT, headers=headers)


def _prefers_openmetrics(accept: str) -> bool:
    """Return True if an Accept header (RFC 9110, section 12.5.1) prefers OpenMetrics 1.0.0 to plain text."""
    weights = {"open": 0.0, "text": 0.0}
    for part in accept.split(","):
        kind, *options = (one.strip().lower() for one in part.split(";"))
        fields = dict(option.partition("=")[::2] for option in options)
        if kind == "application/openmetrics-text" and fields.get("version", "1.0.0") == "1.0.0":
            weights["open"] = max(weights["open"], _weight(fields))
        elif kind == "text/plain":
            weights["text"] = max(weights["text"], _weight(fields))
    return weights["open"] > 0 and weights["open"] >= weights["text"]


def _accepts_gzip(accept_encoding: str) -> bool:
    for part in accept_encoding.split(","):
        coding, *options = (one.strip().lower() for one in part.split(";"))
        if coding == "gzip":
            return _weight(dict(option.partition("=")[::2] for option in options)) > 0
    return False


def _weight(fields: Mapping[str, str]) -> float:
    text = fields.get("q", "1")
    return float(text) if _IS_WEIGHT(text) else 0.0


_IS_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?").fullmatch


def _zipped(body: bytes) -> bytes:
    """Return `body` as a gzip file (RFC 1952), compressed with the fastest level."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


def _lines(metric: Metric, is_open: bool) -> list[str]:
    name = metric.prefix + metric.name
    series: dict[str, float] = {}
    for labels, value in metric.values:
        if value is not None:
            series.setdefault(_labels(labels), value)
    family = name.removesuffix("_total") if is_open and metric.kind == "counter" else name
    head = [f"# HELP {family} {metric.text}", f"# TYPE {family} {metric.kind}"]
    unit = family.rpartition("_")[2]
    if is_open and unit in _UNITS:
        head.append(f"# UNIT {family} {unit}")
    return [*head, *(f"{name}{labels} {_number(value)}" for labels, value in series.items())]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
