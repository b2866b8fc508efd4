"""Regular report with minimum, maximum, mean and count of every sensor, and the number of missing samples.

It runs in the Notifier's thread. Errors: those of the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pigeonpost.alerts.contract import AlertMessage
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import counted

if TYPE_CHECKING:
    from pigeonpost.storage.contract import Store


def report(store: Store, server: str, from_ms: int, to_ms: int) -> AlertMessage:
    """Return the report on all samples of a time range.

    Args:
        store: The store.
        server: Name of the server.
        from_ms: Start of the range in milliseconds since 1970 (UTC), inclusive.
        to_ms: End of the range in milliseconds since 1970 (UTC), exclusive.
    """
    lines: list[str] = []
    info: dict[str, Any] = {}
    for about in store.nodes():
        rows = {
            name: columns[0]
            for name, unit in about["sensors"].items()
            if (columns := store.downsample(about["name"], name, from_ms, to_ms, 1))
        }
        missing = f" ({counted(about['missing'], 'sample')} missing in total)" if about["missing"] else ""
        lines += ["", f"{about['name']}{missing}" + ("" if rows else ": no values")]
        lines += [
            f"  {name:<24} {one.low:>10.4g} to {one.high:<10.4g} mean {one.mean:<10.4g} {about['sensors'][name]:<8}"
            f" {counted(one.values, 'value')}"
            for name, one in rows.items()
        ]
        info[about["name"]] = {
            name: {"values": one.values, "low": one.low, "high": one.high, "mean": one.mean}
            for name, one in rows.items()
        }
    span = f"{rfc3339(from_ms)} to {rfc3339(to_ms)}"
    text = "\n".join([f"Report of the Pigeonpost server {server}, {span} (UTC).",
                      *(lines or ["", "No samples are stored."])]) + "\n"  # fmt: skip
    return AlertMessage(f"Report of {server}, {span}", text, {"kind": "report", "from": rfc3339(from_ms),
                                                         "to": rfc3339(to_ms), "nodes": info})  # fmt: skip
