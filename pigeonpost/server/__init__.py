"""Server: ingest of samples, state of the nodes, quality checks, events, backups."""
