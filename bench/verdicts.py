"""Cost of the quality checks in the Ingestor's writer, for a backlog of samples with five sensors.

python3 -m bench.verdicts
"""

from __future__ import annotations

import random
import time
import types
from collections.abc import Mapping
from typing import Any

from bench.machine import table
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.quality import QualityChecks
from pigeonpost.storage.models import NOTHING, EpochCommit
from protocol import Sample

SENSORS, SAMPLES, COMMIT = 5, 200_000, 5000
LIMITS = {"low": -10, "high": 35, "jump": 0.5, "stuck": 3600, "rail": [-50, 279.68]}


def samples_per_second(limited: int, limits: Mapping[str, Any]) -> float:
    """Return the samples checked per second: the best of three runs with `limits` on `limited` of the sensors."""
    state = NodeState("address", "node")
    state.every_s = 1.0
    state.sensors = [{"name": f"s{n}", "limits": limits if n < limited else None} for n in range(SENSORS)]
    dice, best_s = random.Random(1), float("inf")
    samples = [
        Sample(k, 1000 * k, 1000 * k, {f"s{n}": 21 + dice.random() / 4 for n in range(SENSORS)}, {}, "")
        for k in range(1, SAMPLES + 1)
    ]
    epoch_commits = []
    for start in range(0, SAMPLES, COMMIT):
        epoch_commits.append(EpochCommit("node", "outbox", "0123456789abcdef", NOTHING))
        epoch_commits[-1].items.append(SampleBatch.of(samples[start : start + COMMIT]))
    for _ in range(3):
        quality = QualityChecks([types.SimpleNamespace(state=state)])
        began_s = time.monotonic()
        for epoch_commit in epoch_commits:
            quality.on_commit([epoch_commit])
        best_s = min(best_s, time.monotonic() - began_s)
    return SAMPLES / best_s


def main() -> None:
    """Run the benchmark and print the table."""
    rows = [
        (f"{what} on {limited} of {SENSORS} sensors", f"{1e6 / samples_per_second(limited, limits):.2f} µs per sample")
        for what, limited, limits in (
            ("no limits", 0, {}), ("a rail", 1, {"rail": [-50, 279.68]}), ("all limits", 1, LIMITS),
            ("all limits", SENSORS, LIMITS),
        )
    ]  # fmt: skip
    table("quality checks: processor time per sample", rows)


if __name__ == "__main__":
    main()
