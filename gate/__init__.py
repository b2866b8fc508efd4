"""Who may come in: the tokens of nodes, the users of the page and their sessions.

Runs on: node (its own token) and server (all of them).  Members: tokens, users.
Threads: none; the files are read when they are asked, so that `control.py` can change them beside a running server.
Errors: SettingsError for a file that does not read.
"""
