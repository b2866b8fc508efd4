"""Sparklines: the small charts on the dashboard."""

from __future__ import annotations

from collections.abc import Sequence

from pigeonpost.core.html import Html
from pigeonpost.storage.models import Bucket

_SPARK_PLACES, _SPARK_HEIGHT = 48, 24
_MOST = 1e290  # the largest value that is drawn: sums of larger ones are infinite


def sparkline(columns: Sequence[Bucket], count: int, colour: int) -> Html:
    """Return the means of `columns` as a small line in SVG, interrupted where there are no values.

    Args:
        columns: The columns that are not empty, in order of their `place`.
        count: Number of columns, including empty ones.
        colour: Index of the series' colour, 0 to 3.
    """
    group = max(1, count // _SPARK_PLACES)
    sums: dict[int, tuple[float, int]] = {}
    for place, weight, _, _, mean in columns:
        mean = min(max(mean, -_MOST), _MOST)
        total, values = sums.get(place // group, (0.0, 0))
        sums[place // group] = total + mean * weight, values + weight
    means = {place: total / values for place, (total, values) in sums.items()}
    if len(means) < 2:
        return Html('<svg class="spark"></svg>')
    low, high = min(means.values()), max(means.values())
    middle = (low + high) / 2  # a constant value is a line at half height
    scale = (_SPARK_HEIGHT - 4) / max(high - low, max(high, -low) * 1e-12, 1e-290)
    path, before = [], -9
    for place, mean in sorted(means.items()):
        path.append(f"{'L' if place - before <= 2 else 'M'}{place} {_SPARK_HEIGHT / 2 - (mean - middle) * scale:.1f}")
        before = place
    return Html(
        '<svg class="spark s{}" viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true"><path d="{}"/></svg>'
    ).format(colour, max(count // group - 1, 1), _SPARK_HEIGHT, "".join(path))
