"""Tables of the PostgreSQL store, as one script for an empty database; `control.py schema` prints it.

Requires PostgreSQL 13. Errors: SettingsError for a database of a newer program, or one that cannot hold the tables;
those of psycopg.

They are the tables of the SQLite store with three differences. A sample's identity is a key, which the database
enforces. The ids of epochs are assigned by the database alone, for all servers. And each server has a row in
`servers`: what it has stored, the logs that it writes, and what is owed to those, belong to it.
"""

from __future__ import annotations

from typing import Any

from pigeonpost.core.errors import SettingsError

SCHEMA = "pigeonpost"
VERSION = 2
OLDEST = 130_000  # of PostgreSQL: gen_random_uuid() came with it

# What version 2 has more: since when a node is retired; what it was called, until when (both ms since 1970), and if
# another node may have that name now; what people see in place of a sensor's name. New tables alone: the role of the
# servers may make these.
_RECORDS = """\
CREATE TABLE IF NOT EXISTS retired (node int PRIMARY KEY, at bigint NOT NULL);
CREATE TABLE IF NOT EXISTS former_names (
    name text, node int, until bigint NOT NULL, released int NOT NULL, PRIMARY KEY (name, node)
);
CREATE TABLE IF NOT EXISTS labels (node int, sensor text, label text NOT NULL, PRIMARY KEY (node, sensor));
"""

SCRIPT = f"""\
-- The tables of Pigeonpost, for PostgreSQL 13 or newer. A server makes them by itself where it may;
-- else a superuser runs this in the database, and then, with the role of the servers in the place of `pigeon`:
--     GRANT ALL ON SCHEMA {SCHEMA} TO pigeon;
--     GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO pigeon;
--     GRANT ALL ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO pigeon;
CREATE SCHEMA IF NOT EXISTS {SCHEMA};
SET search_path = {SCHEMA};

CREATE TABLE meta (key text PRIMARY KEY, value text NOT NULL);
-- Everybody who writes here, by the number in its data folder; `filed` counts what its CSV logs were to be given.
CREATE TABLE servers (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL UNIQUE, filed bigint NOT NULL DEFAULT 0,
    seen timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
-- Who stores something of a node locks its row: so two servers never work on the same node at once. Samples up to
-- `kept_from` may have been deleted: their time to be kept was over.
CREATE TABLE nodes (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, kept_from bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 90);
-- The highest running number stored of each outbox.
CREATE TABLE outboxes (node int, outbox text, top bigint NOT NULL, PRIMARY KEY (node, outbox))
    WITH (fillfactor = 70);
-- The high-water marks: everything of the epoch up to seq is in samples, or in gaps, or was deleted (`forgotten`).
CREATE TABLE epochs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, node int NOT NULL, epoch text NOT NULL,
    seq bigint NOT NULL, up bigint, forgotten bigint NOT NULL DEFAULT 0, UNIQUE (node, epoch)
) WITH (fillfactor = 70);
CREATE TABLE sensors (node int, name text, unit text NOT NULL, PRIMARY KEY (node, name));
CREATE TABLE shapes (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, names text NOT NULL UNIQUE);
CREATE TABLE samples (
    time bigint NOT NULL, -- milliseconds since 1970, UTC
    epoch bigint NOT NULL, seq bigint NOT NULL, node int NOT NULL, shape int NOT NULL,
    server int NOT NULL, -- who stored it, and has it in its CSV log
    clock text, -- NULL: the node's own set clock; 'unset' or 'server' as the link says
    "values" json NOT NULL -- an array; null where a sensor failed. Kept as it was written, so exact
);
CREATE INDEX samples_of_node ON samples (node, time);
CREATE TABLE failures (epoch bigint, seq bigint, sensor text, text text NOT NULL, PRIMARY KEY (epoch, seq, sensor));
CREATE TABLE gaps (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, epoch bigint NOT NULL, server int NOT NULL,
    first bigint NOT NULL, last bigint NOT NULL, before bigint NOT NULL, why text NOT NULL, noted bigint NOT NULL
);
CREATE INDEX gaps_of_epoch ON gaps (epoch);
-- The CSV log of each run of each server: how far it is written and synced (see csvbuffer.py).
CREATE TABLE logs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, server int NOT NULL, name text NOT NULL,
    size bigint NOT NULL, tail bigint NOT NULL, filed bigint NOT NULL, UNIQUE (server, name)
);
-- What the log owes since then, in its order: samples first to last of an epoch, taken from low to high; or a gap.
CREATE TABLE filings (
    server int, id bigint, epoch bigint NOT NULL, first bigint, last bigint, low bigint, high bigint, gap bigint,
    PRIMARY KEY (server, id)
);
-- Windows (start, end] of samples, each with its span in ms: of which sensor what.
CREATE TABLE summaries (
    node int, sensor text, span int, "end" bigint, "values" bigint NOT NULL, mean float8 NOT NULL,
    median float8 NOT NULL, mode float8 NOT NULL, low float8 NOT NULL, high float8 NOT NULL,
    deviation float8 NOT NULL, PRIMARY KEY (node, sensor, span, "end")
);
-- Windows into which something came since they were summed up, and the change with which it came. Of one node later
-- changes have higher numbers, since its row is locked meanwhile.
CREATE SEQUENCE changes;
CREATE TABLE unsummed (node int, span int, "end" bigint, change bigint NOT NULL, PRIMARY KEY (node, span, "end"))
    WITH (fillfactor = 50);
CREATE INDEX unsummed_by_end ON unsummed ("end");
CREATE VIEW readings AS
    SELECT to_timestamp(s.time / 1000.0) AS time, n.name AS node, j.sensor, (s."values" ->> (j.place - 1)::int)::numeric
           AS value, coalesce(u.unit, '') AS unit
    FROM samples s JOIN nodes n ON n.id = s.node JOIN shapes p ON p.id = s.shape
    CROSS JOIN json_array_elements_text(p.names::json) WITH ORDINALITY AS j (sensor, place)
    LEFT JOIN sensors u ON u.node = s.node AND u.name = j.sensor;

-- What operators have said of nodes: retired, renamed, labels of sensors.
{_RECORDS}
-- A sample is there once. Where TimescaleDB cuts the table into weeks, a key must hold the time too; the rows of
-- `epochs` then see to it alone.
DO $do$
DECLARE extension text;
BEGIN
    SELECT nspname INTO extension FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
        WHERE extname = 'timescaledb';
    IF extension IS NULL THEN
        ALTER TABLE samples ADD PRIMARY KEY (epoch, seq);
    ELSE
        ALTER TABLE samples ADD PRIMARY KEY (epoch, seq, time);
        EXECUTE format(
            'SELECT %I.create_hypertable(''samples'', ''time'', chunk_time_interval => 604800000::bigint,'
            ' create_default_indexes => false)', extension);
    END IF;
END $do$;

INSERT INTO meta VALUES ('version', '{VERSION}'), ('identity', left(replace(gen_random_uuid()::text, '-', ''), 16));
"""

# One at a time: of several servers that start on an empty database, the first makes the tables.
_ALONE = "SELECT pg_advisory_xact_lock(7309453021877237604)"


def bring_up_to_date(db: Any) -> None:
    """Make the tables where there are none; in one transaction."""
    if not _is_made(db):
        with db.transaction():
            db.execute(_ALONE)
            if not _is_made(db):
                db.execute(SCRIPT)
    if refuse_newer(db) < VERSION:
        with db.transaction():
            db.execute(_ALONE)
            db.execute(f"SET LOCAL search_path = {SCHEMA}; {_RECORDS}")
            db.execute(f"UPDATE {SCHEMA}.meta SET value = '{VERSION}' WHERE key = 'version'")


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
