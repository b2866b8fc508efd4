"""What comes and goes as files: uploads, tables to import, logs and their sums, backups.

Runs on: server.  Reached from: links/drop, pages/files, commands, csvbuffer.  Hands on to: the store, the disk.
Threads: none; the parts say where they have some.  Errors: those of the parts.
"""
