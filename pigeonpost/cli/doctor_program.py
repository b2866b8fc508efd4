"""Checks of what every program needs: Python, the clock, the program's own files, its variables, its container.

Errors: none; a failure is a finding.
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

_NEWEST_WRONG = (3, 10)
_IMPORT = re.compile(
    r"^[ \t]*(?:from (?P<package>pigeonpost[\w.]*) import (?P<names>\([^)]*\)|[^\n#]*)"
    r"|import (?P<module>pigeonpost[\w.]+))",
    re.MULTILINE,
)
_NAMED_FILES = 3  # files in one finding


def machine() -> Iterator[Finding]:
    """Yield Python, the clock, this program's files, and variables that have no effect."""
    if sys.version_info[:2] <= _NEWEST_WRONG:
        yield Finding("wrong", f"Python is {platform.python_version()}, and has to be 3.11 or later",
                      "Raspberry Pi OS of October 2023 (bookworm) or later has it")  # fmt: skip
    else:
        yield Finding("ok", f"Python {platform.python_version()}")
    if Clock().is_set():
        yield Finding("ok", "the date is known to be right")
    else:
        yield Finding("wrong", "nobody keeps this machine's clock right, so samples may get wrong dates",
                      "sudo timedatectl set-ntp true (then `timedatectl` says: synchronized: yes)")  # fmt: skip
    yield from program(FOLDER)
    for sentence in unknown_variables(os.environ):
        fault, _, hint = sentence.partition("; ")
        yield Finding("note", fault, hint)


# ------------------------------------------------------------------------------------------------ the program's files


def program(folder: str, remedy: str = "copy the whole folder again, as docs/install.md has it") -> Iterator[Finding]:
    """Check that a program's folder is whole: all modules that are imported are there, and none of another version.

    `remedy` is the command that copies it again. Nothing is said of a program in one file: Python reads it as a whole.
    """
    if not os.path.isdir(os.path.join(folder, PACKAGE)):
        return
    there, used, empty = _modules(folder)
    missing = sorted({f"{name}.py" for name in MODULES} - set(os.listdir(folder))) + sorted(used - there)
    if missing or empty:
        about = f"{_named(missing)} missing" if missing else f"{_named(empty)} empty"
        yield Finding("wrong", f"{folder} was copied in part: {about}, and the program fails where it needs that",
                      remedy)  # fmt: skip
        return
    stale = sorted(there - used)
    if stale:
        paths = " ".join(os.path.join(folder, name) for name in stale[:_NAMED_FILES])
        yield Finding("note", f"{_named(stale)} of another version: nothing uses {'it' if len(stale) == 1 else 'them'}",
                      f"rm {paths}")  # fmt: skip


def _named(paths: list[str]) -> str:
    """Return the first of some paths, with the verb."""
    more = f" and {len(paths) - _NAMED_FILES} more" if len(paths) > _NAMED_FILES else ""
    return f"{', '.join(paths[:_NAMED_FILES])}{more} {'is' if len(paths) == 1 else 'are'}"


def _modules(folder: str) -> tuple[set[str], set[str], list[str]]:
    """Return the files of the package that are there, those that are imported, and those that are empty."""
    there: set[str] = set()
    used: set[str] = set()
    empty = []
    root = [f"{name}.py" for name in MODULES if os.path.exists(os.path.join(folder, f"{name}.py"))]
    for path in (*root, *_files(folder)):
        with open(os.path.join(folder, path), encoding="utf-8", errors="replace") as file:
            text = file.read()
        if path not in root:
            there.add(path)
        if not text.strip():
            empty.append(path)
        for found in _IMPORT.finditer(text):
            used.update(_needed(folder, found.groupdict()))
        if path.endswith("/__init__.py"):  # a package is there for its modules
            used.add(path)
    return there, used, empty


def _files(folder: str) -> Iterator[str]:
    for top, _, names in os.walk(os.path.join(folder, PACKAGE)):
        for name in names:
            if name.endswith(".py"):
                yield os.path.relpath(os.path.join(top, name), folder)


def _needed(folder: str, found: Mapping[str, str | None]) -> Iterator[str]:
    """Yield the files that an import needs. Packages hold a docstring alone, so what comes from one is a module."""
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
    """The container that doctor runs in: the words that started its first process, and who that runs as."""

    command: str
    account: Account


def find_container(root: str = "/") -> Container | None:
    """Return the container that this is; None outside of one."""
    if not in_our_container(root):
        return None
    return Container(first_process(root), first_account(root))


def container(found: Container, data: str) -> Iterator[Finding]:
    """Check what a container is given from outside: its volume, its time zone, its name."""
    yield Finding("ok", "in a container" + (f", which runs {found.command}" if found.command else ""))
    is_another = found.account.uid != os.geteuid()  # this user's own rights are checked with the folder
    if is_another and os.path.isdir(data) and not may_use(found.account, data, os.W_OK | os.X_OK):
        owner = os.stat(data).st_uid
        yield Finding("wrong", f"{data} belongs to user {owner}, and {found.account.name} may not write there",
                      VOLUME_REMEDY)  # fmt: skip
    if not os.environ.get("TZ") and time.tzname[0] == "UTC":
        yield Finding("note", "TZ is not set, so page, log and CSV files have UTC",
                      "TZ=Europe/Vienna in .env beside docker-compose.yml, then docker compose up -d")  # fmt: skip
    if is_named_by_id() and "node.py" in found.command and not os.environ.get("PIGEONPOST_NODE_NAME"):
        yield Finding("note", "the node has the name of this container's first start",
                      "PIGEONPOST_NODE_NAME=basement in .env, then docker compose up -d")  # fmt: skip
