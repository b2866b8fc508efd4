"""Names of all files and folders in the data folder, of the node and of the server."""

from __future__ import annotations

# The node.
OUTBOX = "outbox.ring"
OUTBOX_LOCK = "outbox.lock"
LINK_CERTIFICATE = "link.pem"  # certificate and key of its TCP link, where that speaks TLS
KEPT_NAME = "node-name"  # the node's name, where its host name is a container's id
PI_ID = "pi_id"  # this Pi's id, for `control.py send-files`

# The server.
DATABASE = "pigeonpost.sqlite3"
LOGS = "logs"  # the CSV logs, a file for each run
LOG_CHECKSUMS = "SHA256SUMS"  # in LOGS: the checksums of closed logs, as `sha256sum -c` reads them
FILES = "files"  # dropped files
TOKENS = "tokens.json"  # of nodes
REPLACED_TOKENS = "replaced_tokens.json"  # those before `control.py rotate`, while they are still accepted
USERS = "users.json"  # of the page
API_TOKENS = "api_tokens.json"  # of programs that ask for pages and the JSON API
API_TOKEN_USES = "api_token_uses.json"  # when each was last used
COMMANDS = "orders.json"  # ON and OFF for nodes that connect to the server
SAVED_CHARTS = "graphs.json"
PREFERENCES = "preferences.json"  # of the page's users: units, order of charts
PI_IDS = "pi_ids.json"  # of Pis that drop files
PIMONITOR = "pimonitor.json"  # names of sensors of the older system PiMonitor
LAST_BACKUP = "last_backup.json"  # of those that [backup] makes
RUNNING = "running.json"  # while the server runs: how control.py reaches it
SERVER_LOCK = "server.lock"
SERVER_ID = "server.id"  # by which PostgreSQL knows the server
CERTIFICATE, CERTIFICATE_KEY = "certificate.pem", "certificate.key"  # as `control.py certificate` makes them
COPY = ".bak"  # what the name of the copy of a small file ends with: tokens.json.bak
BEFORE_RESTORE = "before-restore"  # with a date: what `control.py restore` has moved aside

# How the names of everything in a data folder begin; hidden files are of work in progress, "node" is a demonstration's.
NAMES = (".", "node", *(value for name, value in list(globals().items()) if name.isupper() and value != COPY))
