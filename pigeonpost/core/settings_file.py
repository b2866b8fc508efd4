"""Reader of a settings file (TOML), with errors that contain the line and the remedy.

A program imports it only if there is a settings file, because tomllib needs 0.6 MiB of memory. The module that explains
syntax errors is imported only if there is such an error. Errors: SettingsError, which begins with the name of the file.
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

_DEEPEST = 8  # nested tables and lists
_BOMS_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # byte order marks of UTF-32 begin with these, or with two zeros


def read_text(path: str) -> str:
    """Return the text of the settings file `path`.

    Raises:
        SettingsError: The file cannot be read, or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except PermissionError as error:
        raise SettingsError(f"{path}: Permission denied: use sudo, or --config FILE for other settings") from error
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    if data.startswith(_BOMS_16) or data[:4].count(0) >= 2:
        raise SettingsError(f"{path}: is UTF-16 or UTF-32: save it as UTF-8 (in an editor: Save as)")
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
    """Return the content of the TOML text `text`.

    Raises:
        SettingsError: The text is not valid TOML. The message begins with `name`.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        from pigeonpost.core.toml_faults import explain

        line, fault = explain(text, str(error))
        where = f"{name}, line {line}" if line else name
        raise SettingsError(hide_secrets(f"{where}: not TOML: {fault}")) from None
    except ValueError as error:  # an integer with more digits than Python converts
        raise SettingsError(f"{name}: not TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{name}: nested too deeply") from None
    _refuse_unusable(content, name)
    return content


def _refuse_unusable(value: Any, where: str, depth: int = 0) -> None:
    """Raise SettingsError for values that TOML allows but no setting can use."""
    if depth > _DEEPEST:
        raise SettingsError(f"{where:.200}: nested too deeply")
    if isinstance(value, int) and value.bit_length() > 14_000:  # 4,300 digits: Python does not print longer ones
        raise SettingsError(f"{where}: the number is too large")
    if isinstance(value, str) and "\0" in value:
        raise SettingsError(f"{where}: must not contain a NUL character (\\u0000)")
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _refuse_unusable(item, f"{where}: {key}" if isinstance(key, str) else where, depth + 1)


def with_line(message: str, text: str, name: str) -> str:
    """Return an error message about settings, with the number of the line that causes it if the line is certain.

    Args:
        message: Message of the form `NAME: [table] key ...` or `NAME: [[table]] 2: channels.x: key ...`.
        text: Text of the settings file.
        name: Name of the settings file.
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
    """Return the line of the key in an error message, or else of its table, or None if neither is certain."""
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
    word = unknown[1] if unknown else (re.match(r"`?([A-Za-z0-9_-]*)", fault) or ["", ""])[1]
    return known.lines.get((*path, word)) or known.lines.get(path)
