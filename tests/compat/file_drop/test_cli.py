"""Tests of `send-files` and `file-id`, with Pigeonpost's server and with an original server."""

import contextlib
import hashlib
import http.server
import io
import os
import pty
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import unittest
from unittest import mock

import control
from pigeonpost.compat.file_drop import server as file_drop_server
from pigeonpost.compat.file_drop.cli import find_pi_id
from pigeonpost.compat.file_drop.storage import PiIds
from tests.compat.file_drop.support import OTHER_PI, PI, UNKNOWN_PI, accept, files
from tests.forked import Forked
from tests.page_support import use_memory_disk
from tests.support import ROOT, clean_environment, temp_folder
from tests.web.support import WebHouse


def setUpModule():
    use_memory_disk()


class OldServer(http.server.BaseHTTPRequestHandler):
    """Server of the first version: no second dialect, no HTTP/1.1, and one upload name per session."""

    protocol_version = "HTTP/1.0"
    letters = "abcdefghijABCDEFGHIJ"

    def do_GET(self):
        if self.path != "/":
            self.send_error(404)
            return
        self.answer(self.letters if self.headers["pi_id"] == PI and int(self.headers["num_files"]) else "")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        boundary = self.headers.get_param("boundary").encode()
        head, _, rest = body.partition(b"\r\n\r\n")
        content = rest.removesuffix(b"\r\n--" + boundary + b"--\r\n")
        name = re.search(rb'name="sensor_data_file"; filename="([^"]*)"', head)[1].decode()
        right = hashlib.sha256(content).hexdigest() == self.headers["checksum"] and name not in self.server.refused
        if right and self.path == f"/upload/{self.letters}":
            self.server.stored.append((self.headers["num_files"], name, content))
        self.answer(self.headers["checksum"] if right else "")

    def answer(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


class CommandCase(unittest.TestCase):
    def setUp(self):
        self.home = temp_folder(self)
        self.folder = os.path.join(self.home, "readings")
        os.mkdir(self.folder)
        self.enterContext(mock.patch.dict(os.environ, clean_environment(), clear=True))

    def put(self, **contents):
        for name, content in contents.items():
            with open(os.path.join(self.folder, name.replace("__", ".")), "wb") as file:
                file.write(content)

    def run_command(self, *words, data=None):
        """Run a command, and return (exit status, standard output, standard error)."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = control.main(["--data", data or os.path.join(self.home, "data"), *words])
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()

    def send(self, address, *words, pi_id=PI):
        place = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else address
        return self.run_command("send-files", place, self.folder, "--pi-id", pi_id, *words)

    def sent(self):
        """Return the paths of the files in sent_files, relative to it."""
        top = os.path.join(self.home, "sent_files")
        found = []
        for folder, _, names in os.walk(top):
            found += [os.path.relpath(os.path.join(folder, name), top) for name in names]
        return sorted(found)

    def left(self):
        return sorted(os.listdir(self.folder))


class SendingToPigeonpost(CommandCase):
    def setUp(self):
        super().setUp()
        self.house = WebHouse(self, transports=[file_drop_server.make_transport])
        accept(self.house.folder, PI)

    def test_files_are_sent_and_moved(self):
        self.put(a__csv=b"1" * 700_000, b__json=b"{}", c__txt=b"c")
        self.assertEqual(self.send(self.house.address), (0, "", ""))
        self.assertEqual(self.left(), [])
        self.assertEqual([os.path.basename(path) for path in self.sent()], ["a.csv", "b.json", "c.txt"])
        self.assertRegex(self.sent()[0], r"\A20\d\d-[01]\d/a\.csv\Z")
        stored = {f"{PI}_a.csv": b"1" * 700_000, f"{PI}_b.json": b"{}", f"{PI}_c.txt": b"c"}
        self.assertEqual(files(self.house.folder), stored)

    def test_empty_folder_is_success(self):
        os.mkdir(os.path.join(self.folder, "sub"))
        self.put(__hidden=b"x")
        self.assertEqual(self.send("127.0.0.1:1"), (0, "", ""))

    def test_refused_file_stays_and_the_others_are_sent(self):
        self.put(a__csv=b"1", b__exe=b"2", c__csv=b"", d__csv=b"4")
        said = "b.exe could not be sent\nc.csv could not be sent\n"
        self.assertEqual(self.send(self.house.address), (1, "", said))
        self.assertEqual(self.left(), ["b.exe", "c.csv"])
        self.put(c__csv=b"3")
        self.assertEqual(self.send(self.house.address), (1, "", "b.exe could not be sent\n"))
        self.assertEqual(sorted(files(self.house.folder)), [f"{PI}_{name}.csv" for name in "acd"])

    def test_ended_session_is_opened_again(self):
        self.put(a__csv=b"1", b__csv=b"2")
        sessions = self.house_sessions()
        real = sessions.touch
        sessions.touch = lambda letters: sessions.end(letters)  # as if the server was restarted after the first file
        self.addCleanup(setattr, sessions, "touch", real)
        self.assertEqual(self.send(self.house.address), (0, "", ""))
        self.assertEqual(len(files(self.house.folder)), 2)

    def house_sessions(self):
        end = next(endpoint.answer.__self__ for _, endpoint in self.house.web.routes.endpoints if endpoint.path == "/")
        return end._sessions

    def test_moved_file_does_not_overwrite_another(self):
        for content in (b"1", b"2"):
            self.put(a__csv=content)
            self.assertEqual(self.send(self.house.address)[0], 0)
        self.assertEqual([os.path.basename(path) for path in self.sent()], ["a.csv", "a_2.csv"])
        self.assertEqual(sorted(files(self.house.folder)), [f"{PI}_a.csv", f"{PI}_a_2.csv"])

    def test_unusual_file_names_are_sent(self):
        for name in ('quote".csv', "line\nbreak.csv", "Küche.csv", "semi;colon.csv", "back\\slash.csv"):
            with open(os.path.join(self.folder, name), "wb") as file:
                file.write(name.encode())
        self.assertEqual(self.send(self.house.address), (0, "", ""))
        self.assertEqual(len(files(self.house.folder)), 5)

    def test_unknown_id_is_authentication_failure(self):
        self.put(a__csv=b"1")
        with self.assertLogs("pigeonpost.compat.file_drop.server", "WARNING"):
            self.assertEqual(self.send(self.house.address, pi_id=UNKNOWN_PI), (1, "", "Authentication failed\n"))
        self.assertEqual(self.left(), ["a.csv"])

    def test_progress_bar_is_shown_on_a_terminal_only(self):
        self.put(a__csv=b"1" * 3_000_000)
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        place = "%s:%d" % self.house.address
        command = [sys.executable, os.path.join(ROOT, "control.py"), "send-files", place, self.folder, "--pi-id", PI]
        with open(slave, "wb") as terminal:
            process = subprocess.Popen(command, stdout=terminal, stderr=terminal, cwd=self.home)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side has closed
            while part := os.read(master, 4096):
                shown += part
        self.assertEqual(process.wait(60), 0, shown)
        self.assertIn(b"100 %", shown)
        self.assertIn(b"[##############################]", shown)


class SendingToOtherServers(CommandCase):
    def serve(self, tls=None):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OldServer)
        server.handle_error = lambda *_: (
            None
        )  # the message about a closed connection would appear in the output of the sender
        server.stored, server.refused = [], []
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server

    def test_files_are_sent_to_a_server_of_the_first_version(self):
        server = self.serve()
        server.refused.append("b.csv")
        self.put(a__csv=b"1\r\n--2\r\n", b__csv=b"2", c__csv=b"3")
        self.assertEqual(self.send(server.server_address), (1, "", "b.csv could not be sent\n"))
        self.assertEqual(server.stored, [("3", "a.csv", b"1\r\n--2\r\n"), ("1", "c.csv", b"3")])
        self.assertEqual(self.left(), ["b.csv"])
        self.assertEqual(
            self.send(server.server_address, pi_id=UNKNOWN_PI), (1, "", "Authentication failed\n")
        )  # fmt: skip

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate (apt install openssl)")
    def test_https_accepts_the_pinned_certificate_only(self):
        pem = os.path.join(self.home, "server.pem")
        command = (
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {pem} -out {pem}.crt"
            " -days 2 -subj /CN=server"
        )
        subprocess.run(command.split(), check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{pem}.crt", pem)
        server = self.serve(context)
        with open(f"{pem}.crt", encoding="ascii") as file:
            der = ssl.PEM_cert_to_DER_cert(file.read())
        right = hashlib.sha256(der).hexdigest()
        self.put(a__csv=b"1")
        status, _, said = self.send(server.server_address, "--https", "0" * 64)
        self.assertEqual((status, said.count(right), said[:21]), (1, 1, "Authentication failed"))
        self.assertEqual(server.stored, [])
        colons = ":".join(right[at : at + 2] for at in range(0, 64, 2)).upper()
        self.assertEqual(self.send(server.server_address, "--https", colons), (0, "", ""))
        self.assertEqual(server.stored, [("1", "a.csv", b"1")])
        self.assertEqual(self.send(server.server_address, "--https", "12")[0], 2)

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate (apt install openssl)")
    def test_https_to_a_pigeonpost_server(self):
        data = os.path.join(self.home, "data")
        _, right, _ = self.run_command("certificate")
        right = re.search(r"[0-9a-f]{64}", right.replace(":", "").lower())[0]
        self.run_command("file-id", PI)
        server = Forked(
            self, "server.py", "--web", "127.0.0.1:0", "--data", data,
            PIGEONPOST_WEB_CERTIFICATE=os.path.join(data, "certificate.pem"),
            PIGEONPOST_WEB_KEY=os.path.join(data, "certificate.key"),
        )  # fmt: skip
        port = re.search(r":([0-9]+)/", server.line())[1]
        self.put(a__csv=b"1")
        self.assertEqual(self.send(f"127.0.0.1:{port}", "--https", right), (0, "", ""))
        self.assertEqual(files(data), {f"{PI}_a.csv": b"1"})
        self.assertEqual(self.send(f"127.0.0.1:{port}")[0], 0)  # nothing is left to send
        self.put(b__csv=b"2")
        self.assertEqual(self.send(f"127.0.0.1:{port}")[::2], (1, f"http://127.0.0.1:{port} could not be reached\n"))

    def test_unreachable_server_is_reported(self):
        self.put(a__csv=b"1")
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # does not listen, but reserves the port
            port = silent.getsockname()[1]
            said = f"http://127.0.0.1:{port} could not be reached\n"
            self.assertEqual(self.send(("127.0.0.1", port)), (1, "", said))
        with mock.patch("socket.getaddrinfo", side_effect=OSError):
            self.assertEqual(self.send("server")[2], "http://server:3500 could not be reached\n")
        self.assertEqual(self.left(), ["a.csv"])

    def test_server_that_closes_during_an_upload_is_reported(self):
        self.put(a__csv=b"1", b__csv=b"2")
        with mock.patch.object(OldServer, "do_POST", lambda self: None):
            said = "a.csv could not be sent\nb.csv could not be sent\n"
            self.assertEqual(self.send(self.serve().server_address), (1, "", said))
        self.assertEqual(self.left(), ["a.csv", "b.csv"])

    def test_server_of_another_kind_is_authentication_failure(self):
        self.put(a__csv=b"1")
        page = "<html>a router's page that is longer than twenty letters</html>"
        with mock.patch.object(OldServer, "do_GET", lambda self: self.answer(page)):
            self.assertEqual(self.send(self.serve().server_address), (1, "", "Authentication failed\n"))


class CommandErrors(CommandCase):
    def test_missing_arguments_are_exit_status_2(self):
        for words in ((), ("server",)):
            self.assertEqual(self.run_command("send-files", *words), (2, "", "Missing arguments\n"))

    def test_missing_folder_is_exit_status_2(self):
        place = os.path.join(self.home, "nowhere")
        said = f"{place} not a valid directory\n"
        self.assertEqual(self.run_command("send-files", "server", place, "--pi-id", PI), (2, "", said))

    def test_missing_id_is_exit_status_2(self):
        for words in ((), ("--pi-id", "12")):
            with mock.patch(
                "pigeonpost.compat.file_drop.cli.find_pi_id", lambda given, data: find_pi_id(given, data, "/nowhere")
            ):
                said = self.run_command("send-files", "server", self.folder, *words)
            self.assertEqual(said, (2, "", "PI id not found\n"))

    def test_unreadable_folder_is_exit_status_1(self):
        with mock.patch("os.scandir", side_effect=PermissionError):
            said = self.run_command("send-files", "server", self.folder, "--pi-id", PI)
        self.assertEqual(said, (1, "", "Error finding files and folders\n"))

    def test_invalid_port_is_exit_status_2(self):
        status, _, said = self.run_command("send-files", "server:x", self.folder, "--pi-id", PI)
        self.assertEqual(status, 2)
        self.assertIn("HOST", said)

    def test_host_with_a_space_is_wrong_usage(self):
        status, _, said = self.run_command("send-files", "my server", self.folder, "--pi-id", PI)
        self.assertEqual(status, 2)
        self.assertIn("HOST takes a host name without spaces and control characters, not 'my server'", said)

    def test_sources_of_the_pi_id_have_an_order(self):
        cpuinfo = os.path.join(self.home, "cpuinfo")
        with open(cpuinfo, "w", encoding="ascii") as file:
            file.write(f"processor\t: 0\nHardware\t: BCM2835\nSerial\t\t: {PI}\nModel\t\t: Raspberry Pi\n")
        self.assertEqual(find_pi_id(None, self.home, cpuinfo), PI)
        with open(os.path.join(self.home, "pi_id"), "w", encoding="ascii") as file:
            file.write(f"{OTHER_PI.upper()}\n")
        self.assertEqual(find_pi_id(None, self.home, cpuinfo), OTHER_PI)
        with mock.patch.dict(os.environ, PIGEONPOST_PI_ID=UNKNOWN_PI):
            self.assertEqual(find_pi_id(None, self.home, cpuinfo), UNKNOWN_PI)
            self.assertEqual(find_pi_id(PI, self.home, cpuinfo), PI)
        self.assertEqual(find_pi_id("nonsense", self.home, cpuinfo), "")


class FileIdCommand(CommandCase):
    def test_accept_list_and_remove(self):
        self.assertEqual(self.run_command("file-id"), (0, "", ""))
        self.assertEqual(self.run_command("file-id", PI.upper(), "attic"), (0, "", ""))
        self.assertEqual(self.run_command("file-id", OTHER_PI), (0, "", ""))
        self.assertEqual(self.run_command("file-id", PI), (0, "", ""))  # and keeps its node
        self.assertEqual(self.run_command("file-id"), (0, f"{PI} attic\n{OTHER_PI} {OTHER_PI}\n", ""))
        self.assertEqual(self.run_command("file-id", PI, "--remove")[0], 0)
        self.assertEqual(self.run_command("file-id", PI, "--remove")[0], 1)
        self.assertEqual(self.run_command("file-id")[1], f"{OTHER_PI} {OTHER_PI}\n")
        mode = os.stat(os.path.join(self.home, "data", "pi_ids.json")).st_mode
        self.assertEqual(mode & 0o777, 0o600)

    def test_invalid_id_is_exit_status_2(self):
        status, _, said = self.run_command("file-id", "12")
        self.assertEqual(status, 2)
        self.assertIn("16 hex digits", said)

    def test_old_id_list_is_imported(self):
        path = os.path.join(self.home, "ids.txt")
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{PI}\r\n\n# the shed\n{OTHER_PI.upper()} shed\n{PI}\n")
        said = "2 Pi ids accepted, 2 of them new\n"
        self.assertEqual(self.run_command("file-id", "--import", path), (0, said, ""))
        self.assertEqual(self.run_command("file-id")[1], f"{PI} {PI}\n{OTHER_PI} shed\n")

    def test_old_id_list_with_an_error_is_not_imported(self):
        path = os.path.join(self.home, "ids.txt")
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{PI}\n12\n{OTHER_PI} no/name\n")
        status, _, said = self.run_command("file-id", "--import", path)
        self.assertEqual(status, 1)
        self.assertIn("line 2 ", said)
        self.assertIn("line 3 ", said)
        self.assertEqual(self.run_command("file-id")[1], "")
        self.assertEqual(self.run_command("file-id", "--import", "/nowhere/ids.txt")[0], 1)

    def test_a_running_server_sees_the_change(self):
        data = os.path.join(self.home, "data")
        ids = PiIds(data)
        self.assertIsNone(ids.find(PI))
        self.run_command("file-id", PI, "attic")
        self.assertEqual(ids.find(PI).node, "attic")


if __name__ == "__main__":
    unittest.main()
