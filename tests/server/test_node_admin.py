"""Renaming, retiring and relabelling nodes: nothing is lost or repeated, whichever side says the new name first."""

import json
import os
import threading
import unittest
from unittest import mock

from pigeonpost.alerts.rules import Alerts, Rule
from pigeonpost.auth.tokens import Tokens
from pigeonpost.cli import remote
from pigeonpost.core.errors import NotStored
from pigeonpost.link.samples import Gap
from pigeonpost.server import node_admin
from pigeonpost.server.event_log import EventLog
from pigeonpost.server.late_data import LateDataTracker
from pigeonpost.server.node_admin import NodeAdmin, Refused
from pigeonpost.server.node_names import NodeNames
from pigeonpost.server.node_register import READ_S, ByPresentName, NodeRegister
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.recent_cache import RecentCache
from pigeonpost.storage.contract import FormerNamesUsed
from pigeonpost.storage.csv.verify import verify_logs
from pigeonpost.storage.models import LogEntry, LostRows
from tests.page_support import use_memory_disk
from tests.server.test_ingest import IngestCase
from tests.storage.test_contract import E1, E2, batch
from tests.support import LIMIT_S


def setUpModule():
    use_memory_disk()


class Link:
    """A node that is collected from."""

    def __init__(self, name, expected=""):
        self.state = NodeState("10.0.0.5:5003", expected)
        self.state.name = name


class AdminCase(IngestCase):
    def setUp(self):
        super().setUp()
        self.tokens = Tokens(self.folder)
        self.names = NodeRegister(self.store, self.tokens.text_of)
        self.ingestor.names = self.names
        self.ingestor.start()
        self.addCleanup(self.ingestor.stop, LIMIT_S)
        self.admin = NodeAdmin(self.store, self.ingestor, self.tokens, self.clock)

    def bring(self, *made):
        self.submit(*made)
        self.ingestor.flush(LIMIT_S)
        self.ingestor.run(lambda: None, LIMIT_S)  # which comes after log and subscribers

    def rows(self):
        with open(self.log.whole()[0], encoding="utf-8") as log:
            return [line.split(",")[1] for line in log.read().splitlines()[1:]]

    def verify(self):
        """What the next start says of logs and store."""
        self.ingestor.stop(LIMIT_S)
        return list(verify_logs(os.path.join(self.folder, "logs"), self.store))


class Rename(AdminCase):
    def test_pi_that_says_its_former_name_is_the_renamed_node(self):
        self.bring(batch(1, 5))
        self.admin.rename("a", "b")
        self.assertEqual(self.ingestor.marks("a", "00000000000000aa", ["0000000000000001"])[0], 5)
        self.bring(batch(4, 8))
        self.assertEqual(self.seqs("b"), list(range(1, 9)))
        self.assertEqual(self.seqs("a"), [])
        self.assertEqual(self.ingestor.repeated, 2)
        self.assertEqual(self.ingestor.latest["b"].sample.seq, 8)
        self.assertNotIn("a", self.ingestor.latest)

    def test_of_two_nodes_that_want_a_name_at_once_one_gets_it_with_its_token(self):
        self.bring(batch(1, 5), batch(1, 3, node="c", epoch=E2))
        tokens = {name: self.tokens.make(name) for name in ("a", "c")}
        refused = []

        def rename(name):
            try:
                self.admin.rename(name, "b")
            except Refused:
                refused.append(name)

        threads = [threading.Thread(target=rename, args=(name,)) for name in tokens]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        (loser,) = refused
        (winner,) = set(tokens) - {loser}
        self.assertEqual(self.tokens.text_of("b"), tokens[winner])
        self.assertEqual(self.tokens.text_of(loser), tokens[loser])
        self.assertIsNone(self.tokens.text_of(winner))

    def test_another_server_on_the_database_may_be_quicker(self):
        self.bring(batch(1, 5))
        token = self.tokens.make("a")
        taken = mock.patch.object(self.store, "rename", side_effect=ValueError("something of a node b is stored"))
        with taken, self.assertRaisesRegex(Refused, "a cannot be called b: something of a node b is stored"):
            self.admin.rename("a", "b")
        self.assertEqual((self.tokens.text_of("a"), self.tokens.text_of("b")), (token, None))

    def test_pi_may_change_its_name_at_any_time_later(self):
        self.bring(batch(1, 5))
        self.admin.rename("a", "b")
        self.bring(batch(3, 6))
        self.bring(batch(5, 9, node="b"))
        self.assertEqual(self.seqs("b"), list(range(1, 10)))

    def test_both_names_in_one_commit_are_one_node(self):
        self.bring(batch(1, 5))
        self.admin.rename("a", "b")
        self.bring(batch(6, 8), batch(6, 9, node="b"))
        self.assertEqual(self.seqs("b"), list(range(1, 10)))
        self.assertEqual(list(self.store.verify()), [])

    def test_log_keeps_the_former_name_and_goes_on_with_the_new_one(self):
        self.bring(batch(1, 2))
        self.admin.rename("a", "b")
        self.bring(batch(3, 3))
        self.assertEqual(self.rows(), ["a"] * 4 + ["b"] * 2)
        self.assertEqual(self.verify(), [])

    def test_logs_are_as_stored_when_the_former_name_has_another_node(self):
        self.bring(batch(1, 2))
        self.admin.rename("a", "b")
        self.admin.release("a")
        self.bring(batch(1, 3, epoch=E2))
        self.assertEqual((self.seqs("b"), self.seqs("a", E2)), ([1, 2], [1, 2, 3]))
        self.assertEqual(self.verify(), [])
        with open(self.log.whole()[0], "a", encoding="utf-8") as log:
            log.write("2026-11-20T15:36:10.123Z,b,light,1,\n")
        self.assertEqual(len(list(verify_logs(os.path.join(self.folder, "logs"), self.store))), 1)

    def test_crash_right_after_leaves_no_row_twice(self):
        self.bring(batch(1, 2))
        self.admin.rename("a", "b")
        self.ingestor.stop(LIMIT_S)  # what a kill leaves is the same: everything was recorded before the rename
        self.open()
        self.assertEqual(self.log.beyond_store, "")
        self.assertEqual(list(verify_logs(os.path.join(self.folder, "logs"), self.store)), [])

    def test_rename_waits_while_the_log_owes_rows(self):
        self.bring(batch(1, 2))
        rows = [LogEntry(1 << 40, "a", E1, [Gap(1, 2, 0, "full")], 0, {})]
        with mock.patch.object(self.store, "logged_after", lambda filed: rows), self.assertRaises(NotStored):
            self.admin.rename("a", "b")
        self.assertEqual(self.seqs("a"), [1, 2])
        self.admin.rename("a", "b")  # although the new name has the token already
        self.assertEqual(self.seqs("b"), [1, 2])

    def test_rename_does_not_wait_for_a_damaged_row_which_no_log_gets(self):
        self.bring(batch(1, 2))
        damaged = LogEntry(1 << 40, "a", E1, (), 0, {}, LostRows("a", 1, 0, 0))
        readable_again = LogEntry(1, "a", E1, [Gap(1, 2, 0, "full")], 0, {})
        with mock.patch.object(self.store, "logged_after", lambda filed: [damaged, readable_again]):
            self.admin.rename("a", "b")
        self.assertEqual(self.seqs("b"), [1, 2])

    def test_token_goes_along(self):
        self.bring(batch(1, 2))
        token = self.tokens.make("a")
        self.admin.rename("a", "b")
        self.assertEqual((self.tokens.text_of("a"), self.tokens.text_of("b")), (None, token))
        self.assertEqual(self.tokens.node_of(token), "b")

    def test_token_left_by_a_kill_is_removed_at_the_next_start(self):
        self.bring(batch(1, 2))
        token = self.tokens.make("a")
        with mock.patch.object(Tokens, "revoke", side_effect=KeyboardInterrupt), self.assertRaises(KeyboardInterrupt):
            self.admin.rename("a", "b")
        self.assertEqual(self.tokens.text_of("a"), token)
        self.assertEqual(self.names.current(self.tokens.node_of(token)), "b")
        self.admin.finish()
        self.assertEqual((self.tokens.text_of("a"), self.tokens.text_of("b")), (None, token))

    def test_rename_that_fails_leaves_the_token_to_the_former_name_alone(self):
        self.bring(batch(1, 2))
        token = self.tokens.make("a")
        with mock.patch.object(self.store, "rename", side_effect=NotStored("full")), self.assertRaises(NotStored):
            self.admin.rename("a", "b")
        self.assertEqual((list(self.tokens), self.tokens.text_of("a")), (["a"], token))

    def test_client_waits_longer_than_the_rename_so_that_none_is_done_after_it_was_said_to_fail(self):
        self.assertLess(node_admin._LIMIT_S + 2.0, remote.ANSWER_S)

    def test_kill_before_the_transaction_leaves_the_node_as_it_was(self):
        self.bring(batch(1, 2))
        token = self.tokens.make("a")
        with mock.patch.object(self.ingestor, "run", side_effect=KeyboardInterrupt):
            self.assertRaises(KeyboardInterrupt, self.admin.rename, "a", "b")
        self.assertEqual(self.names.current("a"), "a")
        self.assertEqual((self.tokens.text_of("a"), self.tokens.node_of(token)), (token, "a"))
        self.admin.rename("a", "b")
        self.assertEqual(self.seqs("b"), [1, 2])

    def test_own_token_makes_the_former_name_a_node_again(self):
        self.bring(batch(1, 2))
        self.tokens.make("a")
        self.admin.rename("a", "b")
        self.tokens.make("a")
        self.assertEqual(self.names.current("a"), "a")
        self.bring(batch(1, 3, epoch=E2))
        self.assertEqual(self.seqs("a", E2), [1, 2, 3])
        self.assertEqual(self.seqs("b"), [1, 2])
        self.tokens.revoke("a")  # it stays one: what is stored of it would get a second name else
        self.assertEqual(self.names.current("a"), "a")
        self.assertEqual(NodeRegister(self.store, self.tokens.text_of).current("a"), "a")
        self.clock.step(-86_400.0)  # the date of a rename does not tell which of two is meant
        self.admin.rename("a", "c")
        self.assertEqual(self.names.current("a"), "c")
        self.assertEqual(self.verify(), [])

    def test_refused_with_the_reason(self):
        self.bring(batch(1, 2), batch(1, 1, node="c"))
        self.tokens.make("d")
        self.admin.rename("c", "e")
        for node, new, text in (
            ("a", "e", "there is a node e already"), ("a", "c", "c is a former name of e"),
            ("a", "d", "another node d has a token"), ("a", "a", "is called a already"), ("a", "../x", "no node name"),
            ("z", "y", "nothing of a node z is stored; there is of a, e"), ("c", "y", "node c is called e now"),
        ):  # fmt: skip
            with self.subTest(node=node, new=new), self.assertRaisesRegex(Refused, text):
                self.admin.rename(node, new)
        self.assertEqual(sorted(self.tokens), ["d"])

    def test_what_is_known_of_the_node_goes_along(self):
        links = [Link("a", "a")]
        names, late = NodeNames(links, self.names.current), LateDataTracker(self.clock)
        cache, events = RecentCache(self.store), EventLog(links, dict, self.clock)
        rule = Rule("a", "temperature", 10.0, None, None, 0.0, 0.0)
        alerts = Alerts([rule], links, self.clock, self.names)
        self.ingestor.subscribe(alerts.on_commit)
        self.names.on_rename += [part.on_rename for part in (names, late, cache, events)]
        events.note("a", "on", "switched on")
        self.bring(batch(1, 2))
        self.assertIn("temperature of a is", alerts.look()[0].subject)
        self.admin.rename("a", "b")
        self.assertEqual(links[0].state.name, "b")
        self.assertEqual(names.claim(links[0].state, "b", False), "")
        self.assertEqual([event.node for event in events.all()], ["b"])
        self.assertEqual(alerts.look(), [])  # it has said so already
        self.bring(batch(3, 3, temperature=5.0))
        self.assertIn("temperature of b is 5", alerts.look()[0].subject)


class Retire(AdminCase):
    def test_first_date_stays_and_undo_clears_it(self):
        self.bring(batch(1, 2))
        self.admin.retire("a", True)
        first_ms = self.names.retired_ms("a")
        self.clock.sleep(10.0)
        self.admin.retire("a", True)
        self.assertEqual(self.names.retired_ms("a"), first_ms)
        self.admin.retire("a", False)
        self.assertIsNone(self.names.retired_ms("a"))

    def test_samples_of_a_retired_node_are_kept(self):
        self.bring(batch(1, 2))
        self.admin.retire("a", True)
        self.bring(batch(3, 4))
        self.assertEqual(self.seqs(), [1, 2, 3, 4])

    def test_no_alert_is_of_a_retired_node(self):
        rules = [Rule("a", "temperature", 10.0, None, None, 0.0, 0.0), Rule("", "", None, None, 60.0, 0.0, 0.0)]
        alerts = Alerts(rules, [Link("a")], self.clock, self.names)
        self.ingestor.subscribe(alerts.on_commit)
        self.bring(batch(1, 2))
        self.admin.retire("a", True)
        self.clock.sleep(100.0)
        self.assertEqual(alerts.look(), [])
        self.admin.retire("a", False)
        self.clock.sleep(50.0)
        self.assertEqual(alerts.look(), [])
        self.clock.sleep(20.0)
        self.assertIn("no sample of a for", alerts.look()[0].subject)


class Relabel(AdminCase):
    def test_label_is_kept_and_removed(self):
        self.bring(batch(1, 2))
        self.admin.relabel("a", "temperature", "  North wall ")
        self.assertEqual(self.names.label("a", "temperature"), "North wall")
        self.admin.relabel("a", "temperature", "")
        self.assertEqual(self.names.label("a", "temperature"), "")

    def test_refused_with_the_reason(self):
        self.bring(batch(1, 2))
        for sensor, label, text in (("x", "X", "never had a sensor x"), ("temperature", "a\nb", "a label is a line"),
                                    ("temperature", "x" * 65, "up to 64")):  # fmt: skip
            with self.subTest(label=label), self.assertRaisesRegex(Refused, text):
                self.admin.relabel("a", sensor, label)


class Register(AdminCase):
    def test_nothing_is_stored_while_the_names_cannot_be_read(self):
        """Else what waits under the former name makes a second node of it."""
        self.bring(batch(1, 2))
        with mock.patch.object(self.store, "node_records", side_effect=NotStored("busy")):
            self.admin.rename("a", "b")
            self.submit(batch(1, 4))
            with self.assertRaisesRegex(NotStored, "busy"):
                self.ingestor.commit()
        self.ingestor.flush(LIMIT_S)
        self.assertEqual([node["name"] for node in self.store.nodes()], ["b"])
        self.assertEqual(self.seqs("b"), [1, 2, 3, 4])

    def test_shared_store_is_read_again_after_a_while(self):
        now = [0.0]
        self.bring(batch(1, 2))
        self.store.is_shared = True
        other = NodeRegister(self.store, monotonic=lambda: now[0])
        self.admin.rename("a", "b")
        self.assertEqual(other.current("a"), "a")
        now[0] += READ_S + 1
        self.assertEqual(other.current("a"), "b")

    def test_rename_by_another_server_is_known_to_all_parts_with_the_next_commit(self):
        now, links = [0.0], [Link("a")]
        self.bring(batch(1, 2))
        self.store.is_shared = True
        self.ingestor.names = self.names = NodeRegister(self.store, monotonic=lambda: now[0])
        self.names.on_rename.append(NodeNames(links, self.names.current).on_rename)
        with self.store.writing(()):
            self.store.rename("a", "b", 1000)
            self.store.rename("b", "c", 2000)
        now[0] += READ_S + 1
        self.bring(batch(3, 3))
        self.assertEqual((links[0].state.name, list(self.ingestor.latest)), ("c", ["c"]))
        self.assertEqual(self.names.take_renames(), [])
        with self.store.writing(()):
            self.store.rename("c", "a", 3000)
        now[0] += READ_S + 1
        self.bring(batch(4, 4))
        self.assertEqual((links[0].state.name, list(self.ingestor.latest)), ("a", ["a"]))

    def refuse_former(self, released):
        """Have the store refuse the former name `a`, as one that several servers share does, until it is released."""
        writing, release = self.store.writing, self.store.release

        def refusing(keys):
            used = {name for name, _ in keys if name == "a"} - set(released)
            if used:
                raise FormerNamesUsed(used)
            return writing(keys)

        def note(name):
            released.append(name)
            release(name)

        for name, done in (("writing", refusing), ("release", note)):
            patch = mock.patch.object(self.store, name, side_effect=done)
            patch.start()
            self.addCleanup(patch.stop)

    def test_what_another_server_has_renamed_just_now_is_stored_under_its_present_name(self):
        self.bring(batch(1, 5))
        self.ingestor.run(lambda: self.store.rename("a", "b", 1000), LIMIT_S)
        released = []
        self.refuse_former(released)
        self.bring(batch(4, 8))
        self.assertEqual((self.seqs("b"), self.seqs("a")), (list(range(1, 9)), []))
        self.assertEqual((self.ingestor.repeated, released), (2, []))

    def test_former_name_with_a_token_of_its_own_is_released_and_stays_a_node(self):
        self.bring(batch(1, 5))
        self.ingestor.run(lambda: self.store.rename("a", "b", 1000), LIMIT_S)
        self.tokens.make("a")
        released = []
        self.refuse_former(released)
        self.bring(batch(1, 3, epoch=E2))
        self.assertEqual((self.seqs("b"), self.seqs("a", E2), released), ([1, 2, 3, 4, 5], [1, 2, 3], ["a"]))

    def test_tokens_that_do_not_read_end_nothing(self):
        self.bring(batch(1, 2))
        self.admin.rename("a", "b")
        with open(os.path.join(self.folder, "tokens.json"), "w", encoding="utf-8") as file:
            json.dump([], file)
        self.assertEqual(self.names.current("a"), "b")
        with self.assertLogs("pigeonpost.server.node_admin", "WARNING"):
            self.admin.finish()

    def test_settings_under_a_former_name_are_those_of_the_node(self):
        self.bring(batch(1, 2))
        pins = ByPresentName({"a": "ff", "c": ""}, self.names.current)
        self.assertNotIn("b", pins)
        self.admin.rename("a", "b")
        self.assertEqual((pins["a"], pins["b"], pins.get("d")), ("ff", "ff", None))
        self.assertEqual((len(pins), list(pins)), (2, ["a", "c"]))


if __name__ == "__main__":
    unittest.main()
