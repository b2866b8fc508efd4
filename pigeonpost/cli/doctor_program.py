"""Checks that apply to every program: Python, the clock, the program's files, environment variables, the container.

No errors are raised: a check that fails yields a finding.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pigeonpost.cli.doctor_checks import (
    VOLUME_REMEDY,
    Account,
    Finding,
    first_account,
    first_process,
    in_our_container,
    may_use,
)
from pigeonpost.cli.program_files import FOLDER, MODULES, PACKAGE
from pigeonpost.core.clock import Clock
from pigeonpost.core.container import is_named_by_id
from pigeonpost.settings import unknown_variables

_NEWEST_UNSUPPORTED = (3, 10)
_IMPORT = re.compile(
    r"^[ \t]*(?:from (?P<package>pigeonpost[\w.]*) import (?P<names>\([^)]*\)|[^\n#]*)"
    r"|import (?P<module>pigeonpost[\w.]+))",
    re.MULTILINE,
)
_NAMED_FILES = 3  # files that one finding names


def check_machine() -> Iterator[Finding]:
    """Yield findings on Python, the clock, the files of this program, and unknown environment variables."""
    if sys.version_info[:2] <= _NEWEST_UNSUPPORTED:
        yield Finding("wrong", f"Python is {platform.python_version()}, but 3.11 or later is needed",
                      "install Raspberry Pi OS of October 2023 (bookworm) or later, which has it")  # fmt: skip
    else:
        yield Finding("ok", f"Python {platform.python_version()}")
    if Clock().is_set():
        yield Finding("ok", "the clock is synchronised")
    else:
        yield Finding("wrong", "the clock of this machine is not synchronised, so samples may get wrong times",
                      "sudo timedatectl set-ntp true (`timedatectl` should then show: synchronized: yes)")  # fmt: skip
    yield from check_program(FOLDER)
    for sentence in unknown_variables(os.environ):
        fault, _, hint = sentence.partition("; ")
        yield Finding("note", fault, hint)


# ------------------------------------------------------------------------------------------------ the program's files


def check_program(
    folder: str, remedy: str = "copy the complete folder again, see docs/install.md"
) -> Iterator[Finding]:
    """Yield a finding if modules that the program imports are missing in `folder`, or if it has unused modules.

    `remedy` is the command that copies the program again. A program in a single file is not checked: Python reads
    that file completely, or not at all.
    """
    if not os.path.isdir(os.path.join(folder, PACKAGE)):
        return
    present, used, empty = _modules(folder)
    missing = sorted({f"{name}.py" for name in MODULES} - set(os.listdir(folder))) + sorted(used - present)
    if missing or empty:
        about = f"{_named(missing)} missing" if missing else f"{_named(empty)} empty"
        yield Finding("wrong", f"{folder} was not copied completely: {about}", remedy)
        return
    stale = sorted(present - used)
    if stale:
        paths = " ".join(os.path.join(folder, name) for name in stale[:_NAMED_FILES])
        rest = "a file of another version, and is" if len(stale) == 1 else "files of another version, and are"
        yield Finding("note", f"{_named(stale)} {rest} not used", f"rm {paths}")


def _named(paths: list[str]) -> str:
    """Return the first of `paths`, the number of the others, and the verb: `a.py, b.py, c.py and 2 more are`."""
    more = f" and {len(paths) - _NAMED_FILES} more" if len(paths) > _NAMED_FILES else ""
    return f"{', '.join(paths[:_NAMED_FILES])}{more} {'is' if len(paths) == 1 else 'are'}"


def _modules(folder: str) -> tuple[set[str], set[str], list[str]]:
    """Return the files of the package that exist, those that are imported, and those that are empty."""
    present: set[str] = set()
    used: set[str] = set()
    empty = []
    root = [f"{name}.py" for name in MODULES if os.path.exists(os.path.join(folder, f"{name}.py"))]
    for path in (*root, *_files(folder)):
        with open(os.path.join(folder, path), encoding="utf-8", errors="replace") as file:
            text = file.read()
        if path not in root:
            present.add(path)
        if not text.strip():
            empty.append(path)
        for found in _IMPORT.finditer(text):
            used.update(_needed(folder, found.groupdict()))
        if path.endswith("/__init__.py"):  # needed by the modules of its package
            used.add(path)
    return present, used, empty


def _files(folder: str) -> Iterator[str]:
    for top, _, names in os.walk(os.path.join(folder, PACKAGE)):
        for name in names:
            if name.endswith(".py"):
                yield os.path.relpath(os.path.join(top, name), folder)


def _needed(folder: str, found: Mapping[str, str | None]) -> Iterator[str]:
    """Yield the files that an import needs. A package contains only a docstring, so any name imported is a module."""
    module = found["module"] or found["package"] or ""
    path = module.replace(".", "/")
    if not os.path.isdir(os.path.join(folder, path)):
        yield f"{path}.py"
        return
    yield f"{path}/__init__.py"
    for name in re.split(r"[\s,()]+", re.sub(r"#.*| as \w+", "", found["names"] or "")):
        if name:
            is_package = os.path.isdir(os.path.join(folder, path, name))
            yield f"{path}/{name}/__init__.py" if is_package else f"{path}/{name}.py"


# ------------------------------------------------------------------------------------------------------- a container


class Container(NamedTuple):
    """Container in which doctor runs.

    Attributes:
        command: Command of its first process, or an empty string if that is not a program of Pigeonpost.
        account: User that its first process runs as.
    """

    command: str
    account: Account


def find_container(root: str = "/") -> Container | None:
    """Return the container in which this process runs, or None outside of a container. `root` replaces `/` in tests."""
    if not in_our_container(root):
        return None
    return Container(first_process(root), first_account(root))


def check_container(container: Container, data: str) -> Iterator[Finding]:
    """Yield the findings on `container`: the volume of the data folder `data`, the time zone, the name."""
    yield Finding("ok", "runs in a container" + (f" with the command {container.command}" if container.command else ""))
    is_another = container.account.uid != os.geteuid()  # the permissions of this user are checked with the folder
    if is_another and os.path.isdir(data) and not may_use(container.account, data, os.W_OK | os.X_OK):
        owner = os.stat(data).st_uid
        yield Finding("wrong", f"{data} belongs to user {owner}, and {container.account.name} may not write there",
                      VOLUME_REMEDY)  # fmt: skip
    if not os.environ.get("TZ") and time.tzname[0] == "UTC":
        yield Finding("note", "TZ is not set, so the page, the log and CSV files use UTC",
                      "set TZ=Europe/Vienna in .env next to docker-compose.yml, then docker compose up -d")  # fmt: skip
    if is_named_by_id() and "node.py" in container.command and not os.environ.get("PIGEONPOST_NODE_NAME"):
        yield Finding("note", "the node has no name of its own: it uses the id of its first container",
                      "set PIGEONPOST_NODE_NAME=basement in .env, then docker compose up -d")  # fmt: skip
