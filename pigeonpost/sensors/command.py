"""Sensor kind "command": numbers in the output of a program or in a file.

    command = ["/usr/bin/sensor", "--once"]     the program and its arguments, without a shell
    command = "sensor | tail -n 1"              with `shell = true`: a command line for the shell
    file = "/run/boiler"                        instead of a command: a file that another program writes

An impossible value (see sensors.ranges) is read once more if the command or the file answered quickly. A text that is
the file w1_slave of a 1-Wire thermometer is checked as with kind = "kernel".

Errors: SensorError with the exit status and the last line of the program's error output, or with the text in which no
number was found.
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
from pigeonpost.sensors.chips import described
from pigeonpost.sensors.contract import CALIBRATION, Channel, Readings, SensorSource, calibrated, channel_tables
from pigeonpost.sensors.one_wire import OneWireThermometer
from pigeonpost.sensors.ranges import ImpossibleValue, ranges_of
from protocol import UNIT, Number

LONGEST_OUTPUT = 65_536  # bytes
_AGAIN_SHARE = 0.25  # largest share of the waiting time that a command may take so that it is run once more
_W1_SLAVE = re.compile(r"(?:[0-9a-f]{2} ){9}: crc=[0-9a-f]{2} (?:YES|NO)\n").match

Find = Callable[[str], Number]


def _command(value: Any) -> str | list[str]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        return value
    raise ValueError('takes a list of strings, such as ["/usr/bin/sensor", "--once"], or a string with shell = true')


def _pattern(value: Any) -> re.Pattern[str]:
    try:
        found = re.compile(value, re.MULTILINE)
    except (re.error, TypeError) as error:
        raise ValueError(f"takes a regular expression ({error})") from None
    if found.groups != 1:
        raise ValueError('takes a regular expression with one group for the number, such as "temp=([-0-9.]+)"')
    return found


OPTIONS = (
    Option("channels", a_table, None, "one table per channel, by channel name"),
    Option("command", _command, None, "the program and its arguments, as a list"),
    Option("file", text, None, "file to read, instead of a command"),
    Option("shell", switch, False, "run `command`, which is then a string, in a shell"),
    Option("timeout", number(0.1, 3600), 10.0, "seconds after which the command is killed"),
)
CHANNEL_OPTIONS = (
    Option(
        "pattern",
        _pattern,
        None,
        "regular expression whose group is the number; without it, the complete text is the number",
    ),
    Option("unit", matching(UNIT, "a text up to 32 characters"), "", "unit of the value"),
    *CALIBRATION,
)


class CommandSource(SensorSource):
    """Source that finds a number for each channel in one text.

    Args:
        channels: The channels.
        read_text: Function that returns the text.
        find: For each channel, the function that finds its number in the text.
        read_from: The file, or the words of the command. It can contain the id of a 1-Wire thermometer.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        read_text: Callable[[], str],
        find: Mapping[str, Callable[[str], Number]],
        read_from: Sequence[str] = (),
    ) -> None:
        self.channels = channels
        self._read_text = read_text
        self._find = find
        self._ranges = ranges_of(channels)
        found = re.search(r"[0-9a-f]{2}-[0-9a-f]{12}", " ".join(read_from))
        self._thermometer = OneWireThermometer(found[0] if found else "28-000000000000")

    def read(self) -> Readings:
        began_s = time.monotonic()
        readings = self._read_once()
        impossible = [name for name, value in readings.items() if isinstance(value, ImpossibleValue)]
        if impossible and time.monotonic() - began_s < _AGAIN_SHARE * self.patience_s:
            try:
                again = self._read_once()
            except SensorError:  # the values of the other channels are kept
                return readings
            readings |= {name: again[name] for name in impossible}
        return readings

    def _read_once(self) -> dict[str, Number | SensorError]:
        text = self._read_text()
        readings: dict[str, Number | SensorError] = {}
        for channel in self.channels:
            name = channel.name
            try:
                if _W1_SLAVE(text):
                    self._thermometer.temperature(text)
                value = self._find[name](text)
                if name in self._ranges:
                    possible, unit = self._ranges[name]
                    possible.check(value, unit, text.strip())
                readings[name] = value
            except SensorError as error:
                readings[name] = error
        return readings


def run(command: str | list[str], shell: bool, timeout_s: float) -> str:
    """Run a command and return its standard output.

    Args:
        command: The program and its arguments, or a command line for the shell.
        shell: True to run the command in a shell.
        timeout_s: Time in seconds after which the command is killed.

    Raises:
        SensorError: The command cannot be started, fails, takes too long or prints too much.
    """
    try:
        process = subprocess.Popen(
            command, shell=shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,  # so that the processes that it has started can be killed together with it
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise SensorError(f"{_preview(command)} cannot be started: {error}") from error
    try:
        output, errors = _read_output(process, time.monotonic() + timeout_s)
    except (TimeoutError, OverflowError) as error:
        os.killpg(process.pid, signal.SIGKILL)
        what = f"did not end within {timeout_s:g} s" if isinstance(error, TimeoutError) else "printed too much"
        raise SensorError(f"{_preview(command)} {what} and was killed") from None
    finally:
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        process.wait()
    if process.returncode:
        lines = errors.strip().splitlines()
        how = f"exit status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise SensorError(f"{_preview(command)} failed with {how}{': ' + lines[-1][:200] if lines else ''}")
    return output


def _read_output(process: subprocess.Popen[bytes], give_up_s: float) -> tuple[str, str]:
    """Wait until a process has ended, and return its standard output and standard error.

    Raises TimeoutError at the time `give_up_s` (time.monotonic), and OverflowError for more than LONGEST_OUTPUT bytes.
    """
    received: dict[Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for pipe in received:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left_s = give_up_s - time.monotonic()
            ready = selector.select(left_s) if left_s > 0 else []
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                block = os.read(key.fd, 8192)
                if not block:
                    selector.unregister(key.fileobj)
                received[key.fileobj] += block
                if len(received[key.fileobj]) > LONGEST_OUTPUT:
                    raise OverflowError
    try:
        process.wait(max(0.0, give_up_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    output, errors = (data.decode(errors="replace") for data in received.values())
    return output, errors


def read_file(path: str) -> str:
    """Return the contents of the file `path` as text.

    Raises:
        SensorError: The file cannot be read, or is longer than LONGEST_OUTPUT.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LONGEST_OUTPUT + 1)
    except OSError as error:
        raise SensorError(f"{path}: {error.strerror}") from error
    if len(data) > LONGEST_OUTPUT:
        raise SensorError(f"{path} is longer than {LONGEST_OUTPUT} bytes")
    return data.decode(errors="replace")


def make(settings: Mapping[str, Any], where: str) -> CommandSource:
    """Return the source for a [[sensor]] table with kind = "command".

    Args:
        settings: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid.
    """
    options = read_options(settings, OPTIONS, where)
    command, path = options["command"], options["file"]
    if (command is None) == (path is None):
        raise SettingsError(f"{where}: must have either `command` or `file`")
    if command is not None and isinstance(command, str) != options["shell"]:
        raise SettingsError(f"{where}: command must be a list of strings, or a string with shell = true")
    find: dict[str, Find] = {}
    channels = []
    read_from = [path] if path is not None else command.split() if isinstance(command, str) else command
    for name, chosen, _ in channel_tables(options["channels"], CHANNEL_OPTIONS, OPTIONS, where, "boiler = {}"):
        find[name] = functools.partial(_find, chosen)
        channels.append(Channel(name, chosen["unit"], possible=described(name, chosen["unit"], (*read_from, name))))
    if path is not None:
        return CommandSource(channels, functools.partial(read_file, path), find, read_from)
    read = functools.partial(run, command, options["shell"], options["timeout"])
    return CommandSource(channels, read, find, read_from)


def _find(chosen: Mapping[str, Any], text: str) -> Number:
    pattern: re.Pattern[str] | None = chosen["pattern"]
    found = pattern.search(text) if pattern else None
    if pattern and not found:
        raise SensorError(f"{pattern.pattern!r} does not match {_preview(text)}")
    number = (found[1] or "") if found else text
    try:
        return calibrated(float(number), chosen)
    except ValueError:
        raise SensorError(f"not a number: {_preview(number)}") from None


def _preview(text: str | list[str]) -> str:
    shown = repr(text if isinstance(text, str) else " ".join(text))
    return shown if len(shown) <= 80 else shown[:77] + "..."
