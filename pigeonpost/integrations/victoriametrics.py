"""Forward target `victoriametrics`: POST /api/v1/import with one JSON line per sensor, compressed with gzip.

VictoriaMetrics stores the same sample with the same value and time only once. It acknowledges samples some seconds
before it writes them to its disk, so the forwarder sends the last minutes again after the connection was lost.
Errors: NotDelivered and RefusedData. Sources: docs.victoriametrics.com, "How to import data in JSON line format" and
"vmstorage data storage"; Prometheus, "Metric names and labels".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pigeonpost.core.config import Option, matching
from pigeonpost.integration_settings import is_url
from pigeonpost.integrations.contract import ForwardBatch, ForwardTarget
from pigeonpost.integrations.forward_http import LOGIN_OPTIONS, HttpPoster, gzip, make_poster
from pigeonpost.integrations.forward_settings import own_keys
from pigeonpost.transports.contract import ServerContext

PATH = "/api/v1/import"
_MOST_SERIES = 20_000  # heads of lines kept in memory
_is_prefix = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*|").fullmatch
_HEADERS = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

OPTIONS = (
    Option("url", matching(is_url, "a URL that begins with https:// or http://"), None, "address of VictoriaMetrics"),
    *LOGIN_OPTIONS,
    Option("prefix", matching(_is_prefix, "the beginning of a metric name, such as pigeonpost_"), "",
           "prefix of the metric names"),
)  # fmt: skip


def make(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    """Return the target of a [[forward]] table.

    Args:
        table: The table.
        where: File and table, for errors.
        context: Context of the server.

    Raises:
        SettingsError: A key is unknown or missing, or a value is invalid.
    """
    found = own_keys(table, OPTIONS, where)
    prefix = found.pop("prefix")
    return VictoriaMetricsTarget(make_poster(found, where, "http://localhost:8428"), prefix)


class VictoriaMetricsTarget(ForwardTarget):
    """VictoriaMetrics, a single server or one tenant of a cluster."""

    again_s = 300.0

    def __init__(self, poster: HttpPoster, prefix: str = "") -> None:
        """Initialise the target.

        Args:
            poster: Sender of the requests, with the URL. A path in it comes before PATH.
            prefix: Prefix of the metric names.
        """
        self.place = poster.place
        self._poster, self._prefix = poster, prefix
        path, mark, query = poster.url.target.partition("?")
        self._target = f"{path.rstrip('/')}{PATH}{mark}{query}"
        self._heads: dict[tuple[str, str, str], str] = {}

    def send(self, batches: Sequence[ForwardBatch]) -> None:
        lines = "".join(line for batch in batches for line in self._lines(batch))
        if lines:
            self._poster.post(self._target, gzip(lines.encode()), _HEADERS)

    def check(self) -> None:
        self._poster.check()

    def close(self) -> None:
        self._poster.close()

    def _lines(self, batch: ForwardBatch) -> Iterator[str]:
        all_times = repr(batch.samples.times)
        for sensor, column in batch.samples.values.items():
            times, values = all_times, repr(column)
            if None in column:  # a failed reading cannot be expressed, and is not sent
                pairs = [pair for pair in zip(batch.samples.times, column, strict=True) if pair[1] is not None]
                if not pairs:
                    continue
                times, values = (repr(list(part)) for part in zip(*pairs, strict=True))
            head = self._head(batch.node, sensor, batch.units.get(sensor, ""))
            yield f'{head},"values":{values},"timestamps":{times}}}\n'

    def _head(self, node: str, sensor: str, unit: str) -> str:
        key = node, sensor, unit
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= _MOST_SERIES:
                self._heads.clear()
            head = self._heads[key] = f'{{"metric":{json.dumps(labels(self._prefix, *key), ensure_ascii=False)}'
        return head


def labels(prefix: str, node: str, sensor: str, unit: str) -> dict[str, str]:
    """Return the labels of a series, with its name as `__name__`.

    A name that Prometheus does not allow is changed, and the label `sensor` contains the original one. So no two
    sensors become the same series.

    Args:
        prefix: Prefix of the name.
        node: Name of the node.
        sensor: Name of the sensor.
        unit: Unit of the sensor, or an empty string.
    """
    name = re.sub(r"[^a-zA-Z0-9_:]", "_", prefix + sensor)
    if name[0].isdigit():
        name = f"_{name}"
    found = {"__name__": name, "node": node}
    if name != prefix + sensor:
        found["sensor"] = sensor
    if unit:
        found["unit"] = unit
    return found
