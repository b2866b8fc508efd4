"""SQL functions that convert the table `samples` into a TimescaleDB hypertable. They are part of the schema script.

The functions are created in every database, so an administrator who adds the extension later can call
`use_timescaledb()`. This moves all stored samples, and nothing can be stored during that time. So it is called only by
an administrator, or automatically while the database is empty.

Deletion from compressed chunks, and a primary key that is enforced there, require TimescaleDB 2.11. The builds under
the Apache license have no compression. Without these features the chunks are not compressed. The SQL was tested with
version 2.23. If another version rejects it, the table is not changed.
"""

from __future__ import annotations

_WEEK_MS = 7 * 86_400_000


def timescale_script(schema: str) -> str:
    """Return the SQL that creates the functions in `schema`."""
    return f"""\
-- Each sample is stored once. The primary key of a TimescaleDB hypertable must include the time, so there only the
-- high-water marks in `epochs` guarantee this. Samples of one node are compressed together, in the order in which they
-- are read. Each chunk of the hypertable covers one week. It is created automatically if the extension is installed
-- before the tables. Otherwise call, while no server is running:  SELECT {schema}.use_timescaledb();
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
        RAISE 'this database does not have the extension timescaledb: run CREATE EXTENSION timescaledb first';
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
    EXCEPTION WHEN OTHERS THEN -- a version with a different interface
        RETURN 'a hypertable, not compressed: ' || SQLERRM;
    END;
    RETURN 'a hypertable, compressed after two weeks';
END $function$;
"""
