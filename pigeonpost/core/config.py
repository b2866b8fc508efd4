"""Settings of a program: a flag overrides an environment variable, which overrides a TOML file, then the default.

Errors: SettingsError, which names file, table and key (or flag, or variable), the value, and what is accepted.

A program lists its settings as `Setting` rows, one per key. tomllib is imported only when there is a file: it costs
0.6 MiB.
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
from pigeonpost.core.redact import HIDDEN, SECRET_KEYS, hide_secrets

if TYPE_CHECKING:
    import argparse
    from typing import Any

Parse = Callable[["Any"], "Any"]

SYSTEM_FOLDER = "/etc/pigeonpost"  # where settings are looked for last


class Setting(NamedTuple):
    """One setting. `parse` converts the value of a file or a text; it raises ValueError with what it takes."""

    table: str
    key: str
    parse: Parse
    default: Any
    help: str
    flag: str = ""
    metavar: str = ""
    many: bool = False  # a list: the flag may be given again and again, the variable holds commas
    secret: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that gives it."""
        return f"PIGEONPOST_{self.table}_{self.key}".upper()


class Option(NamedTuple):
    """One key of a table in an array of tables, as [[sensor]]; a default of None: it need not be there, or must be."""

    key: str
    parse: Parse
    default: Any
    help: str


def read_options(table: Mapping[str, Any], options: Sequence[Option], where: str) -> dict[str, Any]:
    """The values of one such table, all keys present. `where` names it in a SettingsError."""
    check_keys(table, [option.key for option in options], where)
    found = {option.key: option.default for option in options}
    for option in options:
        if option.key in table:
            try:
                found[option.key] = option.parse(table[option.key])
            except ValueError as error:
                given = _without_secrets({option.key: table[option.key]})[option.key]
                raise SettingsError(hide_secrets(f"{where}: {option.key} {error}, not {given!r}")) from None
    return found


class Settings:
    """The values in force. `settings["node", "every"]`; `origin` tells where a value is from."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Any] = {}
        self._given: dict[tuple[str, str], Any] = {}  # as they were written
        self._origins: dict[tuple[str, str], str] = {}
        self._secrets: set[tuple[str, str]] = set()
        self.file = ""  # as it was found, or the variable in its place
        self.text = ""  # the content of that
        self.source = ""  # which file was read, in words
        self.tables: dict[str, list[dict[str, Any]]] = {}  # arrays of tables, as [[sensor]]

    def __getitem__(self, key: tuple[str, str]) -> Any:
        return self._values[key]

    def origin(self, table: str, key: str) -> str:
        """`default`, the file's name, the variable's or the flag's."""
        return self._origins[table, key]

    def put(self, setting: Setting, value: Any, origin: str) -> None:
        """Take `value` for a setting; SettingsError when it does not fit."""
        key = setting.table, setting.key
        items: list[Any] = value if setting.many and isinstance(value, list) else [value]
        parsed = []
        for item in items:
            try:
                if setting.many and not isinstance(value, list):
                    raise ValueError("takes a list")
                parsed.append(setting.parse(item))
            except ValueError as error:
                shown = "what it got" if setting.secret else repr(item)
                text = f"{origin}: [{setting.table}] {setting.key} {error}, not {shown}"
                raise SettingsError(hide_secrets(text)) from None
        self._given[key] = items if setting.many else items[0]
        self._values[key], self._origins[key] = parsed if setting.many else parsed[0], origin
        if setting.secret:
            self._secrets.add(key)

    def with_line(self, error: SettingsError) -> SettingsError:
        """Return the error with the line that it is about, where it is about the file and the line is certain."""
        if not self.file or not str(error).startswith(f"{self.file}: "):
            return error
        from pigeonpost.core.settings_file import with_line

        return SettingsError(with_line(str(error), self.text, self.file))

    def show(self) -> str:
        """Return one line per setting: value and origin; secrets only as set or not, and none within an address."""
        lines = []
        for (table, key), value in sorted(self._given.items()):
            shown = as_toml(_without_secrets(value))
            if (table, key) in self._secrets:
                shown = "(set)" if value else "(not set)"
            elif key in ("certificate", "key") and "\n" in value:  # the file itself in place of its path
                shown = HIDDEN
            lines.append(f"[{table}] {key} = {shown}  # {self._origins[table, key]}")
        for name, entries in self.tables.items():
            lines += [f"[[{name}]] {as_toml(_without_secrets(entry))}  # {self.file}" for entry in entries]
        return "\n".join(lines)


class Written(str):
    """A value from a flag or a variable: text that may be a number or a switch. In a file those have no quotes."""


def load(
    settings: Sequence[Setting],
    arguments: argparse.Namespace | SimpleNamespace,
    default_file: str,
    arrays: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    folders: Sequence[str] | None = None,
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """The settings in force.

    arguments     as `read_flags` gives them, or argparse with the flags that `add_flags` made
    default_file  read from the first of the folders that has it, when `--config` is not given; so, before it, is the
                  variable PIGEONPOST_NODE_TOML (of node.toml), which holds the text itself
    arrays        names of arrays of tables that the file may have; their keys are checked where they are used
    folders       `search_folders()`
    elsewhere     tables that belong in another file, with its name
    """
    environment = os.environ if environment is None else environment
    found = Settings()
    for setting in settings:
        found.put(setting, setting.default, "default")
    folders = search_folders() if folders is None else folders
    content = _read_file(found, arguments.config, default_file, environment, folders)
    if content:
        try:
            _take_content(found, content, _FileKeys(settings, arrays, elsewhere))
        except SettingsError as error:
            raise found.with_line(error) from None
    for setting in settings:
        given = environment.get(setting.variable, "")
        if given.strip():  # docker compose and balena pass on as empty what is not set
            items = [Written(item.strip()) for item in given.split(",") if item.strip()]
            found.put(setting, items if setting.many else Written(given), setting.variable)
    for setting in settings:
        value = getattr(arguments, _name(setting), None) if setting.flag else None
        if value is not None:
            written = [Written(item) for item in value] if setting.many else value
            found.put(setting, Written(written) if isinstance(written, str) else written, setting.flag)
    return found


def search_folders() -> tuple[str, ...]:
    """Return where a settings file is looked for: the current folder, the program's, the system's."""
    return "", os.path.dirname(os.path.realpath(sys.argv[0])), SYSTEM_FOLDER


def variable_of_file(name: str) -> str:
    """Return the variable that may hold the text of a settings file: PIGEONPOST_NODE_TOML of node.toml."""
    return f"PIGEONPOST_{os.path.basename(name).replace('.', '_')}".upper()


def _read_file(
    found: Settings, chosen: str | None, default_file: str, environment: Mapping[str, str], folders: Sequence[str]
) -> dict[str, Any]:
    """Find and parse the settings file, or the variable in its place; `source` says which, or where none was."""
    places = [os.path.join(folder, default_file) for folder in folders] if default_file else []
    there = next((path for path in places if os.path.exists(path)), "")
    variable = variable_of_file(default_file)
    text = "" if chosen or not default_file else environment.get(variable, "")
    if not text.strip() and not chosen and not there:
        looked = ", ".join(dict.fromkeys(os.path.abspath(folder) for folder in folders))
        found.source = f"no {os.path.basename(default_file)} in {looked}: defaults, variables and flags"
        return {}
    from pigeonpost.core.settings_file import parse, read_text

    if text.strip():
        found.file, found.text = variable, text
        found.source = f"the variable {variable}" + (f", in place of {os.path.abspath(there)}" if there else "")
    else:
        found.file = chosen or os.path.abspath(there)
        found.text = read_text(found.file)
        found.source = os.path.abspath(found.file)
    return parse(found.text, found.file)


class _FileKeys(NamedTuple):
    """What a settings file may have: settings, arrays of tables; and tables that belong in another file, by name."""

    settings: Sequence[Setting]
    arrays: Sequence[str]
    elsewhere: Mapping[str, str]

    def tables(self) -> list[str]:
        return list(dict.fromkeys(setting.table for setting in self.settings))

    def tables_with(self, key: str) -> str:
        """Return the tables that have such a key, in words."""
        return " or ".join(f"[{setting.table}]" for setting in self.settings if setting.key == key)


def _take_content(found: Settings, content: Mapping[str, Any], known: _FileKeys) -> None:
    """Check what the file says, and put it in force."""
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
    """Raise SettingsError for a table of another file, one in the wrong form, and a key above all tables."""
    is_array = isinstance(table, list)
    if name in known.elsewhere and not (is_array and name in known.arrays):
        raise SettingsError(f"{path}: {f'[[{name}]]' if is_array else f'[{name}]'} belongs in {known.elsewhere[name]}")
    if name in known.arrays:
        if not is_array or not all(isinstance(entry, dict) for entry in table):
            raise SettingsError(f"{path}: {name} is written [[{name}]], once for each")
    elif name in known.tables():
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {name} is a table, written [{name}]")
    elif not isinstance(table, dict) and (tables := known.tables_with(name)):
        raise SettingsError(f"{path}: {name} is in no table: write {tables} in a line above it")


def add_flags(parser: argparse.ArgumentParser, settings: Sequence[Setting]) -> None:
    """Give `parser` the flags of those settings that have one, and --config."""
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
    """Read plain arguments, `--flag value` and `--flag=value`, as argparse reads them with the flags of `add_flags`.

    Returns None for all else: help, errors, short forms, values that begin with a dash. Then it is argparse's turn,
    which costs 1.1 MiB with what it imports, and is the reference for what the arguments mean.
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
    """SettingsError for a key that is not known, with the nearest that is."""
    for key in table:
        if key not in known:
            import difflib

            near = difflib.get_close_matches(key, known, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"it takes {', '.join(known)}"
            raise SettingsError(f"{where}: unknown key {key!r}; {hint}")


def _name(setting: Setting) -> str:
    return f"{setting.table}_{setting.key}"


def _without_secrets(value: Any, is_url: bool = False) -> Any:
    """`value` with "(set)" in the place of every password, token and secret in it, as far down as they stand.

    is_url: it is an address, whose query is hidden
    """
    if isinstance(value, dict):
        return {
            key: "(set)" if item and key.endswith(SECRET_KEYS) else _without_secrets(item, key.endswith("url"))
            for key, item in value.items()
        }
    if isinstance(value, str):
        address, mark, query = value.partition("?")
        if is_url and query:  # any name there may be that of a key
            value = f"{address}{mark}{HIDDEN}"
        return hide_secrets(value)
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value


def as_toml(value: Any) -> str:
    """`value` as it is written in a TOML file, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Its escapes are TOML's too, which allows no DEL besides.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    return str(value)


def data_folder(chosen: str) -> str:
    """Where a program keeps its data: as chosen, else where systemd wants it, else ./data."""
    return chosen or os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or "data"


def text(value: Any) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise ValueError("takes a text")
    return value


def switch(value: Any) -> bool:
    """true or false; in the environment also 1, 0, yes, no, on, off."""
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if not isinstance(value, str) or value.lower() not in known:
        raise ValueError("takes true or false")
    if not isinstance(value, Written):
        raise ValueError("takes true or false, without quotes")
    return known[value.lower()]


def number(low: float, high: float, whole: bool = False) -> Parse:
    """A parser for numbers from `low` to `high`, both included. A text is one only where it is `Written`."""

    def parse(value: Any) -> float | int:
        takes = f"takes a {'whole ' if whole else ''}number from {low:g} to {high:g}"
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
    """A parser for one of a few words."""

    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"takes {' or '.join(repr(choice) for choice in choices)}")
        return str(value)

    return parse


def a_table(value: Any) -> dict[str, Any]:
    """A parser for a table within one."""
    if not isinstance(value, dict):
        raise ValueError("takes a table")
    return value


def matching(match: Callable[[str], object], takes: str) -> Parse:
    """A parser for texts that a pattern matches."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not match(value):
            raise ValueError(f"takes {takes}")
        return value

    return parse


def address(default_port: int | None = None) -> Parse:
    """A parser for HOST:PORT; gives the pair."""

    def parse(value: Any) -> tuple[str, int]:
        if not isinstance(value, str):
            raise ValueError("takes HOST:PORT")
        if re.search(r"[\0-\x20\x7f]", value):
            raise ValueError("takes HOST:PORT without spaces and control characters, as in 192.168.1.20:5003")
        return split_address(value, default_port)

    return parse
