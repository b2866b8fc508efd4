"""What commands of control.py have in common: the command, its context, its failure, a progress bar.

A module of this package has `COMMANDS`, a table like control.py's own; it may import everything below it, as a program
does. Errors: Failed, for exit status 1; SettingsError for 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import DATABASE
from pigeonpost.core.errors import PigeonpostError, SettingsError, StoreDamaged
from pigeonpost.storage.contract import Store
from pigeonpost.storage.registry import open_store
from protocol import NODE_NAME, NODE_NAME_TAKES, SENSOR_NAME, SENSOR_NAME_TAKES


class Failed(PigeonpostError):
    """The command was understood but could not be done."""


class Command(NamedTuple):
    """One command: its help in one line, its arguments for argparse, its function, and its former names.

    loads_settings  it loads the settings itself, whatever is wrong with them: its context has neither them nor `data`
    """

    help: str
    arguments: Sequence[tuple[str, dict[str, Any]]]
    run: Callable[[Context], int]
    aliases: Sequence[str] = ()
    loads_settings: bool = False


class Context(NamedTuple):
    """What a command works with.

    data          the server's data folder
    arguments     as argparse gives them
    settings      the server's settings
    node_of_file  returns the node that dropped a file here, by its path; empty where that is not known
    """

    data: str
    arguments: argparse.Namespace
    settings: Settings
    node_of_file: Callable[[str], str] = lambda path: ""


def has_store(context: Context) -> bool:
    """Return True if there is a store that `look` can open."""
    return bool(context.settings["store", "postgres"]) or os.path.exists(os.path.join(context.data, DATABASE))


def require_store(context: Context) -> None:
    """Raise SettingsError where there is no store."""
    if not has_store(context):
        raise SettingsError(f"there is no database in {context.data}; --data DIR names its folder")


def discard_output() -> None:
    """Write nothing more: the reader has what it wanted, as `head`. Else Python would report that when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def look(context: Context) -> Store:
    """Open the store that the settings name for reading, also beside a running server. The caller closes it.

    Raises Failed for one that is so damaged that it cannot be opened.
    """
    require_store(context)
    try:
        return open_store(context.settings, context.data, look_only=True)
    except StoreDamaged as error:
        raise Failed(str(error)) from error


def matching(match: Callable[[str], object], what: str, takes: str) -> Callable[[str], str]:
    """Return a type for argparse: text that `match` accepts. Errors say that it is no `what`, and what one `takes`."""

    def read(text: str) -> str:
        if not match(text):
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}: {takes}")
        return text

    return read


node_name = matching(NODE_NAME, "node name", NODE_NAME_TAKES)
sensor_name = matching(SENSOR_NAME, "sensor name", SENSOR_NAME_TAKES)


class Bar:
    """A progress bar, on a terminal only."""

    def __init__(self, name: str) -> None:
        self._name = name if len(name) <= 30 else name[:27] + "..."
        self._shown = -1
        self._is_seen = sys.stderr.isatty()

    def show(self, gone: int, size: int) -> None:
        """Show that `gone` of `size` bytes, rows or pages are done."""
        percent = min(100, 100 * gone // size) if size else 100
        if self._is_seen and percent != self._shown:
            self._shown = percent
            done = "#" * (percent * _BAR // 100)
            print(f"\r{self._name:30} [{done:-<{_BAR}}] {percent:3} %", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """End the line of the bar."""
        if self._shown >= 0:
            print(file=sys.stderr)
            self._shown = -1


_BAR = 30  # columns
NODE = ("node", {"metavar": "NODE", "type": node_name})
