"""Forward target "otlp": Prometheus, the OpenTelemetry Collector and other receivers of OTLP over HTTP, as JSON.

    POST url/v1/metrics    one gauge per sensor and unit, with a data point per value; the node is an attribute

Failed readings are not sent. A unit without a known name in UCUM is sent as it is.
Errors: NotDelivered; RefusedData also for data points that the receiver reports as rejected (`partialSuccess`).
Sources: opentelemetry-proto 1.x (metrics.proto, JSON mapping), OTLP Specification 1.x (responses, retryable statuses);
UCUM; Prometheus, "Using Prometheus as your OpenTelemetry backend".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pigeonpost.core.config import Option, matching
from pigeonpost.core.errors import BadArgument
from pigeonpost.core.http_client import HttpResponse
from pigeonpost.core.strict_json import write_json
from pigeonpost.core.tolerant_json import read_tolerant_json
from pigeonpost.core.version import VERSION
from pigeonpost.integration_settings import HEADER_TAKES, is_header
from pigeonpost.integrations.contract import ForwardBatch, ForwardTarget, RefusedData
from pigeonpost.integrations.forward_http import LOGIN_OPTIONS, HttpPoster, base_url, gzip, headers_in, make_poster
from pigeonpost.integrations.forward_settings import list_of, own_keys
from pigeonpost.transports.contract import ServerContext

PATH = "/v1/metrics"
_is_prefix = re.compile(r"[A-Za-z][A-Za-z0-9_.]*|").fullmatch
OPTIONS = (
    Option("url", base_url, None, "address of the receiver, without /v1/metrics"),
    *LOGIN_OPTIONS,
    Option("headers", list_of(matching(is_header, HEADER_TAKES)), (), "additional HTTP headers"),
    Option("prefix", matching(_is_prefix, "the beginning of a metric name, such as pigeonpost_"), "",
           "prefix of the metric names"),
)  # fmt: skip
_HEADERS = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
_REMEDIES = {404: "check the path of the url; Prometheus needs the flag --web.enable-otlp-receiver"}
# Units of sensors in UCUM, if they differ.
_UCUM = {
    "°C": "Cel", "°F": "[degF]", "°": "deg", "mmHg": "mm[Hg]", "inHg": "[in_i'Hg]", "psi": "[psi]", "in": "[in_i]",
    "ft": "[ft_i]", "mi": "[mi_i]", "mph": "[mi_i]/h", "kn": "[kn_i]", "µV": "uV", "μV": "uV", "Ω": "Ohm", "kΩ": "kOhm",
    "Wh": "W.h", "kWh": "kW.h", "Ah": "A.h", "mAh": "mA.h", "ppm": "[ppm]", "ppb": "[ppb]", "µg/m³": "ug/m3",
    "μg/m³": "ug/m3", "m³": "m3", "m³/h": "m3/h", "l": "L", "l/min": "L/min", "m/s²": "m/s2", "% RH": "%", "pH": "[pH]",
    "µS/cm": "uS/cm", "μS/cm": "uS/cm", "B": "By", "kB": "kBy", "MB": "MBy", "GB": "GBy", "KiB": "KiBy", "MiB": "MiBy",
    "GiB": "GiBy", "µT": "uT", "μT": "uT", "bit/s": "bit/s",
}  # fmt: skip


def make(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    """Return the target of a [[forward]] table.

    Args:
        table: The table.
        where: File and table, for errors.
        context: Context of the server, with its name.

    Raises:
        SettingsError: A key is unknown or missing, or a value is invalid.
    """
    found = own_keys(table, OPTIONS, where)
    prefix, headers = found.pop("prefix"), headers_in(found.pop("headers"))
    return OtlpTarget(make_poster(found, where, "http://localhost:4318"), context.name, headers, prefix)


class OtlpTarget(ForwardTarget):
    """Receiver of OTLP. Prometheus acknowledges before it syncs its disk, so the last minutes are sent again."""

    again_s = 300.0
    most = 1_000

    def __init__(self, poster: HttpPoster, server: str, headers: Mapping[str, str], prefix: str = "") -> None:
        """Initialise the target.

        Args:
            poster: Sender of the requests, with the URL. A path in it comes before PATH.
            server: Name of this server.
            headers: Additional HTTP headers.
            prefix: Prefix of the metric names.
        """
        self.place = poster.place
        self._poster, self._prefix = poster, prefix
        self._headers = {**_HEADERS, **headers}
        self._target = f"{poster.url.target.rstrip('/')}{PATH}"
        resource = {"service.name": "pigeonpost", "service.instance.id": server, "service.version": VERSION}
        scope = write_json({"name": "pigeonpost", "version": VERSION})
        self._start = (
            f'{{"resourceMetrics":[{{"resource":{{"attributes":{_attributes(resource)}}},'
            f'"scopeMetrics":[{{"scope":{scope},"metrics":['
        )

    def send(self, batches: Sequence[ForwardBatch]) -> None:
        metrics = self._metrics(batches)
        if not metrics:  # all sensors failed
            return
        body = f"{self._start}{','.join(metrics)}]}}]}}]}}"
        _check_all_accepted(self._poster.post(self._target, gzip(body.encode()), self._headers, _REMEDIES))

    def check(self) -> None:
        self._poster.check()

    def close(self) -> None:
        self._poster.close()

    def _metrics(self, batches: Sequence[ForwardBatch]) -> list[str]:
        """Return the metrics as JSON, each with its data points in the order of the batches."""
        points: dict[tuple[str, str], list[str]] = {}
        for batch in batches:
            end = f'","attributes":{_attributes({"node": batch.node})}}}'
            times = [f',"timeUnixNano":"{time_ms}000000{end}' for time_ms in batch.samples.times]
            for name, texts in zip(batch.samples.values, batch.samples.texts, strict=True):
                found = [
                    f'{{"asDouble":{text}{time}' for text, time in zip(texts, times, strict=True) if text != "None"
                ]
                if found:
                    unit = batch.units.get(name, "")
                    points.setdefault((name, _UCUM.get(unit, unit)), []).extend(found)
        return [
            f'{{"name":{write_json(self._prefix + name)},"unit":{write_json(unit)},'
            f'"gauge":{{"dataPoints":[{",".join(found)}]}}}}'
            for (name, unit), found in points.items()
        ]


def _attributes(values: Mapping[str, str]) -> str:
    return write_json([{"key": key, "value": {"stringValue": value}} for key, value in values.items()])


def _check_all_accepted(answer: HttpResponse) -> None:
    """Raise RefusedData if the receiver has rejected data points. An answer without JSON means that there are none."""
    try:
        found = read_tolerant_json(answer.body) if answer.body else None
    except BadArgument:
        return
    partial = found.get("partialSuccess") if type(found) is dict else None
    if type(partial) is not dict:
        return
    rejected = str(partial.get("rejectedDataPoints") or 0)  # an int64 is a decimal string in the JSON mapping
    if rejected.isascii() and rejected.isdigit() and int(rejected[:18]):
        text = " ".join(str(partial.get("errorMessage", "")).split())[:200]
        raise RefusedData(f"{rejected[:18]} data points were rejected{text and f': {text}'}")
