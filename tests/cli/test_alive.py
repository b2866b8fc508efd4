"""Tests of the health check for containers, `python3 -m pigeonpost.cli.alive`.

The command `control.py alive` is tested in tests/test_control.py.
"""

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
        """Return the exit status and standard error of the health check."""
        told = io.StringIO()
        with (
            mock.patch.dict(os.environ, clean_environment(**environment), clear=True),
            contextlib.redirect_stderr(told),
        ):
            return alive.main([self.data]), told.getvalue()

    def check_program_that_answers(self, answer):
        """Check a program that sends this answer. Return the result of `check`, and the request."""
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

    def test_alive_accepts_any_answer_in_the_link_protocol(self):
        for answer in (b'HELLO {"link": 1}\n', b'ERROR auth {"text": "no"}\n'):
            found, asked = self.check_program_that_answers(answer)
            self.assertEqual(found, (0, ""), answer)
            self.assertTrue(asked.startswith(b"HELLO {"), asked)

    def test_answers_in_other_protocols_end_with_status_1(self):
        for answer, text in ((b"220 mail.example.org\r\n", "is not a node"), (b"", "closed without an answer")):
            status, told = self.check_program_that_answers(answer)[0]
            self.assertEqual(status, 1)
            self.assertIn(text, told)

    def test_stopped_server_is_not_mistaken_for_a_node(self):
        with open(os.path.join(self.data, "server.lock"), "w", encoding="ascii"):
            pass
        status, told = self.check()
        self.assertEqual(status, 1)
        self.assertIn(f"no running server uses the data folder {self.data}", told)


if __name__ == "__main__":
    unittest.main()
