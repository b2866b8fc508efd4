"""Command that converts the JSON configuration of the older multi-sensor system to settings in TOML.

Errors: SettingsError (exit status 2) for a configuration that cannot be read. A component without an equivalent in
Pigeonpost is not an error: the TOML contains a comment with its codifier and the reason.

In the older system, a Python program calculated each derived value. The readings were pasted into the text of the
program before it was executed. This module never executes such a program. A program that only assigns variables, checks
the age of its inputs and sends a value is converted to formulas. For any other program, the TOML contains a comment.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pigeonpost.cli.contract import Command, Context
from pigeonpost.compat.multicast_bus.legacy_config import OldConfig, OldSensor, load, slug, source_of
from pigeonpost.core.addresses import join_address
from pigeonpost.core.errors import SettingsError
from pigeonpost.sensors.formula import compile_formula

_PROGRAM_BYTES = 65_536
_MOST_NODES = 20_000  # maximum number of nodes in the syntax tree of a calculation
_PHOBYA = "0.0755 * ((5 - {0}) / {0} * 16.8) ** 2 - 4.2327 * ((5 - {0}) / {0} * 16.8) + 60.589"
_PROGRAMS = {
    "flask": "the web pages: the server has its own pages",
    "jphredis": "the last state: the server provides it (GET /api/v1/bus)",
    "jphpostgresql": "the database: the server stores all readings",
    "postgrescalchandler": "the statistics: the server calculates them from the stored readings",
    "jphcalchistory": "the statistics: the server calculates them from the stored readings",
    "controlprogram": "a console: use `control.py watch` and `control.py say` instead",
    "nestreader": 'Nest has closed this interface; use kind = "json" with preset = "nest" (docs/sensors.md)',
    "zwavepower": 'use Z-Wave JS UI instead of OpenZWave, and kind = "mqtt" to read its messages (docs/sensors.md)',
}


class NotConvertible(Exception):
    """A component has no equivalent in Pigeonpost. The text of the error is the reason."""


class Block(NamedTuple):
    """Settings for one component.

    Attributes:
        toml: The settings as TOML.
        channels: Codifiers by channel name.
        notes: Notes for people, which become comments.
    """

    toml: str
    channels: Mapping[str, str]
    notes: tuple[str, ...] = ()


def old_config(context: Context) -> int:
    """Print the settings of the server and of a node that correspond to an old configuration, as TOML.

    Args:
        context: Context of the command, with its arguments.

    Returns:
        The exit status.

    Raises:
        SettingsError: The configuration cannot be read, or does not contain a given codifier.
    """
    arguments = context.arguments
    source = source_of(arguments.file or "")
    if not source:
        raise SettingsError("old-config: pass the path or URL of the configuration file, or set JPH_CONFIG")
    config = load(source)
    unknown = [code for code in arguments.codifiers if code not in config.sensors]
    if unknown:
        raise SettingsError(f"{source}: there is no sensor with the Codifier {', '.join(unknown)}")
    if arguments.only != "node":
        print(server_toml(config))
    if arguments.only != "server":
        print(node_toml(config, arguments.codifiers or list(config.sensors)))
    return 0


def server_toml(config: OldConfig) -> str:
    """Return the server.toml for `config`. The server listens to the bus and uses the names in the configuration."""
    return "\n".join(["# server.toml", *_bus_lines(config), ""])


def node_toml(config: OldConfig, codifiers: list[str]) -> str:
    """Return the node.toml of a node that reads components and their proxies, and sends their readings on the bus.

    Args:
        config: The old configuration.
        codifiers: Codifiers of the components.
    """
    names = channel_names(config)
    blocks: list[Block] = []
    controls: dict[str, str] = {}
    not_converted: list[str] = []
    for code in codifiers:
        sensor = config.sensors[code]
        if sensor.kind == "Proxy":
            continue  # included in the block of the sensor that reads it
        try:
            if sensor.control and not _kind(sensor):
                controls[names[code]] = code
            else:
                blocks.append(_block(sensor, names, config))
        except NotConvertible as error:
            not_converted.append(
                f"# NOT CONVERTED: {code} ({_plain(sensor.short_name)}), {_plain(sensor.kind)}: {error}"
            )
    every_s = min((config.sensors[code].every_s for code in codifiers), default=10.0)
    sent = {name: code for block in blocks for name, code in block.channels.items()}
    lines = [
        "# node.toml",
        "# This file contains all components: delete those that this Pi does not read.",
        *not_converted,
        "",
    ]
    lines += ["[node]", f"every = {every_s:g}", "", *_bus_lines(config)]
    lines.append(f"codifiers = {_list(f'{name}={code}' for name, code in sent.items())}")
    if controls:
        lines.append(f"controls = {_list(f'{name}={code}' for name, code in controls.items())}")
        lines.append("# commands = true          # allows A and E to set them; they do not control any hardware")
    for block in blocks:
        lines += ["", *[f"# {_plain(note)}" for note in block.notes], block.toml]
    return "\n".join([*lines, ""])


def channel_names(config: OldConfig) -> dict[str, str]:
    """Return the channel names of the sensors in `config` by codifier.

    A name is the ShortName in lower case. If two sensors have the same ShortName, the codifier is appended.
    """
    plain = {code: slug(sensor.short_name, 28) for code, sensor in config.sensors.items()}
    names: dict[str, str] = {}
    for code, name in plain.items():
        if not name or list(plain.values()).count(name) > 1:
            name = f"{name or 's'}_{slug(code) if code.isalnum() else code.encode().hex()}".replace("_s_", "_")
        while name in names.values():
            name = f"{name[:28]}_{len(names)}"
        names[code] = name
    return names


# ----------------------------------------------------------------------------------------------------------- kinds

Names = Mapping[str, str]


def _kind(sensor: OldSensor) -> Callable[[OldSensor, Names, OldConfig], Block] | None:
    """Return the function that converts a sensor, according to its Type or the keys of its `Sensor`, or None."""
    known = _KINDS.get(sensor.kind.lower())
    if sensor.kind.lower() in _PROGRAMS:
        return None
    return known or next((make for key, make in _BY_KEY if key in sensor.about), None)


def _block(sensor: OldSensor, names: Names, config: OldConfig) -> Block:
    make = _kind(sensor)
    if make is None:
        raise NotConvertible(_PROGRAMS.get(sensor.kind.lower(), "there is no corresponding kind of sensor"))
    return make(sensor, names, config)


def _pipe(sensor: OldSensor, names: Names, config: OldConfig) -> Block:
    path = _required(sensor, "Pipe", "File")
    gain = {"gain": 0.001} if sensor.kind.lower() == "templinux" else {}  # the old program divided by 1000
    options = {"file": path} if re.fullmatch(r"/[^\s|;&<>$`*?]+", path) else {"command": f"cat {path}", "shell": True}
    return _toml_block(sensor, "command", options, {sensor.codifier: gain}, names, config)


def _json(sensor: OldSensor, names: Names, config: OldConfig) -> Block:
    channels = {sensor.codifier: {"path": _dotted(_required(sensor, "Field"))}}
    for code, proxy in sensor.proxies.items():
        channels[code] = {"path": _dotted(_required(sensor, "Field", proxy=proxy))}
    return _toml_block(sensor, "json", {"url": _required(sensor, "URL")}, channels, names, config)


def _pool(sensor: OldSensor, names: Names, config: OldConfig) -> Block:
    worker = _required(sensor, "Server")
    values = [(sensor.codifier, "hashrate"), *[(code, "hashrate_calculated") for code in sensor.proxies]]
    channels = {code: {"value": value, "worker": worker} for code, value in values}
    options = {"preset": "dwarfpool", "url": _required(sensor, "URL")}
    note = "Dwarfpool has closed; other pools have the same interface"
    return _toml_block(sensor, "json", options, channels, names, config, note)


def _adc(sensor: OldSensor, names: Names, config: OldConfig) -> Block:
    pins = {sensor.codifier: _required(sensor, "Pin")}
    pins |= {code: _required(sensor, "Pin", proxy=proxy) for code, proxy in sensor.proxies.items()}
    lines, formulas = [], []
    for code, pin in pins.items():
        if not (pin.isdigit() and 1 <= int(pin) <= 8):
            raise NotConvertible(f"Pin must be a number from 1 to 8, not {_plain(pin)}")
        volts = f"{names[code][:26]}_volts"
        lines.append(f"channels.{volts} = {_inline({'input': int(pin), 'bits': 12})}")
        formulas.append(
            f"channels.{names[code]} = {_inline({'formula': _PHOBYA.format(volts), 'unit': _unit(config, code)})}"
        )
    head = [f"# {_plain(_title(sensor))}", "[[sensor]]", 'kind = "mcp3424"']
    toml = "\n".join([*head, *lines, "", "[[sensor]]", 'kind = "formula"', *formulas])
    note = "like the old program, the formulas are for a 10 kΩ Phobya sensor in series with 16.8 kΩ at 5 V"
    return Block(toml, {names[code]: code for code in pins}, (note,))


def _dht(sensor: OldSensor, names: Names, config: OldConfig) -> Block:
    pin = _required(sensor, "Pin")
    if not pin.isdigit() or int(pin) > 60:
        raise NotConvertible(f"Pin must be the number of a GPIO, not {_plain(pin)}")
    channels = {sensor.codifier: {"from": f"iio/dht11@{int(pin):x}/temp"}}
    for code in list(sensor.proxies)[:1]:
        channels[code] = {"from": f"iio/dht11@{int(pin):x}/humidityrelative"}
    note = f"add to config.txt: dtoverlay=dht11,gpiopin={int(pin)} (the device name contains the pin in hexadecimal)"
    return _toml_block(sensor, "kernel", {}, channels, names, config, note)


def _formula(sensor: OldSensor, names: Names, config: OldConfig) -> Block:
    found, notes = formulas(sensor, names, config)
    if not found:
        raise NotConvertible("; ".join(notes) or "it calculates nothing")
    channels = {code: {"formula": text} for code, text in found.items()}
    return _toml_block(sensor, "formula", {}, channels, names, config, *notes)


_KINDS: dict[str, Callable[[OldSensor, Names, OldConfig], Block]] = {
    "templinux": _pipe, "pipe": _pipe, "file": _pipe, "failsafereader": _json, "json": _json, "adcpireader": _adc,
    "adcpi": _adc, "adafruitreader": _dht, "am2302": _dht, "dht22": _dht, "dwarfpoolreader": _pool,
    "dwarfpool": _pool, "pythonninja": _formula, "calculated": _formula,
}  # fmt: skip
_BY_KEY = (("Pipe", _pipe), ("File", _pipe), ("Filename", _formula), ("Expression", _formula), ("Formula", _formula))


def _toml_block(
    sensor: OldSensor, kind: str, options: Mapping[str, Any], channels: Mapping[str, Mapping[str, Any]], names: Names,
    config: OldConfig, *notes: str,
) -> Block:  # fmt: skip
    lines = [f"# {_plain(_title(sensor))}", "[[sensor]]", f'kind = "{kind}"']
    lines += [f"{key} = {_value(value)}" for key, value in options.items()]
    for code, channel in channels.items():
        lines.append(f"channels.{names[code]} = {_inline({**channel, 'unit': _unit(config, code)})}")
    return Block("\n".join(lines), {names[code]: code for code in channels}, notes)


def _required(sensor: OldSensor, *keys: str, proxy: Mapping[str, Any] | None = None) -> str:
    about = sensor.about if proxy is None else proxy
    for key in keys:
        if isinstance(about.get(key), str | int) and about[key] != "":
            return str(about[key])
    raise NotConvertible(f"its Sensor has no {' or '.join(keys)}{'' if proxy is None else ' in Proxy'}")


def _unit(config: OldConfig, code: str) -> str:
    symbol = "".join(letter for letter in config.sensors[code].symbol if letter.isprintable())[:32]
    return {"C": "°C", "F": "°F"}.get(symbol, symbol)


# ----------------------------------------------------------------------------------------------------- calculations

_PASTED = re.compile(r"\{\{([^{}]*)\}\}")
_TIME = "__time__"  # placeholder for a pasted time, which programs use only to check the age of their inputs


def formulas(sensor: OldSensor, names: Names, config: OldConfig) -> tuple[dict[str, str], list[str]]:
    """Convert a calculation to formulas.

    Args:
        sensor: The calculated sensor.
        names: Channel names by codifier.
        config: The old configuration.

    Returns:
        The formulas by codifier, and notes about the parts that cannot be converted.

    Raises:
        NotConvertible: The calculation cannot be converted.
    """
    text = next(
        (sensor.about[key] for key in ("Expression", "Formula") if isinstance(sensor.about.get(key), str)), None
    )
    text = text if text is not None else _program(_required(sensor, "Filename"), config.source)
    plain = _PASTED.sub(lambda found: _pasted(found[1], names, config), text)
    try:
        tree = ast.parse(plain.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotConvertible(f"its calculation is not Python: {_plain(str(error))}") from None
    if len(list(_walk(tree))) > _MOST_NODES:
        raise NotConvertible("its calculation is too long")
    script = _Script(sensor.codifier)
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr) and not isinstance(tree.body[0].value, ast.Call):
        script.sent[sensor.codifier] = tree.body[0].value  # an expression alone
    else:
        with contextlib.suppress(RecursionError):  # the statements before the error have been converted
            script.run(tree.body)
    found: dict[str, str] = {}
    for code, expression in script.sent.items():
        try:
            formula = ast.unparse(expression)
            if code not in names:
                raise NotConvertible("there is no sensor with this codifier")
            compile_formula(formula, list(names.values()))
            found[code] = formula
        except (SettingsError, NotConvertible, RecursionError) as error:
            script.notes.append(f"{code} is not converted: {error}")
    return found, script.notes


def _program(path: str, source: str) -> str:
    folders = [
        "",
        os.path.dirname(re.sub(r"^file:(//(?=/))?", "", source)),
        os.path.join(os.path.dirname(source), ".."),
    ]
    for folder in folders:
        with contextlib.suppress(OSError, ValueError), open(os.path.join(folder, path), encoding="utf-8") as file:
            return file.read(_PROGRAM_BYTES)
    raise NotConvertible(f"its program {_plain(path)} cannot be read")


def _pasted(inner: str, names: Names, config: OldConfig) -> str:
    """Return the replacement for `{{ C4 }}`, `{{ C4|Field }}`, `{{ C4|redis|Field }}` or `{{ C4|config|Field }}`."""
    code, *rest = (part.strip() for part in inner.split("|"))
    if code not in names:
        raise NotConvertible(f"it uses the sensor {_plain(code)}, which does not exist")
    where, field = ("redis", *rest) if len(rest) == 1 else (rest[0], rest[1]) if len(rest) == 2 else ("redis", "Value")
    if where == "config":
        sensor = config.sensors[code]
        known = {"Symbol": sensor.symbol, "KeepAliveInterval": sensor.alive_s, "SensorInterval": sensor.every_s,
                 "TimeoutWarning": sensor.timeout_s, "Name": sensor.name, "ShortName": sensor.short_name}  # fmt: skip
        if field not in known:
            raise NotConvertible(f"it uses the setting {_plain(field)} of {code}, which is not supported")
        return repr(known[field])
    if field == "Value":
        return names[code]
    if field.endswith("Timestamp"):
        return _TIME
    raise NotConvertible(f"it uses {_plain(field)} of {code}, which is not a reading")


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += ast.iter_child_nodes(node)


class _Script:
    """Symbolic evaluation of a program, statement by statement. Names are replaced by their values; no code runs."""

    def __init__(self, codifier: str) -> None:
        self.sent: dict[str, ast.expr] = {}
        self.notes: list[str] = []
        self._codifier = codifier
        self._known: dict[str, ast.expr | None] = {}  # None: the value is unknown
        self._times = {_TIME}

    def run(self, body: list[ast.stmt], depth: int = 0) -> None:
        for statement in body:
            if not self._convert(statement, depth):
                self.notes.append(f"line {statement.lineno} of its program is not converted")
                for node in _walk(statement):
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                        self._known[node.id] = None

    def _convert(self, statement: ast.stmt, depth: int) -> bool:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            if self._is_time(statement.value):
                self._times.add(name)
                return True
            self._times.discard(name)
            self._known[name] = self._inlined(statement.value)
            return len(statement.targets) == 1 and self._known[name] is not None
        if isinstance(statement, ast.If) and not statement.orelse and self._is_time(statement.test) and depth < 20:
            self.run(statement.body, depth + 1)
            return True
        if isinstance(statement, ast.Try) and not statement.finalbody and depth < 20:
            self.run([*statement.body, *statement.orelse], depth + 1)
            return True
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            return self._call(statement.value)
        return isinstance(statement, ast.Pass) or (
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        )

    def _call(self, call: ast.Call) -> bool:
        name = ast.unparse(call.func)
        if name.startswith("channel.logger.") or name == "print":
            return True
        if name != "channel.sendData":
            return False
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        data = keywords.get("data", call.args[0] if call.args else None)
        code = keywords.get("Codifier", ast.Constant(self._codifier))
        found = self._inlined(data) if data is not None else None
        if found is None or not isinstance(code, ast.Constant) or not isinstance(code.value, str):
            return False
        self.sent[code.value or self._codifier] = found
        return True

    def _is_time(self, expression: ast.expr) -> bool:
        """Return True if an expression consists of times only: a check of the age of the inputs.

        Formulas in Pigeonpost always check the age of their inputs, so such an expression is omitted.
        """
        names = {node.id for node in _walk(expression) if isinstance(node, ast.Name)} - {"jph", "min", "max", "None"}
        uses_clock = any(isinstance(node, ast.Attribute) and node.attr == "timeNow" for node in _walk(expression))
        return names <= self._times and (bool(names) or uses_clock)

    def _inlined(self, expression: ast.expr) -> ast.expr | None:
        known = self._known
        used = {node.id for node in _walk(expression) if isinstance(node, ast.Name)}
        if used & self._times or any(known.get(name, expression) is None for name in used):
            return None
        replaced = [known.get(node.id) for node in _walk(expression) if isinstance(node, ast.Name)]
        if sum(1 for other in replaced if other for _ in _walk(other)) > _MOST_NODES // 20:
            return None  # nested replacements can grow exponentially

        class Replace(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.expr:
                return copy.deepcopy(known.get(node.id)) or node

        new: ast.expr = Replace().visit(copy.deepcopy(expression))
        return new


# ------------------------------------------------------------------------------------------------------------- TOML


def _bus_lines(config: OldConfig) -> list[str]:
    path = (
        config.source if re.match(r"https?://", config.source) else os.path.abspath(config.source.removeprefix("file:"))
    )
    groups = [("control", config.control), ("data", config.data)]
    lines = [f"{key} = {_value(join_address(*group))}" for key, group in groups if group]
    return ["[bus]", "enabled = true", *lines, f"configuration = {_value(path)}"]


def _title(sensor: OldSensor) -> str:
    return f"{sensor.codifier}: {sensor.name or sensor.short_name}"


def _plain(text: str) -> str:
    """Return `text` of the configuration as at most 200 printable characters, for one line of a comment."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]


def _dotted(key: str) -> str:
    """Return a key of a JSON object as a path. A key that contains a dot is quoted."""
    return f'"{key}"' if "." in key else key


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _inline(table: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key} = {_value(value)}" for key, value in table.items() if value != "") + "}"


def _list(items: Iterator[str]) -> str:
    return "[" + ", ".join(_value(item) for item in items) + "]"


COMMANDS = {
    "old-config": Command("convert the configuration of the old multi-sensor system to settings", [
        ("file", {"metavar": "FILE", "nargs": "?", "help": "path or URL of the JSON file (default: $JPH_CONFIG)"}),
        ("codifiers", {"metavar": "CODIFIER", "nargs": "*", "help": "only these components, for one node"}),
        ("--only", {"choices": ["server", "node"], "help": "print only one of the two files"}),
    ], old_config),
}  # fmt: skip
