"""Summary on the front page: one sentence about all nodes, and its level."""

from __future__ import annotations

from collections.abc import Sequence

from pigeonpost.core.format import age, clock
from pigeonpost.views.models import UNWATCHED, Level, NodeNow, SensorFault


def summary(nodes: Sequence[NodeNow], faults: Sequence[str], now_ms: int) -> tuple[Level, str]:
    """Return the level of the summary, and the summary without full stop.

    Args:
        nodes: State of all nodes.
        faults: Faults of this server.
        now_ms: Current time in ms since 1970.
    """
    if faults:
        return "bad", _capital("; ".join(faults))
    watched = [node for node in nodes if node.condition not in UNWATCHED]
    if not watched:
        return "wait", "No node is set up: start the server with --node NAME@HOST:PORT"
    wrong = [node for node in watched if node.condition in ("late", "lost")]
    if wrong:
        if len(watched) == 1:
            return "bad", _complaint(_subject(wrong), wrong[0], now_ms)
        texts = "; ".join(_complaint(_called(node), node, now_ms) for node in wrong[:3])
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return "bad", f"{len(wrong):,} of {len(watched):,} nodes {_are(wrong)} not reporting: {texts}{more}"
    warned = [node for node in watched if node.warnings]
    if warned:
        return "bad", "; ".join(f"{_called(node)}: {node.warnings[0]}" for node in warned[:3])
    troubles = [trouble for node in watched for trouble in node.troubles]
    if troubles:
        return "wait", _in_trouble(troubles)
    resting = [node for node in watched if node.condition == "off"]
    new = [node for node in watched if node.condition == "waiting"]
    if resting or new:
        return "wait", _resting(watched, resting, new)
    if len(watched) == 1:
        return "good", f"Node {_called(watched[0])} is reporting"
    return "good", f"{'Both' if len(watched) == 2 else f'All {len(watched):,}'} nodes are reporting"


def _in_trouble(troubles: Sequence[SensorFault]) -> str:
    first = troubles[0]
    named = f"{first.sensor} of {first.node}: {first.words}"
    if len(troubles) == 1:
        return f"Sensor {named}"
    return f"{len(troubles):,} sensors are failing or out of range; the first is {named}"


def _complaint(subject: str, node: NodeNow, now_ms: int) -> str:
    since = f" since {clock(node.since_ms, now_ms)}" if node.since_ms is not None else ""
    if node.condition == "late":
        but = "is connected, but has" if node.is_connected else "has"
        time = "since the server's start" if node.silent_s is None else f"for {age(node.silent_s)}"
        return f"{subject} {but} sent nothing {time}"
    if node.words.split(" ")[0] not in _VERBS:
        return f"{subject} is not connected ({node.words}){since}"
    what, colon, why = node.words.partition(": ")
    return f"{subject} {what}{since}{colon}{why}"


# A NodeState.fault that begins with one of these follows the node's name directly; "closed", for example, does not.
_VERBS = frozenset(("cannot", "refuses:", "does", "has", "is", "still", "speaks", "answers", "closes", "reports"))


def _resting(watched: Sequence[NodeNow], resting: Sequence[NodeNow], new: Sequence[NodeNow]) -> str:
    parts = []
    if resting:
        parts.append(f"{_subject(resting)} {_are(resting)} switched off")
    if new:
        parts.append(f"waiting for the first sample of {_names(new)}")
    rest = len(watched) - len(resting) - len(new)
    if rest:
        parts.append(f"the other {'one is' if rest == 1 else f'{rest:,} are'} reporting")
    return _capital("; ".join(parts))


def _names(nodes: Sequence[NodeNow]) -> str:
    names = [_called(node) for node in nodes[:3]] + ([f"{len(nodes) - 3:,} more"] if len(nodes) > 3 else [])
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _subject(nodes: Sequence[NodeNow]) -> str:
    """Return the nodes as the beginning of a sentence, with a capital letter that is not part of a node's name."""
    kind = "" if not nodes[0].name else "Node " if len(nodes) == 1 else "Nodes "
    return f"{kind}{_names(nodes)}" if kind else _capital(_names(nodes))


def _called(node: NodeNow) -> str:
    return node.name or f"the node at {node.address}"


def _are(nodes: Sequence[NodeNow]) -> str:
    return "is" if len(nodes) == 1 else "are"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
