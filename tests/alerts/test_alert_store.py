"""Tests of the durable states and messages of alerts."""

import os
import sqlite3
import unittest
from unittest import mock

from pigeonpost.alerts import alert_store
from pigeonpost.alerts.alert_store import MOST_WAITING, AlertStore
from pigeonpost.alerts.contract import AlertMessage
from pigeonpost.core.clock import FakeClock
from tests.page_support import use_memory_disk
from tests.support import temp_folder


def setUpModule():
    use_memory_disk()


def message(subject="Alert", **more):
    return AlertMessage(subject, f"{subject}.\n", {"kind": "alert"}, **more)


class Stored(unittest.TestCase):
    def setUp(self):
        self.path = os.path.join(temp_folder(self), "alerts.sqlite3")
        self.clock = FakeClock()

    def open(self, *channels):
        store = AlertStore(self.path, channels or ("mail",), self.clock)
        self.addCleanup(store.close)
        return store

    def subjects(self, store, channel="mail"):
        return [one.message.subject for one in store.waiting(channel)]

    def test_states_messages_and_notes_are_read_after_a_crash(self):
        store = self.open()
        store.commit({"a": {"x": 1}, "b": [1, "ü"]}, [message("one", id="1"), message("two")], {"mark": "7"})
        store.commit({"a": None}, [], {})
        again = self.open()  # the first one was not closed
        self.assertEqual((again.states(), again.noted("mark"), again.noted("other")), ({"b": [1, "ü"]}, "7", ""))
        self.assertEqual(self.subjects(again), ["one", "two"])
        self.assertEqual(again.waiting("mail"), store.waiting("mail"))
        self.assertEqual(again.waiting("mail")[0].message, message("one", id="1"))
        self.assertEqual(len(again.waiting("mail")[1].message.id), 32)

    def test_removed_message_does_not_return_and_its_number_is_not_used_again(self):
        store = self.open("mail", "webhook")
        store.put([message("one"), message("two")])
        last = store.waiting("mail")[1]
        for queued in store.waiting("mail"):
            store.remove("mail", queued.number)
            store.remove("mail", queued.number)
        again = self.open("mail", "webhook")
        self.assertEqual((self.subjects(again), self.subjects(again, "webhook")), ([], ["one", "two"]))
        again.put([message("three")], ["mail"])
        self.assertGreater(again.waiting("mail")[0].number, last.number)
        self.assertEqual(self.subjects(again, "webhook"), ["one", "two"])

    def test_message_with_the_same_id_is_queued_once_per_channel(self):
        store = self.open("mail", "webhook")
        for _ in range(3):
            store.put([message(id="7")])
        self.assertEqual((len(store.waiting("mail")), len(store.waiting("webhook"))), (1, 1))

    def test_messages_of_a_removed_channel_are_dropped(self):
        self.open("mail", "webhook").put([message()])
        self.assertEqual(self.subjects(self.open("webhook"), "mail"), [])
        self.assertEqual(self.subjects(self.open("mail", "webhook"), "mail"), [])

    def test_oldest_message_is_dropped_at_the_limit(self):
        store = self.open()
        with self.assertLogs("pigeonpost.alerts.alert_store", "ERROR") as caught:
            store.put([message(str(n)) for n in range(MOST_WAITING + 2)])
        self.assertIn("a message was dropped", caught.output[0])
        self.assertEqual(self.subjects(self.open()), [str(n) for n in range(2, MOST_WAITING + 2)])

    def test_damaged_file_is_set_aside(self):
        for content in (b"no database", b"SQLite format 3\0" + b"x" * 4000, b"{}"):
            with open(self.path, "wb") as file:
                file.write(content)
            with self.subTest(content[:12]), self.assertLogs("pigeonpost.alerts.alert_store", "ERROR"):
                store = self.open()
                store.put([message()])
                self.assertEqual((store.fault, self.subjects(self.open())), ("", ["Alert"]))
                store.close()
            self.clock.sleep(1)
        self.assertEqual(sum(".damaged-" in name for name in os.listdir(os.path.dirname(self.path))), 3)

    def test_unreadable_state_is_damage(self):
        self.open().commit({"a": 1}, [], {})
        with sqlite3.connect(self.path) as db:
            db.execute("UPDATE states SET state = '{'")
        with self.assertLogs("pigeonpost.alerts.alert_store", "ERROR"):
            self.assertEqual(self.open().states(), {})

    def test_content_stays_in_memory_while_the_file_cannot_be_written(self):
        store = self.open()
        store.commit({"a": 1}, [message("one")], {})
        with sqlite3.connect(self.path) as db:
            db.execute("DROP TABLE queue")
        with self.assertLogs("pigeonpost.alerts.alert_store", "ERROR"):
            store.commit({"a": 2}, [message("two")], {"mark": "1"})
        self.assertIn("only in memory", store.fault)
        self.assertEqual((store.states(), self.subjects(store)), ({"a": 2}, ["one", "two"]))
        with sqlite3.connect(self.path) as db:
            db.execute(
                "CREATE TABLE queue (number INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL,"
                " queued_ms INTEGER NOT NULL, message TEXT NOT NULL)"
            )
        with self.assertLogs("pigeonpost.alerts.alert_store", "WARNING"):
            store.remove("mail", store.waiting("mail")[0].number)
        again = self.open()
        self.assertEqual((store.fault, again.states(), self.subjects(again)), ("", {"a": 2}, ["two"]))

    def test_messages_of_a_file_that_cannot_be_read_at_the_start_are_not_lost(self):
        errors = [
            OSError(24, "Too many open files"), OSError(13, "Permission denied"), OSError(5, "Input/output error"),
            sqlite3.OperationalError("database is locked"), sqlite3.OperationalError("disk I/O error"),
        ]  # fmt: skip
        for error in errors:
            with self.subTest(error), self.assertLogs("pigeonpost.alerts.alert_store", "WARNING"):
                self.path = os.path.join(temp_folder(self), "alerts.sqlite3")
                first = self.open()
                first.commit({"a": 1, "b": 1}, [message("one"), message("two")], {"mark": "7"})
                first.close()
                with mock.patch.object(alert_store, "_open", side_effect=error):
                    store = self.open()
                    store.commit({"b": 2}, [message("three")], {})
                sent = store.waiting("mail")
                self.assertEqual(([one.message.subject for one in sent], bool(store.fault)), (["three"], True))
                self.clock.sleep(60)
                self.assertEqual(self.subjects(store), ["three", "one", "two"])
                store.remove("mail", sent[0].number)
                again = self.open()
                self.assertEqual((store.fault, self.subjects(again)), ("", ["one", "two"]))
                self.assertEqual((again.states(), again.noted("mark")), ({"a": 1, "b": 2}, "7"))

    def test_file_that_is_found_to_be_damaged_later_is_set_aside(self):
        with open(self.path, "wb") as file:
            file.write(b"no database")
        with self.assertLogs("pigeonpost.alerts.alert_store", "WARNING"):
            with mock.patch.object(alert_store, "_open", side_effect=OSError(24, "Too many open files")):
                store = self.open()
            store.put([message()])
        self.assertEqual((store.fault, self.subjects(self.open())), ("", ["Alert"]))

    def test_missing_folder_is_a_fault(self):
        self.path = os.path.join(self.path, "missing", "alerts.sqlite3")
        with self.assertLogs("pigeonpost.alerts.alert_store", "ERROR"):
            store = self.open()
            store.put([message()])
        self.assertIn("cannot be written", store.fault)
        self.assertEqual(self.subjects(store), ["Alert"])
