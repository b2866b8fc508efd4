"""The table of the conversation's states: every row of it, nothing beside it, and no way into a dead end."""

import unittest

from pigeonpost.transports.mqtt_states import TRANSITIONS, Event, ImpossibleTransition, State, next_state

# What docs/protocol.md says, once more: state, then what may happen in it, and where that leads.
EXPECTED = {
    State.IDLE: {Event.QUESTION: State.ASKED, Event.RECONNECT: State.IDLE},
    State.ASKED: {
        Event.RESUME: State.RESUMED, Event.ACK: State.SENDING, Event.BODY: State.ASKED, Event.HOLE: State.IDLE,
        Event.REJECTION: State.IDLE, Event.LATE: State.IDLE, Event.RECONNECT: State.IDLE,
    },
    State.RESUMED: {
        Event.BODY: State.SENDING, Event.ACK: State.RESUMED, Event.HOLE: State.IDLE, Event.REJECTION: State.IDLE,
        Event.RECONNECT: State.IDLE,
    },
    State.SENDING: {
        Event.BODY: State.SENDING, Event.ACK: State.SENDING, Event.HOLE: State.IDLE, Event.REJECTION: State.IDLE,
        Event.LATE: State.IDLE, Event.RECONNECT: State.IDLE,
    },
}  # fmt: skip


class Transitions(unittest.TestCase):
    def test_each_event_in_each_state(self):
        for state in State:
            for event in Event:
                with self.subTest(state=state.name, event=event.name):
                    if event in EXPECTED[state]:
                        self.assertIs(next_state(state, event), EXPECTED[state][event])
                    else:
                        with self.assertRaisesRegex(ImpossibleTransition, f"{event.name} in state {state.name}"):
                            next_state(state, event)

    def test_the_table_has_no_other_rows(self):
        self.assertEqual(len(TRANSITIONS), sum(map(len, EXPECTED.values())))

    def test_a_lost_connection_is_possible_in_every_state(self):
        for state in State:
            self.assertIs(next_state(state, Event.RECONNECT), State.IDLE)

    def test_every_state_is_reached_from_the_first_one(self):
        reached = {State.IDLE}
        for _ in State:
            reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
        self.assertEqual(reached, set(State))

    def test_states_and_events_are_described(self):
        for one in (*State, *Event):
            self.assertGreater(len(one.value.split()), 4, one)
