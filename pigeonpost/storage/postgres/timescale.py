"""SQL functions that make the table `samples` a hypertable of TimescaleDB: part of the script of the tables.

They are in every database, so that somebody who adds the extension later can call `use_timescaledb()`. That moves what
is stored already, during which nobody can store anything: so nothing but a person, or an empty database, calls it.

Deleting from compressed weeks, and a key that is respected there, came with TimescaleDB 2.11; the builds under the
Apache license have no compression at all. Without it the weeks stay as they are. The SQL was tried
with version 2.23; where another one refuses it, the table stays as it was.
"""

from __future__ import annotations

_WEEK_MS = 7 * 86_400_000


def timescale_script(schema: str) -> str:
    """Return the SQL that makes the functions, in the schema of that name."""
    return f"""\
-- A sample is there once. Where TimescaleDB cuts the table into weeks, a key must hold the time too; the rows of
-- `epochs` then see to it alone. Samples of a node are compressed together, in the order in which they are read.
-- A hypertable of TimescaleDB, a week a chunk: made at once where the extension is there before the tables. Else, with
-- no server at work:  SELECT {schema}.use_timescaledb();
CREATE OR REPLACE FUNCTION now_ms() RETURNS bigint LANGUAGE sql STABLE AS
    $$ SELECT (extract(epoch FROM now()) * 1000)::bigint $$;
CREATE OR REPLACE FUNCTION use_timescaledb() RETURNS text LANGUAGE plpgsql SET search_path = {schema} AS $function$
DECLARE
    place text;
    version int[];
BEGIN
    SELECT n.nspname, string_to_array(substring(e.extversion FROM '^[0-9]+[.][0-9]+'), '.') INTO place, version
        FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'timescaledb';
    IF place IS NULL THEN
        RAISE 'this database does not have the extension: CREATE EXTENSION timescaledb';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'samples'::regclass AND contype = 'p'
                   AND cardinality(conkey) = 3) THEN
        ALTER TABLE samples DROP CONSTRAINT IF EXISTS samples_pkey;
        ALTER TABLE samples ADD PRIMARY KEY (epoch, seq, time);
    END IF;
    EXECUTE format(
        'SELECT %I.create_hypertable(''samples'', ''time'', chunk_time_interval => {_WEEK_MS}::bigint,'
        ' create_default_indexes => false, if_not_exists => true, migrate_data => true)', place);
    IF version < '{{2,11}}' OR current_setting('timescaledb.license', true) IS DISTINCT FROM 'timescale' THEN
        RETURN 'a hypertable, not compressed: that needs TimescaleDB 2.11 under its own license';
    END IF;
    BEGIN
        EXECUTE format('SELECT %I.set_integer_now_func(''samples'', ''now_ms'', replace_if_exists => true)', place);
        EXECUTE 'ALTER TABLE samples SET (timescaledb.compress, timescaledb.compress_segmentby = ''node'','
            ' timescaledb.compress_orderby = ''time, epoch, seq'')';
        EXECUTE format('SELECT %I.add_compression_policy(''samples'', compress_after => {2 * _WEEK_MS}::bigint,'
            ' if_not_exists => true)', place);
    EXCEPTION WHEN OTHERS THEN -- a version that does it otherwise
        RETURN 'a hypertable, not compressed: ' || SQLERRM;
    END;
    RETURN 'a hypertable, compressed after two weeks';
END $function$;
"""
