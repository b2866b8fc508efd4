"""Device of "pimonitor", which reads its sensors and posts them as JSON. It shares no code with this project."""

import hashlib
import json
import sys
import time
import urllib.error
import urllib.request

SERVER, API_KEY, LOCATION = sys.argv[1:4]
SENSORS = json.loads(sys.argv[4])

message = {
    "api_hash": hashlib.sha256(API_KEY.encode("utf-8")).hexdigest(),
    "location": LOCATION,
    "timestamp": time.strftime("%m/%d/%Y %H:%M:%S"),
    "sensors": SENSORS,
}
request = urllib.request.Request(SERVER + "/", json.dumps(message).encode("utf-8"))
request.add_header("Content-Type", "application/json")
try:
    print(urllib.request.urlopen(request, timeout=30).read().decode("utf-8"))
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
    sys.exit(1)
