"""Names of all files and folders in the data folder of a node or a server."""

from __future__ import annotations

# Node
OUTBOX = "outbox.ring"
OUTBOX_LOCK = "outbox.lock"
LINK_CERTIFICATE = "link.pem"  # certificate and key of its TCP link, if the link uses TLS
KEPT_NAME = "node-name"  # the node's name, if the host name is a container's id, which changes
COUNTERS = "counters"  # folder of the totals of pulse counters, one file per counter
PI_ID = "pi_id"  # id of this Pi, for `control.py send-files`

# Server
DATABASE = "pigeonpost.sqlite3"
LOGS = "logs"  # folder of the CSV logs, one file per run
REMOVED_LOGS = "removed.json"  # in LOGS: number and sum of the lines of logs that were deleted because of their limits
LOG_CHECKSUMS = "SHA256SUMS"  # in LOGS: the checksums of closed logs, as `sha256sum -c` reads them
FILES = "files"  # folder of files that Pis have sent
TOKENS = "tokens.json"  # tokens of nodes
REPLACED_TOKENS = "replaced_tokens.json"  # tokens before `control.py rotate`, while they are still accepted
USERS = "users.json"  # users of the web page
API_TOKENS = "api_tokens.json"  # tokens of programs that use the pages and the JSON API
API_TOKEN_USES = "api_token_uses.json"  # time of the last use of each API token
CLIENTS = "clients.json"  # clients that connect to the server, which are missed if they stay silent after a restart
READING_IDS = "reading_ids.log"  # times of the readings that programs have sent with ids, so that repeats are found
LINE_SENSORS = "line_sensors.json"  # names of sensors for the series of InfluxDB line protocol
COMMANDS = "orders.json"  # pending ON and OFF commands for nodes that connect to the server
SAVED_CHARTS = "graphs.json"
PREFERENCES = "preferences.json"  # units and order of charts of each user
CALIBRATIONS = "calibrations.json"  # calibrations of sensors; the database contains raw values only
PI_IDS = "pi_ids.json"  # ids of Pis that send files
PIMONITOR = "pimonitor.json"  # names of sensors of the legacy system PiMonitor
NOTES = "notes.json"  # notes of operators for charts and events
EVENTS = "events.jsonl"  # the last events of the nodes and of the server
LATE_RANGES = "late_ranges.json"  # time ranges of samples that arrived late, for the charts
ALERTS = "alerts.sqlite3"  # states of the alerts, and messages that are not sent yet
ALERT_RULES = "alert_rules.json"  # alert rules that were edited on the page
FORWARDED = "forward.sqlite3"  # positions of the forward targets
FORWARD_TARGETS = "forward.json"  # names of all forward targets that were ever used
HOME_ASSISTANT = "home_assistant.json"  # discovery messages that the broker keeps
HOME_ASSISTANT_HOURS = "home_assistant_hours.json"  # hours whose statistics Home Assistant has not received yet
LAST_BACKUP = "last_backup.json"  # record of the last scheduled backup
RUNNING = "running.json"  # exists while the server runs: its address, for control.py
SERVER_LOCK = "server.lock"
SERVER_ID = "server.id"  # id of this server in PostgreSQL
CERTIFICATE, CERTIFICATE_KEY = "certificate.pem", "certificate.key"  # written by `control.py certificate`
COPY = ".bak"  # suffix of the copy of a small file: tokens.json.bak
BEFORE_RESTORE = "before-restore"  # with a date: folder of the files that `control.py restore` replaced

# Prefixes of all names in a data folder. Hidden files are temporary; "node" is the data folder of a demonstration node.
NAMES = (".", "node", *(value for name, value in list(globals().items()) if name.isupper() and value != COPY))
