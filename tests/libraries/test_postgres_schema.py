"""Schema in PostgreSQL: migration of older tables, views for people, and TimescaleDB."""

import os
import re
import threading
import unittest
from unittest import mock

from pigeonpost.core.errors import DiskError, SettingsError
from pigeonpost.storage.models import HOUR_MS, HighWaterMark, Rollup, Window
from pigeonpost.storage.postgres import schema
from tests.libraries import test_postgres as base
from tests.libraries.databases import psycopg
from tests.libraries.test_postgres import FAR, Case, PostgresCase
from tests.storage.test_contract import E1, OUTBOX, batch, file
from tests.support import LIMIT_S


def setUpModule():
    base.setUpModule()


class MigrationTest(Case, unittest.TestCase):
    """Migration of databases of version 2, and of version 1, which had no records of nodes."""

    def setUp(self):
        super().setUp()
        with open(os.path.join(os.path.dirname(__file__), "postgres_v2.sql"), encoding="utf-8") as script:
            base.DATABASE.do(script.read())

    def fill(self):
        """Store three samples, the second one on the edge of an hour. Earlier samples have expired."""
        base.DATABASE.do(f"""
            INSERT INTO nodes (name, kept_from) VALUES ('a', {HOUR_MS});
            INSERT INTO epochs (node, epoch, seq, up) VALUES (1, '{E1}', 3, 3);
            INSERT INTO outboxes VALUES (1, '{OUTBOX}', 3);
            INSERT INTO sensors VALUES (1, 'x', '°C');
            INSERT INTO shapes (names) VALUES ('["x"]');
            INSERT INTO samples SELECT time, 1, seq, 1, 1, 1, NULL, '[1.50]'
                FROM (VALUES (1, {3 * HOUR_MS - 1}), (2, {3 * HOUR_MS}), (3, {3 * HOUR_MS + 1})) s (seq, time);
        """)

    def test_migration_of_version_1_adds_the_records_of_nodes(self):
        base.DATABASE.do("DROP TABLE retired, former_names, labels; UPDATE meta SET value = '1' WHERE key = 'version'")
        with self.assertRaisesRegex(SettingsError, "made by an older Pigeonpost"):
            self.make(look_only=True)
        store = self.make()
        self.addCleanup(store.close)
        file(store, batch(1, 3))
        with store.writing(()):
            store.rename("a", "b", 1000)
        looking = self.another(look_only=True)
        self.assertEqual(list(looking.node_records().former), [("a", "b", 1000, False)])
        self.assertEqual(looking.marks("b", OUTBOX, [E1])[0], 3)

    def test_migration_keeps_all_data_and_marks_windows_with_edge_samples_dirty(self):
        self.fill()
        with mock.patch.object(schema, "extend_start") as extended:  # otherwise systemd would end it again and again
            store = self.make()
        extended.assert_called_once()
        self.addCleanup(store.close)
        self.assertEqual([point.time_ms - 3 * HOUR_MS for point in store.points("a", 0, FAR, 9)], [-1, 0, 1])
        self.assertEqual(store.marks("a", OUTBOX, [E1]), (3, {E1: HighWaterMark(3, 3)}))
        self.assertEqual(store.nodes()[0]["old_edges_ms"], HOUR_MS)
        dirty = {(window.span_ms, window.end_ms - 3 * HOUR_MS) for window in store.dirty_windows(FAR, 99)}
        self.assertEqual(dirty, {(600_000, 0), (600_000, 600_000), (HOUR_MS, 0), (HOUR_MS, HOUR_MS)})
        self.assertEqual(list(store.verify()), [])

    def test_migrated_schema_equals_a_new_one(self):
        self.fill()
        self.make().close()
        ask = ("SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
               " WHERE table_schema = 'pigeonpost' ORDER BY 1, 2",
               "SELECT indexdef FROM pg_indexes WHERE schemaname = 'pigeonpost' ORDER BY 1",
               "SELECT viewname, definition FROM pg_views WHERE schemaname = 'pigeonpost' ORDER BY 1",
               "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'pigeonpost'::regnamespace ORDER BY 1",
               "SELECT value FROM meta WHERE key = 'version'")  # fmt: skip
        migrated = [base.DATABASE.do(sql) for sql in ask]
        base.DATABASE.do("DROP SCHEMA pigeonpost CASCADE")
        self.make().close()
        self.assertEqual([base.DATABASE.do(sql) for sql in ask], migrated)

    def test_views_that_use_the_view_readings_are_kept(self):
        self.fill()
        base.DATABASE.do("CREATE VIEW mine AS SELECT node, value FROM readings")
        self.make().close()
        self.assertEqual(base.DATABASE.do("SELECT node, value::float8 FROM mine"), [("a", 1.5)] * 3)

    def test_servers_of_the_older_version_lose_their_write_connections(self):
        """A server that writes holds the advisory lock of its id."""
        with base.DATABASE.connect() as older, base.DATABASE.connect() as reader:
            older.execute("SELECT pg_advisory_lock(('servers'::regclass::oid::bigint << 32) | 1)")
            self.make().close()
            with self.assertRaises(psycopg.OperationalError):
                older.execute("SELECT 1")
            reader.execute("SELECT 1")

    def test_several_servers_can_migrate_concurrently(self):
        self.fill()
        found = []
        makers = [threading.Thread(target=lambda: found.append(self.another().nodes())) for _ in range(3)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join(LIMIT_S)
        self.assertEqual([nodes[0]["samples"] for nodes in found], [3] * 3)

    def test_failed_migration_changes_nothing(self):
        self.fill()
        base.DATABASE.do("ALTER TABLE summaries RENAME COLUMN mean TO average")  # so that a view cannot be created
        self.assertRaises(DiskError, self.make)
        self.assertEqual(base.DATABASE.do("SELECT value FROM meta WHERE key = 'version'"), [("2",)])
        self.assertEqual(base.DATABASE.do("SELECT to_regclass('samples_of_node') IS NULL"), [(False,)])

    def test_script_is_repeatable_and_refuses_a_newer_database(self):
        self.fill()
        base.DATABASE.do(schema.SCRIPT)
        base.DATABASE.do(schema.SCRIPT)  # twice, because people may do that
        self.assertEqual(base.DATABASE.do("SELECT value FROM meta WHERE key = 'version'"), [(str(schema.VERSION),)])
        base.DATABASE.do("UPDATE meta SET value = '99' WHERE key = 'version'")
        with self.assertRaisesRegex(psycopg.Error, "newer Pigeonpost"):
            base.DATABASE.do(schema.SCRIPT)
        self.assertEqual(base.DATABASE.do("SELECT count(*) FROM samples"), [(3,)])


class ViewTest(PostgresCase):
    def test_view_readings_is_readable(self):
        file(self.store, batch(1, 1))
        when = "to_char(time, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS')"
        rows = base.DATABASE.do(f"SELECT {when}, node, sensor, value, unit FROM readings ORDER BY sensor")
        self.assertEqual([(*row[:3], float(row[3]), row[4]) for row in rows],
                         [("2026-11-18T11:06:41.000", "a", "light", 1, ""),
                          ("2026-11-18T11:06:41.000", "a", "temperature", 20.5, "°C")])  # fmt: skip

    def test_view_statistics_has_times_units_and_values(self):
        file(self.store, batch(1, 1))
        window = Window("a", HOUR_MS, 2 * HOUR_MS, 9)
        touched = "INSERT INTO unsummed VALUES ((SELECT id FROM nodes), %s, %s, 1)"
        base.DATABASE.do(touched, window.span_ms, window.end_ms)
        with self.store.writing(()):
            self.store.replace_rollups(window, {"temperature": Rollup(2 * HOUR_MS, 4, 2.5, 2.0, 1.0, 0.5, 9.0, 1.5)})
        self.assertEqual(
            base.DATABASE.do('SELECT node, sensor, unit, minutes, start::text, "end"::text, end_ms, "values", mean,'
                             " median, mode, low, high, deviation FROM statistics"),
            [("a", "temperature", "°C", 60, "1970-01-01 01:00:00+00", "1970-01-01 02:00:00+00", 2 * HOUR_MS, 4, 2.5,
              2.0, 1.0, 0.5, 9.0, 1.5)])  # fmt: skip

    def test_narrow_queries_read_only_the_selected_rows(self):
        """This is checked by the query plan and the number of rows read, with many other nodes and times."""
        file(self.store, *[batch(1, 2_000, node=node, epoch=f"{ord(node):016x}") for node in "abcdefghijklmnopqrst"])
        base.DATABASE.do(
            "INSERT INTO summaries SELECT n.id, v.sensor, w.span, e * w.span::bigint, 1, 1, 1, 1, 1, 1, 0"
            " FROM nodes n, (VALUES ('light'), ('temperature')) v (sensor), (VALUES (600000), (3600000)) w (span),"
            " generate_series(1, 500) e"
        )
        base.DATABASE.do("ANALYZE")
        minute = "time >= '2026-11-18 11:20:00+00' AND time < '2026-11-18 11:21:00+00'"
        c = "(SELECT id FROM nodes WHERE name = 'c')"
        per_minute = "SELECT date_trunc('minute', time), count(*), avg(value) FROM readings"
        of_hours = "FROM statistics WHERE node = 'c' AND sensor = 'light'"
        for sql, found, most in (
            (f"SELECT * FROM readings WHERE node = 'c' AND {minute}", 120, 60),
            (f"SELECT * FROM readings WHERE node = 'c' AND {minute} ORDER BY time DESC LIMIT 9", 9, 60),
            (f"SELECT * FROM readings WHERE node = 'c' AND sensor = 'light' AND {minute}", 60, 60),
            (f"SELECT * FROM readings WHERE node IN ('c', 'd') AND {minute}", 240, 120),
            (f"SELECT * FROM readings WHERE {minute}", 2400, 1200),
            (f"SELECT * FROM readings WHERE node_id = {c} ORDER BY time DESC LIMIT 100", 100, 60),
            (f"SELECT * FROM readings WHERE node_id = {c} AND sensor = 'light' ORDER BY time DESC LIMIT 20", 20, 30),
            (f"{per_minute} WHERE node = 'c' AND sensor = 'light' AND {minute} GROUP BY 1", 1, 60),
            (f"SELECT n.name, s.* FROM samples s JOIN nodes n ON n.id = s.node WHERE n.name = 'c' AND {schema.MOMENT}"
             " >= '2026-11-18 11:39:41+00'", 20, 20),
            (f"SELECT start, mean {of_hours} AND minutes = 60", 500, 1000),
            (f"SELECT start, mean {of_hours} AND minutes = 60 ORDER BY start DESC LIMIT 24", 24, 1000),
            (f"SELECT start, mean {of_hours} AND end_ms > 499 * 3600000", 1, 1),
        ):  # fmt: skip
            with self.subTest(sql):
                self.assertEqual(len(base.DATABASE.do(sql)), found)
                plan = "\n".join(line for (line,) in base.DATABASE.do(f"EXPLAIN (ANALYZE, TIMING off) {sql}"))
                self.assertRegex(plan, "samples_by_time|summaries_pkey", plan)
                self.assertNotRegex(plan, "Seq Scan on (samples|summaries)", plan)
                read = re.search(r"on (samples|summaries) s .*actual rows=(\d+)\S* loops=(\d+)", plan)
                self.assertLessEqual(int(read[2]) * int(read[3]), most, plan)

    def test_timestamps_are_ordered_and_exact_for_all_valid_times(self):
        """They are exact to 1 us in this and the next century, and to 1 ms far from them."""
        exact = "'epoch'::timestamptz + time / 1000 * interval '1 s' + time % 1000 * interval '1 ms'"
        for least, most, unit in ((0, 4_102_444_800_000, "0"), (-62135596800000, 253402300799998, "0.1 ms")):
            ((wrong,),) = base.DATABASE.do(
                f"SELECT count(*) FROM (SELECT {least} + (random() * {most - least})::bigint AS time"
                f" FROM generate_series(1, 10000)) s WHERE {schema.MOMENT} <> {schema.moment('time')}"
                f" OR greatest({schema.MOMENT} - ({exact}), ({exact}) - {schema.MOMENT}) > interval '{unit}'"
                f" OR {schema.MOMENT} >= {schema.moment('time + 1')}"
            )
            self.assertEqual(wrong, 0)
        file(self.store, batch(1, 1, time_ms=-62135596800000), batch(2, 2, time_ms=253402300799999))
        self.assertEqual([point.seq for point in self.store.points("a", -FAR, FAR, 9)], [1, 2])


class TimescaleTest(Case, unittest.TestCase):
    """TimescaleDB, simulated by another extension and by functions that record their arguments.

    The same SQL was tested manually with TimescaleDB 2.23.
    """

    FAKE = """
        CREATE SCHEMA ts;
        CREATE EXTENSION btree_gist SCHEMA ts;
        CREATE TABLE ts.told (id serial, what text);
        CREATE FUNCTION ts.create_hypertable(relation regclass, time_column_name name, chunk_time_interval bigint,
            create_default_indexes boolean, if_not_exists boolean, migrate_data boolean) RETURNS int LANGUAGE sql AS $$
            INSERT INTO ts.told (what) VALUES (concat_ws(' ', $1, $2, $3, $4, $5, $6)) RETURNING 1 $$;
        CREATE FUNCTION ts.set_integer_now_func(hypertable regclass, integer_now_func regproc,
            replace_if_exists boolean) RETURNS void LANGUAGE sql AS $$
            INSERT INTO ts.told (what) VALUES (concat_ws(' ', $1, $2, $3)) $$;
        CREATE FUNCTION ts.add_compression_policy(hypertable regclass, compress_after bigint, if_not_exists boolean)
            RETURNS int LANGUAGE sql AS $$
            INSERT INTO ts.told (what) VALUES (concat_ws(' ', $1, $2, $3)) RETURNING 1 $$;
    """
    HYPERTABLE = "samples time 604800000 f t t"

    def setUp(self):
        super().setUp()
        base.DATABASE.do(self.FAKE)
        self.addCleanup(base.DATABASE.do, "DROP SCHEMA ts CASCADE")
        # Table options exist only with TimescaleDB. They are recorded instead of being set.
        self.script = (
            schema.SCRIPT.replace("'timescaledb'", "'btree_gist'")
            .replace("{2,11}", "{1,7}")
            .replace("'ALTER TABLE samples SET (", "'INSERT INTO ts.told (what) VALUES ($told$SET (")
            .replace("epoch, seq'')'", "epoch, seq'')$told$)'")
        )

    def told(self):
        return [what for (what,) in base.DATABASE.do("SELECT what FROM ts.told ORDER BY id")]

    def keys(self):
        return base.DATABASE.do(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'samples'::regclass AND contype = 'p'"
        )

    def test_hypertable_with_weekly_chunks_is_created_with_the_extension(self):
        with mock.patch.object(schema, "SCRIPT", self.script):
            store = self.make()
        self.addCleanup(store.close)
        self.assertEqual(self.told(), [self.HYPERTABLE])
        file(store, batch(1, 9))
        self.assertEqual(self.keys(), [('PRIMARY KEY (epoch, seq, "time")',)])
        self.assertEqual(list(store.verify()), [])

    def test_chunks_are_compressed_if_license_and_version_allow_it(self):
        for license, version, result in (("apache", "{1,7}", ", not compressed"),
                                         ("timescale", "{1,99}", ", not compressed"),
                                         ("timescale", "{1,7}", ", compressed after two weeks")):  # fmt: skip
            base.DATABASE.do("DROP SCHEMA IF EXISTS pigeonpost CASCADE; TRUNCATE ts.told")
            base.DATABASE.do(f"SET timescaledb.license = '{license}'; {self.script.replace('{1,7}', version)}")
            self.assertEqual(self.told()[0], self.HYPERTABLE)
            said = base.DATABASE.do(f"SELECT set_config('timescaledb.license', '{license}', false), use_timescaledb()")
            self.assertIn(result, said[0][1])
        options = (
            "SET (timescaledb.compress, timescaledb.compress_segmentby = 'node',"
            " timescaledb.compress_orderby = 'time, epoch, seq')"
        )
        policy = ["samples now_ms t", options, "samples 1209600000 t"]
        self.assertEqual(self.told(), [self.HYPERTABLE, *policy] * 2)

    def test_incompatible_extension_only_prevents_compression_or_chunks(self):
        allowed = "SET timescaledb.license = 'timescale'"
        base.DATABASE.do(f"DROP FUNCTION ts.add_compression_policy; {allowed}; {self.script}")
        said = base.DATABASE.do("SELECT set_config('timescaledb.license', 'timescale', false), use_timescaledb()")
        self.assertRegex(said[0][1], "a hypertable, not compressed: function ts.add_compression_policy.* not exist")
        self.assertEqual(self.told(), [self.HYPERTABLE] * 2)
        self.assertEqual(self.keys(), [('PRIMARY KEY (epoch, seq, "time")',)])
        base.DATABASE.do("DROP SCHEMA pigeonpost CASCADE; DROP FUNCTION ts.create_hypertable")
        with mock.patch.object(schema, "SCRIPT", self.script), self.assertLogs(schema.log, "WARNING") as logs:
            store = self.make()
        self.addCleanup(store.close)
        self.assertRegex(logs.output[0], "samples is not a hypertable: function ts.create_hypertable.* does not exist")
        file(store, batch(1, 9))
        self.assertEqual(self.keys(), [("PRIMARY KEY (epoch, seq)",)])
        with self.assertRaisesRegex(psycopg.Error, "create_hypertable.* does not exist"):
            base.DATABASE.do("SELECT use_timescaledb()")
        self.assertEqual(self.keys(), [("PRIMARY KEY (epoch, seq)",)])

    def test_table_with_samples_is_only_converted_by_the_command(self):
        store = self.make()
        self.addCleanup(store.close)
        file(store, batch(1, 9))
        self.assertEqual((self.told(), self.keys()), ([], [("PRIMARY KEY (epoch, seq)",)]))
        with self.assertRaisesRegex(psycopg.Error, "CREATE EXTENSION timescaledb"):
            base.DATABASE.do("SELECT use_timescaledb()")
        base.DATABASE.do(self.script)
        with psycopg.connect(base.DATABASE.address, autocommit=True) as somebody:  # with the default search path
            somebody.execute("SELECT pigeonpost.use_timescaledb()")
        self.assertEqual((self.told(), self.keys()), ([self.HYPERTABLE], [('PRIMARY KEY (epoch, seq, "time")',)]))
        file(store, batch(10, 12))
        self.assertEqual(list(store.verify()), [])


if __name__ == "__main__":
    unittest.main()
