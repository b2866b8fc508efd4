"""Tests of both dialects of the file drop over real sockets, for the cases of the original systems."""

import os
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import unittest
from unittest import mock

from pigeonpost.auth import throttle
from pigeonpost.compat.file_drop import server, storage
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import SettingsError
from pigeonpost.web.connection_limits import Limits
from tests.compat.file_drop.support import (  # fmt: skip
    OTHER_PI,
    PI,
    UNKNOWN_PI,
    Sender,
    accept,
    checksum,
    files,
    form,
    ids_on_disk,
    upload_request,
)
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, clean_environment, rounds, temp_folder, wait_until
from tests.web.support import WebHouse, parse_response

DATA = b"time,temperature\n2026-11-20 15:36:10,21.5\n"


def setUpModule():
    use_memory_disk()


class FileDropCase(unittest.TestCase):
    def setUp(self):
        self.house = self.make()

    def make(self, settings="", **more):
        house = WebHouse(self, transports=[server.make_transport], settings=settings, **more)
        accept(house.folder, PI, OTHER_PI)
        return house

    def sender(self, second=False, pi_id=PI, count=1):
        sender = Sender(self.house.address, pi_id, second)
        sender.open(count)
        return sender

    def assert_stored(self, *contents, prefix=f"{PI}_log"):
        """Check that exactly these contents are stored."""
        found = files(self.house.folder)
        self.assertEqual(sorted(found.values()), sorted(contents))
        self.assertTrue(all(name.startswith(prefix) for name in found), found)


class ByteForByte(FileDropCase):
    """The original conversations byte for byte, with sockets only."""

    def say(self, data):
        return parse_response(self.house.raw(data, ends=False))

    def get(self, path, *headers):
        lines = "".join(f"{header}\r\n" for header in headers)
        return self.say(f"GET {path} HTTP/1.1\r\nHost: server:3500\r\n{lines}Connection: close\r\n\r\n".encode())

    def test_first_dialect_conversation(self):
        status, _, letters = self.get("/", f"pi_id: {PI}", "num_files: 2")
        self.assertEqual(status, 200)
        self.assertRegex(letters, rb"\A[A-Za-z]{20}\Z")
        for count, name in (("2", "a.csv"), ("1", "b.json")):
            request = upload_request(letters.decode(), DATA, name, {"num_files": count})
            status, _, said = self.say(request)
            self.assertEqual((status, said.decode()), (200, checksum(DATA)))
        self.assertEqual(files(self.house.folder), {f"{PI}_a.csv": DATA, f"{PI}_b.json": DATA})
        with open(os.path.join(self.house.folder, "files", f"{PI}_a.sha256"), encoding="ascii") as file:
            self.assertEqual(file.read(), f"{checksum(DATA)} {PI}_a.csv")
        self.assertEqual(self.get("/", f"pi_id: {UNKNOWN_PI}", "num_files: 2")[::2], (200, b""))

    def test_second_dialect_conversation(self):
        status, _, said = self.get("/upload/", f"pi_id: {PI}", "pi_num: 4")
        self.assertEqual(status, 200)
        self.assertRegex(said, rb"\A301 [A-Za-z]{20}\Z")
        letters = said[4:].decode()
        status, _, said = self.say(upload_request(letters, DATA, "a.csv", {"pi_num": "4"}))
        self.assertEqual((status, said), (200, b"200"))
        self.assertEqual(self.get("/upload/", f"pi_id: {UNKNOWN_PI}", "pi_num: 4")[::2], (200, b"401"))
        self.assertEqual(self.get("/upload/", "pi_num: 4")[::2], (200, b"412"))
        self.assertEqual(self.get("/upload/", f"pi_id: {PI}")[::2][0], 200)

    def test_registration_stores_file_and_email(self):
        request = upload_request(
            "", b'{"every": 10}', "config.json", {"email": "pi@example.org", "num_files": None},
            path="/register/", field="sensor_config",
        )  # fmt: skip
        self.assertEqual(self.say(request)[::2], (200, b"200"))
        self.assertEqual(files(self.house.folder), {f"{PI}_config.json": b'{"every": 10}'})
        self.assertEqual(ids_on_disk(self.house.folder)[PI], {"node": "attic", "email": "pi@example.org"})

    def test_http_1_0_is_accepted(self):
        status, _, letters = self.say(f"GET / HTTP/1.0\r\npi_id: {PI}\r\nnum_files: 1\r\n\r\n".encode())
        self.assertEqual((status, len(letters)), (200, 20))

    def test_header_names_may_have_hyphens_and_capitals(self):
        """Some proxies drop header names with underscores."""
        _, _, letters = self.get("/", f"Pi-Id: {PI.upper()}", "Num-Files: 1")
        self.assertEqual(len(letters), 20)
        spelled = {"pi_id": None, "num_files": None, "Pi-Id": PI, "Num-Files": "1", "checksum": checksum(DATA).upper()}
        _, _, said = self.say(upload_request(letters.decode(), DATA, "a.csv", spelled))
        self.assertEqual(said.decode(), checksum(DATA).upper())
        _, _, said = self.get("/upload/", f"Pi-Id: {PI}", "Pi-Num: 1")
        spelled.update({"Pi-Num": "1", "checksum": checksum(DATA)})
        self.assertEqual(self.say(upload_request(said[4:].decode(), DATA, "a.csv", spelled))[2], b"200")

    def test_expect_100_continue_is_answered(self):
        _, _, letters = self.get("/", f"pi_id: {PI}", "num_files: 1")
        request = upload_request(letters.decode(), DATA, "a.csv", {"Expect": "100-continue"})
        head, _, body = request.partition(b"\r\n\r\n")
        with self.house.connect() as sock:
            sock.sendall(head + b"\r\n\r\n")
            self.assertEqual(sock.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
            sock.sendall(body)
            self.assertIn(checksum(DATA).encode(), sock.recv(4096))

    def test_front_page_is_still_served(self):
        self.assertIn(b"Pigeonpost", self.house.request("GET", "/", html=True)[2])
        self.assertEqual(self.house.request("PUT", "/upload/")[0], 405)

    def test_connection_accepts_several_files(self):
        sender = self.sender(count=3)
        with self.house.connect() as sock:
            for count in ("3", "2", "1"):
                content = DATA + count.encode()
                headers = {"num_files": count, "Connection": "keep-alive"}
                sock.sendall(upload_request(sender.letters, content, f"log{count}.csv", headers))
                said = b""
                while checksum(content).encode() not in said:
                    part = sock.recv(4096)
                    self.assertTrue(part, said)
                    said += part
        self.assert_stored(DATA + b"1", DATA + b"2", DATA + b"3")


OLD_CLIENT = """
import hashlib, os, sys, urllib.request, uuid

def ask(url, headers, data=None):
    return urllib.request.urlopen(urllib.request.Request(url, data, headers)).read().decode()

url, pi_id, folder = sys.argv[1:]
names = sorted(os.listdir(folder))
letters = ask(url + "/", {"pi_id": pi_id, "num_files": str(len(names))})
if not letters:
    sys.exit("Authentication failed")
for number, name in enumerate(names):
    with open(os.path.join(folder, name), "rb") as file:
        content = file.read()
    checksum = hashlib.sha256(content).hexdigest()
    boundary = uuid.uuid4().hex
    body = (
        f'--{boundary}\\r\\nContent-Disposition: form-data; name="sensor_data_file"; filename="{name}"\\r\\n'
        "Content-Type: application/octet-stream\\r\\n\\r\\n"
    ).encode() + content + f"\\r\\n--{boundary}--\\r\\n".encode()
    said = ask(url + "/upload/" + letters, {
        "pi_id": pi_id, "checksum": checksum, "num_files": str(len(names) - number),
        "Content-Type": "multipart/form-data; boundary=" + boundary,
    }, body)
    print(name, "sent" if said == checksum else "could not be sent")
"""


class OldClient(FileDropCase):
    """A sender of the first version as an independent script with urllib."""

    def run_client(self, pi_id, contents):
        folder = temp_folder(self)
        for name, content in contents.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        command = [sys.executable, "-c", OLD_CLIENT, "http://%s:%d" % self.house.address, pi_id, folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=clean_environment())
        return done.returncode, done.stdout + done.stderr

    def test_old_client_sends_its_folder(self):
        contents = {"a.csv": DATA, "b.json": b"{}", "c.txt": os.urandom(200_000)}
        said = "a.csv sent\nb.json sent\nc.txt sent\n"
        self.assertEqual(self.run_client(PI, contents), (0, said))
        self.assertEqual(files(self.house.folder), {f"{PI}_{name}": content for name, content in contents.items()})

    def test_old_client_reports_refused_files(self):
        said = "a.exe could not be sent\nb.csv could not be sent\nc.csv sent\n"
        self.assertEqual(self.run_client(PI, {"a.exe": DATA, "b.csv": b"", "c.csv": DATA}), (0, said))

    def test_old_client_reports_an_unknown_id(self):
        self.assertEqual(self.run_client(UNKNOWN_PI, {"a.csv": DATA}), (1, "Authentication failed\n"))


class DialectCases:
    """Cases for both dialects. The expected response is defined by `good` and `reply`."""

    second = False

    def good(self, content):
        raise NotImplementedError

    def reply(self, code):
        raise NotImplementedError

    def open(self, count=1):
        return self.sender(self.second, count=count)

    def test_files_are_stored_and_acknowledged(self):
        sender = self.open(2)
        self.assertEqual(sender.send(DATA, "log.csv", 2), self.good(DATA))
        self.assertEqual(sender.send(DATA * 2, "log2.txt", 1), self.good(DATA * 2))
        self.assert_stored(DATA, DATA * 2)

    def test_missing_id_is_412(self):
        sender = Sender(self.house.address, None, self.second)
        self.assertEqual(sender.open(), self.reply("412"))
        self.assertEqual(Sender(self.house.address, "", self.second).open(), self.reply("412"))

    def test_wrong_id_is_401(self):
        for pi_id in (UNKNOWN_PI, PI[:-1], PI + "0", "x" * 16, f"{PI}, {PI}", "../" + PI, "\xe9"):
            sender = Sender(self.house.address, pi_id, self.second)
            with mock.patch.object(throttle, "LONGEST_DELAY_S", 0.0):
                self.assertEqual(sender.open(), self.reply("401"), pi_id)

    def test_upload_without_an_id_is_412(self):
        self.assert_not_burnt("412", pi_id=None)

    def test_upload_with_a_wrong_id_is_401(self):
        self.assert_not_burnt("401", pi_id=UNKNOWN_PI)

    def test_upload_with_the_id_of_another_pi_is_401(self):
        self.assert_not_burnt("401", pi_id=OTHER_PI)

    def assert_not_burnt(self, code, content=DATA + b"bad", **headers):
        """A refused upload leaves no file, and the session remains valid."""
        sender = self.open()
        self.assertEqual(sender.send(content, **headers), self.reply(code))
        self.assertEqual(files(self.house.folder), {})
        self.assertEqual(sender.send(DATA), self.good(DATA))
        self.assert_stored(DATA)

    def test_unknown_session_is_401(self):
        sender = self.open()
        for letters in ("A" * 20, "A", sender.letters[:-1], sender.letters.swapcase(), "." * 20):
            self.assertEqual(sender.send(DATA, letters=letters), self.reply("401"), letters)
        self.assertEqual(files(self.house.folder), {})

    def test_session_ends_after_its_last_file(self):
        sender = self.open()
        self.assertEqual(sender.send(DATA), self.good(DATA))
        self.assertEqual(sender.send(DATA * 2, "log2.csv"), self.reply("401"))
        self.assert_stored(DATA)

    def test_missing_file_is_412(self):
        for field in ("file", "sensor_config", ""):
            self.assert_no_file(*form(DATA, "log.csv", field))
        self.assert_no_file(*form(DATA, ""))
        kind, body = form(DATA, "log.csv")
        self.assert_no_file(kind, body.replace(b'; filename="log.csv"', b""))
        self.assert_no_file("application/x-www-form-urlencoded", b"sensor_data_file=x")
        self.assert_no_file("text/csv", DATA)
        self.assert_no_file(None, b"")
        self.assert_no_file("multipart/form-data; boundary=x", b"--x--\r\n")

    def assert_no_file(self, kind, body):
        sender = self.open()
        headers = {"pi_id": PI, "pi_num": "1" if self.second else None, "checksum": checksum(DATA), "num_files": "1"}
        said = sender.ask("POST", f"/upload/{sender.letters}", {**headers, "Content-Type": kind}, body)
        self.assertEqual(said, (200, self.reply("412")), (kind, body))
        self.assertEqual(files(self.house.folder), {})

    def test_missing_checksum_is_412(self):
        self.assert_not_burnt("412", checksum=None)

    def test_empty_checksum_is_412(self):
        self.assert_not_burnt("412", checksum="")

    def test_missing_number_of_files_is_412(self):
        self.assert_not_burnt("412", num_files=None)

    def test_empty_file_is_412(self):
        self.assert_not_burnt("412", content=b"")

    def test_unknown_extension_is_415(self):
        for name in ("log.exe", "log", "log.csv.exe", ".csv.", "csv", "log.csv/", "log.c sv"):
            sender = self.open()
            self.assertEqual(sender.send(DATA, name), self.reply("415"), name)
        self.assertEqual(files(self.house.folder), {})

    def test_repeated_file_is_stored_once(self):
        for _ in range(3):
            sender = self.open(2)
            self.assertEqual(sender.send(DATA, count=2), self.good(DATA))
            self.assertEqual(sender.send(DATA, count=1), self.good(DATA))
        self.assert_stored(DATA)

    def test_same_name_with_other_content_gets_a_number(self):
        for content in (DATA, DATA * 2, DATA * 3, DATA * 2, DATA):
            self.assertEqual(self.open().send(content), self.good(content))
        stored = {f"{PI}_log.csv": DATA, f"{PI}_log_2.csv": DATA * 2, f"{PI}_log_3.csv": DATA * 3}
        self.assertEqual(files(self.house.folder), stored)

    def test_wrong_checksum_is_500(self):
        for wrong in (checksum(b"other"), checksum(DATA)[:-1], checksum(DATA) + "0", "x", "\xe9" * 64):
            self.assert_wrong_checksum(wrong)

    def assert_wrong_checksum(self, wrong):
        sender = self.open()
        self.assertEqual(sender.send(DATA, checksum=wrong), self.reply("500"), wrong)
        self.assertEqual(files(self.house.folder), {})

    def test_interrupted_transfer_leaves_no_file(self):
        """An interruption at any byte (or any seventh) leaves no file, and the session still accepts the file."""
        sender = self.open(1000)
        more = {"pi_num": "1", "num_files": "900"} if self.second else {"num_files": "900"}
        request = upload_request(sender.letters, DATA, "log.csv", more)
        for at in range(0, len(request), rounds("PIGEONPOST_TEST_CUT_STEP", 7, 1)):
            self.house.raw(request[:at])  # waits until the server has closed the connection too
            self.assertEqual(os.listdir(os.path.join(self.house.folder, "files")), [], at)
        status, _, said = parse_response(self.house.raw(request, ends=False))
        self.assertEqual((status, said.decode()), (200, self.good(DATA)))
        self.assert_stored(DATA)

    def test_reset_transfer_leaves_no_file(self):
        sender = self.open(1000)
        request = upload_request(sender.letters, DATA * 1000, "log.csv", {"pi_num": "1", "num_files": "900"})
        folder = os.path.join(self.house.folder, "files")
        with self.house.connect() as sock:
            sock.sendall(request[:-100])
            wait_until(lambda: os.listdir(folder), "it has begun to arrive")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        wait_until(lambda: not os.listdir(folder), "no part of it is left")
        self.assertEqual(sender.send(DATA), self.good(DATA))
        self.assert_stored(DATA)

    def test_path_in_the_file_name_is_removed(self):
        names = {
            "../../x.csv": "x.csv", "/etc/passwd.txt": "passwd.txt", "C:\\\\temp\\\\x.txt": "x.txt",
            "..\\\\..\\\\y.csv": "y.csv", "....//z.csv": "z.csv", "%2e%2e%2fp.csv": "2e2e2fp.csv",
        }  # fmt: skip
        for name, kept in names.items():
            content = name.encode()
            self.assertEqual(self.open().send(content, name), self.good(content))
            self.assertEqual(files(self.house.folder)[f"{PI}_{kept}"], content)
        self.assertEqual(len(files(self.house.folder)), len(names))
        self.assertEqual(set(os.listdir(self.house.folder)) - {"files"}, self.before)

    def setUp(self):
        super().setUp()
        self.before = set(os.listdir(self.house.folder)) - {"files"}


class FirstDialect(DialectCases, FileDropCase):
    def good(self, content):
        return checksum(content)

    def reply(self, code):
        return ""


class SecondDialect(DialectCases, FileDropCase):
    second = True

    def good(self, content):
        return "200"

    def reply(self, code):
        return code

    def test_missing_pi_number_is_412(self):
        self.assert_not_burnt("412", pi_num=None)
        self.assertEqual(self.open().send(DATA, pi_num=""), "412")


class Registration(FileDropCase):
    def ask(self, content=b"{}", name="c.json", field="sensor_config", **headers):
        kind, body = form(content, name, field)
        usual = {"pi_id": PI, "email": "a@example.org", "checksum": checksum(content), "Content-Type": kind}
        status, said = Sender(self.house.address).ask("POST", "/register/", {**usual, **headers}, body)
        self.assertEqual(status, 200)
        return said

    def test_registration_answers_with_codes(self):
        for code, more in (
            ("401", {"pi_id": UNKNOWN_PI}), ("412", {"pi_id": None}), ("412", {"email": None}), ("412", {"email": ""}),
            ("412", {"email": "a@example.org\x9b2J"}),
            ("412", {"checksum": None}), ("412", {"field": "sensor_data_file"}), ("412", {"content": b""}),
            ("415", {"name": "c.py"}), ("500", {"checksum": checksum(b"other")}),
        ):  # fmt: skip
            with self.subTest(more):
                self.assertEqual(self.ask(**more), code)
        self.assertEqual(files(self.house.folder), {})
        self.assertEqual(ids_on_disk(self.house.folder)[PI]["email"], "")
        self.assertEqual(self.ask(), "200")
        self.assertEqual(ids_on_disk(self.house.folder)[PI]["email"], "a@example.org")

    def test_repeated_registration_changes_the_email(self):
        self.assertEqual((self.ask(), self.ask(email="b@example.org")), ("200", "200"))
        self.assertEqual(ids_on_disk(self.house.folder)[PI], {"node": "attic", "email": "b@example.org"})
        self.assertEqual(len(files(self.house.folder)), 1)


class HostileUploads(FileDropCase):
    """Requests that no original sender makes."""

    def post(self, kind, body, **more):
        sender = self.sender(second=True)
        headers = {"pi_id": PI, "pi_num": "1", "checksum": checksum(DATA), "num_files": "1", "Content-Type": kind}
        status, said = sender.ask("POST", f"/upload/{sender.letters}", {**headers, **more}, body)
        self.assertEqual(files(self.house.folder), {})
        return status, said

    def test_multipart_without_end_is_400(self):
        kind, body = form(DATA, "log.csv")
        for cut in (body[:-4], body[:-20], body[:60], body[:10]):
            self.assertEqual(self.post(kind, cut)[0], 400)

    def test_ten_thousand_parts_are_400(self):
        part = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n"
        self.assertEqual(self.post("multipart/form-data; boundary=x", part * 10_000 + b"--x--")[0], 400)

    def test_two_files_in_one_form_are_400(self):
        kind, body = form(DATA, "log.csv")
        self.assertEqual(self.post(kind, body[: -len("--\r\n")] + b"\r\n" + body)[0], 400)

    def test_missing_boundary_is_400(self):
        self.assertEqual(self.post("multipart/form-data", b"x")[0], 400)

    def test_content_encoding_is_415(self):
        kind, body = form(DATA, "log.csv")
        self.assertEqual(self.post(kind, body, **{"Content-Encoding": "gzip"})[0], 415)

    def test_file_over_the_limit_is_413(self):
        self.house = self.make("[drop]\nlargest = 1000\n")
        kind, body = form(b"x" * 1001, "log.csv")
        self.assertEqual(self.post(kind, body)[0], 413)
        kind, body = form(b"x" * 100_000, "log.csv")
        self.assertEqual(self.post(kind, body)[0], 413)
        content = b"x" * 1000
        self.assertEqual(self.sender().send(content), checksum(content))

    def test_invalid_types_in_the_settings_are_rejected(self):
        for types in ('".sha256"', '"csv"', '".CSV"', '"../x"', '"."', "1"):
            with self.assertRaises(SettingsError):
                self.make(f"[drop]\ntypes = [{types}]\n")

    def test_types_in_the_settings_are_accepted(self):
        self.house = self.make('[drop]\ntypes = [".log"]\n')
        self.assertEqual(self.sender(True).send(DATA, "log.csv"), "415")
        self.assertEqual(self.sender(True).send(DATA, "log.LOG"), "200")

    def test_file_names_are_made_safe(self):
        names = {
            "CON.txt": "CON.txt", "x" * 300 + ".csv": "x" * 100 + ".csv", "my log 1.csv": "my_log_1.csv",
            "Küche ☃.csv": "Kuche_.csv", "-rf.csv": "-rf.csv", ".hidden.csv": "hidden.csv", "a;b&c.csv": "abc.csv",
            "LOG.CSV": "LOG.CSV", "a.tar.csv": "a.tar.csv", "=cmd|x.csv": "cmdx.csv",
        }  # fmt: skip
        for name, kept in names.items():
            content = name.encode()
            self.assertEqual(self.sender(True).send(content, name), "200", name)
            self.assertEqual(files(self.house.folder)[f"{PI}_{kept}"], content)
        self.assertEqual(self.sender(True).send(DATA, "数据.csv"), "200")
        self.assertEqual(files(self.house.folder)[f"{PI}_file-{checksum(DATA)[:16]}.csv"], DATA)

    def test_nul_in_the_file_name_is_400(self):
        kind, body = form(DATA, "log\0.csv")
        self.assertEqual(self.post(kind, body)[0], 400)

    def test_files_with_the_same_stem_share_a_checksum_file(self):
        self.assertEqual(self.sender(True).send(DATA, "log.csv"), "200")
        self.assertEqual(self.sender(True).send(b"{}", "log.json"), "200")
        self.assert_stored(DATA, b"{}")

    def test_deleted_file_is_accepted_again(self):
        for gone in (f"{PI}_log.csv", f"{PI}_log.sha256"):
            self.assertEqual(self.sender(True).send(DATA), "200")
            os.unlink(os.path.join(self.house.folder, "files", gone))
        self.assertEqual(self.sender(True).send(DATA), "200")
        self.assert_stored(DATA)


class DiskErrors(FileDropCase):
    def setUp(self):
        super().setUp()
        self.enterContext(self.assertLogs("pigeonpost.compat.file_drop.server", "INFO"))

    def test_full_disk_is_500_and_leaves_no_file(self):
        """A full disk, simulated by a limit on the length of files: the upload fails, and a later upload succeeds."""
        content = b"x" * 2_000_000
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        for second, reply in ((False, ""), (True, "500")):
            sender = self.sender(second)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
            try:
                self.assertEqual(sender.send(content), reply)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            self.assertEqual(files(self.house.folder), {})
        self.assertEqual(sender.send(content), "200")

    def test_upload_is_refused_without_spare_disk_space(self):
        with mock.patch.object(storage.FileStore, "has_room", lambda self, length: length < 1000):
            self.assertEqual(self.sender(True).send(b"x" * 2000), "500")
            self.assertEqual(files(self.house.folder), {})
            self.assertEqual(self.sender(True).send(DATA), "200")

    def test_upload_is_aborted_when_the_disk_fills_up(self):
        """Other programs fill the disk during an upload: the upload is aborted, so that space remains for samples."""
        asked = []

        def has_room(self, length):
            asked.append(length)
            return len(asked) < 3

        with mock.patch.object(storage.FileStore, "has_room", has_room):
            self.assertEqual(self.sender(True).send(b"x" * 20_000_000), "500")
        self.assertEqual(files(self.house.folder), {})
        self.assertEqual(asked[1:], [0, 0])

    def test_any_failing_system_call_leaves_no_file(self):
        """If any system call for storing a file fails, the response is an error, and no file is left."""
        for name in ("fsync", "rename", "open", "write"):
            real, calls = getattr(os, name), [0]
            for fails_at in range(20):
                calls[0] = 0

                def sick(*args, name=name, real=real, calls=calls, fails_at=fails_at, **more):
                    if name in ("open", "rename") and "files" not in str(args[0]):
                        return real(*args, **more)
                    calls[0] += 1
                    if calls[0] == fails_at + 1:
                        raise OSError(5, "Input/output error")
                    return real(*args, **more)

                sender = self.sender(True)
                with mock.patch.object(os, name, sick):
                    said = sender.send(DATA + name.encode(), f"log-{name}.csv")
                if calls[0] <= fails_at:
                    self.assertEqual(said, "200")
                    break
                self.assertEqual(said, "500", (name, fails_at))
                self.assertNotIn(f"{PI}_log-{name}.csv", files(self.house.folder))
            self.assertGreater(fails_at, 0, name)

    def test_start_deletes_temporary_files_and_restores_checksums(self):
        folder = os.path.join(self.house.folder, "files")
        self.assertEqual(self.sender(True).send(DATA), "200")
        for name in (".coming-0123", f"{PI}_log.sha256.new"):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(b"half")
        os.unlink(os.path.join(folder, f"{PI}_log.sha256"))  # as if the crash had occurred before it was written
        storage.FileStore(self.house.folder).start()
        self.assert_stored(DATA)


class UploadSessionLimits(unittest.TestCase):
    def test_sessions_expire_without_uploads(self):
        clock = FakeClock()
        sessions = server.UploadSessions(clock)
        first = sessions.begin(PI, server._first_dialect)
        clock.sleep(server.SESSION_S - 1)
        sessions.touch(first)
        second = sessions.begin(PI, server._first_dialect)
        clock.sleep(server.SESSION_S - 1)
        self.assertTrue(sessions.find(first) and sessions.find(second))
        clock.sleep(1)
        self.assertIsNone(sessions.find(first))
        self.assertEqual(len(sessions), 0)

    def test_number_of_sessions_per_pi_is_limited(self):
        sessions = server.UploadSessions(FakeClock())
        other = sessions.begin(OTHER_PI, server._first_dialect)
        names = [sessions.begin(PI, server._first_dialect) for _ in range(server.MOST_SESSIONS + 10)]
        self.assertEqual(len(sessions), server.MOST_SESSIONS + 1)
        self.assertIsNone(sessions.find(names[9]))
        self.assertTrue(sessions.find(names[10]) and sessions.find(other))
        self.assertEqual(len({*names}), len(names))
        self.assertTrue(all(re.fullmatch("[A-Za-z]{20}", name) for name in names))


class SimultaneousUploads(FileDropCase):
    def run_all(self, jobs):
        failed = []

        def run(job):
            try:
                job()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        self.assertEqual(failed, [])

    def test_fifty_simultaneous_senders_are_served(self):
        ids = [f"{number:016x}" for number in range(50)]
        accept(self.house.folder, *ids)
        together = threading.Barrier(50)

        def send(pi_id):
            sender = Sender(self.house.address, pi_id, second=pi_id[-1] in "02468ace")
            together.wait(LIMIT_S)
            sender.open(2)
            for count, content in ((2, pi_id.encode() * 5000), (1, pi_id.encode())):
                said = sender.send(content, f"log{count}.csv", count)
                self.assertEqual(said, "200" if sender.second else checksum(content))

        self.run_all([lambda pi_id=pi_id: send(pi_id) for pi_id in ids])
        stored = files(self.house.folder)
        self.assertEqual(len(stored), 100)
        for pi_id in ids:
            self.assertEqual(stored[f"{pi_id}_log2.csv"], pi_id.encode() * 5000)

    def test_same_file_by_twenty_senders_is_stored_once(self):
        together = threading.Barrier(20)
        content = os.urandom(100_000)

        def send():
            sender = Sender(self.house.address, PI, True)
            sender.open()
            together.wait(LIMIT_S)
            self.assertEqual(sender.send(content), "200")

        self.run_all([send] * 20)
        self.assertEqual(files(self.house.folder), {f"{PI}_log.csv": content})

    def test_twenty_contents_with_one_name_are_all_stored(self):
        together = threading.Barrier(20)

        def send(number):
            sender = Sender(self.house.address, PI, True)
            sender.open()
            together.wait(LIMIT_S)
            self.assertEqual(sender.send(b"%d" % number), "200")

        self.run_all([lambda number=number: send(number) for number in range(20)])
        self.assertEqual(sorted(files(self.house.folder).values()), sorted(b"%d" % number for number in range(20)))

    def test_stalled_transfer_does_not_block_others(self):
        self.house = self.make(limits=Limits(at_work=1))
        sender = self.sender(count=3)
        request = upload_request(sender.letters, DATA, "slow.csv", {})
        with self.house.connect() as slow, self.house.connect() as other:
            slow.sendall(request[:-30])
            other.sendall(request[:-40])
            self.assertEqual(self.sender(True).send(DATA), "200")
            slow.sendall(request[-30:])
            slow.settimeout(LIMIT_S)
            self.assertIn(checksum(DATA).encode(), slow.recv(4096))
            other.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    unittest.main()
