"""Exit page: the command that starts the server again, and redirects after a reload."""

import unittest
from unittest import mock

from pigeonpost.views import exit_page
from pigeonpost.views.exit_page import start_command
from tests.page_support import use_memory_disk
from tests.web.support import FakeLink, WebHouse

SERVICE = "0::/system.slice/pigeonpost-server.service\n"
ARGUMENTS = ("python3", "server.py", "--node", "shed@10.0.0.7:5003")


def setUpModule():
    use_memory_disk()


class StartCommand(unittest.TestCase):
    def command(
        self, cgroup="0::/\n", is_container=False, arguments=ARGUMENTS, folder="/home/pi/pigeonpost", **variables
    ):
        return start_command(variables, cgroup, is_container, arguments, folder)

    def test_command_for_a_systemd_service_is_systemctl_start(self):
        self.assertEqual(self.command(SERVICE, INVOCATION_ID="ab"), "sudo systemctl start pigeonpost-server")
        old = "12:cpu:/x\n1:name=systemd:/system.slice/house.service\n0::/system.slice/house.service\n"
        self.assertEqual(self.command(old, INVOCATION_ID="ab"), "sudo systemctl start house")

    def test_terminal_started_by_a_desktop_service_is_not_the_server_s_service(self):
        terminal = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/terminal.service\n"
        self.assertTrue(self.command(terminal, INVOCATION_ID="ab").startswith("cd /home/pi/pigeonpost && "))
        self.assertTrue(self.command(SERVICE).startswith("cd "))

    def test_command_for_a_manual_start_repeats_the_command_line(self):
        self.assertEqual(
            self.command(folder="/home/pi/my folder"),
            "cd '/home/pi/my folder' && python3 server.py --node shed@10.0.0.7:5003",
        )

    def test_command_for_a_container_is_docker_compose_up(self):
        self.assertEqual(self.command(is_container=True), "docker compose up -d server")

    def test_command_hides_secrets(self):
        self.assertNotIn("hunter2", self.command(arguments=(*ARGUMENTS, "--token=hunter2")))


class ExitPage(unittest.TestCase):
    def setUp(self):
        self.web = WebHouse(self, links=[FakeLink("basement", {"temperature": "°C"})])

    def test_page_shows_the_start_command_before_and_after_the_exit(self):
        self.enterContext(mock.patch.object(exit_page, "in_container", return_value=False))
        fields = {"csrf": self.web.csrf(self.web.browser)}
        for sure in ({}, {"sure": "yes"}):
            page = self.web.post_form("/exit", {**fields, **sure}, {**self.web.browser, "Accept": "text/html"})[
                2
            ].decode()
            self.assertRegex(page, r"<pre>cd /\S+ &amp;&amp; .*python\S* ")
        self.assertIn("data-home", page)
        self.assertEqual(len(self.web.stopped), 1)

    def test_reloaded_exit_form_of_an_earlier_run_redirects_home_and_stops_nothing(self):
        stale = {"Cookie": f"pigeonpost-{self.web.address[1]}={'a' * 43}"}
        status, headers, _ = self.web.request(
            "POST",
            "/exit",
            {**stale, "Content-Type": "application/x-www-form-urlencoded"},
            b"csrf=x&sure=yes",
            html=True,
        )
        self.assertEqual((status, headers["location"]), (303, "/"))
        self.assertEqual(self.web.stopped, [])

    def test_exit_without_a_session_is_rejected(self):
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        self.assertEqual(self.web.request("POST", "/exit", kind, b"sure=yes", html=True)[0], 403)
        self.assertEqual(self.web.stopped, [])

    def test_exit_with_an_expired_session_redirects_to_the_login(self):
        self.web.users.set_password("admin", "correct horse")
        stale = {"Cookie": f"pigeonpost-{self.web.address[1]}={'a' * 43}"}
        status, headers, _ = self.web.request("POST", "/exit", stale, b"", html=True)
        self.assertEqual((status, headers["location"]), (303, "/login"))

    def test_get_of_the_exit_address_redirects_browsers_home(self):
        status, headers, _ = self.web.request("GET", "/exit", self.web.browser, html=True)
        self.assertEqual((status, headers["location"]), (303, "/"))
        self.assertEqual(self.web.request("GET", "/exit", self.web.browser)[0], 405)  # without Accept: text/html
        self.assertEqual(self.web.stopped, [])


if __name__ == "__main__":
    unittest.main()
