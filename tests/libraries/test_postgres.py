"""Contract of a store with PostgreSQL, several servers on one database, and failures of the database."""

import contextlib
import os
import sys
import threading
import unittest
from unittest import mock

from csvbuffer import CsvLog
from pigeonpost.auth.tokens import Tokens
from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.core.data_folder import SERVER_ID
from pigeonpost.core.errors import DiskError, InUse, NotStored, SettingsError, StoreDamaged
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.ingest import Ingestor
from pigeonpost.server.node_register import NodeRegister
from pigeonpost.storage.csv.checksums import logs_in
from pigeonpost.storage.csv.verify import verify_logs
from pigeonpost.storage.models import NOTHING, EpochCommit, HighWaterMark, LogMark
from pigeonpost.storage.postgres import pool, queries, schema
from pigeonpost.storage.postgres import store as postgres_store
from pigeonpost.storage.postgres.store import PostgresStore
from protocol import Batch, Sample
from tests.libraries.databases import Cluster, Database, need_postgres, psycopg
from tests.storage.test_calibration import Agreement, fill
from tests.storage.test_contract import E1, E2, OUTBOX, StoreContract, batch, file, gap
from tests.support import LIMIT_S, Program, stored_samples, temp_folder, wait_until

FAR = 1 << 60


def quiet(one):
    """Return a batch without callbacks."""
    return one._replace(on_committed=lambda *answer: None)


def setUpModule():
    global DATABASE
    need_postgres()
    DATABASE = Database()
    unittest.addModuleCleanup(DATABASE.drop)


class Case:
    """Empty database for each test, and stores on it."""

    def setUp(self):
        DATABASE.do("DROP SCHEMA IF EXISTS pigeonpost CASCADE")
        self.folder = temp_folder(self)
        super().setUp()

    def make(self, folder="", **options):
        return PostgresStore(DATABASE.address, folder or self.folder, **options)

    def another(self, **options):
        """Return the store of another server on the same database."""
        store = self.make(temp_folder(self), **options)
        self.addCleanup(store.close)
        return store


class ContractTest(Case, StoreContract, unittest.TestCase):
    pass


class PostgresCase(Case, unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.store = self.make()
        self.addCleanup(self.store.close)


class CalibrationTest(Agreement, PostgresCase):
    def setUp(self):
        super().setUp()
        self.values = fill(self.store)


class ValueTest(PostgresCase):
    def test_largest_and_smallest_values_are_stored_and_charted(self):
        """In PostgreSQL, overflow and underflow of a sum of floats are errors."""
        odd = [1.7976931348623157e308, -1.7976931348623157e308, 5e-324, 2**63 - 1, 1e200, 0, 1.7e308, None]
        made = [Sample(n, n, n, {"x": value}, {}, "") for n, value in enumerate(odd, 1)]
        file(self.store, Batch("a", OUTBOX, E1, 0, SampleBatch.of(made), None, {}, print, print))
        self.assertEqual([point.values["x"] for point in self.store.points("a", 0, FAR, 99)], odd)
        (column,) = self.store.downsample("a", "x", 0, 100, 1)
        self.assertEqual((column.values, column.low, column.high), (7, odd[1], odd[0]))
        self.assertEqual(self.store.downsample_all("a", 0, 100, 1, {"x"}), {"x": [column]})
        for span in (1, 2):
            self.assertTrue(self.store.downsample("a", "x", span, 100, 50))

    def test_node_renamed_during_a_read_is_read_completely(self):
        file(self.store, batch(1, 10))
        with mock.patch.object(queries, "_AT_ONCE", 4):
            reading = self.store.stored_batches("a", 0, FAR)
            seqs = list(range(next(reading).samples.seq, 5))
            with self.store.writing(()):
                self.store.rename("a", "b", 1)
            seqs += [seq for one in reading for seq in range(one.samples.seq, one.samples.last + 1)]
        self.assertEqual(seqs, list(range(1, 11)))

    def test_untrusted_texts_are_stored_without_nul(self):
        one = Sample(1, 5, 5, {"x": None}, {"x": "no\0thing\t\\N\n; DROP TABLE samples"}, "")
        file(self.store, Batch("a", OUTBOX, E1, 0, SampleBatch.of([one]), None, {"x": "\\N\t"}, print, print))
        file(self.store, gap(2, 3, why="a\0b"))
        self.assertEqual(DATABASE.do("SELECT text FROM failures"), [("no\ufffdthing\t\\N\n; DROP TABLE samples",)])
        self.assertEqual(self.store.gaps(9)[0]["why"], "a\ufffdb")
        self.assertEqual(self.store.nodes()[0]["sensors"], {"x": "\\N\t"})

    def test_verify_reports_duplicates_losses_and_wrong_marks(self):
        file(self.store, batch(1, 9), batch(1, 9, node="b"), batch(1, 9, node="c"), batch(1, 9, node="d"))
        DATABASE.do("ALTER TABLE samples DROP CONSTRAINT samples_pkey")
        DATABASE.do("INSERT INTO samples SELECT * FROM samples WHERE seq = 4 AND node ="
                    " (SELECT id FROM nodes WHERE name = 'a')")  # fmt: skip
        DATABASE.do("DELETE FROM samples WHERE seq = 4 AND node = (SELECT id FROM nodes WHERE name = 'b')")
        DATABASE.do("UPDATE epochs SET seq = 8 WHERE node = (SELECT id FROM nodes WHERE name = 'c')")
        DATABASE.do("DELETE FROM epochs WHERE node = (SELECT id FROM nodes WHERE name = 'd')")
        DATABASE.do("UPDATE samples SET \"values\" = '[1]' WHERE seq = 5 AND node ="
                    " (SELECT id FROM nodes WHERE name = 'a')")  # fmt: skip
        found = list(self.store.verify())
        self.assertEqual(len(found), 5, found)
        expected = "node a", "node b", "node c", "9 samples in the unknown epoch", "1 sample of shape"
        for line, words in zip(found, expected):
            self.assertIn(words, line)

    def test_no_sample_is_stored_twice_with_wrong_marks(self):
        file(self.store, batch(1, 9))
        DATABASE.do("UPDATE epochs SET seq = 5, up = 5000")
        with self.assertLogs("pigeonpost.storage.postgres.store", "WARNING"):
            file(self.store, batch(6, 12))
        self.assertEqual([point.seq for point in self.store.points("a", 0, FAR, 99)], [*range(1, 13)])
        self.assertEqual(list(self.store.verify()), [])

    def test_concurrent_readers_see_consistent_data(self):
        stop, wrong = threading.Event(), []

        def look():
            while not stop.is_set():
                top, marks = self.store.marks("a", OUTBOX, [E1])
                count = len(self.store.points("a", 0, FAR, 10_000))
                if marks and not top == marks[E1].seq <= count:
                    wrong.append((top, marks, count))

        readers = [threading.Thread(target=look) for _ in range(12)]
        for reader in readers:
            reader.start()
        for first in range(1, 501, 20):
            file(self.store, batch(first, first + 19))
        stop.set()
        for reader in readers:
            reader.join(LIMIT_S)
        self.assertEqual(wrong, [])
        self.assertLessEqual(len(self.store._link._idle), 8)


class SeveralServersTest(PostgresCase):
    """Two servers with separate data folders on one database."""

    def setUp(self):
        super().setUp()
        self.other = self.another()

    def test_servers_share_identity_and_marks(self):
        self.assertEqual(self.store.identity, self.other.identity)
        self.assertEqual(self.store.description, "PostgreSQL")
        file(self.store, batch(1, 3))
        self.assertEqual(self.other.marks("a", OUTBOX, [E1]), (3, {E1: HighWaterMark(3, 3000)}))
        file(self.other, batch(4, 5))
        self.assertEqual(self.store.nodes()[0]["samples"], 5)

    def while_one_stores(self, first, last, **more):
        """Return the marks that the other server reads for the same node after waiting for this server's commit."""
        found = []

        def ask():
            with self.other.writing([("a", E1)]) as marks:
                found.append(dict(marks))

        asker = threading.Thread(target=ask)
        with self.store.writing([("a", E1)]) as marks:
            asker.start()
            wait_until(lambda: DATABASE.do("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                                           " AND datname = %s", DATABASE.name), "the other waits")  # fmt: skip
            self.assertEqual(found, [])
            epoch_commit = EpochCommit("a", OUTBOX, E1, marks.get(("a", E1), NOTHING))
            epoch_commit.add(batch(first, last), 0)
            self.store.put([epoch_commit], 0, None)
            if more.get("fails"):
                self.store._db.execute("ROLLBACK; BEGIN")
        asker.join(LIMIT_S)
        return found[0]

    def test_servers_take_turns_with_a_node(self):
        self.assertEqual(
            self.while_one_stores(1, 3), {("a", E1): HighWaterMark(3, 3000)}
        )  # a node that neither server knew before
        self.assertEqual(self.while_one_stores(4, 9), {("a", E1): HighWaterMark(9, 9000)})

    def test_rolled_back_samples_are_invisible_to_the_other_server(self):
        self.assertEqual(self.while_one_stores(1, 3, fails=True), {})

    def test_servers_with_different_nodes_do_not_wait_for_each_other(self):
        with self.store.writing([("a", E1)]):
            file(self.other, batch(1, 3, node="b"))
        self.assertEqual(self.store.nodes()[0]["name"], "b")

    def test_node_that_sends_all_samples_to_both_servers_is_stored_once(self):
        """Both servers commit small parts at the same time, so each of them is sometimes the first."""
        parts = [batch(first, first + 6, node=node, epoch=epoch)
                 for first in range(1, 351, 7) for node in "abcd" for epoch in (E1, E2)]  # fmt: skip
        servers = [
            Ingestor(store, CsvLog(temp_folder(self), store, Clock()), Clock()) for store in (self.store, self.other)
        ]
        done = {id(ingestor): set() for ingestor in servers}
        together = threading.Barrier(2)

        def serve(ingestor):
            ingestor._csv.start()
            answered = done[id(ingestor)]
            for place in range(0, len(parts), 4):
                together.wait(LIMIT_S)
                for part in parts[place : place + 4]:
                    answer = part._replace(on_committed=lambda *answer: answered.add(answer), on_rejected=answered.add)
                    ingestor.submit(answer)
                ingestor.commit()
            ingestor._csv.record()

        threads = [threading.Thread(target=serve, args=(ingestor,)) for ingestor in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        for ingestor in servers:
            self.assertEqual({max(seq for of, seq in done[id(ingestor)] if of == epoch) for epoch in (E1, E2)}, {350})
            self.assertEqual(list(verify_logs(ingestor._csv._folder, ingestor._store)), [])
            ingestor._csv.close()
        self.assertEqual(sum(ingestor.stored for ingestor in servers), 8 * 350)
        self.assertEqual(list(self.store.verify()), [])
        self.assertEqual(sum(1 for _ in stored_samples(self.store.every_batch())), 8 * 350)

    def collecting(self, store, tokens=None):
        """Return the Ingestor of a server on `store`, with the current names."""
        csv = CsvLog(temp_folder(self), store, Clock())
        csv.start()
        self.addCleanup(csv.close)
        names = NodeRegister(store, tokens.text_of) if tokens is not None else None
        return Ingestor(store, csv, Clock(), names=names)

    def bring(self, ingestor, *made):
        for one in made:
            ingestor.submit(one._replace(on_committed=lambda *answer: None, on_rejected=lambda error: None))
        ingestor.commit()

    def rename(self, ingestor, node, new):
        ingestor._csv.record()
        with ingestor._store.writing(()):
            ingestor._store.rename(node, new, 0)
        ingestor.names.refresh()

    def test_rename_by_another_server_creates_no_second_node(self):
        """This also applies in the seconds before this server reads the new name."""
        one, other = self.collecting(self.store), self.collecting(self.other)
        self.bring(one, batch(1, 5), batch(1, 5, node="c"))
        self.bring(other, batch(6, 6))  # it has stored samples of this node in this run, but not of c
        self.rename(one, "a", "b")
        self.rename(one, "c", "d")
        self.bring(other, batch(6, 9), batch(6, 9, node="c"))
        self.bring(other, batch(1, 12), batch(1, 12, node="c"))
        self.assertEqual({node["name"]: node["samples"] for node in self.store.nodes()}, {"b": 12, "d": 12})
        self.assertEqual(other.names.current("a"), "b")
        self.assertEqual(list(self.store.verify()), [])

    def test_separate_token_makes_the_former_name_a_node_again(self):
        tokens = Tokens(temp_folder(self))
        one, other = self.collecting(self.store), self.collecting(self.other, tokens)
        self.bring(one, batch(1, 5))
        self.rename(one, "a", "b")
        tokens.make("a")
        self.bring(other, batch(1, 3, epoch=E2))
        self.assertEqual({node["name"]: node["samples"] for node in self.store.nodes()}, {"a": 3, "b": 5})
        self.assertTrue(self.store.node_records().former[0].is_released)

    def test_log_of_the_other_server_is_completed_after_a_rename(self):
        """Its earlier rows have the former name. After a kill none is written again with the new name."""
        one, other = self.collecting(self.store), self.collecting(self.other)
        self.bring(other, batch(1, 5))
        self.bring(other, batch(6, 8))
        self.rename(one, "a", "b")
        self.bring(other, batch(9, 10))
        log = CsvLog(os.path.dirname(other._csv._folder), self.other, Clock())  # the same state as after a kill
        log.start()
        self.addCleanup(log.close)
        self.assertEqual(log.beyond_store, "")
        self.assertEqual(list(verify_logs(other._csv._folder, self.other)), [])

    def test_gap_of_older_epochs_is_counted_once_by_two_servers(self):
        """The other server counts it after this server received the batch, and before it locks the node."""
        missing = gap(1, 0, epoch=E2, base=70, before=70)
        ingestor = Ingestor(self.store, mock.Mock(due=lambda: None), FakeClock())
        ingestor.submit(quiet(missing))
        hold = self.store.writing

        def late(epochs):
            file(self.other, missing)
            return hold(epochs)

        with mock.patch.object(self.store, "writing", late):
            ingestor.commit()
        self.assertEqual(self.store.nodes()[0]["missing"], 70)

    def test_each_server_has_its_own_pending_log_entries(self):
        last = file(self.store, batch(1, 3), gap(4, 5))
        file(self.other, batch(6, 7), batch(1, 1, node="b"))
        self.assertEqual([logged.items[0][0].seq for logged in self.other.logged_after(0)], [6, 1])
        self.assertEqual([logged.filed for logged in self.store.logged_after(0)], [1, 2])
        mark = LogMark("one.csv", 100, 7, last)
        file(self.store, log=mark)
        self.assertEqual((self.store.log_mark(), self.other.log_mark()), (mark, None))
        self.assertEqual(len(list(self.other.logged_after(0))), 2)
        self.assertEqual([p.seq for p in stored_samples(self.store.own_batches())], [1, 2, 3])
        self.assertEqual([p.seq for p in stored_samples(self.other.own_batches())], [6, 7, 1])
        own = [(one.node, one.samples.seq, one.samples.last) for one in self.other.own_batches()]
        self.assertEqual(own, [("a", 6, 7), ("b", 1, 1)])
        self.assertEqual((self.store.own_gaps(), self.other.own_gaps()), (1, 0))
        new = self.another()
        self.assertEqual((new.log_mark(), list(new.logged_after(0)), list(new.own_batches())), (None, [], []))
        self.assertEqual(len(list(stored_samples(new.every_batch()))), 6)

    def test_copied_data_folder_is_refused_as_a_second_server(self):
        with mock.patch.object(postgres_store, "PLACE_S", 0.1), self.assertRaises(InUse) as caught:
            self.make()
        self.assertIn(SERVER_ID, str(caught.exception))
        self.store.close()
        self.make().close()

    def test_several_servers_can_start_on_an_empty_database(self):
        DATABASE.do("DROP SCHEMA pigeonpost CASCADE")
        found = []
        makers = [threading.Thread(target=lambda: found.append(self.another().identity)) for _ in range(4)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join(LIMIT_S)
        self.assertEqual((len(found), len(set(found))), (4, 1))

    def test_samples_that_another_server_must_log_are_deleted_only_after_30_days(self):
        hour = 3_600_000
        file(self.other, batch(1, 1, time_ms=hour))
        with self.store.writing(()):
            for window in self.store.dirty_windows(FAR, 9):
                self.store.replace_rollups(window, {})
        for gone, expected in ((False, 0), (True, 1)):
            if gone:
                DATABASE.do("UPDATE servers SET seen = now() - interval '31 days'")
            with self.store.writing(()):
                self.assertEqual(self.store.delete_expired(9 * hour, 9), expected)

    def test_window_rolled_up_by_another_server_is_skipped(self):
        file(self.store, batch(1, 1))
        window, _ = self.store.dirty_windows(FAR, 9)
        for store in (self.store, self.other):
            with store.writing(()):
                store.replace_rollups(window, {})
        self.assertEqual(len(self.store.dirty_windows(FAR, 9)), 1)

    def test_samples_added_by_another_server_during_a_rollup_leave_the_window_dirty(self):
        file(self.store, batch(1, 1))
        windows = self.store.dirty_windows(FAR, 9)
        file(self.other, batch(2, 2))
        with self.store.writing(()):
            for window in windows:
                self.store.replace_rollups(window, {})
        self.assertEqual(len(self.store.dirty_windows(FAR, 9)), 2)


class Ending:
    """Connection that the database terminates before a statement with a given number, including COPY."""

    def __init__(self, db, at):
        self._db = db
        self.at = at
        self.statements = 0

    def _count(self):
        self.statements += 1
        if self.statements == self.at:
            pid = self._db.info.backend_pid
            DATABASE.do("SELECT pg_terminate_backend(%s, 5000)", pid)

    def execute(self, *arguments):
        self._count()
        return self._db.execute(*arguments)

    def cursor(self):
        self._count()
        return self._db.cursor()

    def __getattr__(self, name):
        return getattr(self._db, name)


class FaultTest(PostgresCase):
    def test_broken_connection_fails_one_attempt_only(self):
        file(self.store, batch(1, 3))
        DATABASE.cut()
        self.assertEqual(self.store.marks("a", OUTBOX, [E1])[0], 3)  # readers connect again automatically
        with self.assertRaises(NotStored):
            file(self.store, batch(4, 5))
        file(self.store, batch(4, 5))
        with self.assertRaises(NotStored), self.store.writing([("a", E1)]) as marks:
            DATABASE.cut()
            epoch_commit = EpochCommit("a", OUTBOX, E1, marks["a", E1])
            epoch_commit.add(batch(6, 7), 0)
            self.store.put([epoch_commit], 0, None)
        file(self.store, batch(6, 7))
        self.assertEqual(self.store.marks("a", OUTBOX, [E1]), (7, {E1: HighWaterMark(7, 7000)}))
        self.assertEqual(list(self.store.verify()), [])

    def test_connection_that_breaks_during_a_read_raises_not_stored(self):
        file(self.store, batch(1, 100))
        with self.assertRaises(NotStored), mock.patch("pigeonpost.storage.postgres.queries._AT_ONCE", 10):
            for point in stored_samples(self.store.every_batch()):
                if point.seq == 5:
                    DATABASE.cut()
        self.assertEqual(len(list(stored_samples(self.store.every_batch()))), 100)

    def with_log(self):
        """Return a clock, an open CSV log, and an Ingestor."""
        clock = FakeClock()
        log = CsvLog(self.folder, self.store, clock)
        log.start()
        return clock, log, Ingestor(self.store, log, clock)

    def test_commit_with_unknown_outcome_is_recognised_as_stored(self):
        """The result of the commit is lost. The batch is submitted again as a repeat, and its rows are logged."""
        _, log, ingestor = self.with_log()
        ingestor.submit(quiet(batch(1, 3)))
        ingestor.commit()
        db, answers = self.store._db, []

        class Cut:
            def execute(self, sql, *arguments):
                done = db.execute(sql, *arguments)
                if sql == "COMMIT":
                    db.close()
                    raise psycopg.OperationalError("the connection is lost")
                return done

            def __getattr__(self, name):
                return getattr(db, name)

        self.store._db = Cut()
        ingestor.submit(batch(4, 6)._replace(on_committed=lambda *answer: answers.append(answer)))
        with self.assertRaises(NotStored):
            ingestor.commit()
        self.assertEqual(answers, [])
        ingestor.commit()
        self.assertEqual(answers, [(E1, 6)])
        self.assertEqual((self.store.nodes()[0]["samples"], ingestor.repeated), (6, 3))
        ingestor.submit(quiet(batch(7, 7)))
        ingestor.commit()
        log.close()
        self.assertEqual(list(verify_logs(os.path.join(self.folder, "logs"), self.store)), [])

    def test_connection_ended_at_any_statement_of_a_commit_loses_nothing(self):
        """Nothing of the commit is stored. The next attempt stores it, and the CSV log contains it once."""
        _, log, ingestor = self.with_log()
        answers = []
        first, ended_at, statements = 1, 0, 0
        while ended_at == statements:  # until a commit has fewer statements
            ended_at += 1
            one = Sample(first, first * 1000, 5, {"x": None}, {"x": "no answer"}, "")
            samples = Batch("a", OUTBOX, E1, 0, SampleBatch.of([one]), None, {"x": "V"}, print, print)
            for made in (samples, gap(first + 1, first + 2), batch(1, 1, node="b", epoch=f"{ended_at:016x}")):
                ingestor.submit(made._replace(on_committed=lambda *answer: answers.append(answer)))
            self.store._db = ending = Ending(self.store._writer(), ended_at)
            try:
                ingestor.commit()
            except NotStored:
                self.assertEqual(answers, [])
                ingestor.commit()
            statements = ending.statements
            self.assertEqual(sorted(answers), sorted([(E1, first), (E1, first + 2), (f"{ended_at:016x}", 1)]))
            answers.clear()
            first += 3
        ending.at = 0
        self.assertGreater(statements, 9)
        ingestor.submit(quiet(batch(first, first)))
        ingestor.commit()
        log.close()
        self.assertEqual(list(self.store.verify()), [])
        self.assertEqual(self.store.marks("a", OUTBOX, [E1])[1][E1].seq, first)
        self.assertEqual(list(verify_logs(os.path.join(self.folder, "logs"), self.store)), [])

    def test_error_at_any_table_has_its_type_and_text(self):
        """This includes statements that are sent without waiting for the results of earlier ones."""
        file(self.store, batch(1, 1))
        for table in ("epochs", "outboxes", "servers", "samples", "unsummed", "filings"):
            for code, error in (("disk_full", NotStored), ("query_canceled", NotStored),
                                ("deadlock_detected", NotStored),
                                ("undefined_column", StoreDamaged), ("data_corrupted", StoreDamaged)):  # fmt: skip
                DATABASE.do(
                    "CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS"
                    f" $$ BEGIN RAISE 'error at {table}' USING ERRCODE = '{code}'; END $$;"
                    f" CREATE TRIGGER fails BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION fails()"
                )
                with self.subTest(table=table, code=code), self.assertRaisesRegex(error, f"error at {table}"):
                    file(self.store, batch(2, 2, base=1))
                DATABASE.do("DROP FUNCTION fails CASCADE")
                self.store.damage = ""
        file(self.store, batch(2, 2, base=1))
        self.assertEqual(self.store.nodes()[0]["samples"], 2)
        self.assertEqual(list(self.store.verify()), [])

    def test_reader_without_a_free_connection_raises_not_stored(self):
        """For example, the database is frozen. Some readers wait for it, and the others get an error."""
        with contextlib.ExitStack() as held, mock.patch.object(pool, "_ROOM_S", 0.01):
            for _ in range(pool._MOST_READERS):
                held.enter_context(self.store._link.reading())
            with self.assertRaisesRegex(NotStored, "none of the 8 read connections was free within 0.01 s"):
                self.store.nodes()
        self.assertEqual(self.store.nodes(), [])

    def test_wait_for_a_locked_node_is_limited(self):
        file(self.store, batch(1, 1))
        with DATABASE.connect() as db:
            db.execute("BEGIN; SELECT FROM nodes FOR UPDATE")
            self.store._db.execute("SET lock_timeout = '50ms'")
            with self.assertRaises(NotStored) as caught:
                file(self.store, batch(2, 2))
            self.assertIn("lock timeout", str(caught.exception))
            db.execute("ROLLBACK")
        file(self.store, batch(2, 2))

    def test_commits_are_synchronous_regardless_of_the_database_settings(self):
        DATABASE.do(f"ALTER DATABASE {DATABASE.name} SET synchronous_commit = off")
        self.addCleanup(DATABASE.do, f"ALTER DATABASE {DATABASE.name} RESET synchronous_commit")
        self.assertEqual(self.another()._db.execute("SHOW synchronous_commit").fetchone(), ("on",))

    def test_unusual_settings_of_the_database_have_no_effect(self):
        self.addCleanup(DATABASE._do, f"ALTER DATABASE {DATABASE.name} RESET ALL")
        for setting in ("default_transaction_isolation = 'serializable'", "default_transaction_read_only = on",
                        "extra_float_digits = -5", "TimeZone = 'Asia/Tokyo'"):  # fmt: skip
            DATABASE._do(f"ALTER DATABASE {DATABASE.name} SET {setting}")
        store = self.another()
        one = Sample(1, 5, 5, {"x": 0.1234567890123456}, {}, "")
        file(store, Batch("a", OUTBOX, E1, 0, SampleBatch.of([one]), None, {}, print, print))
        self.assertEqual(store.points("a", 0, FAR, 9)[0].values, one.values)

    def test_errors_after_the_first_success_can_be_retried(self):
        """For example, the user may no longer log in. An administrator will correct that."""
        file(self.store, batch(1, 3))
        user = f"{DATABASE.name}_w"
        DATABASE.do(f"CREATE ROLE {user} LOGIN SUPERUSER")
        self.addCleanup(DATABASE.do, f"DROP OWNED BY {user}; DROP ROLE {user}")
        store = PostgresStore(psycopg.conninfo.make_conninfo(DATABASE.address, user=user), temp_folder(self))
        self.addCleanup(store.close)
        for out, back in (("NOLOGIN", "LOGIN"), ("NOSUPERUSER", "SUPERUSER")):
            DATABASE.do(f"ALTER ROLE {user} {out}")
            DATABASE.cut()
            for _ in range(2):
                self.assertRaises(NotStored, file, store, batch(4, 5))
                self.assertRaises(OSError, store.nodes)
            DATABASE.do(f"ALTER ROLE {user} {back}")
            self.assertEqual(store.nodes()[0]["samples"], 3)
        file(store, batch(4, 5))
        DATABASE.do("UPDATE meta SET value = '99' WHERE key = 'version'")
        DATABASE.cut()
        for _ in range(2):
            self.assertRaises(NotStored, file, store, batch(6, 6))

    def test_different_database_at_the_same_address_is_refused(self):
        DATABASE.do("UPDATE meta SET value = '00000000000000ff' WHERE key = 'identity'")
        DATABASE.cut()
        with self.assertRaises(NotStored):
            file(self.store, batch(1, 1))
        with self.assertRaises(DiskError):
            file(self.store, batch(1, 1))

    def test_restored_backup_requires_a_restart_of_the_server(self):
        """Otherwise samples that the nodes send again would be logged twice in this run."""
        clock, log, ingestor = self.with_log()
        ingestor.submit(quiet(batch(1, 3)))
        ingestor.commit()
        ingestor.submit(quiet(batch(4, 6)))
        tables = "epochs", "samples", "unsummed", "servers", "logs", "filings"
        for table in tables:
            DATABASE.do(f"CREATE TABLE backup_{table} AS SELECT * FROM {table}")
        ingestor.commit()
        for table in tables:
            older = f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM backup_{table}"
            DATABASE.do(f"DELETE FROM {table}; {older}")
        DATABASE.cut()
        ingestor.submit(quiet(batch(4, 6)))
        self.assertRaises(NotStored, ingestor.commit)
        with self.assertRaisesRegex(DiskError, "older state"):
            ingestor.commit()
        self.assertRaisesRegex(DiskError, "older state", self.store._writer)
        self.store.close()
        store = self.make()
        self.addCleanup(store.close)
        log = CsvLog(self.folder, store, clock)
        with self.assertLogs(level="WARNING") as said:
            log.start()
        self.assertIn("is not written to any more", said.output[0])
        ingestor = Ingestor(store, log, clock)
        ingestor.submit(quiet(batch(4, 6)))
        ingestor.commit()
        log.close()
        rows = []
        for name in sorted(logs_in(os.path.join(self.folder, "logs"))):
            with open(os.path.join(self.folder, "logs", name), encoding="utf-8") as text:
                rows.append(text.read().splitlines()[1:])
        self.assertEqual(
            [len(of_log) for of_log in rows], [12, 6]
        )  # the older log also contains samples that are no longer stored
        self.assertEqual([len(set(of_log)) for of_log in rows], [12, 6])
        self.assertEqual(list(store.verify()), [])

    def test_missing_tables_are_reported_and_nothing_is_stored(self):
        told = []
        self.store.on_damage = told.append
        DATABASE.do("DROP TABLE samples CASCADE")
        for _ in range(2):
            with self.assertRaisesRegex(StoreDamaged, 'relation "samples" does not exist.*pg_restore'):
                file(self.store, batch(1, 1))
        self.assertEqual(told, [self.store.damage])

    def test_damage_reported_by_the_database_stops_storing(self):
        told = []
        self.store.on_damage = told.append
        DATABASE.do(
            "CREATE FUNCTION damaged() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'invalid page in block 7' USING ERRCODE = 'data_corrupted'; END $$"
        )
        DATABASE.do("CREATE TRIGGER damaged BEFORE INSERT ON samples FOR EACH ROW EXECUTE FUNCTION damaged()")
        with self.assertRaisesRegex(StoreDamaged, "invalid page in block 7.*pg_restore"):
            file(self.store, batch(1, 1))
        self.assertEqual(told, [self.store.damage])
        DATABASE.do("DROP TRIGGER damaged ON samples")
        self.assertRaises(StoreDamaged, file, self.store, batch(1, 1))
        self.assertEqual(self.store.nodes(), [])


class OpeningTest(Case, unittest.TestCase):
    def refusal(self, address=None, error=SettingsError, folder=""):
        with self.assertRaises(error) as caught:
            PostgresStore(address or DATABASE.address, folder or self.folder, start_s=0.1)
        return str(caught.exception)

    def test_errors_about_settings_do_not_contain_the_password(self):
        for address in ("postgresql://u:hidden@", "postgres:hidden", "hidden = = 1", "host=x pass=hidden"):
            said = self.refusal(address, (SettingsError, DiskError))
            self.assertNotIn("hidden", said)
        said = self.refusal(psycopg.conninfo.make_conninfo(DATABASE.address, dbname="nobody", password="hidden"))
        self.assertIn("nobody", said)
        self.assertNotIn("hidden", said)
        said = self.refusal(psycopg.conninfo.make_conninfo(DATABASE.address, user="nobody", password="hidden"))
        self.assertIn("nobody", said)

    def test_unreachable_database_is_an_error_after_a_wait(self):
        with self.assertLogs("pigeonpost.storage.postgres.store", "WARNING"):
            self.refusal("postgresql://127.0.0.1:1/x", DiskError)

    def test_missing_library_is_named(self):
        with mock.patch.dict(sys.modules, {"psycopg": None}):
            said = self.refusal()
        self.assertIn("python3-psycopg", said)

    def test_newer_database_and_old_server_are_refused(self):
        self.make().close()
        DATABASE.do("UPDATE meta SET value = '99' WHERE key = 'version'")
        self.assertIn("newer", self.refusal())
        with mock.patch.object(schema, "OLDEST", 990_000):
            self.assertIn("too old", self.refusal())

    def test_database_without_utf8_is_refused(self):
        name = f"{DATABASE.name}_l"
        DATABASE._do(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        self.addCleanup(DATABASE._do, f"DROP DATABASE {name} WITH (FORCE)")
        self.assertIn("UTF8", self.refusal(psycopg.conninfo.make_conninfo(DATABASE.address, dbname=name)))

    def test_user_without_privileges_is_refused_until_the_tables_exist(self):
        user = f"{DATABASE.name}_u"
        DATABASE.do(f"CREATE ROLE {user} LOGIN")
        self.addCleanup(DATABASE.do, f"DROP OWNED BY {user}; DROP ROLE {user}")
        theirs = psycopg.conninfo.make_conninfo(DATABASE.address, user=user)
        self.assertIn("control.py schema", self.refusal(theirs))
        DATABASE.do(schema.SCRIPT + f"GRANT ALL ON SCHEMA pigeonpost TO {user};"
                    f"GRANT ALL ON ALL TABLES IN SCHEMA pigeonpost TO {user};"
                    f"GRANT ALL ON ALL SEQUENCES IN SCHEMA pigeonpost TO {user}")  # fmt: skip
        store = PostgresStore(theirs, self.folder)
        self.addCleanup(store.close)
        file(store, batch(1, 3), gap(4, 5))
        self.assertEqual(store.nodes()[0]["samples"], 3)

    def test_read_only_store_changes_nothing(self):
        with self.assertRaises(SettingsError):
            self.make(look_only=True)
        self.assertEqual(os.listdir(self.folder), [])
        server = self.make()
        self.addCleanup(server.close)
        file(server, batch(1, 3))
        beside = self.make(look_only=True)
        self.addCleanup(beside.close)
        self.assertEqual((beside.nodes()[0]["samples"], len(list(stored_samples(beside.own_batches())))), (3, 3))
        elsewhere = self.make(temp_folder(self), look_only=True)
        self.addCleanup(elsewhere.close)
        self.assertEqual((list(stored_samples(elsewhere.own_batches())), elsewhere.log_mark()), ([], None))
        self.assertEqual(DATABASE.do("SELECT count(*) FROM servers"), [(1,)])

    def test_server_is_identified_by_its_folder(self):
        self.make().close()
        path = os.path.join(self.folder, SERVER_ID)
        with open(path) as known:
            self.assertEqual(DATABASE.do("SELECT key FROM servers"), [(known.read().strip(),)])
        with open(path, "w") as known:
            known.write("what is this")
        self.assertIn(SERVER_ID, self.refusal(error=DiskError))


class CommandTest(PostgresCase):
    """Commands of control.py with a store that is not in the data folder."""

    def control(self, *arguments, status=0):
        program = Program(self, "control.py", "--data", self.folder, *arguments,
                          PIGEONPOST_STORE_POSTGRES=DATABASE.address)  # fmt: skip
        self.assertEqual(program.wait(), status, program.logged)
        return "\n".join(program.said), "\n".join(program.logged)

    def fill(self):
        """Fill the store like a server that was stopped."""
        log = CsvLog(self.folder, self.store, FakeClock())
        log.start()
        ingestor = Ingestor(self.store, log, FakeClock())
        ingestor.submit(quiet(batch(1, 50)))
        ingestor.commit()
        log.record()
        log.close()
        self.store.close()

    def test_verify_reports_missing_samples(self):
        self.fill()
        self.assertEqual(self.control("verify")[0], "50 samples of 1 node: none missing, none stored twice")
        DATABASE.do("DELETE FROM samples WHERE seq = 7")
        said, _ = self.control("verify", status=1)
        self.assertIn("node a, epoch", said)
        self.assertIn("the logs contain 100 readings and the store 98", said)

    def test_export_can_be_imported(self):
        self.fill()
        out = os.path.join(self.folder, "all.csv")
        self.control("export", "--out", out)
        with open(out, encoding="utf-8") as file:
            self.assertEqual(len(file.readlines()), 101)
        self.control("import", "--node", "copy", out)
        self.assertEqual(self.control("verify")[0], "100 samples of 2 nodes: none missing, none stored twice")

    def test_list_schema_and_backup_work_with_postgresql(self):
        self.fill()
        self.control("token", "a")
        self.assertRegex(self.control("list")[0], r"^a +2026-11-18 11:07:30\+00:00$")
        script = self.control("schema")[0]
        DATABASE.do("DROP SCHEMA pigeonpost CASCADE")
        DATABASE.do(script)
        self.another().close()
        self.assertIn("pg_dump", self.control("backup", self.folder, status=2)[1])
        self.assertIn("pg_restore", self.control("restore", "x.tar", status=2)[1])

    def test_address_is_never_shown(self):
        shown = Program(self, "server.py", "--show", PIGEONPOST_STORE_POSTGRES="postgresql://u:hidden@h/d")
        self.assertEqual(shown.wait(), 0)
        self.assertIn("[store] postgres = (set)  # PIGEONPOST_STORE_POSTGRES", shown.said)
        self.assertNotIn("hidden", "".join(shown.said))


class RestartTest(unittest.TestCase):
    """Separate database that is killed like in a power cut."""

    def test_acknowledged_samples_survive_a_kill_of_the_database(self):
        cluster = Cluster()
        self.addCleanup(cluster.remove)
        database = Database(cluster.address)
        store = PostgresStore(database.address, temp_folder(self))
        self.addCleanup(store.close)
        file(store, batch(1, 500))
        cluster.kill()
        with self.assertRaises(NotStored):
            file(store, batch(501, 502))
        with self.assertRaises(NotStored):
            store.nodes()
        with self.assertLogs("pigeonpost.storage.postgres.store", "WARNING") as told:
            starter = threading.Timer(0.5, cluster.start)
            starter.start()
            other = PostgresStore(database.address, temp_folder(self))  # the server waits
            starter.join()
        self.addCleanup(other.close)
        self.assertEqual(len(told.output), 1)
        file(store, batch(501, 502))
        cluster.restart()
        with self.assertRaises(NotStored):
            file(store, batch(503, 504))
        file(store, batch(503, 504))
        self.assertEqual(store.nodes()[0]["samples"], 504)
        self.assertEqual(list(store.verify()), [])


if __name__ == "__main__":
    unittest.main()
