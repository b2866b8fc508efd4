"""control.py doctor on a server: passwords, proxies and names of the page, tokens of programs, backups."""

import argparse
import json
import os
import threading
import time

from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.auth.users import Users
from pigeonpost.cli import doctor_backup, doctor_server, doctor_web
from pigeonpost.cli.doctor_checks import Finding
from pigeonpost.cli.doctor_service import Service
from pigeonpost.core.data_folder import LAST_BACKUP
from pigeonpost.settings import SERVER, SERVER_ARRAYS, load_server
from pigeonpost.storage.models import FormerName, NodeRecords
from pigeonpost.storage.registry import open_store
from tests.cli.test_doctor import Case
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, temp_folder

RUNNING_PROXIES = doctor_web.running_proxies


def setUpModule():
    use_memory_disk()


class Page(Case):
    def page(self, text, users=None, service=None):
        text = f'[web]\nlisten = ["0.0.0.0:8080"]\n{text}'
        return list(doctor_web.page(self.server_settings(text), {} if users is None else users, service))

    def server_settings(self, text):
        return self.settings(SERVER, text, SERVER_ARRAYS)

    def test_password_of_a_page_that_others_reach(self):
        found = self.find(self.page(""), "no password is set: everybody in the network")
        self.assertEqual(found.word, "note")
        self.assertRegex(found.remedy, "control.py password$")
        self.assert_wrong(
            self.page('names = ["sensors.example.org"]'), "no password is set, and .web. names", "password"
        )
        self.assertFalse([one for one in self.page("", {"admin": "operator"}) if "password" in one.about])
        closed = list(doctor_web.page(self.server_settings('[web]\nlisten = ["127.0.0.1:8080"]\n'), {}, None))
        self.assertEqual(closed, [])

    def test_password_of_a_service_is_set_in_its_folder(self):
        service = Service("server", ["/etc/systemd/system/pigeonpost-server.service"], {}, self.folder)
        found = self.find(self.page("", service=service), "no password")
        self.assertIn(f"--data {self.folder}/var/lib/pigeonpost-server password", found.remedy)

    def test_proxies_that_are_everybody(self):
        for network in ("0.0.0.0/0", "::/0"):
            self.assert_wrong(self.page(f'proxies = ["{network}"]'), "everybody is believed", "the proxy's own address")

    def test_names_with_more_than_a_name_are_read_anyway(self):
        found = self.find(self.page('names = ["https://a.example.org:443/"]'), "is read as a.example.org")
        self.assertEqual((found.word, found.remedy), ("note", 'names = ["a.example.org"]'))

    def test_proxy_on_this_machine(self):
        self.patch(doctor_web, "running_proxies", lambda folder="/proc": ["nginx"])
        found = self.find(self.page(""), "nginx runs here; if it is to show the page")
        self.assertRegex(found.remedy, r"\[web\] names = \[")
        found = self.find(self.page('names = ["a.example.org"]', {"admin": "operator"}), "the page is open beside it")
        self.assertIn('[web] listen = ["127.0.0.1:8080"]', found.remedy)

    def test_container_whose_name_is_its_id(self):
        self.patch(doctor_web, "is_named_by_id", lambda: True)
        self.assertIn("PIGEONPOST_WEB_NAMES", self.find(self.page(""), "known by addresses only").remedy)


class Proxies(Case):
    def test_programs_that_run_are_found_by_their_names(self):
        for number, name in ((1, "systemd"), (77, "nginx"), (78, "nginx")):
            self.put(f"proc/{number}/comm", f"{name}\n")
        self.assertEqual(RUNNING_PROXIES(os.path.join(self.folder, "proc")), ["nginx"])


class ApiTokenFiles(Case):
    def test_tokens_of_programs_that_others_may_read(self):
        ApiTokens(self.folder).make("grafana")
        self.assert_ok(self.server(), "the tokens of programs, is for")
        os.chmod(os.path.join(self.folder, "api_tokens.json"), 0o644)
        self.assert_wrong(self.server(), "the tokens of programs, may be read by others", "chmod 600")

    def test_damaged_ones(self):
        ApiTokens(self.folder).make("grafana")
        self.put("api_tokens.json", "[", 0o600)
        self.assert_wrong(self.server(), "api_tokens.json is damaged", "restore|bak")

    def test_damaged_users_are_no_missing_password(self):
        Users(self.folder).set_password("admin", "correct horse")
        self.put("users.json", "[", 0o600)
        findings = self.server('plain = ["0.0.0.0:0"]\n')
        self.assertFalse([one for one in findings if "no password" in one.about], findings)


class Nodes(Case):
    def test_nodes_that_operators_renamed_or_retired(self):
        records = NodeRecords(
            [FormerName("attic", "loft", 0), FormerName("old", "x", 0, is_released=True)], {"loft": 1}
        )
        self.patch(doctor_server, "_node_records", lambda settings, data: records)
        self.patch(doctor_server, "database", lambda data: iter(()))
        self.put("pigeonpost.sqlite3")
        findings = self.server('[server]\nnodes = ["attic@127.0.0.1:1", "loft@127.0.0.1:1", "old@127.0.0.1:1"]\n')
        self.assertEqual(
            self.find(findings, "attic is called loft now").remedy, "loft in place of attic in server.toml"
        )
        self.assertIn("retire loft --undo", self.find(findings, "node loft is retired").remedy)
        reached = [one.about for one in findings if "reached" in one.about]
        self.assertEqual([about.partition(" at ")[0] for about in reached], ["node old"])

    def test_records_come_from_the_store(self):
        store = open_store(load_server(argparse.Namespace(config=None), {}, ()), self.folder)
        store.close()
        found = doctor_server._node_records(self.settings(SERVER, "", SERVER_ARRAYS), self.folder)
        self.assertEqual((list(found.former), dict(found.retired)), ([], {}))
        self.put("pigeonpost.sqlite3", "no database" * 100)
        self.assertIsNone(doctor_server._node_records(self.settings(SERVER, "", SERVER_ARRAYS), self.folder))

    def test_many_nodes_that_are_away_are_asked_at_the_same_time(self):
        barrier = threading.Barrier(20, timeout=LIMIT_S)

        def reach(address, who, remedy):
            barrier.wait()  # passes only when all are being asked
            return Finding("ok", who)

        self.patch(doctor_server, "reach", reach)
        nodes = ", ".join(f'"n{number}@192.0.2.1"' for number in range(20))
        self.assertEqual(len([one for one in self.server(f"[server]\nnodes = [{nodes}]\n") if one.word == "ok"]), 22)


class Backups(Case):
    def backup(self, to, service=None, is_closed=False):
        settings = self.settings(SERVER, f'[backup]\nto = "{to}"\n[server]\nname = "home"\n', SERVER_ARRAYS)
        return list(doctor_backup.backup(settings, self.folder, service, is_closed))

    def service(self, *lines):
        unit = "etc/systemd/system/pigeonpost-server.service"
        self.put(unit, "\n".join(["[Service]", "ProtectSystem=strict", *lines, ""]))
        return Service("server", [f"/{unit}"], {"UID": "54321"}, self.folder)

    def test_folder_that_is_not_there(self):
        self.assert_wrong(
            self.backup("/nosuch/folder"), "/nosuch/folder is not there", "mount its disk, or .*install -d"
        )

    def test_folder_of_the_data_is_refused_as_the_server_refuses_it(self):
        os.mkdir(os.path.join(self.folder, "backups"))
        self.assert_wrong(self.backup(os.path.join(self.folder, "backups")), "lies in the data folder", "docs/data.md")

    def test_same_disk_none_yet_and_an_old_one(self):
        to = temp_folder(self)
        self.assertEqual(self.find(self.backup(to), "is on the disk of the data").word, "note")
        self.assertEqual(self.find(self.backup(to), "no backup has been made yet").word, "note")
        for days, words, word in ((0.5, "the last good one is 12 hours old", "ok"), (5, "is 5 days old", "wrong")):
            last = {"file": f"{to}/x.tar", "made_ms": int((time.time() - days * 86_400) * 1000), "bytes": 1}
            self.put(LAST_BACKUP, json.dumps({"last": last}), 0o600)
            self.assertEqual(self.find(self.backup(to), words).word, word)

    def test_folder_that_the_service_may_not_write(self):
        os.makedirs(os.path.join(self.folder, "mnt/usb"))
        self.assert_wrong(self.backup("/mnt/usb", self.service()), "the unit does not let the server write to /mnt/usb",
                          r"ReadWritePaths=-/mnt/usb.*chgrp pigeonpost-backup /mnt/usb.*daemon-reload")  # fmt: skip
        service = self.service("ReadWritePaths=-/mnt")
        self.assert_wrong(self.backup("/mnt/usb", service), "may not be written by the service", "chmod 2770 /mnt/usb")
        os.chmod(os.path.join(self.folder, "mnt/usb"), 0o777)
        self.assertFalse([one for one in self.backup("/mnt/usb", service) if "written" in one.about])

    def test_folder_that_this_user_may_not_write(self):
        to = temp_folder(self)
        self.patch(os, "access", lambda path, mode: path != to)
        self.assert_wrong(self.backup(to), "may not be written by this user", f"chown .* {to}")

    def test_data_that_only_root_sees(self):
        self.assertEqual(self.backup(temp_folder(self), is_closed=True), [])
