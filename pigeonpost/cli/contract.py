"""Base of all commands of control.py: command table, context, error, argument types, progress bar.

Each module with commands has a table `COMMANDS`, from the name of a command to its `Command`. The docstring of a
command's function, without the sections Args, Returns and Raises, is its text in --help. A command raises Failed for
exit status 1, and SettingsError for 2.
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
    """A valid command could not be executed."""


class Command(NamedTuple):
    """One command of control.py.

    Attributes:
        help: Its help in one line.
        arguments: Its arguments, as name and options for argparse.
        run: Its function, which returns the exit status. The docstring is the description in --help.
        aliases: Its former names.
        loads_settings: True if the command loads the settings itself, so that it also runs if they are invalid. Its
            context then contains no settings, and `data` is an empty string.
        examples: Examples at the end of its help, with the heading "examples:", or an empty string.
    """

    help: str
    arguments: Sequence[tuple[str, dict[str, Any]]]
    run: Callable[[Context], int]
    aliases: Sequence[str] = ()
    loads_settings: bool = False
    examples: str = ""


class Context(NamedTuple):
    """Input of a command.

    Attributes:
        data: Data folder of the server.
        arguments: Parsed arguments of the command line.
        settings: Settings of the server.
        node_of_file: Function that returns the name of the node that uploaded the file at a path, or an empty string
            if it is not known.
    """

    data: str
    arguments: argparse.Namespace
    settings: Settings
    node_of_file: Callable[[str], str] = lambda path: ""


def has_store(context: Context) -> bool:
    """Return True if the settings of `context` name a PostgreSQL database, or its data folder has a database file."""
    return bool(context.settings["store", "postgres"]) or os.path.exists(os.path.join(context.data, DATABASE))


def require_store(context: Context) -> None:
    """Raise SettingsError if `has_store` returns False for `context`."""
    if not has_store(context):
        raise SettingsError(f"there is no database in the folder {context.data}; --data DIR selects another folder")


def discard_output() -> None:
    """Discard all further output after its reader has closed the pipe. Otherwise Python reports an error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_read_only(context: Context) -> Store:
    """Open the store of `context` for reading, and return it. The caller must close it. The server may be running.

    Raises:
        SettingsError: There is no store.
        Failed: The store is so damaged that it cannot be opened.
    """
    require_store(context)
    try:
        return open_store(context.settings, context.data, look_only=True)
    except StoreDamaged as error:
        raise Failed(str(error)) from error


def matching(match: Callable[[str], object], what: str, takes: str) -> Callable[[str], str]:
    """Return a type for argparse that accepts text for which `match` is true.

    Args:
        match: Function that returns a true value for valid text.
        what: Noun for valid text, used in the error message: "node name".
        takes: Description of valid text, used in the error message.
    """

    def read(text: str) -> str:
        if not match(text):
            raise argparse.ArgumentTypeError(f"{text!r} is not a valid {what}: {takes}")
        return text

    return read


node_name = matching(NODE_NAME, "node name", NODE_NAME_TAKES)
sensor_name = matching(SENSOR_NAME, "sensor name", SENSOR_NAME_TAKES)


class Bar:
    """Progress bar with the label `name` on standard error. It is shown only on a terminal."""

    def __init__(self, name: str) -> None:
        self._name = name if len(name) <= 30 else name[:27] + "..."
        self._shown = -1
        self._is_seen = sys.stderr.isatty()

    def show(self, done: int, size: int) -> None:
        """Show that `done` of `size` bytes, rows or pages are finished."""
        percent = min(100, 100 * done // size) if size else 100
        if self._is_seen and percent != self._shown:
            self._shown = percent
            filled = "#" * (percent * _BAR // 100)
            print(f"\r{self._name:30} [{filled:-<{_BAR}}] {percent:3} %", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """End the line of the bar, if it was shown."""
        if self._shown >= 0:
            print(file=sys.stderr)
            self._shown = -1


_BAR = 30  # columns
NODE = ("node", {"metavar": "NODE", "type": node_name, "help": "name of the node"})
