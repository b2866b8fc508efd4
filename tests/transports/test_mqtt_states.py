"""The table of the conversation's states: every row, no other rows, and no dead ends."""

import unittest

from pigeonpost.transports.mqtt_states import TRANSITIONS, ImpossibleTransition, State, Trigger, next_state

# The table in docs/protocol.md again: state, possible events, and the next state.
EXPECTED = {
    State.IDLE: {Trigger.QUESTION: State.ASKED, Trigger.RECONNECT: State.IDLE},
    State.ASKED: {
        Trigger.RESUME: State.RESUMED, Trigger.ACK: State.SENDING, Trigger.BODY: State.ASKED, Trigger.HOLE: State.IDLE,
        Trigger.REJECTION: State.IDLE, Trigger.LATE: State.IDLE, Trigger.RECONNECT: State.IDLE,
    },
    State.RESUMED: {
        Trigger.BODY: State.SENDING, Trigger.ACK: State.RESUMED, Trigger.HOLE: State.IDLE,
        Trigger.REJECTION: State.IDLE, Trigger.RECONNECT: State.IDLE,
    },
    State.SENDING: {
        Trigger.BODY: State.SENDING, Trigger.ACK: State.SENDING, Trigger.HOLE: State.IDLE,
        Trigger.REJECTION: State.IDLE, Trigger.LATE: State.IDLE, Trigger.RECONNECT: State.IDLE,
    },
}  # fmt: skip


class Transitions(unittest.TestCase):
    def test_each_event_leads_to_the_documented_state(self):
        for state in State:
            for event in Trigger:
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
            self.assertIs(next_state(state, Trigger.RECONNECT), State.IDLE)

    def test_every_state_is_reached_from_the_first_one(self):
        reached = {State.IDLE}
        for _ in State:
            reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
        self.assertEqual(reached, set(State))

    def test_states_and_events_are_described(self):
        for one in (*State, *Trigger):
            self.assertGreater(len(one.value.split()), 4, one)
