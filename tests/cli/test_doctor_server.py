"""Tests of `control.py doctor` on a server: passwords, proxies and host names of the page, API tokens, backups."""

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
        return list(doctor_web.check_page(self.server_settings(text), {} if users is None else users, service))

    def server_settings(self, text):
        return self.settings(SERVER, text, SERVER_ARRAYS)

    def test_page_without_a_password_is_reported(self):
        found = self.find(self.page(""), "no password is set: anyone in the network")
        self.assertEqual(found.status, "note")
        self.assertRegex(found.remedy, "control.py password$")
        self.assert_wrong(
            self.page('names = ["sensors.example.org"]'), "no password is set, and .web. names", "password"
        )
        self.assertFalse([one for one in self.page("", {"admin": "operator"}) if "password" in one.about])
        closed = list(doctor_web.check_page(self.server_settings('[web]\nlisten = ["127.0.0.1:8080"]\n'), {}, None))
        self.assertEqual(closed, [])

    def test_password_command_names_the_folder_of_the_service(self):
        service = Service("server", ["/etc/systemd/system/pigeonpost-server.service"], {}, self.folder)
        found = self.find(self.page("", service=service), "no password")
        self.assertIn(f"--data {self.folder}/var/lib/pigeonpost-server password", found.remedy)

    def test_proxies_that_include_all_addresses_are_a_problem(self):
        for network in ("0.0.0.0/0", "::/0"):
            self.assert_wrong(
                self.page(f'proxies = ["{network}"]'), "every client can claim any address", "the address of the proxy"
            )

    def test_names_with_scheme_and_port_are_noted(self):
        found = self.find(self.page('names = ["https://a.example.org:443/"]'), "is read as a.example.org")
        self.assertEqual((found.status, found.remedy), ("note", 'write names = ["a.example.org"]'))

    def test_settings_for_a_proxy_on_this_machine_are_noted(self):
        self.patch(doctor_web, "running_proxies", lambda folder="/proc": ["nginx"])
        found = self.find(self.page(""), "nginx runs on this machine; to serve the page through it")
        self.assertRegex(found.remedy, r"\[web\] names = \[")
        found = self.find(
            self.page('names = ["a.example.org"]', {"admin": "operator"}), "the page can also be reached without it"
        )
        self.assertIn('[web] listen = ["127.0.0.1:8080"]', found.remedy)

    def test_container_with_its_id_as_host_name_is_noted(self):
        self.patch(doctor_web, "is_named_by_id", lambda: True)
        self.assertIn("PIGEONPOST_WEB_NAMES", self.find(self.page(""), "can be opened by address only").remedy)


class Proxies(Case):
    def test_running_proxies_are_found_by_name(self):
        for number, name in ((1, "systemd"), (77, "nginx"), (78, "nginx")):
            self.put(f"proc/{number}/comm", f"{name}\n")
        self.assertEqual(RUNNING_PROXIES(os.path.join(self.folder, "proc")), ["nginx"])


class ApiTokenFiles(Case):
    def test_api_tokens_that_others_may_read_are_a_problem(self):
        ApiTokens(self.folder).make("grafana")
        self.assert_ok(self.server(), "API tokens. can be read by its owner only")
        os.chmod(os.path.join(self.folder, "api_tokens.json"), 0o644)
        self.assert_wrong(self.server(), "API tokens. can be read by other users", "chmod 600")

    def test_damaged_api_tokens_are_a_problem(self):
        ApiTokens(self.folder).make("grafana")
        self.put("api_tokens.json", "[", 0o600)
        self.assert_wrong(self.server(), "api_tokens.json is damaged", "restore|bak")

    def test_damaged_user_file_is_not_a_missing_password(self):
        Users(self.folder).set_password("admin", "correct horse")
        self.put("users.json", "[", 0o600)
        findings = self.server('plain = ["0.0.0.0:0"]\n')
        self.assertFalse([one for one in findings if "no password" in one.about], findings)


class Nodes(Case):
    def test_renamed_and_retired_nodes_in_the_settings_are_noted(self):
        records = NodeRecords(
            [FormerName("attic", "loft", 0), FormerName("old", "x", 0, is_released=True)], {"loft": 1}
        )
        self.patch(doctor_server, "_node_records", lambda settings, data: records)
        self.patch(doctor_server, "check_database", lambda data: iter(()))
        self.put("pigeonpost.sqlite3")
        findings = self.server('[server]\nnodes = ["attic@127.0.0.1:1", "loft@127.0.0.1:1", "old@127.0.0.1:1"]\n')
        self.assertEqual(
            self.find(findings, "attic has been renamed to loft").remedy, "write loft instead of attic in server.toml"
        )
        self.assertIn("retire loft --undo", self.find(findings, "node loft is retired").remedy)
        reached = [one.about for one in findings if "reached" in one.about]
        self.assertEqual([about.partition(" at ")[0] for about in reached], ["node old"])

    def test_node_records_are_read_from_the_store(self):
        store = open_store(load_server(argparse.Namespace(config=None), {}, ()), self.folder)
        store.close()
        found = doctor_server._node_records(self.settings(SERVER, "", SERVER_ARRAYS), self.folder)
        self.assertEqual((list(found.former), dict(found.retired)), ([], {}))
        self.put("pigeonpost.sqlite3", "no database" * 100)
        self.assertIsNone(doctor_server._node_records(self.settings(SERVER, "", SERVER_ARRAYS), self.folder))

    def test_nodes_are_contacted_in_parallel(self):
        barrier = threading.Barrier(20, timeout=LIMIT_S)

        def reach(address, who, remedy):
            barrier.wait()  # passes only when all nodes are being contacted
            return Finding("ok", who)

        self.patch(doctor_server, "check_reachable", reach)
        nodes = ", ".join(f'"n{number}@192.0.2.1"' for number in range(20))
        self.assertEqual(len([one for one in self.server(f"[server]\nnodes = [{nodes}]\n") if one.status == "ok"]), 22)


class Backups(Case):
    def backup(self, to, service=None, is_closed=False):
        settings = self.settings(SERVER, f'[backup]\nto = "{to}"\n[server]\nname = "home"\n', SERVER_ARRAYS)
        return list(doctor_backup.check_backup(settings, self.folder, service, is_closed))

    def service(self, *lines):
        unit = "etc/systemd/system/pigeonpost-server.service"
        self.put(unit, "\n".join(["[Service]", "ProtectSystem=strict", *lines, ""]))
        return Service("server", [f"/{unit}"], {"UID": "54321"}, self.folder)

    def test_missing_backup_folder_is_a_problem(self):
        self.assert_wrong(
            self.backup("/nosuch/folder"), "/nosuch/folder does not exist", "mount its disk, or .*install -d"
        )

    def test_backup_folder_in_the_data_folder_is_a_problem(self):
        os.mkdir(os.path.join(self.folder, "backups"))
        self.assert_wrong(self.backup(os.path.join(self.folder, "backups")), "is in the data folder", "docs/data.md")

    def test_same_disk_and_age_of_the_last_backup_are_reported(self):
        to = temp_folder(self)
        self.assertEqual(self.find(self.backup(to), "is on the same disk as the data").status, "note")
        self.assertEqual(self.find(self.backup(to), "no backup has been made yet").status, "note")
        for days, words, word in ((0.5, "the last good one is 12 h old", "ok"), (5, "is 5 days old", "wrong")):
            last = {"file": f"{to}/x.tar", "made_ms": int((time.time() - days * 86_400) * 1000), "bytes": 1}
            self.put(LAST_BACKUP, json.dumps({"last": last}), 0o600)
            self.assertEqual(self.find(self.backup(to), words).status, word)

    def test_backup_folder_closed_to_the_service_is_a_problem(self):
        os.makedirs(os.path.join(self.folder, "mnt/usb"))
        self.assert_wrong(self.backup("/mnt/usb", self.service()), "the unit does not allow the server to write to",
                          r"ReadWritePaths=-/mnt/usb.*chgrp pigeonpost-backup /mnt/usb.*daemon-reload")  # fmt: skip
        service = self.service("ReadWritePaths=-/mnt")
        self.assert_wrong(
            self.backup("/mnt/usb", service),
            "the service, which runs as its own user, may not write to",
            "chmod 2770 /mnt/usb",
        )
        os.chmod(os.path.join(self.folder, "mnt/usb"), 0o777)
        self.assertFalse([one for one in self.backup("/mnt/usb", service) if "not write to" in one.about])

    def test_backup_folder_closed_to_this_user_is_a_problem(self):
        to = temp_folder(self)
        self.patch(os, "access", lambda path, mode: path != to)
        self.assert_wrong(self.backup(to), "this user may not write to", f"chown .* {to}")

    def test_backups_of_hidden_data_are_not_checked(self):
        self.assertEqual(self.backup(temp_folder(self), is_closed=True), [])
