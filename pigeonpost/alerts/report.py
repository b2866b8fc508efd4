"""How things went since the last report: of every sensor count, mean, lowest and highest; what is missing.

Runs on: server, where `[report] every` is set.  Reached from: watch/watchman.  Hands on to: the store, which is asked.
Threads: the watchman's.  Errors: those of the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pigeonpost.alerts.contract import AlertMessage
from pigeonpost.core.clock import rfc3339

if TYPE_CHECKING:
    from pigeonpost.storage.contract import Store


def report(store: Store, server: str, from_ms: int, to_ms: int) -> AlertMessage:
    """One message about everything that was taken in [from_ms, to_ms)."""
    lines: list[str] = []
    info: dict[str, Any] = {}
    for about in store.nodes():
        rows = {
            name: columns[0]
            for name, unit in about["sensors"].items()
            if (columns := store.columns(about["name"], name, from_ms, to_ms, 1))
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
