"""Reading of a settings file (TOML), with errors that name the line and the remedy.

A program imports it, and with it tomllib, only when there is a file: tomllib costs 0.6 MiB. What explains a fault is
imported when there is one.
Errors: SettingsError, which begins with the file's name.
"""

from __future__ import annotations

import codecs
import re
import tomllib

from pigeonpost.core.errors import SettingsError
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.redact import hide_secrets

if TYPE_CHECKING:
    from typing import Any

    from pigeonpost.core.toml_lines import Path, TomlLines

_DEEPEST = 8  # tables and lists within each other
_BOMS_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # those of UTF-32 begin with them, or with two zeros


def read_text(path: str) -> str:
    """Return the text of a settings file. Raises SettingsError, also for one that is not UTF-8."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except PermissionError as error:
        raise SettingsError(
            f"{path}: Permission denied: start this with sudo, or with --config FILE for other settings"
        ) from error
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    if data.startswith(_BOMS_16) or data[:4].count(0) >= 2:
        raise SettingsError(f"{path}: is UTF-16 (or 32), not UTF-8: save it as UTF-8, which editors offer in Save as")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        letter = data[error.start : error.start + 1].decode("latin-1")
        raise SettingsError(
            f"{path}, line {line}: not TOML: byte 0x{data[error.start]:02x} (perhaps {letter!r}) is not UTF-8:"
            " save the file as UTF-8"
        ) from None


def parse(text: str, name: str) -> dict[str, Any]:
    """Return what a TOML text says. Raises SettingsError, which begins with `name`."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        from pigeonpost.core.toml_faults import explain

        line, fault = explain(text, str(error))
        where = f"{name}, line {line}" if line else name
        raise SettingsError(hide_secrets(f"{where}: not TOML: {fault}")) from None
    except ValueError as error:  # an integer longer than Python converts
        raise SettingsError(f"{name}: not TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{name}: nested too deeply") from None
    _refuse_odd(content, name)
    return content


def _refuse_odd(value: Any, where: str, depth: int = 0) -> None:
    """SettingsError for what TOML's reader lets through and nothing here can use."""
    if depth > _DEEPEST:
        raise SettingsError(f"{where:.200}: nested too deeply")
    if isinstance(value, int) and value.bit_length() > 14_000:  # 4,300 digits; longer ones Python does not print
        raise SettingsError(f"{where}: takes no number so large")
    if isinstance(value, str) and "\0" in value:
        raise SettingsError(f"{where}: takes no NUL character (\\u0000)")
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _refuse_odd(item, f"{where}: {key}" if isinstance(key, str) else where, depth + 1)


def with_line(message: str, text: str, name: str) -> str:
    """Return an error message about settings with the line that it is about, where that is certain.

    message  as `NAME: [table] key ...` or `NAME: [[table]] 2: channels.x: key ...`
    text     of the file `name`
    """
    if not message.startswith(f"{name}: "):
        return message
    from pigeonpost.core.toml_lines import TomlLines

    known = TomlLines(text)
    line = _line_of(message.removeprefix(f"{name}: "), known)
    return f"{name}, line {line}{message.removeprefix(name)}" if line else message


_ABOUT = re.compile(r"\[\[(?P<array>\w+)\]\](?: (?P<number>[0-9]+))?:? ?|\[(?P<table>\w+)\]:? ?")
_CHANNEL = re.compile(r"channels\.([^\s:]+): ")
_UNKNOWN = re.compile(r"unknown key '([^']*)'")


def _line_of(fault: str, known: TomlLines) -> int | None:
    """Return the line of the key that a fault names, else of the table; None where neither is certain."""
    path: Path = ()
    if about := _ABOUT.match(fault):
        path = (about["table"] or about["array"],)
        if about["number"]:
            path = (*path, int(about["number"]) - 1)
        fault = fault[about.end() :]
    if channel := _CHANNEL.match(fault):
        path = (*path, "channels", channel[1])
        fault = fault[channel.end() :]
    unknown = _UNKNOWN.match(fault)
    word = unknown[1] if unknown else (re.match(r"[A-Za-z0-9_-]*", fault) or [""])[0]
    return known.lines.get((*path, word)) or known.lines.get(path)
