"""Every described address is requested with allowed and forbidden input; it responds as described, never with 500.

PIGEONPOST_TEST_EXAMPLES is the number of examples of each (50).
"""

import json
import os
import shutil
import subprocess
import sys
import unittest

from tests.page_support import Server, control
from tests.support import LIMIT_S, clean_environment, temp_folder, wait_until

PROGRAM = os.path.join(os.path.dirname(sys.executable), "schemathesis")
EXAMPLES = os.environ.get("PIGEONPOST_TEST_EXAMPLES", "50")
# Not asked: whether all that the description allows is answered with 200. It cannot say that `from` lies before `to`,
# or that samples follow each other, and a refusal of what breaks such a rule is right.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,unsupported_method,ignored_auth"
)
LIMIT = 40 * LIMIT_S


@unittest.skipUnless(shutil.which(PROGRAM), "schemathesis is not installed for this Python")
class Described(unittest.TestCase):
    def setUp(self):
        data = temp_folder(self)
        self.assertEqual(control(self, "--data", data, "password", said="correct horse\n")[0], 0)
        made = control(self, "--data", data, "get_token", "attic")
        self.assertEqual(made[0], 0, made)
        self.token = made[1].strip().splitlines()[-1].split()[-1]
        # It tries a wrong key at each operation, which is more often than the throttle admits.
        constants = {"pigeonpost.auth.throttle.MOST": 1000, "pigeonpost.auth.throttle.LONGEST_DELAY_S": 0.01}
        self.server = Server(self, "--demo", data=data, constants=constants)
        self.base = "http://{}:{}".format(*self.server.page)
        with open(os.path.join(data, "running.json"), encoding="utf-8") as file:
            key = json.load(file)["key"]
        self.control = {"Authorization": f"Bearer {key}"}
        wait_until(lambda: "is reporting" in self.server.get("/", self.control)[1], "the demonstration's node reports")
        self.document = os.path.join(temp_folder(self), "openapi.json")
        with open(self.document, "w", encoding="utf-8") as file:
            file.write(self.server.get("/api/v1/openapi.json", self.control)[1])

    def run_it(self, token, *more, words="is reporting"):
        """Run the checks. `words` must be on the page afterwards; server and node must still work."""
        folder = temp_folder(self)
        done = subprocess.run(
            [PROGRAM, "run", self.document, "--url", self.base, "-H", f"Authorization: {token}", "--checks", CHECKS,
             "--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--no-color", "--seed", "4711",
             "--generation-database", "none", "--continue-on-failure", *more],
            capture_output=True, text=True, timeout=LIMIT, cwd=folder, env=clean_environment(),
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, f"{done.stdout[-12000:]}\n{done.stderr[-3000:]}")
        self.assertIn(words, self.server.get("/", self.control)[1])
        self.assertNotRegex("".join(self.server.logged), r"internal error [0-9a-f]{8} in")

    def test_as_a_program_with_the_servers_key(self):
        self.run_it(self.control["Authorization"], "--exclude-path-regex", "resume$", "--exclude-operation-id", "push",
                    "--exclude-operation-id", "send", "--exclude-operation-id", "retire")  # fmt: skip

    def test_a_node_turned_on_and_off(self):
        self.run_it(self.control["Authorization"], "--include-operation-id", "send")

    def test_a_node_retired_and_taken_back(self):
        self.run_it(self.control["Authorization"], "--include-operation-id", "retire", words="Pigeonpost")

    def test_as_a_node_with_its_token(self):
        self.run_it(f"Bearer {self.token}", "--include-operation-id", "push", "--include-operation-id", "resume")

    def test_as_any_program_with_the_token_of_a_node(self):
        self.run_it(f"Bearer {self.token}", "--include-operation-id", "postReadings", "--include-operation-id",
                    "writeLines", "--include-operation-id", "writeLinesOne", words="Pigeonpost")  # fmt: skip

    def test_as_a_program_with_a_token_of_the_role_writer(self):
        made = control(self, "--data", self.server.data, "api-token", "telegraf", "--role", "writer")
        self.assertEqual(made[0], 0, made)
        operations = ("postReadings", "writeLines", "writeLinesOne", "query", "queryByForm", "readings", "annotations",
                      "targets")  # fmt: skip
        included = [word for one in operations for word in ("--include-operation-id", one)]
        self.run_it(f"Bearer {made[1].strip()}", *included, words="Pigeonpost")


if __name__ == "__main__":
    unittest.main()
