"""Tables of the PostgreSQL store, as one script for an empty database or an older one; `control.py schema` prints it.

Requires PostgreSQL 13. Errors: SettingsError for a database of a newer program, or one that cannot hold the tables;
those of psycopg.

They are the tables of the SQLite store with four differences. A sample is a row, as several servers write them. Its
identity is a key, which the database enforces. The ids of epochs are assigned by the database alone, for all servers.
And each server has a row in `servers`: what it has stored, the logs that it writes, and what is owed to those, belong
to it.
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
OLDEST = 130_000  # of PostgreSQL: gen_random_uuid() came with it

_EXTEND_S = 3600.0  # for an older database: some thousand million samples

# The moment at which a sample was taken. Its index has this expression, so that a condition on `time` in the view
# `readings` finds its rows; our own queries have the same one. COPY takes a bigint of milliseconds at its fastest. The
# moments of all times that the link takes are in the order of these, and exact to the millisecond.
MOMENT = "to_timestamp(time / 1000::float8)"


def moment(time_ms: str) -> str:
    """Return the SQL of the moment of a time in ms, which is an expression; beyond what a timestamp can be, its end."""
    return f"to_timestamp(least(greatest(({time_ms})::float8, -2e14), 9e15) / 1000)"


# Of a query: samples of `node` taken in [from, to). By the number too, so that TimescaleDB skips other weeks:
# those that are compressed have no index by the moment.
TAKEN = (
    f"node = %(node)s AND {MOMENT} >= {moment('%(from)s')} AND {MOMENT} < {moment('%(to)s')}"
    " AND time >= %(from)s AND time < %(to)s"
)

# For people; the columns have the names of the SQLite store's views. New ones come last: others may depend on a view.
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
-- The tables of Pigeonpost, for PostgreSQL 13 or newer: makes them, or brings those of an older version up to date.
-- A server does it by itself where it may; else a superuser runs this in the database, with no server at work, and
-- then, with the role of the servers in the place of `pigeon`:
--     GRANT ALL ON SCHEMA {SCHEMA} TO pigeon;
--     GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO pigeon;
--     GRANT ALL ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO pigeon;
CREATE SCHEMA IF NOT EXISTS {SCHEMA};
SET search_path = {SCHEMA};

CREATE TABLE IF NOT EXISTS meta (key text PRIMARY KEY, value text NOT NULL);
DO $do$
BEGIN
    IF (SELECT value::int FROM meta WHERE key = 'version') > {VERSION} THEN
        RAISE 'these tables were made by a newer Pigeonpost: use the script of that one';
    END IF;
END $do$;
-- Everybody who writes here, by the number in its data folder; `filed` counts what its CSV logs were to be given.
CREATE TABLE IF NOT EXISTS servers (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL UNIQUE, filed bigint NOT NULL DEFAULT 0,
    seen timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
-- Who stores something of a node locks its row: so two servers never work on the same node at once. Samples before
-- `kept_from` may have been deleted: their time to be kept was over. Windows are [start, end); those that end at or
-- before `old_edges` are (start, end], as version 2 made them, since their samples are gone.
CREATE TABLE IF NOT EXISTS nodes (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, kept_from bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 90);
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS old_edges bigint NOT NULL DEFAULT 0;
-- The highest running number stored of each outbox.
CREATE TABLE IF NOT EXISTS outboxes (node int, outbox text, top bigint NOT NULL, PRIMARY KEY (node, outbox))
    WITH (fillfactor = 70);
-- The high-water marks: everything of the epoch up to seq is in samples, or in gaps, or was deleted (`forgotten`).
CREATE TABLE IF NOT EXISTS epochs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, node int NOT NULL, epoch text NOT NULL,
    seq bigint NOT NULL, up bigint, forgotten bigint NOT NULL DEFAULT 0, UNIQUE (node, epoch)
) WITH (fillfactor = 70);
CREATE TABLE IF NOT EXISTS sensors (node int, name text, unit text NOT NULL, PRIMARY KEY (node, name));
CREATE TABLE IF NOT EXISTS shapes (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, names text NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS samples (
    time bigint NOT NULL, -- milliseconds since 1970, UTC
    epoch bigint NOT NULL, seq bigint NOT NULL, node int NOT NULL, shape int NOT NULL,
    server int NOT NULL, -- who stored it, and has it in its CSV log
    clock text, -- NULL: the node's own set clock; 'unset' or 'server' as the link says
    "values" json NOT NULL -- an array; null where a sensor failed. Kept as it was written, so exact
);
CREATE TABLE IF NOT EXISTS failures (
    epoch bigint, seq bigint, sensor text, text text NOT NULL, PRIMARY KEY (epoch, seq, sensor)
);
CREATE TABLE IF NOT EXISTS gaps (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, epoch bigint NOT NULL, server int NOT NULL,
    first bigint NOT NULL, last bigint NOT NULL, before bigint NOT NULL, why text NOT NULL, noted bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS gaps_of_epoch ON gaps (epoch);
-- The CSV log of each run of each server: how far it is written and synced (see csvbuffer.py).
CREATE TABLE IF NOT EXISTS logs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, server int NOT NULL, name text NOT NULL,
    size bigint NOT NULL, tail bigint NOT NULL, filed bigint NOT NULL, UNIQUE (server, name)
);
-- What the log owes since then, in its order: samples first to last of an epoch, taken from low to high; or a gap.
CREATE TABLE IF NOT EXISTS filings (
    server int, id bigint, epoch bigint NOT NULL, first bigint, last bigint, low bigint, high bigint, gap bigint,
    PRIMARY KEY (server, id)
);
-- Windows of samples, each with its span in ms: of which sensor what.
CREATE TABLE IF NOT EXISTS summaries (
    node int, sensor text, span int, "end" bigint, "values" bigint NOT NULL, mean float8 NOT NULL,
    median float8 NOT NULL, mode float8 NOT NULL, low float8 NOT NULL, high float8 NOT NULL,
    deviation float8 NOT NULL, PRIMARY KEY (node, sensor, span, "end")
);
-- Windows into which something came since they were summed up, and the change with which it came. Of one node later
-- changes have higher numbers, since its row is locked meanwhile.
CREATE SEQUENCE IF NOT EXISTS changes;
CREATE TABLE IF NOT EXISTS unsummed (
    node int, span int, "end" bigint, change bigint NOT NULL, PRIMARY KEY (node, span, "end")
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS unsummed_by_end ON unsummed ("end");
-- What operators have said of nodes: since when one is retired; what it was called, until when (both ms since 1970),
-- and whether another node may have that name now; what people see in place of a sensor's name.
CREATE TABLE IF NOT EXISTS retired (node int PRIMARY KEY, at bigint NOT NULL);
CREATE TABLE IF NOT EXISTS former_names (
    name text, node int, until bigint NOT NULL, released int NOT NULL, PRIMARY KEY (name, node)
);
CREATE TABLE IF NOT EXISTS labels (node int, sensor text, label text NOT NULL, PRIMARY KEY (node, sensor));

CREATE INDEX IF NOT EXISTS samples_by_time ON samples (node, ({MOMENT}));
DROP INDEX IF EXISTS samples_of_node; -- of versions 1 and 2, by time as a number
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
            RAISE WARNING 'samples is no hypertable: %', SQLERRM;
        END;
        IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'samples'::regclass AND contype = 'p') THEN
            ALTER TABLE samples ADD PRIMARY KEY (epoch, seq);
        END IF;
    ELSIF version < 3 THEN
        -- Windows were (start, end]: a sample at an edge belongs to the next one now.
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

# One at a time: of several servers that start on an empty database, the first makes the tables.
_ALONE = "SELECT pg_advisory_xact_lock(7309453021877237604)"


# The connections of other servers that write: each holds the lock of its place (see store._take_place).
_END_WRITERS = f"""
SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.classid = '{SCHEMA}.servers'::regclass AND a.datname = current_database()
    AND a.usename = current_user AND l.pid <> pg_backend_pid()
"""


def bring_up_to_date(db: Any) -> None:
    """Make the tables, or bring those of an older version up to date; in one transaction.

    Servers of the older version lose the connections with which they write, and get no others: they count samples at
    the edges of windows differently. Nodes keep their samples until their servers are updated too.
    """
    if _is_made(db) and refuse_newer(db) == VERSION:
        return
    with db.transaction():
        db.execute(_ALONE)
        older = _is_made(db) and refuse_newer(db) < VERSION
        if older:
            log.info("bringing the tables in PostgreSQL to format %d; an index of all samples is made", VERSION)
            extend_start(_EXTEND_S)
        if older or not _is_made(db):
            db.add_notice_handler(_log_notice)  # a TimescaleDB that refuses a hypertable
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
    """Raise SettingsError when the tables are missing, or not of this program's version: for read-only use."""
    if refuse_newer(db) < VERSION:
        raise SettingsError(
            "the database was made by an older Pigeonpost: start this one's server once, which brings it up to date"
        )


def refuse_newer(db: Any) -> int:
    """Return the version of the tables. Raises SettingsError when it is a newer program's, or they are missing."""
    if not _is_made(db):
        raise SettingsError(
            "the database has no tables of Pigeonpost yet: start a server on it, or `control.py schema`"
        )
    (version,) = db.execute(f"SELECT value::int FROM {SCHEMA}.meta WHERE key = 'version'").fetchone()
    if version > VERSION:
        raise SettingsError(
            f"the database was made by a newer Pigeonpost (format {version}; this one knows {VERSION}):"
            " use that program, or another database"
        )
    return int(version)


def check_server(db: Any) -> None:
    """Raise SettingsError for a PostgreSQL that is too old, or a database that is not in UTF-8."""
    if db.info.server_version < OLDEST:
        raise SettingsError(
            f"PostgreSQL {db.info.parameter_status('server_version')} is too old: 13 or newer is needed"
        )
    encoding = db.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SettingsError(f"the database keeps texts as {encoding}, and units like °C need UTF8 (createdb -E UTF8)")


def _is_made(db: Any) -> bool:
    # Not by to_regclass(): in a transaction that has waited for another it does not see yet what that one has made.
    asked = (
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND relname = %s"
    )
    return db.execute(asked, (SCHEMA, "meta")).fetchone() is not None
