"""The health check of containers: `python3 -m pigeonpost.cli.alive`; control.py's command: tests/test_control.py."""

import contextlib
import io
import os
import socket
import threading
import unittest
from unittest import mock

from pigeonpost.cli import alive
from tests.support import LIMIT_S, clean_environment, temp_folder


class Alive(unittest.TestCase):
    def setUp(self):
        self.data = temp_folder(self)

    def check(self, **environment):
        """Exit status and standard error."""
        told = io.StringIO()
        with (
            mock.patch.dict(os.environ, clean_environment(**environment), clear=True),
            contextlib.redirect_stderr(told),
        ):
            return alive.main([self.data]), told.getvalue()

    def answered(self, answer):
        """What is said of a program that gives this answer, and what it was asked."""
        asked = []
        with socket.create_server(("127.0.0.1", 0)) as program:

            def serve():
                with program.accept()[0] as sock:
                    asked.append(sock.recv(1 << 16))
                    sock.sendall(answer)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            found = self.check(PIGEONPOST_NODE_LISTEN=f"0.0.0.0:{program.getsockname()[1]}")
            thread.join(LIMIT_S)
        return found, asked[0]

    def test_node_is_greeted_and_any_answer_of_the_protocol_will_do(self):
        for answer in (b'HELLO {"link": 1}\n', b'ERROR auth {"text": "no"}\n'):
            found, asked = self.answered(answer)
            self.assertEqual(found, (0, ""), answer)
            self.assertTrue(asked.startswith(b"HELLO {"), asked)

    def test_fault_is_told_and_the_status_is_1(self):
        for answer, text in ((b"220 mail.example.org\r\n", "is no node"), (b"", "closed without an answer")):
            status, told = self.answered(answer)[0]
            self.assertEqual(status, 1)
            self.assertIn(text, told)

    def test_server_that_has_ended_is_not_taken_for_a_node(self):
        with open(os.path.join(self.data, "server.lock"), "w", encoding="ascii"):
            pass
        status, told = self.check()
        self.assertEqual(status, 1)
        self.assertIn(f"no server runs on {self.data}", told)


if __name__ == "__main__":
    unittest.main()
