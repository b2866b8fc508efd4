"""Sensor kind "command": numbers in the output of a program or in a file.

Errors: SensorError with the exit status and the last output of the program, or with the text that holds no number.

    command = ["/usr/bin/sensor", "--once"]     the program and its arguments, without a shell
    command = "sensor | tail -n 1"              with `shell = true`: a command line for the shell
    file = "/run/boiler"                        instead of a command: a file that another program writes
"""

from __future__ import annotations

import functools
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pigeonpost.core.config import Option, a_table, matching, number, read_options, switch, text
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors.contract import CALIBRATION, Channel, Readings, SensorSource, calibrated, channel_tables
from protocol import UNIT, Number

LONGEST_OUTPUT = 65_536  # bytes

Find = Callable[[str], Number]


def _words(value: Any) -> str | list[str]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        return value
    raise ValueError('takes a list of texts, as ["/usr/bin/sensor", "--once"], or with shell = true a text')


def _pattern(value: Any) -> re.Pattern[str]:
    try:
        found = re.compile(value, re.MULTILINE)
    except (re.error, TypeError) as error:
        raise ValueError(f"takes a regular expression ({error})") from None
    if found.groups != 1:
        raise ValueError('takes a regular expression with one group, the number, as in "temp=([-0-9.]+)"')
    return found


OPTIONS = (
    Option("channels", a_table, None, "a table for each channel, by its name"),
    Option("command", _words, None, "the program and its arguments"),
    Option("file", text, None, "instead of a command: a file to read"),
    Option("shell", switch, False, "whether a shell reads the command"),
    Option("timeout", number(0.1, 3600), 10.0, "seconds after which it is killed"),
)
CHANNEL_OPTIONS = (
    Option(
        "pattern", _pattern, None, "where the number stands in the text, as its one group; without it the text is one"
    ),
    Option("unit", matching(UNIT, "a text up to 32 characters"), "", "of the value"),
    *CALIBRATION,
)


class CommandSource(SensorSource):
    """One text, and in it a number for each channel."""

    def __init__(
        self, channels: Sequence[Channel], ask: Callable[[], str], find: Mapping[str, Callable[[str], Number]]
    ):
        self.channels = channels
        self._ask = ask
        self._find = find

    def read(self) -> Readings:
        said = self._ask()
        readings: dict[str, Number | SensorError] = {}
        for channel in self.channels:
            try:
                readings[channel.name] = self._find[channel.name](said)
            except SensorError as error:
                readings[channel.name] = error
        return readings


def run(command: str | list[str], shell: bool, timeout_s: float) -> str:
    """Return the output of `command`. SensorError when it cannot start, fails, takes too long or prints too much."""
    try:
        process = subprocess.Popen(
            command, shell=shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,  # so that what it has started is killed with it
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise SensorError(f"{_preview(command)} does not start: {error}") from error
    try:
        said, complained = _listen(process, time.monotonic() + timeout_s)
    except (TimeoutError, OverflowError) as error:
        os.killpg(process.pid, signal.SIGKILL)
        what = f"was not done within {timeout_s:g} s" if isinstance(error, TimeoutError) else "prints without end"
        raise SensorError(f"{_preview(command)} {what}, and was killed") from None
    finally:
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        process.wait()
    if process.returncode:
        words = complained.strip().splitlines()
        how = f"exit status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise SensorError(f"{_preview(command)} failed, {how}{': ' + words[-1][:200] if words else ''}")
    return said


def _listen(process: subprocess.Popen[bytes], give_up_s: float) -> tuple[str, str]:
    """Return standard output and standard error of a process, once it has ended."""
    heard: dict[Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as chooser:
        for pipe in heard:
            chooser.register(pipe, selectors.EVENT_READ)
        while chooser.get_map():
            left_s = give_up_s - time.monotonic()
            ready = chooser.select(left_s) if left_s > 0 else []
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                block = os.read(key.fd, 8192)
                if not block:
                    chooser.unregister(key.fileobj)
                heard[key.fileobj] += block
                if len(heard[key.fileobj]) > LONGEST_OUTPUT:
                    raise OverflowError
    try:
        process.wait(max(0.0, give_up_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    said, complained = (data.decode(errors="replace") for data in heard.values())
    return said, complained


def read_file(path: str) -> str:
    """Return the content of a file. Raises SensorError."""
    try:
        with open(path, "rb") as file:
            data = file.read(LONGEST_OUTPUT + 1)
    except OSError as error:
        raise SensorError(f"{path}: {error.strerror}") from error
    if len(data) > LONGEST_OUTPUT:
        raise SensorError(f"{path} is longer than {LONGEST_OUTPUT} bytes")
    return data.decode(errors="replace")


def make(settings: Mapping[str, Any], where: str) -> CommandSource:
    """The source that a [[sensor]] table with kind = "command" describes.

    Raises SettingsError, which begins with `where`.
    """
    options = read_options(settings, OPTIONS, where)
    command, path = options["command"], options["file"]
    if (command is None) == (path is None):
        raise SettingsError(f"{where}: takes either a command or a file")
    if command is not None and isinstance(command, str) != options["shell"]:
        raise SettingsError(f"{where}: command is a list of texts, or with shell = true a text")
    find: dict[str, Find] = {}
    channels = []
    for name, chosen, _ in channel_tables(options["channels"], CHANNEL_OPTIONS, where, "boiler = {}"):
        find[name] = functools.partial(_find, chosen)
        channels.append(Channel(name, chosen["unit"]))
    if path is not None:
        return CommandSource(channels, functools.partial(read_file, path), find)
    return CommandSource(channels, functools.partial(run, command, options["shell"], options["timeout"]), find)


def _find(chosen: Mapping[str, Any], said: str) -> Number:
    pattern: re.Pattern[str] | None = chosen["pattern"]
    found = pattern.search(said) if pattern else None
    if pattern and not found:
        raise SensorError(f"{pattern.pattern!r} is not in {_preview(said)}")
    number = (found[1] or "") if found else said
    try:
        return calibrated(float(number), chosen)
    except ValueError:
        raise SensorError(f"no number: {_preview(number)}") from None


def _preview(said: str | list[str]) -> str:
    shown = repr(said if isinstance(said, str) else " ".join(said))
    return shown if len(shown) <= 80 else shown[:77] + "..."
