"""Names of all files and folders in the data folder, of the node and of the server."""

from __future__ import annotations

# The node.
OUTBOX = "outbox.ring"
OUTBOX_LOCK = "outbox.lock"

# The server.
DATABASE = "pigeonpost.sqlite3"
LOGS = "logs"  # the CSV logs, a file for each run
LOG_CHECKSUMS = "SHA256SUMS"  # in LOGS: the checksums of closed logs, as `sha256sum -c` reads them
FILES = "files"  # dropped files
TOKENS = "tokens.json"  # of nodes
USERS = "users.json"  # of the page
COMMANDS = "orders.json"  # ON and OFF for nodes that connect to the server
SAVED_CHARTS = "graphs.json"
PI_IDS = "pi_ids.json"  # of Pis that drop files
PIMONITOR = "pimonitor.json"  # names of sensors of the older system PiMonitor
RUNNING = "running.json"  # while the server runs: how control.py reaches it
SERVER_LOCK = "server.lock"
