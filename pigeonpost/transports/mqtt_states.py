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


class Event(enum.Enum):
    QUESTION = "the node publishes a list of all that it holds"
    BODY = "the node publishes samples, a gap, or only whether it is sampling"
    RESUME = "a server answers what it has of all that the node holds"
    ACK = "a server answers up to where it has stored an epoch"
    HOLE = "a server answers that samples are missing before those it got"
    REJECTION = "a server answers that it does not take a body"
    LATE = "an answer has not come in its time"
    RECONNECT = "the connection to the broker was lost, or is there again"


TRANSITIONS = {
    (State.IDLE, Event.QUESTION): State.ASKED,
    (State.IDLE, Event.RECONNECT): State.IDLE,

    (State.ASKED, Event.RESUME): State.RESUMED,
    (State.ASKED, Event.ACK): State.SENDING,  # the simplest server, which never says what it has
    (State.ASKED, Event.BODY): State.ASKED,  # after an order, which is obeyed and confirmed at once
    (State.ASKED, Event.HOLE): State.IDLE,
    (State.ASKED, Event.REJECTION): State.IDLE,
    (State.ASKED, Event.LATE): State.IDLE,
    (State.ASKED, Event.RECONNECT): State.IDLE,

    (State.RESUMED, Event.BODY): State.SENDING,
    (State.RESUMED, Event.ACK): State.RESUMED,  # of a server that does not repeat the session's name
    (State.RESUMED, Event.HOLE): State.IDLE,
    (State.RESUMED, Event.REJECTION): State.IDLE,
    (State.RESUMED, Event.RECONNECT): State.IDLE,

    (State.SENDING, Event.BODY): State.SENDING,
    (State.SENDING, Event.ACK): State.SENDING,
    (State.SENDING, Event.HOLE): State.IDLE,
    (State.SENDING, Event.REJECTION): State.IDLE,
    (State.SENDING, Event.LATE): State.IDLE,
    (State.SENDING, Event.RECONNECT): State.IDLE,
}  # fmt: skip


class ImpossibleTransition(PigeonpostError, RuntimeError):
    """An event that cannot happen in a state: an internal error."""


def next_state(state: State, event: Event) -> State:
    """Return the state after `event`. Raises ImpossibleTransition."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ImpossibleTransition(f"{event.name} in state {state.name}") from None
