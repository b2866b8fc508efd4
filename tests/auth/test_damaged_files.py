"""Tests of a server process with damaged tokens.json and users.json."""

import http.client
import json
import os
import shutil
import stat
import urllib.parse

from pigeonpost.auth.tokens import Tokens
from pigeonpost.core.data_folder import REPLACED_TOKENS, TOKENS, USERS
from tests.page_support import Node, Server, use_memory_disk
from tests.support import LIMIT_S, wait_until
from tests.test_control import ControlCase

PASSWORD = "correct horse"


def setUpModule():
    use_memory_disk()


class DamagedFiles(ControlCase):
    def path(self, name):
        return os.path.join(self.data, name)

    def lay(self, name, text):
        with open(self.path(name), "w", encoding="ascii") as file:
            file.write(text)

    def start(self, *arguments):
        retry_s = {f"pigeonpost.transports.tcp_server.{name}": 0.1 for name in ("RETRY_S", "LONGEST_RETRY_S")}
        return Server(self, *arguments, data=self.data, constants=retry_s)

    def log_in(self, server):
        """Log in with the correct password. Return the status, the text and the cookie."""
        link = http.client.HTTPConnection(*server.page, timeout=LIMIT_S)
        try:
            body = urllib.parse.urlencode({"user": "admin", "password": PASSWORD})
            link.request("POST", "/login", body, {"Content-Type": "application/x-www-form-urlencoded"})
            answer = link.getresponse()
            cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
            return answer.status, answer.read().decode(), cookie
        finally:
            link.close()

    def push(self, server, token):
        headers = {"Authorization": f"Bearer {token}"}
        return server.get("/api/v1/samples/resume?node=attic&outbox=0123456789abcdef&epochs=", headers)

    def test_damaged_users_admit_no_user_until_the_copy_is_restored(self):
        self.done("password", said=f"{PASSWORD}\n")
        self.lay(USERS, "")
        server = self.start()
        for status, answer in (server.get("/"), self.log_in(server)[:2], server.get("/api/v1/nodes")):
            self.assertEqual(status, 503, answer)
            self.assertIn(f"restore {self.path(USERS)}.bak", answer)
        self.assertIn("users.json: is damaged (0 bytes)", self.run_("check")[1])
        os.unlink(self.path(USERS))  # next to its copy, a missing file does not mean an empty list
        self.assertEqual(server.get("/")[0], 503)
        self.assertIn("a list of users with 1 entry", self.done("restore", f"{self.path(USERS)}.bak"))
        self.assertEqual(self.log_in(server)[0], 303)
        wait_until(lambda: "users.json" not in self.run_("check")[1], "the fault is gone")
        self.assertNotIn("Traceback", "\n".join(server.logged))
        server.logs("users.json: is damaged")

    def test_running_server_keeps_its_sessions_and_users_and_shows_the_fault(self):
        self.done("password", said=f"{PASSWORD}\n")
        server = self.start()
        cookie = self.log_in(server)[2]
        for spoil in (lambda: self.lay(USERS, ""), lambda: self.spoil_by_a_folder(USERS)):
            spoil()
            self.assertEqual(server.get("/", {"Cookie": cookie})[0], 200)
            self.assertEqual(self.log_in(server)[0], 303)
            wait_until(lambda: "users.json" in self.run_("check")[1], "the fault is shown")
            self.assertEqual(server.get("/api/v1/nodes")[0], 401)
            self.assertNotIn("pigeonpost_fault 0", server.get("/metrics", {"Cookie": cookie})[1])
            out = self.run_("doctor", "server")[1]
            self.assertIn("users.json", out)
            self.assertIn("restore", out)
            self.done("restore", f"{self.path(USERS)}.bak")

    def spoil_by_a_folder(self, name):
        os.unlink(self.path(name))
        os.mkdir(self.path(name))

    def test_damaged_tokens_admit_no_node_until_the_copy_is_restored(self):
        token = self.done("token", "attic").strip()
        node = Node(self, name="basement", PIGEONPOST_NODE_TOKEN=self.done("token", "basement").strip())
        self.lay(TOKENS, "")
        server = self.start("--node", node.at)
        status, answer = self.push(server, token)
        self.assertEqual(status, 503, answer)
        self.assertIn("tokens.json is damaged (0 bytes)", answer)
        server.logs("tokens.json: is damaged (0 bytes); `python3 control.py")
        self.assertIn("tokens.json: is damaged (0 bytes)", self.run_("check")[1])
        for command in (["tokens"], ["token", "cellar"], ["revoke", "attic"], ["get-token", "attic"]):
            self.assert_fails(2, "tokens.json is damaged (0 bytes); `python3 control.py", *command)
        self.assertEqual(os.path.getsize(self.path(TOKENS)), 0)  # no command has changed the damaged file
        self.assertIn("a list of tokens with 2 entries", self.done("restore", f"{self.path(TOKENS)}.bak"))
        self.assertNotIn("damaged", self.push(server, token)[1])
        wait_until(lambda: "basement" in self.done("status"), "the node is collected from")
        self.assertNotIn("Traceback", "\n".join(server.logged))

    def test_running_server_keeps_its_tokens_after_damage(self):
        token = self.done("token", "attic").strip()
        server = self.start()
        before = self.push(server, token)[0]
        self.lay(TOKENS, "{")
        self.assertEqual(self.push(server, token)[0], before)
        self.assertEqual(self.push(server, "another")[0], 401)
        self.assertIn("tokens.json: is damaged (invalid JSON", self.run_("check")[1])

    def test_revoked_token_does_not_come_back_with_the_copy(self):
        for node in ("attic", "basement"):
            self.done("token", node)
        self.done("revoke", "attic")
        self.lay(TOKENS, "")
        self.done("restore", f"{self.path(TOKENS)}.bak")
        self.assertEqual(self.done("tokens"), "basement\n")

    def test_copy_of_the_replaced_tokens_is_restored(self):
        self.done("token", "attic")
        self.done("rotate", "attic")
        whole = Tokens(self.data).accepted()
        self.lay(REPLACED_TOKENS, "")
        told = self.done("restore", f"{self.path(REPLACED_TOKENS)}.bak")
        self.assertIn("a list of replaced tokens with 1 entry", told)
        self.assertEqual(Tokens(self.data).accepted(), whole)

    def test_damaged_copy_is_not_restored(self):
        self.done("token", "attic")
        for text in ("", "[]", '{"a": null}'):
            self.lay(f"{TOKENS}.bak", text)
            self.assert_fails(1, "is not a valid list of tokens either: nothing was changed", "restore",
                              f"{self.path(TOKENS)}.bak")  # fmt: skip
        self.assertEqual(self.done("tokens"), "attic\n")
        os.unlink(self.path(f"{TOKENS}.bak"))
        self.assert_fails(2, "No such file", "restore", f"{self.path(TOKENS)}.bak")

    def test_replaced_file_is_kept_in_a_backup_folder(self):
        self.done("token", "attic")
        self.lay(TOKENS, '{"half')
        _, _, told = self.run_("restore", f"{self.path(TOKENS)}.bak")
        (aside,) = [name for name in os.listdir(self.data) if name.startswith("before-restore-")]
        self.assertIn(aside, told)
        with open(os.path.join(self.data, aside, TOKENS), encoding="ascii") as file:
            self.assertEqual(file.read(), '{"half')
        self.assertEqual(stat.S_IMODE(os.stat(self.path(TOKENS)).st_mode), 0o600)
        with open(self.path(TOKENS), encoding="ascii") as file:
            self.assertEqual(list(json.load(file)), ["attic"])
        shutil.rmtree(os.path.join(self.data, aside))
