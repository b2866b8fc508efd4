"""Tests of the pages of uploaded files: list, download, import and access control."""

import os
import re
import unittest

from pigeonpost.compat.file_drop import server
from protocol import IMPORTED
from tests.compat.file_drop.support import OTHER_PI, PI, Sender, accept, checksum
from tests.page_support import use_memory_disk
from tests.web.support import WebHouse

CSV = "time,temperature (°C),humidity\n2026-11-20 15:36:10Z,21.5,40\n2026-11-20 15:36:20Z,21.75,41\n".encode()
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def setUpModule():
    use_memory_disk()


class FilesPageCase(unittest.TestCase):
    def setUp(self):
        self.house = WebHouse(self, password="correct horse", transports=[server.make_transport])
        accept(self.house.folder, PI, OTHER_PI)
        self.session = self.house.log_in()

    def drop(self, content, name="log.csv", pi_id=PI):
        sender = Sender(self.house.address, pi_id, second=True)
        sender.open()
        self.assertEqual(sender.send(content, name), "200")
        return f"{pi_id}_{name}"

    def get(self, path, html=True):
        status, headers, body = self.house.request("GET", path, self.session, html=html)
        return status, headers, body.decode()

    def bring_in(self, name, html=True):
        """Press the button, and return the page that follows."""
        csrf = self.house.csrf(self.session)
        body = f"csrf={csrf}".encode()
        status, headers, said = self.house.request(
            "POST", f"/files/{name}/import", {**self.session, **FORM}, body, html=html
        )
        return (status, headers, said.decode()) if status != 303 else self.get(headers["location"], html)

    def stored(self, node="attic"):
        return [point.values for point in self.house.store.points(node, 0, 1 << 52, 1000)]


class FileListPage(FilesPageCase):
    def test_empty_list_shows_a_hint(self):
        self.assertIn("No Pi has sent a file yet.", self.get("/files")[2])
        self.assertIn("No Pi has sent a file yet.", self.get("/files", html=False)[2])

    def test_list_shows_size_sender_and_checksum(self):
        name, other = self.drop(CSV), self.drop(b"{}", "x.json", OTHER_PI)
        page = self.get("/files")[2]
        for text in (name, other, "attic", checksum(CSV), f"/files/{name}/import", "2 files uploaded by Pis"):
            self.assertIn(text, page)
        text = self.get("/files", html=False)[2]
        when = r"(\d+ \w+ )?\d\d:\d\d"  # includes the date if midnight has passed
        self.assertRegex(text, rf"(?m)^{when}  {name}  {len(CSV)} bytes  from attic  {checksum(CSV)}$")
        self.assertEqual(self.get("/files", html=False)[1]["content-type"], "text/plain; charset=utf-8")

    def test_navigation_links_to_the_files(self):
        self.assertIn('href="/files"', self.get("/")[2])

    def test_files_without_a_valid_name_are_not_shown(self):
        folder = os.path.join(self.house.folder, "files")
        for name in (".coming-12", "other.csv", f"{PI}_x.sha256", f"{PI}_<b>.csv"):
            with open(os.path.join(folder, name), "w", encoding="ascii") as file:
                file.write("x")
        os.mkdir(os.path.join(folder, f"{PI}_folder.csv"))
        os.symlink("/etc/passwd", os.path.join(folder, f"{PI}_link.csv"))
        os.mkfifo(os.path.join(folder, f"{PI}_pipe.csv"))
        self.assertIn("No Pi has sent a file yet.", self.get("/files")[2])
        for name in ("other.csv", f"{PI}_x.sha256", f"{PI}_folder.csv", f"{PI}_link.csv", f"{PI}_pipe.csv"):
            self.assertEqual(self.get(f"/files/{name}")[0], 404, name)

    def test_damaged_id_list_is_reported(self):
        self.drop(CSV)
        with open(os.path.join(self.house.folder, "pi_ids.json"), "w", encoding="ascii") as file:
            file.write("[1]")
        status, _, said = self.get("/files", html=False)
        self.assertEqual(status, 503)
        self.assertIn("pi_ids.json is damaged", said)
        self.drop(CSV, "second.csv")  # the ids that the server has already read are still valid
        self.assertIn("pi_ids.json", self.house.app.faults.present())


class FileDownload(FilesPageCase):
    def test_download_returns_the_uploaded_bytes(self):
        for content, name, kind in (
            (CSV, "log.csv", "text/csv; charset=utf-8"),
            (b"\0\xff" * 100_000, "log.txt", "text/plain; charset=utf-8"),
            (b"{}", "log.json", "application/json"),
        ):
            stored = self.drop(content, name)
            status, headers, body = self.house.request("GET", f"/files/{stored}", self.session)
            self.assertEqual((status, body, headers["content-type"]), (200, content, kind))
            self.assertEqual(headers["content-disposition"], f'attachment; filename="{stored}"')

    def test_download_accepts_names_in_the_list_only(self):
        self.drop(CSV)
        for path in (
            "/files/", "/files/..", "/files/../pi_ids.json", "/files/%2e%2e/pi_ids.json", "/files/pi_ids.json",
            f"/files/{PI}_none.csv", f"/files/{PI}_..", f"/files/{PI}_log.sha256", "/files/" + "x" * 300,
            f"/files/{PI}_log.csv%00", f"/files//{PI}_log.csv", f"/files/x/../{PI}_log.csv",
        ):  # fmt: skip
            self.assertEqual(self.get(path)[0], 404, path)

    def test_files_need_a_login(self):
        name = self.drop(CSV)
        for path in ("/files", f"/files/{name}"):
            self.assertEqual(self.house.request("GET", path)[0], 303, path)
        self.assertEqual(self.house.request("POST", f"/files/{name}/import", FORM, b"csrf=x")[0], 303)
        self.assertEqual(self.stored(), [])


class FileImport(FilesPageCase):
    def test_import_stores_each_reading_once(self):
        name = self.drop(CSV)
        self.assertIn("2 readings stored, all new", self.bring_in(name)[2])
        want = [{"temperature": 21.5, "humidity": 40}, {"temperature": 21.75, "humidity": 41}]
        self.assertEqual(self.stored(), want)
        self.assertIn("2 readings stored, none new", self.bring_in(name)[2])
        self.assertEqual(self.stored(), want)
        page = self.get("/files")[2]
        self.assertIn("2 stored", page)
        self.assertNotIn("/import", page)
        self.assertIn("2 readings stored", self.get("/files", html=False)[2])
        self.assertIn("2 readings stored, none new", self.bring_in(name, html=False)[2])
        marks = self.house.ingestor.marks("attic", IMPORTED, [checksum(CSV)[:16]])[1]
        self.assertEqual(marks[checksum(CSV)[:16]].seq, 2)

    def test_json_file_is_imported(self):
        name = self.drop(b'{"readings": [{"time": 1795188970, "a": 1}]}', "x.json", OTHER_PI)
        self.assertIn("1 reading stored", self.bring_in(name)[2])
        self.assertEqual(self.stored(OTHER_PI), [{"a": 1}])

    def test_pigeonpost_log_is_imported_under_the_name_of_the_pi(self):
        name = self.drop(b"time,node,sensor,value,unit\n2026-11-20T15:36:10Z,raspberrypi,t,1.5,V\n")
        self.bring_in(name)
        self.assertEqual(self.stored(), [{"t": 1.5}])

    def test_import_keeps_units_that_the_file_does_not_contain(self):
        self.house.store_samples("attic", [{"humidity": 1}], {"humidity": "%"})
        self.bring_in(self.drop(CSV))
        about = next(about for about in self.house.store.nodes() if about["name"] == "attic")
        self.assertEqual(about["sensors"], {"humidity": "%", "temperature": "°C"})

    def test_bad_rows_are_named_and_nothing_is_stored(self):
        name = self.drop(CSV + b"2026-11-20 15:36:30Z,<b>,1\nx,1,1\n")
        for html in (True, False):
            status, _, said = self.bring_in(name, html)
            self.assertEqual(status, 422)
            for text in ("line 4: temperature must be a number", "line 5: ", "was not imported"):
                self.assertIn(text, said)
            self.assertNotIn("<b>,", said)
        self.assertNotIn("<b>&#39;", self.bring_in(name)[2])
        self.assertEqual(self.stored(), [])

    def test_file_of_several_nodes_is_rejected(self):
        name = self.drop(b"time,node,sensor,value,unit\n1795188970,a,t,1,\n1795188970,b,t,1,\n")
        status, _, said = self.bring_in(name)
        self.assertEqual(status, 422)
        self.assertIn("several nodes (a, b)", said)

    def test_import_needs_the_csrf_token(self):
        name = self.drop(CSV)
        status, _, _ = self.house.request("POST", f"/files/{name}/import", {**self.session, **FORM}, b"csrf=x")
        self.assertEqual(status, 403)
        self.assertEqual(self.house.request("GET", f"/files/{name}/import", self.session)[0], 405)
        self.assertEqual(self.stored(), [])

    def test_viewer_cannot_import(self):
        name = self.drop(CSV)
        self.house.users.set_password("guest", "long enough", role="viewer")
        guest = self.house.log_in("guest", "long enough")
        status, _, page = self.house.request("GET", "/files", guest, html=True)
        self.assertEqual((status, b"/import" in page, name.encode() in page), (200, False, True))
        csrf = re.search(rb'name="csrf" value="([^"]*)"', self.house.request("GET", "/", guest, html=True)[2])
        body = b"csrf=" + (csrf[1] if csrf else b"")
        self.assertEqual(self.house.request("POST", f"/files/{name}/import", {**guest, **FORM}, body)[0], 403)
        self.assertEqual(self.stored(), [])

    def test_import_of_a_missing_file_is_404(self):
        self.assertEqual(self.bring_in(f"{PI}_none.csv")[0], 404)

    def test_invalid_import_result_in_the_address_is_ignored(self):
        page = self.get("/files?file=%3Cb%3E&all=5&new=x")[2]
        self.assertNotIn("stored", page)
        self.assertNotIn("<b>", self.get("/files?file=%3Cb%3E&all=5&new=5")[2])


if __name__ == "__main__":
    unittest.main()
