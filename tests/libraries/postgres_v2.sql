-- The tables of Pigeonpost, for PostgreSQL 13 or newer. A server makes them by itself where it may;
-- else a superuser runs this in the database, and then, with the role of the servers in the place of `pigeon`:
--     GRANT ALL ON SCHEMA pigeonpost TO pigeon;
--     GRANT ALL ON ALL TABLES IN SCHEMA pigeonpost TO pigeon;
--     GRANT ALL ON ALL SEQUENCES IN SCHEMA pigeonpost TO pigeon;
CREATE SCHEMA IF NOT EXISTS pigeonpost;
SET search_path = pigeonpost;

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
CREATE TABLE IF NOT EXISTS retired (node int PRIMARY KEY, at bigint NOT NULL);
CREATE TABLE IF NOT EXISTS former_names (
    name text, node int, until bigint NOT NULL, released int NOT NULL, PRIMARY KEY (name, node)
);
CREATE TABLE IF NOT EXISTS labels (node int, sensor text, label text NOT NULL, PRIMARY KEY (node, sensor));

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

INSERT INTO meta VALUES ('version', '2'), ('identity', left(replace(gen_random_uuid()::text, '-', ''), 16));
