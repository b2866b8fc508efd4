"""Sensor kind "formula": values calculated from other channels of the node, such as a dew point or a sum.

    formula = "dew_point(room, humidity)"
    formula = "(flow - return_flow) * rate * 1.163 if pump > 0.5 else 0"

The values are calculated in the sampler's thread, after the other sources have answered.

Errors: SettingsError with the column in the formula, for each error that can be found when the node starts. SensorError
with the column, for a calculation that is not possible with the present values, such as a division by zero. SensorError
for a channel without a recent value.

Python's parser reads the text, and its syntax tree is compiled once into nested functions. There is no eval, and only
the operations and functions in the tables below are possible. All numbers are floats, which cannot grow without limit:
9**9**9 overflows immediately.

Sources: Magnus formula with the constants 17.62, 243.12 °C and 6.112 hPa: WMO-No. 8 (2018), volume I, annex 4.B.
Absolute humidity: the gas law for water vapour, 461.5 J/(kg K), with that vapour pressure. Heat index: Rothfusz, US
National Weather Service SR 90-23, with the adjustments of wpc.ncep.noaa.gov/html/heatindex_equation.shtml.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.config import Option, a_table, matching, number, read_options, text
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.format import counted
from pigeonpost.sensors.contract import Channel, DerivedSource, LatestReading, Readings, channel_tables, nearest
from protocol import UNIT, Number

LONGEST_TEXT = 1000  # characters
MOST_PARTS = 250  # names, numbers and operations
DEEPEST = 100  # levels of nested operations; a + b + c has two

OPTIONS = (
    Option("channels", a_table, None, "one table per channel, by channel name"),
    Option("fresh", number(0.01, 86_400), 20.0, "seconds for which the latest value of a channel can be used"),
)
CHANNEL_OPTIONS = (
    Option("formula", text, None, "expression with the names of other channels"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), "", "unit of the value"),
)

Values = Mapping[str, Number]
Evaluate = Callable[[Values], float]


class Formula(NamedTuple):
    """A compiled formula.

    Attributes:
        uses: Each channel in the formula, with the column of its first occurrence.
        evaluate: Function that calculates the value from the values of the channels. It raises SensorError if that is
            not possible.
    """

    uses: Mapping[str, int]
    evaluate: Evaluate


def compile_formula(text: str, names: Collection[str] | None = None) -> Formula:
    """Compile a formula and return it.

    Args:
        text: Text of the formula.
        names: Names of the existing channels; None accepts every name.

    Raises:
        SettingsError: The formula is invalid; the message contains the column.
    """
    if len(text) > LONGEST_TEXT:
        raise SettingsError(f"formula is longer than {LONGEST_TEXT} characters; divide it into several channels")
    found = _Compiler(text, names)
    return Formula(found.uses, found.formula())


# ------------------------------------------------------------------------------------------------ functions


def _vapour_hpa(t: float, rh: float) -> float:
    """Return the water vapour pressure, in hPa, of air at `t` °C with `rh` % relative humidity."""
    if not 0 < rh <= 110:  # in fog, sensors measure slightly more than 100 %
        raise ValueError(f"takes a relative humidity over 0 and up to 100 %, not {rh:g}")
    return rh / 100 * 6.112 * math.exp(17.62 * t / (243.12 + t))


def dew_point(t: float, rh: float) -> float:
    """Return the dew point, in °C, of air at `t` °C with `rh` % relative humidity.

    The error is less than 0.1 °C from -45 to 60 °C.

    Raises:
        ValueError: `rh` is out of range.
    """
    gamma = math.log(_vapour_hpa(t, rh) / 6.112)
    return 243.12 * gamma / (17.62 - gamma)


def absolute_humidity(t: float, rh: float) -> float:
    """Return the absolute humidity, in g/m³, of air at `t` °C with `rh` % relative humidity.

    Raises:
        ValueError: `rh` is out of range.
    """
    return _vapour_hpa(t, rh) * 100 / (461.5 * (273.15 + t)) * 1000


def mix(t1: float, flow1: float, t2: float, flow2: float) -> float:
    """Return the temperature of a mixture of two streams of the same substance.

    Args:
        t1: Temperature of the first stream.
        flow1: Flow of the first stream, in any unit.
        t2: Temperature of the second stream.
        flow2: Flow of the second stream, in the same unit as `flow1`.

    Raises:
        ValueError: A flow is negative, or both are zero.
    """
    if flow1 < 0 or flow2 < 0 or flow1 + flow2 == 0:
        raise ValueError(f"takes flows that are not negative and not both zero, not {flow1:g} and {flow2:g}")
    return (t1 * flow1 + t2 * flow2) / (flow1 + flow2)


def mix_share(t1: float, t2: float, mixed: float) -> float:
    """Return the share of the first stream in a mixture, for example the opening of a mixing valve.

    The result is 0 to 1 if `mixed` is between `t1` and `t2`.

    Args:
        t1: Temperature of the first stream.
        t2: Temperature of the second stream.
        mixed: Temperature of the mixture.

    Raises:
        ZeroDivisionError: `t1` and `t2` are equal.
    """
    return (mixed - t2) / (t1 - t2)


def heat_index(t: float, rh: float) -> float:
    """Return the heat index (apparent temperature in the shade), in °C, of air at `t` °C with `rh` % humidity.

    Raises:
        ValueError: `rh` is out of range.
    """
    if not 0 <= rh <= 110:
        raise ValueError(f"takes a relative humidity from 0 to 100 %, not {rh:g}")
    f = t * 1.8 + 32
    index = ((f + 61.0 + (f - 68.0) * 1.2 + rh * 0.094) / 2 + f) / 2
    if index >= 80:
        index = (
            -42.379 + 2.04901523 * f + 10.14333127 * rh - 0.22475541 * f * rh - 0.00683783 * f * f
            - 0.05481717 * rh * rh + 0.00122874 * f * f * rh + 0.00085282 * f * rh * rh - 0.00000199 * f * f * rh * rh
        )  # fmt: skip
        if rh < 13 and 80 <= f <= 112:
            index -= (13 - rh) / 4 * math.sqrt((17 - abs(f - 95)) / 17)
        elif rh > 85 and 80 <= f <= 87:
            index += (rh - 85) / 10 * (87 - f) / 5
    return (index - 32) / 1.8


def _mean(*values: float) -> float:
    return math.fsum(values) / len(values)


def _round(value: float, digits: float = 0.0) -> float:
    return round(value, int(max(-15.0, min(15.0, digits))))


_MANY = 100
# Each function with its minimum and maximum number of arguments.
FUNCTIONS: Mapping[str, tuple[Callable[..., float], int, int]] = {
    "abs": (abs, 1, 1), "min": (min, 2, _MANY), "max": (max, 2, _MANY), "mean": (_mean, 1, _MANY),
    "round": (_round, 1, 2), "floor": (math.floor, 1, 1), "ceil": (math.ceil, 1, 1), "sqrt": (math.sqrt, 1, 1),
    "exp": (math.exp, 1, 1), "log": (math.log, 1, 2), "log10": (math.log10, 1, 1), "log2": (math.log2, 1, 1),
    "hypot": (math.hypot, 2, 2), "sin": (math.sin, 1, 1), "cos": (math.cos, 1, 1), "tan": (math.tan, 1, 1),
    "asin": (math.asin, 1, 1), "acos": (math.acos, 1, 1), "atan": (math.atan, 1, 1), "atan2": (math.atan2, 2, 2),
    "degrees": (math.degrees, 1, 1), "radians": (math.radians, 1, 1), "dew_point": (dew_point, 2, 2),
    "absolute_humidity": (absolute_humidity, 2, 2), "heat_index": (heat_index, 2, 2), "mix": (mix, 4, 4),
    "mix_share": (mix_share, 3, 3),
}  # fmt: skip
CONSTANTS = {"pi": math.pi, "e": math.e}

_BINARY: Mapping[type[ast.operator], tuple[str, Callable[[float, float], float]]] = {
    ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv), ast.FloorDiv: ("//", operator.floordiv), ast.Mod: ("%", operator.mod),
    ast.Pow: ("**", math.pow),  # unlike **, it raises an error instead of returning a complex number
}  # fmt: skip
_COMPARED: Mapping[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
_UNARY: Mapping[type[ast.unaryop], Callable[[float], float]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: lambda value: float(not value),
}  # fmt: skip


# ------------------------------------------------------------------------------------------ compiler


class _Compiler:
    """Compiler for one formula."""

    def __init__(self, text: str, names: Collection[str] | None) -> None:
        self.uses: dict[str, int] = {}
        self._text = text.replace("\n", " ").replace("\r", " ").replace("\t", " ").replace("\f", " ")
        self._names = names
        self._lead = len(self._text) - len(self._text.lstrip())
        self._parts = 0

    def formula(self) -> Evaluate:
        if "#" in self._text:
            raise SettingsError(f"formula, column {self._text.index('#') + 1}: comments are not allowed")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the parser's warnings are about Python code, not formulas
                tree = ast.parse(self._text.strip(), mode="eval")
        except SyntaxError as error:
            # The offset is 0 if the text ends too early.
            column = self._lead + (error.offset or len(self._text.strip()) + 1)
            raise SettingsError(f"formula, column {column}: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError) as error:
            what = "nested too deeply" if not isinstance(error, ValueError) else str(error)
            raise SettingsError(f"formula: {what}") from None
        return self._compile(tree.body, 0)

    def _compile(self, node: ast.expr, depth: int) -> Evaluate:
        self._parts += 1
        if depth > DEEPEST or self._parts > MOST_PARTS:
            raise self._error(node, "the formula is too large; divide it into several channels")
        make = _KINDS.get(type(node))
        if make is None:
            raise self._unsupported(node)
        return make(self, node, depth + 1)

    def _number(self, node: ast.Constant, depth: int) -> Evaluate:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise self._unsupported(node)
        try:
            value = float(node.value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self._error(node, "the number is too large")
        return lambda values: value

    def _name(self, node: ast.Name, depth: int) -> Evaluate:
        name = node.id
        if name in CONSTANTS:
            value = CONSTANTS[name]
            return lambda values: value
        if self._names is not None and name not in self._names:
            raise self._error(node, f"no channel is called {name!r:.50}; {nearest(name, self._names)}")
        self.uses.setdefault(name, self._column(node))
        return lambda values: float(values[name])

    def _unary(self, node: ast.UnaryOp, depth: int) -> Evaluate:
        operate = _UNARY.get(type(node.op))
        if operate is None:
            raise self._error(node, "the operator ~ is not supported")
        operand = self._compile(node.operand, depth)
        return lambda values: operate(operand(values))

    def _binary(self, node: ast.BinOp, depth: int) -> Evaluate:
        if type(node.op) not in _BINARY:
            raise self._error(node, "only the operators + - * / // % ** are supported")
        sign, operate = _BINARY[type(node.op)]
        return self._guarded(node, sign, operate, [self._compile(side, depth) for side in (node.left, node.right)])

    def _call(self, node: ast.Call, depth: int) -> Evaluate:
        if not isinstance(node.func, ast.Name):
            raise self._error(node, "only functions can be called, as in min(a, b)")
        name = node.func.id
        if name not in FUNCTIONS:
            raise self._error(node, f"no function is called {name!r:.50}; {nearest(name, FUNCTIONS)}")
        function, least, most = FUNCTIONS[name]
        if node.keywords or not least <= len(node.args) <= most:
            takes = counted(most, "argument") if least == most else f"{least} to {most} arguments"
            takes += ", separated by commas" if most > 1 else ""
            raise self._error(node, f"{name} takes {takes}")
        return self._guarded(node, name, function, [self._compile(argument, depth) for argument in node.args])

    def _guarded(
        self, node: ast.expr, name: str, function: Callable[..., float], operands: Sequence[Evaluate]
    ) -> Evaluate:
        where = f"formula, column {self._column(node)}: {name}"

        def evaluate(values: Values) -> float:
            arguments = [operand(values) for operand in operands]
            try:
                value = float(function(*arguments))
            except ZeroDivisionError:
                raise SensorError(f"{where} divides by zero") from None
            except OverflowError:
                value = math.inf
            except ValueError as error:
                shown = ", ".join(f"{argument:g}" for argument in arguments)
                why = str(error) if str(error).startswith("takes ") else f"is not possible with {shown}"
                raise SensorError(f"{where} {why}") from None
            if not math.isfinite(value):
                raise SensorError(f"{where}: the result is too large")
            return value

        return evaluate

    def _compare(self, node: ast.Compare, depth: int) -> Evaluate:
        pairs: list[tuple[Callable[[float, float], bool], Evaluate]] = []
        for operation, side in zip(node.ops, node.comparators):
            if type(operation) not in _COMPARED:
                raise self._error(node, "only the comparisons < <= > >= == != are supported")
            pairs.append((_COMPARED[type(operation)], self._compile(side, depth)))
        first = self._compile(node.left, depth)

        def evaluate(values: Values) -> float:
            left = first(values)
            for comparison, side in pairs:
                right = side(values)
                if not comparison(left, right):
                    return 0.0
                left = right
            return 1.0

        return evaluate

    def _logic(self, node: ast.BoolOp, depth: int) -> Evaluate:
        sides = [self._compile(side, depth) for side in node.values]
        combine = all if isinstance(node.op, ast.And) else any
        return lambda values: float(combine(side(values) for side in sides))

    def _choice(self, node: ast.IfExp, depth: int) -> Evaluate:
        test, then, otherwise = (self._compile(part, depth) for part in (node.test, node.body, node.orelse))
        return lambda values: then(values) if test(values) else otherwise(values)

    def _column(self, node: ast.expr) -> int:
        before = self._text.strip().encode(errors="replace")[: node.col_offset]  # the parser counts bytes
        return self._lead + len(before.decode(errors="replace")) + 1

    def _unsupported(self, node: ast.expr) -> SettingsError:
        shown = ast.get_source_segment(self._text.strip(), node)
        return self._error(node, f"only numbers, channel names, operators and functions are allowed, not {shown!r:.40}")

    def _error(self, node: ast.expr, what: str) -> SettingsError:
        return SettingsError(f"formula, column {self._column(node)}: {what}")


_KINDS: Mapping[type[ast.expr], Callable[[_Compiler, Any, int], Evaluate]] = {
    ast.Constant: _Compiler._number, ast.Name: _Compiler._name, ast.UnaryOp: _Compiler._unary,
    ast.BinOp: _Compiler._binary, ast.Call: _Compiler._call, ast.Compare: _Compiler._compare,
    ast.BoolOp: _Compiler._logic, ast.IfExp: _Compiler._choice,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the source


class FormulaSource(DerivedSource):
    """Source with one formula per channel."""

    def __init__(
        self, channels: Sequence[Channel], formulas: Mapping[str, Formula], fresh_s: float, where: Mapping[str, str]
    ) -> None:
        """Create the source.

        Args:
            channels: The channels.
            formulas: Formula of each channel, by channel name.
            fresh_s: Time in seconds for which a value can be used.
            where: For each channel, the text with which error messages about it begin.
        """
        self.channels = channels
        self.uses = {
            name: {used: f"{where[name]}: formula, column {column}" for used, column in formula.uses.items()}
            for name, formula in formulas.items()
        }
        self._formulas = formulas
        self._fresh_s = fresh_s

    def derive(self, name: str, latest: Mapping[str, LatestReading], now_s: float) -> LatestReading:
        fresh = _Fresh(latest, now_s, self._fresh_s)
        value = self._formulas[name].evaluate(fresh)
        # More digits would only be rounding errors of the calculation, and would need space in the store.
        return LatestReading(round(value, 6) if abs(value) >= 1 else float(format(value, ".6g")), fresh.oldest_s)

    def read(self) -> Readings:
        readings: dict[str, Number | SensorError] = {}
        for channel in self.channels:
            try:
                readings[channel.name] = self.derive(channel.name, {}, 0.0).value
            except SensorError as error:
                readings[channel.name] = error
        return readings


class _Fresh(Mapping[str, Number]):
    """Mapping of the values that are recent enough. It records the time of the oldest value used."""

    def __init__(self, latest: Mapping[str, LatestReading], now_s: float, fresh_s: float) -> None:
        self._latest, self._now_s, self._fresh_s = latest, now_s, fresh_s
        self.oldest_s = now_s

    def __getitem__(self, name: str) -> Number:
        found = self._latest.get(name)
        if found is None:
            raise SensorError(f"{name} has no value yet")
        if self._now_s - found.at_s > self._fresh_s:
            age_s = self._now_s - found.at_s
            raise SensorError(f"the latest value of {name} is {age_s:.0f} s old; the limit is {self._fresh_s:g} s")
        self.oldest_s = min(self.oldest_s, found.at_s)
        return found.value

    def __iter__(self) -> Iterator[str]:
        return iter(self._latest)

    def __len__(self) -> int:
        return len(self._latest)


def make(settings: Mapping[str, Any], where: str) -> FormulaSource:
    """Return the source for a [[sensor]] table with kind = "formula".

    The existence of the channels in the formulas is not checked here, but in contract.in_order, which has all sources.

    Args:
        settings: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid.
    """
    options = read_options(settings, OPTIONS, where)
    formulas: dict[str, Formula] = {}
    channels, places = [], {}
    example = 'dew = {formula = "dew_point(room, humidity)"}'
    for name, chosen, channel_where in channel_tables(options["channels"], CHANNEL_OPTIONS, OPTIONS, where, example):
        if not (chosen["formula"] or "").strip():
            raise SettingsError(f"{channel_where}: formula is missing; for example: channels.{example}")
        try:
            formulas[name] = compile_formula(chosen["formula"])
        except SettingsError as error:
            raise SettingsError(f"{channel_where}: {error}") from None
        channels.append(Channel(name, chosen["unit"]))
        places[name] = channel_where
    return FormulaSource(channels, formulas, options["fresh"], places)
