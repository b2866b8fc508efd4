"""Settings of a program, from flags, environment variables, a TOML file and defaults, in this order of priority.

Errors: SettingsError, which contains file, table and key (or flag, or variable), the value, and what is accepted.

A program lists its settings as `Setting` rows, one per key. tomllib is imported only if there is a file, because it
needs 0.6 MiB of memory.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace

from pigeonpost.core.addresses import split_address
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from pigeonpost.core.redact import HIDDEN, SECRET_KEYS, SECRET_TABLES, hide_secrets

if TYPE_CHECKING:
    import argparse
    from typing import Any

Parse = Callable[["Any"], "Any"]

SYSTEM_FOLDER = "/etc/pigeonpost"  # last folder that is searched for settings files


class Setting(NamedTuple):
    """One setting.

    Attributes:
        table: Table of the settings file.
        key: Key in that table.
        parse: Function that converts a value from the file, a flag or a variable. It raises ValueError with a
            description of what is accepted.
        default: Default value, as it would be in the file.
        help: Description for `--help`.
        flag: Flag on the command line, or an empty string if there is none.
        metavar: Name of the flag's value in `--help`.
        many: True for a list. The flag may then be repeated, and the variable separates items with commas.
        secret: True if the value must not be shown.
    """

    table: str
    key: str
    parse: Parse
    default: Any
    help: str
    flag: str = ""
    metavar: str = ""
    many: bool = False
    secret: bool = False

    @property
    def variable(self) -> str:
        """Environment variable of the setting, for example PIGEONPOST_NODE_EVERY."""
        return f"PIGEONPOST_{self.table}_{self.key}".upper()


class Option(NamedTuple):
    """One key of a table in an array of tables, such as [[sensor]].

    Attributes:
        key: Name of the key.
        parse: Function that converts the value. It raises ValueError with a description of what is accepted.
        default: Default value; None if there is no default, or if the key is required.
        help: Description.
    """

    key: str
    parse: Parse
    default: Any
    help: str


def read_options(table: Mapping[str, Any], options: Sequence[Option], where: str) -> dict[str, Any]:
    """Return the values of one table of an array of tables. All keys in `options` are present.

    Args:
        table: The table.
        options: The keys that the table may have.
        where: Description of the table for errors.

    Raises:
        SettingsError: A key is unknown, or a value is invalid.
    """
    check_keys(table, [option.key for option in options], where)
    found = {option.key: option.default for option in options}
    for option in options:
        if option.key in table:
            try:
                found[option.key] = option.parse(table[option.key])
            except ValueError as error:
                is_secret = any(f"[[{name}]]" in where and option.key in keys for name, keys in SECRET_TABLES.items())
                given = _without_secrets({option.key: table[option.key]})[option.key]
                shown = "the given value" if is_secret else repr(given)
                raise SettingsError(hide_secrets(f"{where}: {option.key} {error}, not {shown}")) from None
    return found


class Settings:
    """The effective settings of a program: `settings["node", "every"]`.

    Attributes:
        file: Path of the settings file, or the name of the variable that contains its text, or an empty string.
        text: Content of that file or variable.
        source: Description of the file or variable that was read.
        tables: Arrays of tables, such as [[sensor]], by name.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Any] = {}
        self._given: dict[tuple[str, str], Any] = {}  # before conversion
        self._origins: dict[tuple[str, str], str] = {}
        self._secrets: set[tuple[str, str]] = set()
        self.file = ""
        self.text = ""
        self.source = ""
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def __getitem__(self, key: tuple[str, str]) -> Any:
        return self._values[key]

    def origin(self, table: str, key: str) -> str:
        """Return the origin of the value of `key` in `table`: the name of a file, variable or flag, or `default`."""
        return self._origins[table, key]

    def put(self, setting: Setting, value: Any, origin: str) -> None:
        """Set the value of a setting.

        Args:
            setting: The setting.
            value: Value from the file, the variable or the flag, before conversion.
            origin: Name of the file, the variable or the flag, or `default`.

        Raises:
            SettingsError: The parser rejects the value. The message begins with `origin` and the key.
        """
        key = setting.table, setting.key
        items: list[Any] = value if setting.many and isinstance(value, list) else [value]
        parsed = []
        for item in items:
            try:
                if setting.many and not isinstance(value, list):
                    raise ValueError("takes a list")
                parsed.append(setting.parse(item))
            except ValueError as error:
                shown = "the given value" if setting.secret else repr(item)
                text = f"{origin}: [{setting.table}] {setting.key} {error}, not {shown}"
                raise SettingsError(hide_secrets(text)) from None
        self._given[key] = items if setting.many else items[0]
        self._values[key], self._origins[key] = parsed if setting.many else parsed[0], origin
        if setting.secret:
            self._secrets.add(key)

    def with_line(self, error: SettingsError) -> SettingsError:
        """Return `error`, with a line number if the error is about the settings file and the line is certain."""
        if not self.file or not str(error).startswith(f"{self.file}: "):
            return error
        from pigeonpost.core.settings_file import with_line

        return SettingsError(with_line(str(error), self.text, self.file))

    def show(self) -> str:
        """Return one line per setting with its value and origin.

        Secrets are shown only as "(set)" or "(not set)"; secrets within an address are hidden.
        """
        lines = []
        for (table, key), value in sorted(self._given.items()):
            shown = as_toml(_without_secrets(value))
            if (table, key) in self._secrets:
                shown = "(set)" if value else "(not set)"
            elif key in ("certificate", "key") and "\n" in value:  # the content of the file instead of its path
                shown = HIDDEN
            lines.append(f"[{table}] {key} = {shown}  # {self._origins[table, key]}")
        for name, entries in self.tables.items():
            secret = SECRET_TABLES.get(name, ())
            for entry in entries:
                known = {key: "(set)" if value and key in secret else value for key, value in entry.items()}
                lines.append(f"[[{name}]] {as_toml(_without_secrets(known))}  # {self.file}")
        return "\n".join(lines)


class Written(str):
    """Text of a flag or an environment variable. It may stand for a number or a Boolean, which need no quotes here."""


def load(
    settings: Sequence[Setting],
    arguments: argparse.Namespace | SimpleNamespace,
    default_file: str,
    arrays: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    folders: Sequence[str] | None = None,
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """Return the effective settings.

    Args:
        settings: All settings of the program.
        arguments: Result of `read_flags`, or of argparse with the flags of `add_flags`.
        default_file: Name of the settings file, if `--config` is not given. The first of `folders` that contains it is
            used. The environment variable of that file (PIGEONPOST_NODE_TOML for node.toml) has priority. It contains
            the content of the file, not its path.
        arrays: Names of arrays of tables that the file may contain. Their keys are checked where they are used.
        environment: Environment variables; None for those of the process.
        folders: Folders to search; None for `search_folders()`.
        elsewhere: Names of tables that belong in another file, each with the name of that file.

    Raises:
        SettingsError: The file cannot be read, or a setting is invalid.
    """
    environment = os.environ if environment is None else environment
    found = Settings()
    for setting in settings:
        found.put(setting, setting.default, "default")
    folders = search_folders() if folders is None else folders
    content = _read_file(found, arguments.config, default_file, environment, folders)
    if content:
        try:
            _store_content(found, content, _FileKeys(settings, arrays, elsewhere))
        except SettingsError as error:
            raise found.with_line(error) from None
    for setting in settings:
        given = environment.get(setting.variable, "")
        if given.strip():  # docker compose and balena pass unset variables as empty ones
            items = [Written(item.strip()) for item in given.split(",") if item.strip()]
            found.put(setting, items if setting.many else Written(given), setting.variable)
    for setting in settings:
        value = getattr(arguments, _name(setting), None) if setting.flag else None
        if value is not None:
            written = [Written(item) for item in value] if setting.many else value
            found.put(setting, Written(written) if isinstance(written, str) else written, setting.flag)
    return found


def search_folders() -> tuple[str, ...]:
    """Return the folders to search for settings files: the current folder, the program's folder and SYSTEM_FOLDER."""
    return "", os.path.dirname(os.path.realpath(sys.argv[0])), SYSTEM_FOLDER


def variable_of_file(name: str) -> str:
    """Return the variable that may contain the text of the settings file `name`: PIGEONPOST_NODE_TOML for node.toml."""
    return f"PIGEONPOST_{os.path.basename(name).replace('.', '_')}".upper()


def _read_file(
    found: Settings, chosen: str | None, default_file: str, environment: Mapping[str, str], folders: Sequence[str]
) -> dict[str, Any]:
    """Find the settings file, or the variable that replaces it, record its name in `found`, and return its content."""
    paths = [os.path.join(folder, default_file) for folder in folders] if default_file else []
    existing = next((path for path in paths if os.path.exists(path)), "")
    variable = variable_of_file(default_file)
    text = "" if chosen or not default_file else environment.get(variable, "")
    if not text.strip() and not chosen and not existing:
        searched = ", ".join(dict.fromkeys(os.path.abspath(folder) for folder in folders))
        found.source = f"no {os.path.basename(default_file)} in {searched}: using defaults, variables and flags"
        return {}
    from pigeonpost.core.settings_file import parse, read_text

    if text.strip():
        found.file, found.text = variable, text
        found.source = f"the variable {variable}" + (f", instead of {os.path.abspath(existing)}" if existing else "")
    else:
        found.file = chosen or os.path.abspath(existing)
        found.text = read_text(found.file)
        found.source = os.path.abspath(found.file)
    return parse(found.text, found.file)


class _FileKeys(NamedTuple):
    """Allowed content of a settings file.

    Attributes:
        settings: The settings.
        arrays: Names of arrays of tables.
        elsewhere: Names of tables that belong in another file, each with the name of that file.
    """

    settings: Sequence[Setting]
    arrays: Sequence[str]
    elsewhere: Mapping[str, str]

    def tables(self) -> list[str]:
        return list(dict.fromkeys(setting.table for setting in self.settings))

    def tables_with(self, key: str) -> str:
        """Return the tables that have the key `key`, as text."""
        return " or ".join(f"[{setting.table}]" for setting in self.settings if setting.key == key)


def _store_content(found: Settings, content: Mapping[str, Any], known: _FileKeys) -> None:
    """Check the content of the file, and store its values."""
    path = found.file
    for name, table in content.items():
        _check_table(name, table, known, path)
    check_keys(content, [*known.tables(), *known.arrays], path)
    for name, table in content.items():
        if name in known.arrays:
            found.tables[name] = table
            continue
        by_key = {setting.key: setting for setting in known.settings if setting.table == name}
        for key in table:
            if key not in by_key and (tables := known.tables_with(key)):
                raise SettingsError(f"{path}: [{name}]: unknown key {key!r}; it belongs in {tables}")
        check_keys(table, list(by_key), f"{path}: [{name}]")
        for key, value in table.items():
            found.put(by_key[key], value, path)


def _check_table(name: str, table: Any, known: _FileKeys, path: str) -> None:
    """Raise SettingsError for a table of another file, a table in the wrong form, or a key outside of all tables."""
    is_array = isinstance(table, list)
    if name in known.elsewhere and not (is_array and name in known.arrays):
        raise SettingsError(f"{path}: {f'[[{name}]]' if is_array else f'[{name}]'} belongs in {known.elsewhere[name]}")
    if name in known.arrays:
        if not is_array or not all(isinstance(entry, dict) for entry in table):
            raise SettingsError(f"{path}: {name} must be written as [[{name}]], once per entry")
    elif name in known.tables():
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {name} is a table and must be written as [{name}]")
    elif not isinstance(table, dict) and (tables := known.tables_with(name)):
        raise SettingsError(f"{path}: {name} is not in a table: write {tables} on a line above it")


def add_flags(parser: argparse.ArgumentParser, settings: Sequence[Setting]) -> None:
    """Add --config and the flags of `settings` to `parser`."""
    parser.add_argument("--config", metavar="FILE", help="settings file (TOML)")
    for setting in settings:
        if not setting.flag:
            continue
        if setting.parse is switch:
            parser.add_argument(setting.flag, dest=_name(setting), action="store_true", default=None, help=setting.help)
        else:
            action = "append" if setting.many else "store"
            parser.add_argument(
                setting.flag, dest=_name(setting), metavar=setting.metavar, action=action, help=setting.help
            )


def read_flags(settings: Sequence[Setting], arguments: Sequence[str]) -> SimpleNamespace | None:
    """Read simple command-line arguments without argparse, which needs 1.1 MiB of memory.

    Simple arguments are `--flag value` and `--flag=value`. The result is the same as that of argparse with the flags of
    `add_flags`. The caller must use argparse for all other arguments: help, errors, short forms, and values that begin
    with a dash.

    Args:
        settings: All settings of the program.
        arguments: Command-line arguments without the program's name.

    Returns:
        The values, or None if argparse is needed.
    """
    flags = {setting.flag: setting for setting in settings if setting.flag}
    chosen = SimpleNamespace(config=None, **{_name(setting): None for setting in flags.values()})
    left = iter(arguments)
    for argument in left:
        flag, has_value, value = argument.partition("=")
        setting = flags.get(flag)
        if setting is None and flag != "--config":
            return None
        if setting is not None and setting.parse is switch:
            if has_value:
                return None
            setattr(chosen, _name(setting), True)
            continue
        if not has_value:
            value = next(left, "-")
        if value.startswith("-") or (has_value and not value):
            return None
        name = _name(setting) if setting else "config"
        setattr(chosen, name, [*(getattr(chosen, name) or []), value] if setting and setting.many else value)
    return chosen


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise SettingsError if `table` has a key that is not in `known`. `where` is the beginning of the message."""
    for key in table:
        if key not in known:
            import difflib

            near = difflib.get_close_matches(key, known, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(known)}"
            raise SettingsError(f"{where}: unknown key {key!r}; {hint}")


def _name(setting: Setting) -> str:
    return f"{setting.table}_{setting.key}"


def _without_secrets(value: Any, is_url: bool = False) -> Any:
    """Return `value` with "(set)" in place of each password, token and secret, at any depth.

    If `is_url` is True, `value` is an address, and its query is hidden.
    """
    if isinstance(value, dict):
        return {
            key: "(set)" if item and key.endswith(SECRET_KEYS) else _without_secrets(item, key.endswith("url"))
            for key, item in value.items()
        }
    if isinstance(value, str):
        address, mark, query = value.partition("?")
        if is_url and query:  # any parameter may be a key
            value = f"{address}{mark}{HIDDEN}"
        return hide_secrets(value)
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value


def as_toml(value: Any) -> str:
    """Return `value` as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON and TOML have the same escapes, but TOML also requires one for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    return str(value)


def data_folder(chosen: str) -> str:
    """Return the data folder: `chosen`, or if that is empty $STATE_DIRECTORY (set by systemd), or else ./data."""
    return chosen or os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or "data"


def text(value: Any) -> str:
    """Return `value` if it is a text. Raise ValueError otherwise."""
    if not isinstance(value, str):
        raise ValueError("takes a string")
    return value


def switch(value: Any) -> bool:
    """Return the Boolean `value`. A `Written` text may be true, false, 1, 0, yes, no, on or off.

    Raises:
        ValueError: The value is not a Boolean, or it is in quotes in a file.
    """
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if not isinstance(value, str) or value.lower() not in known:
        raise ValueError("takes true or false")
    if not isinstance(value, Written):
        raise ValueError("takes true or false, without quotes")
    return known[value.lower()]


def number(low: float, high: float, whole: bool = False, unit: str = "") -> Parse:
    """Return a parser for numbers from `low` to `high`, both included; for integers if `whole` is True.

    Its errors name the `unit`, if there is one. The parser accepts a text only if it is `Written`.
    """

    def parse(value: Any) -> float | int:
        takes = f"takes a {'whole ' if whole else ''}number from {low:g} to {high:g}{unit and f' {unit}'}"
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(takes)
        try:
            found = int(value) if whole and not isinstance(value, float) else float(value)
        except (ValueError, OverflowError):
            raise ValueError(takes) from None
        if not low <= found <= high or (whole and found != int(found)):
            raise ValueError(takes)
        if isinstance(value, str) and not isinstance(value, Written):
            raise ValueError(f"{takes}, without quotes")
        return int(found) if whole else found

    return parse


def one_of(*choices: str) -> Parse:
    """Return a parser that accepts only the words in `choices`."""

    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"takes {' or '.join(repr(choice) for choice in choices)}")
        return str(value)

    return parse


def a_table(value: Any) -> dict[str, Any]:
    """Return `value` if it is a table. Raise ValueError otherwise."""
    if not isinstance(value, dict):
        raise ValueError("takes a table")
    return value


def matching(match: Callable[[str], object], takes: str) -> Parse:
    """Return a parser for texts for which `match` returns a true value. `takes` describes them for the error."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not match(value):
            raise ValueError(f"takes {takes}")
        return value

    return parse


def address(default_port: int | None = None) -> Parse:
    """Return a parser that converts HOST:PORT to a pair. With a `default_port` the port may be missing."""

    def parse(value: Any) -> tuple[str, int]:
        if not isinstance(value, str):
            raise ValueError("takes HOST:PORT")
        if re.search(r"[\0-\x20\x7f]", value):
            raise ValueError("takes HOST:PORT without spaces and control characters, as in 192.168.1.20:5003")
        return split_address(value, default_port)

    return parse
