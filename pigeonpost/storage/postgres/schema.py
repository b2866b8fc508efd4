"""Schema of the PostgreSQL store, as one script for an empty database or one of an older version.

`control.py schema` prints the script. It requires PostgreSQL 13. Errors: SettingsError for a database of a newer
version, or one that is not suitable for the tables; those of psycopg.

The tables are those of the SQLite store with four differences. Each sample is one row, because several servers write
samples. The epoch and sequence number of a sample are its primary key, which the database enforces. The database alone
assigns the ids of epochs, for all servers. Each server has a row in `servers`, and the samples, logs and pending log
entries refer to their server.
"""

from __future__ import annotations

import logging
from typing import Any

from pigeonpost.core.errors import SettingsError
from pigeonpost.core.lifecycle import extend_start
from pigeonpost.storage.postgres.timescale import timescale_script

log = logging.getLogger(__name__)

SCHEMA = "pigeonpost"
VERSION = 3
OLDEST = 130_000  # minimum version of PostgreSQL: it introduced gen_random_uuid()

_EXTEND_S = 3600.0  # time for the conversion of an older database, enough for several billion samples

# The time of a sample as timestamptz. The index is on this expression, so a condition on `time` in the view `readings`
# can use it, as can the queries of this program. The column itself is a bigint of milliseconds, which COPY reads
# fastest. For all times that the link accepts, the conversion keeps the order and is exact to the millisecond.
MOMENT = "to_timestamp(time / 1000::float8)"


def moment(time_ms: str) -> str:
    """Return SQL that converts the SQL expression `time_ms` (ms since 1970, UTC) to a timestamptz.

    Times that a timestamptz cannot represent are converted to the nearest possible one.
    """
    return f"to_timestamp(least(greatest(({time_ms})::float8, -2e14), 9e15) / 1000)"


# SQL condition for the samples of `node` in [from, to). It also compares the number of milliseconds, so that
# TimescaleDB skips other weeks: compressed chunks have no index on the timestamp.
TAKEN = (
    f"node = %(node)s AND {MOMENT} >= {moment('%(from)s')} AND {MOMENT} < {moment('%(to)s')}"
    " AND time >= %(from)s AND time < %(to)s"
)

# Views for people. Their columns have the same names as those of the SQLite store. New columns are added at the end,
# because other views of the administrator may depend on these.
_VIEWS = """\
CREATE OR REPLACE VIEW readings AS
    SELECT to_timestamp(s.time / 1000::float8) AS time, n.name AS node, j.sensor,
           (s."values" ->> (j.place - 1)::int)::numeric AS value, coalesce(u.unit, '') AS unit,
           s.time AS time_ms, s.node AS node_id
    FROM samples s JOIN nodes n ON n.id = s.node JOIN shapes p ON p.id = s.shape
    CROSS JOIN json_array_elements_text(p.names::json) WITH ORDINALITY AS j (sensor, place)
    LEFT JOIN sensors u ON u.node = s.node AND u.name = j.sensor;
CREATE OR REPLACE VIEW statistics AS
    SELECT n.name AS node, s.sensor, coalesce(u.unit, '') AS unit, s.span / 60000 AS minutes,
           to_timestamp((s."end" - s.span) / 1000::float8) AS start, to_timestamp(s."end" / 1000::float8) AS "end",
           s."end" AS end_ms, s."values", s.mean, s.median, s.mode, s.low, s.high, s.deviation, s.node AS node_id
    FROM summaries s JOIN nodes n ON n.id = s.node
    LEFT JOIN sensors u ON u.node = s.node AND u.name = s.sensor;
"""

SCRIPT = f"""\
-- Schema of Pigeonpost for PostgreSQL 13 or newer. It creates the tables, or updates those of an older version.
-- A server runs this script automatically if it has the privileges. Otherwise a superuser runs it in the database while
-- no server is running, followed by these statements with the role of the servers instead of `pigeon`:
--     GRANT ALL ON SCHEMA {SCHEMA} TO pigeon;
--     GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO pigeon;
--     GRANT ALL ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO pigeon;
CREATE SCHEMA IF NOT EXISTS {SCHEMA};
SET search_path = {SCHEMA};

CREATE TABLE IF NOT EXISTS meta (key text PRIMARY KEY, value text NOT NULL);
DO $do$
BEGIN
    IF (SELECT value::int FROM meta WHERE key = 'version') > {VERSION} THEN
        RAISE 'these tables were made by a newer Pigeonpost: use the script of that version';
    END IF;
END $do$;
-- All servers that write to this database. `key` is the id in the server's data folder; `filed` is the last filing
-- number of an entry for its CSV logs.
CREATE TABLE IF NOT EXISTS servers (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL UNIQUE, filed bigint NOT NULL DEFAULT 0,
    seen timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
-- A server that stores data of a node locks the node's row, so two servers never write the same node at the same time.
-- Samples before `kept_from` may have been deleted, because they had expired. Windows are [start, end). Windows that
-- end at or before `old_edges` are (start, end]: version 2 created them, and their samples are deleted.
CREATE TABLE IF NOT EXISTS nodes (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, kept_from bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 90);
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS old_edges bigint NOT NULL DEFAULT 0;
-- The highest stored running number of each outbox.
CREATE TABLE IF NOT EXISTS outboxes (node int, outbox text, top bigint NOT NULL, PRIMARY KEY (node, outbox))
    WITH (fillfactor = 70);
-- High-water marks: each sample of the epoch up to `seq` is in `samples` or in `gaps`, or has expired. `forgotten` is
-- the number of expired samples.
CREATE TABLE IF NOT EXISTS epochs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, node int NOT NULL, epoch text NOT NULL,
    seq bigint NOT NULL, up bigint, forgotten bigint NOT NULL DEFAULT 0, UNIQUE (node, epoch)
) WITH (fillfactor = 70);
CREATE TABLE IF NOT EXISTS sensors (node int, name text, unit text NOT NULL, PRIMARY KEY (node, name));
CREATE TABLE IF NOT EXISTS shapes (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, names text NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS samples (
    time bigint NOT NULL, -- milliseconds since 1970, UTC
    epoch bigint NOT NULL, seq bigint NOT NULL, node int NOT NULL, shape int NOT NULL,
    server int NOT NULL, -- the server that stored the sample and has it in its CSV log
    clock text, -- 'unset', 'server', or NULL for the node's own clock, which was set (docs/protocol.md)
    "values" json NOT NULL -- an array; null where a sensor failed. Type json keeps the text, so numbers stay exact
);
CREATE TABLE IF NOT EXISTS failures (
    epoch bigint, seq bigint, sensor text, text text NOT NULL, PRIMARY KEY (epoch, seq, sensor)
);
CREATE TABLE IF NOT EXISTS gaps (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, epoch bigint NOT NULL, server int NOT NULL,
    first bigint NOT NULL, last bigint NOT NULL, before bigint NOT NULL, why text NOT NULL, noted bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS gaps_of_epoch ON gaps (epoch);
-- The CSV log of each run of each server, and the position up to which it is written and synced (see csvbuffer.py).
CREATE TABLE IF NOT EXISTS logs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, server int NOT NULL, name text NOT NULL,
    size bigint NOT NULL, tail bigint NOT NULL, filed bigint NOT NULL, UNIQUE (server, name)
);
-- Entries that the CSV log must write after that position, in its order: either the samples `first` to `last` of an
-- epoch, with times from `low` to `high`, or a gap.
CREATE TABLE IF NOT EXISTS filings (
    server int, id bigint, epoch bigint NOT NULL, first bigint, last bigint, low bigint, high bigint, gap bigint,
    PRIMARY KEY (server, id)
);
-- Rollups: statistics per window and sensor. `span` is the length of the window in ms.
CREATE TABLE IF NOT EXISTS summaries (
    node int, sensor text, span int, "end" bigint, "values" bigint NOT NULL, mean float8 NOT NULL,
    median float8 NOT NULL, mode float8 NOT NULL, low float8 NOT NULL, high float8 NOT NULL,
    deviation float8 NOT NULL, PRIMARY KEY (node, sensor, span, "end")
);
-- Dirty windows: samples were added since they were rolled up. `change` numbers the commits. For one node, later
-- commits have higher numbers, because its row is locked during a commit.
CREATE SEQUENCE IF NOT EXISTS changes;
CREATE TABLE IF NOT EXISTS unsummed (
    node int, span int, "end" bigint, change bigint NOT NULL, PRIMARY KEY (node, span, "end")
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS unsummed_by_end ON unsummed ("end");
-- Records of operators: the time since which a node is retired; its former names, the time until which it had each of
-- them, and whether another node may use that name now; and texts that are displayed instead of the sensors' names.
-- Both times are in ms since 1970 (UTC).
CREATE TABLE IF NOT EXISTS retired (node int PRIMARY KEY, at bigint NOT NULL);
CREATE TABLE IF NOT EXISTS former_names (
    name text, node int, until bigint NOT NULL, released int NOT NULL, PRIMARY KEY (name, node)
);
CREATE TABLE IF NOT EXISTS labels (node int, sensor text, label text NOT NULL, PRIMARY KEY (node, sensor));

CREATE INDEX IF NOT EXISTS samples_by_time ON samples (node, ({MOMENT}));
DROP INDEX IF EXISTS samples_of_node; -- of versions 1 and 2, on the time as a number
{_VIEWS}
{timescale_script(SCHEMA)}
DO $do$
DECLARE
    version int := (SELECT value::int FROM meta WHERE key = 'version');
    now bigint;
BEGIN
    IF version IS NULL THEN
        BEGIN
            IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
                PERFORM use_timescaledb();
            END IF;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'the table samples is not a hypertable: %', SQLERRM;
        END;
        IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'samples'::regclass AND contype = 'p') THEN
            ALTER TABLE samples ADD PRIMARY KEY (epoch, seq);
        END IF;
    ELSIF version < 3 THEN
        -- Windows were (start, end]. A sample at the edge between two windows now belongs to the later one.
        UPDATE nodes SET old_edges = kept_from;
        now := nextval('changes');
        INSERT INTO unsummed
            SELECT DISTINCT s.node, w.span, e.at, now FROM samples s
            CROSS JOIN (VALUES (600000), (3600000)) w (span)
            CROSS JOIN LATERAL (VALUES (s.time), (s.time + w.span)) e (at) WHERE s.time % w.span = 0
            ON CONFLICT (node, span, "end") DO UPDATE SET change = excluded.change;
    END IF;
END $do$;

INSERT INTO meta VALUES ('version', '{VERSION}'), ('identity', left(replace(gen_random_uuid()::text, '-', ''), 16))
    ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE meta.key = 'version';
"""

# Advisory lock for the servers: if several of them start with an empty database, only the first one creates the tables.
_LOCK = "SELECT pg_advisory_xact_lock(7309453021877237604)"


# Terminates the write connections of other servers. Each of them holds the advisory lock of its server id (see
# store._lock_server_id).
_END_WRITERS = f"""
SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.classid = '{SCHEMA}.servers'::regclass AND a.datname = current_database()
    AND a.usename = current_user AND l.pid <> pg_backend_pid()
"""


def bring_up_to_date(db: Any) -> None:
    """Create the tables, or update those of an older version, in one transaction of the connection `db`.

    After an update, servers of the older version lose their write connections and cannot open new ones, because they
    assign samples at the edges of windows differently. Their nodes keep the samples until those servers are updated.
    """
    if _has_tables(db) and refuse_newer(db) == VERSION:
        return
    with db.transaction():
        db.execute(_LOCK)
        older = _has_tables(db) and refuse_newer(db) < VERSION
        if older:
            log.info("converting the tables in PostgreSQL to format %d and indexing all samples", VERSION)
            extend_start(_EXTEND_S)
        if older or not _has_tables(db):
            db.add_notice_handler(_log_notice)  # logs why TimescaleDB refused a hypertable
            try:
                db.execute(SCRIPT)
            finally:
                db.remove_notice_handler(_log_notice)
    if older:
        db.execute(_END_WRITERS)


def _log_notice(diagnostic: Any) -> None:
    if diagnostic.severity_nonlocalized == "WARNING":
        log.warning("PostgreSQL: %s", diagnostic.message_primary)


def refuse_other(db: Any) -> None:
    """Check that the tables in `db` can be used for reading.

    Raises:
        SettingsError: The tables are missing, or were created by another version.
    """
    if refuse_newer(db) < VERSION:
        raise SettingsError(
            "the database was made by an older Pigeonpost: start the server of this version once, which converts it"
        )


def refuse_newer(db: Any) -> int:
    """Return the version of the tables in `db`.

    Raises:
        SettingsError: The tables are missing, or were created by a newer version.
    """
    if not _has_tables(db):
        raise SettingsError(
            "the database has no tables of Pigeonpost yet: start a server with it, or run the output of `control.py"
            " schema` in it"
        )
    (version,) = db.execute(f"SELECT value::int FROM {SCHEMA}.meta WHERE key = 'version'").fetchone()
    if version > VERSION:
        raise SettingsError(
            f"the database was made by a newer Pigeonpost (format {version}; this one supports {VERSION}):"
            " use that version, or another database"
        )
    return int(version)


def check_server(db: Any) -> None:
    """Check the version of the PostgreSQL server and the encoding of the database of the connection `db`.

    Raises:
        SettingsError: The server is too old, or the encoding is not UTF-8.
    """
    if db.info.server_version < OLDEST:
        raise SettingsError(
            f"PostgreSQL {db.info.parameter_status('server_version')} is too old: version 13 or newer is needed"
        )
    encoding = db.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SettingsError(
            f"the encoding of the database is {encoding}; units such as °C need UTF8: create it with `createdb -E UTF8`"
        )


def _has_tables(db: Any) -> bool:
    # to_regclass() is not used: after waiting for another transaction, it does not yet see the tables created there.
    query = (
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND relname = %s"
    )
    return db.execute(query, (SCHEMA, "meta")).fetchone() is not None
