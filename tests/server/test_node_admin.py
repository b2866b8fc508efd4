"""Renaming, retiring and relabelling nodes. No sample is lost or repeated, whichever side uses the new name first."""

import json
import os
import threading
import unittest
from unittest import mock

from pigeonpost.alerts.engine import Alerts
from pigeonpost.alerts.rules import Rule
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
    """Link to a node."""

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
        self.ingestor.run(lambda: None, LIMIT_S)  # it is called after the log and the subscribers

    def rows(self):
        with open(self.log.whole()[0], encoding="utf-8") as log:
            return [line.split(",")[1] for line in log.read().splitlines()[1:]]

    def verify(self):
        """Return the faults that the next start finds in logs and store."""
        self.ingestor.stop(LIMIT_S)
        return list(verify_logs(os.path.join(self.folder, "logs"), self.store))


class RenameTest(AdminCase):
    def test_pi_that_reports_its_former_name_is_the_renamed_node(self):
        self.bring(batch(1, 5))
        self.admin.rename("a", "b")
        self.assertEqual(self.ingestor.marks("a", "00000000000000aa", ["0000000000000001"])[0], 5)
        self.bring(batch(4, 8))
        self.assertEqual(self.seqs("b"), list(range(1, 9)))
        self.assertEqual(self.seqs("a"), [])
        self.assertEqual(self.ingestor.repeated, 2)
        self.assertEqual(self.ingestor.latest["b"].sample.seq, 8)
        self.assertNotIn("a", self.ingestor.latest)

    def test_concurrent_renames_to_one_name_succeed_only_once(self):
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

    def test_rename_fails_if_another_server_used_the_name_in_the_meantime(self):
        self.bring(batch(1, 5))
        token = self.tokens.make("a")
        taken = mock.patch.object(
            self.store, "rename", side_effect=ValueError("data is already stored for a node named b")
        )
        with (
            taken,
            self.assertRaisesRegex(Refused, "node a cannot be renamed to b: data is already stored for a node named b"),
        ):
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

    def test_log_keeps_the_former_name_and_continues_with_the_new_one(self):
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

    def test_crash_after_a_rename_leaves_no_duplicate_row(self):
        self.bring(batch(1, 2))
        self.admin.rename("a", "b")
        self.ingestor.stop(LIMIT_S)  # the same state as after a kill: everything was recorded before the renaming
        self.open()
        self.assertEqual(self.log.beyond_store, "")
        self.assertEqual(list(verify_logs(os.path.join(self.folder, "logs"), self.store)), [])

    def test_rename_is_refused_while_the_log_lacks_rows(self):
        self.bring(batch(1, 2))
        rows = [LogEntry(1 << 40, "a", E1, [Gap(1, 2, 0, "full")], 0, {})]
        with mock.patch.object(self.store, "logged_after", lambda filed: rows), self.assertRaises(NotStored):
            self.admin.rename("a", "b")
        self.assertEqual(self.seqs("a"), [1, 2])
        self.admin.rename("a", "b")  # although the new name already has the token
        self.assertEqual(self.seqs("b"), [1, 2])

    def test_rename_is_not_refused_because_of_a_damaged_row(self):
        self.bring(batch(1, 2))
        damaged = LogEntry(1 << 40, "a", E1, (), 0, {}, LostRows("a", 1, 0, 0))
        readable_again = LogEntry(1, "a", E1, [Gap(1, 2, 0, "full")], 0, {})
        with mock.patch.object(self.store, "logged_after", lambda filed: [damaged, readable_again]):
            self.admin.rename("a", "b")
        self.assertEqual(self.seqs("b"), [1, 2])

    def test_token_is_moved_to_the_new_name(self):
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

    def test_failed_rename_leaves_the_token_only_to_the_former_name(self):
        self.bring(batch(1, 2))
        token = self.tokens.make("a")
        with mock.patch.object(self.store, "rename", side_effect=NotStored("full")), self.assertRaises(NotStored):
            self.admin.rename("a", "b")
        self.assertEqual((list(self.tokens), self.tokens.text_of("a")), (["a"], token))

    def test_client_waits_longer_than_the_limit_of_a_rename(self):
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

    def test_separate_token_makes_the_former_name_a_node_again(self):
        self.bring(batch(1, 2))
        self.tokens.make("a")
        self.admin.rename("a", "b")
        self.tokens.make("a")
        self.assertEqual(self.names.current("a"), "a")
        self.bring(batch(1, 3, epoch=E2))
        self.assertEqual(self.seqs("a", E2), [1, 2, 3])
        self.assertEqual(self.seqs("b"), [1, 2])
        self.tokens.revoke("a")  # the name remains in use: otherwise its data would have two names
        self.assertEqual(self.names.current("a"), "a")
        self.assertEqual(NodeRegister(self.store, self.tokens.text_of).current("a"), "a")
        self.clock.step(-86_400.0)  # the date of a renaming must not decide which of the two is meant
        self.admin.rename("a", "c")
        self.assertEqual(self.names.current("a"), "c")
        self.assertEqual(self.verify(), [])

    def test_refused_with_the_reason(self):
        self.bring(batch(1, 2), batch(1, 1, node="c"))
        self.tokens.make("d")
        self.admin.rename("c", "e")
        for node, new, text in (
            ("a", "e", "a node e exists already"), ("a", "c", "c is a former name of e"),
            ("a", "d", "another node d has a token"), ("a", "a", "is a already"), ("a", "../x", "is not a valid"),
            ("z", "y", "nothing is stored for a node z; the stored nodes are: a, e"),
            ("c", "y", "node c was renamed to e"),
        ):  # fmt: skip
            with self.subTest(node=node, new=new), self.assertRaisesRegex(Refused, text):
                self.admin.rename(node, new)
        self.assertEqual(sorted(self.tokens), ["d"])

    def test_all_components_know_the_node_by_its_new_name(self):
        links = [Link("a", "a")]
        names, late = NodeNames(links, self.names.current), LateDataTracker(self.clock)
        cache, events = RecentCache(self.store), EventLog(links, dict, self.clock)
        rule = Rule("a", "temperature", 10.0, None, None, 0.0, 0.0)
        alerts = Alerts([rule], links, self.clock, self.names)
        self.ingestor.subscribe(alerts.on_commit)
        self.names.on_rename += [part.on_rename for part in (names, late, cache, events)]
        events.record("a", "on", "switched on")
        self.bring(batch(1, 2))
        self.assertIn("temperature of a is", alerts.look()[0].subject)
        self.admin.rename("a", "b")
        self.assertEqual(links[0].state.name, "b")
        self.assertEqual(names.claim(links[0].state, "b", False), "")
        self.assertEqual([event.node for event in events.all()], ["b"])
        self.assertEqual(alerts.look(), [])  # it has reported this already
        self.bring(batch(3, 3, temperature=5.0))
        self.assertIn("temperature of b is 5", alerts.look()[0].subject)


class RetireTest(AdminCase):
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

    def test_retired_node_causes_no_alert(self):
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


class RelabelTest(AdminCase):
    def test_label_is_stored_and_removed(self):
        self.bring(batch(1, 2))
        self.admin.relabel("a", "temperature", "  North wall ")
        self.assertEqual(self.names.label("a", "temperature"), "North wall")
        self.admin.relabel("a", "temperature", "")
        self.assertEqual(self.names.label("a", "temperature"), "")

    def test_refused_with_the_reason(self):
        self.bring(batch(1, 2))
        for sensor, label, text in (("x", "X", "has never had a sensor x"), ("temperature", "a\nb", "must be one line"),
                                    ("temperature", "x" * 65, "at most 64")):  # fmt: skip
            with self.subTest(label=label), self.assertRaisesRegex(Refused, text):
                self.admin.relabel("a", sensor, label)


class RegisterTest(AdminCase):
    def test_commits_fail_while_the_names_cannot_be_read(self):
        """Otherwise a queued batch with the former name would create a second node."""
        self.bring(batch(1, 2))
        with mock.patch.object(self.store, "node_records", side_effect=NotStored("busy")):
            self.admin.rename("a", "b")
            self.submit(batch(1, 4))
            with self.assertRaisesRegex(NotStored, "busy"):
                self.ingestor.commit()
        self.ingestor.flush(LIMIT_S)
        self.assertEqual([node["name"] for node in self.store.nodes()], ["b"])
        self.assertEqual(self.seqs("b"), [1, 2, 3, 4])

    def test_shared_store_is_read_again_after_ten_seconds(self):
        now = [0.0]
        self.bring(batch(1, 2))
        self.store.is_shared = True
        other = NodeRegister(self.store, monotonic=lambda: now[0])
        self.admin.rename("a", "b")
        self.assertEqual(other.current("a"), "a")
        now[0] += READ_S + 1
        self.assertEqual(other.current("a"), "b")

    def test_rename_by_another_server_is_announced_with_the_next_commit(self):
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
        """Let the store refuse the former name `a` until it is released, as a shared store does."""
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

    def test_batch_of_a_node_that_another_server_renamed_is_stored_under_the_new_name(self):
        self.bring(batch(1, 5))
        self.ingestor.run(lambda: self.store.rename("a", "b", 1000), LIMIT_S)
        released = []
        self.refuse_former(released)
        self.bring(batch(4, 8))
        self.assertEqual((self.seqs("b"), self.seqs("a")), (list(range(1, 9)), []))
        self.assertEqual((self.ingestor.repeated, released), (2, []))

    def test_former_name_with_a_separate_token_is_released_and_remains_a_node(self):
        self.bring(batch(1, 5))
        self.ingestor.run(lambda: self.store.rename("a", "b", 1000), LIMIT_S)
        self.tokens.make("a")
        released = []
        self.refuse_former(released)
        self.bring(batch(1, 3, epoch=E2))
        self.assertEqual((self.seqs("b"), self.seqs("a", E2), released), ([1, 2, 3, 4, 5], [1, 2, 3], ["a"]))

    def test_unreadable_tokens_do_not_stop_the_server(self):
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
