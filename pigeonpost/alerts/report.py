"""Regular report: count, mean, minimum and maximum of every sensor, and what is missing, since the last one.

Runs in the Notifier's thread. Errors: those of the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pigeonpost.alerts.contract import AlertMessage
from pigeonpost.core.clock import rfc3339

if TYPE_CHECKING:
    from pigeonpost.storage.contract import Store


def report(store: Store, server: str, from_ms: int, to_ms: int) -> AlertMessage:
    """Return the report on all samples taken in [from_ms, to_ms)."""
    lines: list[str] = []
    info: dict[str, Any] = {}
    for about in store.nodes():
        rows = {
            name: columns[0]
            for name, unit in about["sensors"].items()
            if (columns := store.downsample(about["name"], name, from_ms, to_ms, 1))
        }
        missing = f"; {about['missing']} samples are missing in all" if about["missing"] else ""
        lines += ["", f"{about['name']}{missing}" + ("" if rows else ": no samples")]
        lines += [
            f"  {name:<24} {one.low:>10.4g} to {one.high:<10.4g} mean {one.mean:<10.4g} {about['sensors'][name]:<8}"
            f" {one.values} values"
            for name, one in rows.items()
        ]
        info[about["name"]] = {
            name: {"values": one.values, "low": one.low, "high": one.high, "mean": one.mean}
            for name, one in rows.items()
        }
    span = f"{rfc3339(from_ms)} to {rfc3339(to_ms)}"
    text = "\n".join([f"Pigeonpost {server}, {span}.", *(lines or ["", "Nothing is stored."])]) + "\n"
    return AlertMessage(f"Report of {server}, {span}", text, {"kind": "report", "from": rfc3339(from_ms),
                                                         "to": rfc3339(to_ms), "nodes": info})  # fmt: skip
