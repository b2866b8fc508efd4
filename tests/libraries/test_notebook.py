"""The cells of the notebook in docs/python.md, executed in order with pandas and polars against a real server."""

import contextlib
import io
import os
import re
import subprocess
import sys
import textwrap
import unittest
from datetime import UTC, datetime, timedelta

from pigeonpost.cli.bundle import bundle_of
from pigeonpost.client import Client
from tests.support import ROOT, Program, clean_environment, temp_folder

try:
    import pandas
    import polars
except ImportError:
    pandas = polars = None


def setUpModule():
    if pandas is None or polars is None:
        raise unittest.SkipTest("pandas and polars are not installed for this Python")


def cells():
    """Return the code of each cell of the notebook."""
    with open(os.path.join(ROOT, "docs", "python.md"), encoding="utf-8") as file:
        notebook = file.read().split("\n## A notebook\n")[1].split("\n## ")[0]
    return [textwrap.dedent(block) for block in re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", notebook)]


class NotebookTest(unittest.TestCase):
    def setUp(self):
        self.data = temp_folder(self)
        server = Program(self, "server.py", "--data", self.data, "--web", "127.0.0.1:0")
        line = server.line()
        while not (found := re.search(r"http://[0-9.:]+", line)):
            line = server.line()
        self.url = found[0]
        self.token = subprocess.run(
            [sys.executable, os.path.join(ROOT, "control.py"), "--data", self.data, "api-token", "notebook", "--role",
             "writer"], env=clean_environment(), check=True, capture_output=True, text=True,
        ).stdout.split()[-1]  # fmt: skip

    def store(self, client):
        """Store a day of readings of two sensors, one per half hour; the first humidity failed."""
        now = datetime.now(UTC)
        for step in range(47, 0, -1):
            values = {"temperature": 20 + step / 4, "humidity": None if step == 47 else 50}
            client.send("basement", values, now - timedelta(minutes=30 * step))

    def test_cells_run_in_order(self):
        with Client(self.url, self.token) as client:
            self.store(client)
        names, printed = {}, io.StringIO()
        code = [
            cell.replace("http://pi2.local:8080", self.url).replace('"TOKEN"', repr(self.token)) for cell in cells()
        ]
        self.assertEqual(len(code), 6)
        with contextlib.redirect_stdout(printed):
            for cell in code:
                exec(compile(cell, "cell", "exec"), names)
        self.addCleanup(names["client"].close)
        self.assertRegex(printed.getvalue(), r"basement reporting \['temperature 20.25 ', 'humidity 50 '\]")
        frame = names["frame"]
        self.assertEqual([str(kind) for kind in frame.dtypes], ["float64", "float64"])
        self.assertEqual((len(frame), frame["temperature"].iloc[0], frame["humidity"].isna().sum()), (47, 31.75, 1))
        self.assertEqual(str(names["local"].index.tz), "Europe/Berlin")
        self.assertGreater(names["hours"]["count"].sum(), 40)
        table = polars.DataFrame(names["columns"])
        self.assertEqual(table.schema, {
            "time": polars.Datetime("us", "UTC"), "temperature": polars.Float64, "humidity": polars.Float64,
        })  # fmt: skip
        self.assertEqual(names["client"].readings("bench", "voltage", "-1h")["voltage"], [3.31])

    def test_client_works_from_one_file(self):
        path = os.path.join(temp_folder(self), "control.pyz")
        with open(path, "wb") as file:
            file.write(bundle_of("control"))
        code = "import sys; from pigeonpost.client import Client; print(Client(*sys.argv[1:]).nodes())"
        output = subprocess.run(
            [sys.executable, "-c", code, self.url, self.token], env=clean_environment(PYTHONPATH=path),
            cwd=os.path.dirname(path), check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        self.assertEqual(output, "[]\n")


if __name__ == "__main__":
    unittest.main()
