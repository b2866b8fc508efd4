"""Branch coverage of the modules on which no sample may be lost, each by its own tests.

Run as `python3 -m tests.coverage_of`, with any Python that has coverage.py (`pip install coverage`). Prints one line
per module; the exit status is 1 if a test fails or a module is below its minimum. All files that it makes are in a
temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from tests.support import ROOT, clean_environment

try:
    import coverage
except ImportError:
    sys.exit(f"coverage.py is missing: {sys.executable} -m pip install coverage")


class Group(NamedTuple):
    """Modules that are measured together.

    Attributes:
        modules: Paths of the modules.
        tests: The test modules that alone must cover them.
        minimum: Minimum percentage of each module's lines and branches together, as `coverage report` calculates it.
    """

    modules: tuple[str, ...]
    tests: str
    minimum: float


GROUPS = (
    Group(("protocol.py",), "tests.test_protocol", 95),
    Group(
        ("pigeonpost/link/checks.py", "pigeonpost/link/columns.py", "pigeonpost/link/sample_json.py"),
        "tests.link.test_columns tests.link.test_sample_json tests.test_protocol",
        95,
    ),
    Group(
        (
            "pigeonpost/node/ring_file.py",
            "pigeonpost/node/ring_format.py",
            "pigeonpost/node/ring_repair.py",
            "pigeonpost/node/ring_scan.py",
        ),
        "tests.node.test_ring_file tests.node.test_ring_repair",
        95,
    ),
    Group(("pigeonpost/node/send_cursor.py",), "tests.node.test_send_cursor", 95),
    Group(
        (
            "pigeonpost/transports/tcp_session.py",
            "pigeonpost/transports/tcp_node_session.py",
            "pigeonpost/transports/tcp_server_session.py",
        ),
        "tests.transports.test_tcp_session tests.transports.test_tcp_faults tests.server.test_node_names",
        95,
    ),
    Group(("pigeonpost/server/ingest.py",), "tests.server.test_ingest tests.server.test_node_admin", 95),
    Group(
        (
            "pigeonpost/storage/chunks.py",
            "pigeonpost/storage/sqlite/compaction.py",
            "pigeonpost/storage/sqlite/fresh.py",
            "pigeonpost/storage/sqlite/migration.py",
            "pigeonpost/storage/sqlite/row_conversion.py",
        ),
        "tests.storage.test_chunks tests.storage.test_contract tests.storage.sqlite.test_compaction"
        " tests.storage.sqlite.test_fresh tests.storage.sqlite.test_migration",
        95,
    ),
    Group(
        ("csvbuffer.py", "pigeonpost/storage/csv/retention.py"),
        "tests.test_csvbuffer tests.storage.csv.test_retention",
        95,
    ),
    Group(
        (
            "pigeonpost/integrations/forwarder.py",
            "pigeonpost/integrations/forward_position.py",
            "pigeonpost/integrations/forward_progress.py",
            "pigeonpost/integrations/forward_source.py",
        ),
        "tests.integrations.test_forwarder tests.integrations.test_forward_progress",
        95,
    ),
    Group(("pigeonpost/storage/csv/verify.py",), "tests.storage.csv.test_verify", 95),
)


class TestsFailed(Exception):
    """The tests of a group failed; its text is what they printed."""


def measure(group: Group, folder: str) -> dict[str, Any]:
    """Run the quick tests of a group in their own process.

    Returns coverage.py's JSON report of each loaded module. Raises TestsFailed.
    """
    data_file = os.path.join(folder, group.tests)
    environment = {key: value for key, value in clean_environment().items() if not key.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-m", "coverage", "run", "--branch", f"--data-file={data_file}",
         f"--include={','.join(group.modules)}", "-m", "unittest", "--quiet", *group.tests.split()],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise TestsFailed(done.stdout)
    report = f"{data_file}.json"
    measured = coverage.Coverage(data_file=data_file, config_file=False)
    measured.load()
    measured.json_report(outfile=report)
    with open(report, encoding="utf-8") as file:
        files = json.load(file)["files"]
    return {os.path.relpath(path, ROOT): found for path, found in files.items()}


def missed(found: dict[str, Any]) -> str:
    """The missed lines and branches: `lines 12, 30-34; branches 40->44, 50->exit`."""
    ranges: list[list[int]] = []
    for line in found["missing_lines"]:
        if ranges and ranges[-1][1] == line - 1:
            ranges[-1][1] = line
        else:
            ranges.append([line, line])
    lines = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    branches = [f"{start}->{end if end > 0 else 'exit'}" for start, end in found["missing_branches"]]
    texts = [f"{what} {', '.join(places)}" for what, places in (("lines", lines), ("branches", branches)) if places]
    return "; ".join(texts)


def check(group: Group, folder: str) -> bool:
    """Measure a group and print a line for each of its modules. Returns False if one is below the minimum."""
    try:
        found = measure(group, folder)
    except (TestsFailed, coverage.CoverageException) as error:
        print(f"{error}\n{group.tests}: failed")
        return False
    is_enough = True
    for module in group.modules:
        if module not in found:
            print(f"{module}: not loaded by {group.tests}")
            is_enough = False
            continue
        summary = found[module]["summary"]
        percent, branches = summary["percent_covered"], summary["missing_branches"]
        print(f"{percent:6.2f} %  {branches:3} of {summary['num_branches']:3} branches missed  {module}, {group.tests}")
        if percent < group.minimum:
            print(f"{module}: below {group.minimum:g} %; not covered: {missed(found[module])}")
            is_enough = False
    return is_enough


def main() -> int:
    """Check all groups. Returns the exit status."""
    os.chdir(ROOT)  # coverage.py names files from here
    with tempfile.TemporaryDirectory(prefix="pigeonpost-coverage-") as folder:
        results = [check(group, folder) for group in GROUPS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
