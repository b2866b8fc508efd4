"""States of the conversation between a node and the servers over MQTT, and the transitions between them.

No I/O and no clock. docs/protocol.md, section MQTT, describes the same in prose.
"""

from __future__ import annotations

import enum

from pigeonpost.core.errors import PigeonpostError


class State(enum.Enum):
    """States of a conversation; each value describes the state."""

    IDLE = "no question is pending; the next one is asked when it is due"
    ASKED = "a question is published under a new session name, and no server has answered it yet"
    RESUMED = "a server has sent its high-water marks; the next session name is chosen, but not published yet"
    SENDING = "bodies are published and acknowledged one by one"


class Trigger(enum.Enum):
    """Events of a conversation; each value describes the event."""

    QUESTION = "the node publishes a list of all that it holds"
    BODY = "the node publishes samples, a gap, or only whether it is sampling"
    RESUME = "a server answers with its high-water marks of everything that the node holds"
    ACK = "a server acknowledges an epoch up to a sequence number"
    HOLE = "a server answers that it lacks samples before those that it received"
    REJECTION = "a server answers that it does not accept a body"
    LATE = "an answer has not arrived in time"
    RECONNECT = "the connection to the broker was lost or restored"


TRANSITIONS = {
    (State.IDLE, Trigger.QUESTION): State.ASKED,
    (State.IDLE, Trigger.RECONNECT): State.IDLE,

    (State.ASKED, Trigger.RESUME): State.RESUMED,
    (State.ASKED, Trigger.ACK): State.SENDING,  # a simple server, which never sends its high-water marks
    (State.ASKED, Trigger.BODY): State.ASKED,  # confirms a command
    (State.ASKED, Trigger.HOLE): State.IDLE,
    (State.ASKED, Trigger.REJECTION): State.IDLE,
    (State.ASKED, Trigger.LATE): State.IDLE,
    (State.ASKED, Trigger.RECONNECT): State.IDLE,

    (State.RESUMED, Trigger.BODY): State.SENDING,
    (State.RESUMED, Trigger.ACK): State.RESUMED,  # from a server that does not repeat the session's name
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
    """An event that is not possible in the present state: an internal error."""


def next_state(state: State, event: Trigger) -> State:
    """Return the state that follows `state` after `event`.

    Raises:
        ImpossibleTransition: The event cannot happen in this state.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ImpossibleTransition(f"{event.name} in state {state.name}") from None
