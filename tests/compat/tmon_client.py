"""Client of "tmon": one file with its settings at the top, run by cron. It shares no code with this project.

It reads the 1-wire file and posts the number after `t=`. In the tests, the settings are arguments.
"""

import json
import sys
import urllib.error
import urllib.request

SERVER, TOKEN, DEVICE = sys.argv[1:4]


def read_temperature():
    with open(DEVICE, encoding="ascii") as file:
        lines = file.readlines()
    if not lines or not lines[0].strip().endswith("YES"):
        sys.exit("CRC is wrong")
    return lines[1].split("t=")[1].strip()


def main():
    message = {"type": "temperature", "token": TOKEN, "data": {"temperature": read_temperature()}}
    request = urllib.request.Request(SERVER + "/temp", json.dumps(message).encode("utf-8"))
    request.add_header("Content-Type", "application/json")
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode())
        sys.exit(1)
    reply = json.loads(answer.read().decode("utf-8"))
    print(reply)
    sys.exit(0 if reply["success"] else 1)


main()
