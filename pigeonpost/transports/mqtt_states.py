"""States of the conversation between a node and the servers over MQTT, and the transitions between them.

No I/O and no clock. docs/protocol.md, section MQTT, describes the same in prose ("The node's way").
"""

from __future__ import annotations

import enum

from pigeonpost.core.errors import PigeonpostError


class State(enum.Enum):
    IDLE = "no question is under way; the next one is asked when its time comes"
    ASKED = "a question is published under a new session name, and nobody has answered it"
    RESUMED = "a server has told what it has; the next session name is chosen, but not published yet"
    SENDING = "bodies are published, and acknowledged one by one"


class Trigger(enum.Enum):
    QUESTION = "the node publishes a list of all that it holds"
    BODY = "the node publishes samples, a gap, or only whether it is sampling"
    RESUME = "a server answers what it has of all that the node holds"
    ACK = "a server answers up to where it has stored an epoch"
    HOLE = "a server answers that samples are missing before those it got"
    REJECTION = "a server answers that it does not take a body"
    LATE = "an answer has not come in its time"
    RECONNECT = "the connection to the broker was lost, or is there again"


TRANSITIONS = {
    (State.IDLE, Trigger.QUESTION): State.ASKED,
    (State.IDLE, Trigger.RECONNECT): State.IDLE,

    (State.ASKED, Trigger.RESUME): State.RESUMED,
    (State.ASKED, Trigger.ACK): State.SENDING,  # the simplest server, which never says what it has
    (State.ASKED, Trigger.BODY): State.ASKED,  # after an order, which is obeyed and confirmed at once
    (State.ASKED, Trigger.HOLE): State.IDLE,
    (State.ASKED, Trigger.REJECTION): State.IDLE,
    (State.ASKED, Trigger.LATE): State.IDLE,
    (State.ASKED, Trigger.RECONNECT): State.IDLE,

    (State.RESUMED, Trigger.BODY): State.SENDING,
    (State.RESUMED, Trigger.ACK): State.RESUMED,  # of a server that does not repeat the session's name
    (State.RESUMED, Trigger.HOLE): State.IDLE,
    (State.RESUMED, Trigger.REJECTION): State.IDLE,
    (State.RESUMED, Trigger.RECONNECT): State.IDLE,

    (State.SENDING, Trigger.BODY): State.SENDING,
    (State.SENDING, Trigger.ACK): State.SENDING,
    (State.SENDING, Trigger.HOLE): State.IDLE,
    (State.SENDING, Trigger.REJECTION): State.IDLE,
    (State.SENDING, Trigger.LATE): State.IDLE,
    (State.SENDING, Trigger.RECONNECT): State.IDLE,
}  # fmt: skip


class ImpossibleTransition(PigeonpostError, RuntimeError):
    """An event that cannot happen in a state: an internal error."""


def next_state(state: State, event: Trigger) -> State:
    """Return the state after `event`. Raises ImpossibleTransition."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ImpossibleTransition(f"{event.name} in state {state.name}") from None
