"""Gaps in words.

Runs on: server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def gap_words(gap: Mapping[str, Any]) -> str:
    """Which samples a gap of the store leaves out."""
    own = [f"{gap['from']} to {gap['to']} of epoch {gap['epoch']}"] if gap["to"] >= gap["from"] else []
    earlier = [f"{gap['before']} of earlier epochs"] if gap["before"] else []
    return " and ".join(own + earlier)
