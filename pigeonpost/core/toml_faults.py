"""Explanations of syntax errors in a settings file, for users who do not know TOML.

It is imported only if there is such an error. Values of secrets are not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pigeonpost.core.redact import SECRET_KEYS
from pigeonpost.core.toml_lines import Path, TomlLines

_PLACE = re.compile(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)$")
_STATEMENT = re.compile(r"\s*(?P<key>[^\s=:\[\]{}\"'#]+)\s*=\s*(?P<value>.*?)\s*$")
_WORDS = {
    **dict.fromkeys(("true", "yes", "on"), "true"),
    **dict.fromkeys(("false", "no", "off"), "false"),
}


def explain(text: str, error: str) -> tuple[int | None, str]:
    """Return the line of a syntax error in a TOML text (None if it is not certain), and advice on the correction.

    Args:
        text: The TOML text.
        error: Message of tomllib.
    """
    text = text.replace("\r\n", "\n")
    found = TomlLines(text)
    if found.repeated is not None and re.match("Cannot|Duplicate", error):
        path, first, second = found.repeated
        return second, _repetition(path, first, second, is_table=error.startswith("Cannot declare"))
    place = _PLACE.search(error)
    plain = error[: place.start()] if place else error
    line = int(place[1]) if place and place[1] else found.statement
    if plain.startswith("Unclosed array") or (plain.startswith("Unterminated") and not (place and place[1])):
        line = found.statement
    if not line:
        return None, plain
    content = text.split("\n")[line - 1]
    column = int(place[2]) if place and place[2] else len(content) + 1
    for rule in _RULES if line in found.starts else _RULES_WITHIN:
        if advice := rule(content, column, plain):
            return line, advice
    return line, plain


def _repetition(path: Path, first: int, second: int, is_table: bool) -> str:
    if len(path) > 1 and isinstance(path[1], int):
        shown = f"[[{path[0]}]] {path[1] + 1}: {_dotted(path[2:])}"
    elif is_table or len(path) == 1:
        shown = f"[{_dotted(path)}]" if is_table else _dotted(path)
    else:
        shown = f"[{path[0]}] {_dotted(path[1:])}"
    at = "on the same line" if first == second else f"in line {first}"
    return f"{shown} is already set {at}: keep only one of them"


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


# Arguments of each rule: the line, the column of the error (from 1), and tomllib's message. It returns advice, or "".


def _letters(line: str, column: int, error: str) -> str:
    code = re.sub(r"\"[^\"]*\"|'[^']*'|#.*", "", line)
    if quote := re.search("[=\\[,{(]\\s*([\u2018-\u201f\u00ab\u00bb\u2039\u203a`\u00b4])", code):
        return f'{quote[1]} is not a valid quotation mark: use plain ones, as in name = "basement"'
    if space := re.search("[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff]", code):
        return f"a special space (U+{ord(space[0]):04X}), perhaps copied from a web page: replace it by a normal one"
    return ""


def _characters(line: str, column: int, error: str) -> str:
    if re.match(r"Illegal character (?!'\\n)", error):
        return f"{error[0].lower()}{error[1:]}: delete it"
    if re.match("Unescaped|Invalid hex|Escaped character", error):
        return "a backslash has a special meaning in \"...\": write two, or use single quotes, as in 'C:\\data'"
    return ""


def _element(line: str, column: int, error: str) -> str:
    """Return advice for an error within a value of several lines, or an empty string."""
    if error.startswith("Illegal character"):
        return "the closing quotation mark is missing"
    return "put each text of a list in quotes, with a comma between two" if error == "Invalid value" else ""


def _no_settings(line: str, column: int, error: str) -> str:
    if re.match(r"\s*(?://|;|--|/\*)", line):
        return "a comment begins with #"
    if re.match(r"\s*(?:\{|<|-\s)", line):
        return 'this looks like JSON, XML or YAML; TOML has a line [table], then lines such as name = "basement"'
    return ""


def _header(line: str, column: int, error: str) -> str:
    header = re.match(r"\s*(\[\[?)\s*([\w.\"'-]*)\s*(\]*)\s*(.*)", line)
    if header is None:
        return ""
    if not header[2]:
        return "the name of the table is missing: write [node], or [[sensor]] for one of several"
    wanted = f"{header[1]}{header[2]}{']' * len(header[1])}"
    if header[3] != "]" * len(header[1]):
        return f"write the table as {wanted}"
    return f"nothing may follow {wanted} on its line: write each key on a line of its own below it" if header[4] else ""


def _assignment(line: str, column: int, error: str) -> str:
    key = re.match(r"\s*([^\s=:\"'\[\]{}]+)\s*(==|:=|:|)\s*(.*)", line)
    if re.match(r"\s*[=\"']", line):
        return "a line must begin with a key, without quotes, as in every = 5"
    if key is None or re.match(r"\s*[A-Za-z0-9_.-]+\s*=(?!=)", line):
        return ""
    if key[2]:
        return f"write = between key and value, not {key[2]} (as in {key[1]} = ...)"
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", key[1]):
        return f"{key[1]!r:.40} is not a valid key: keys consist of the letters a to z, digits, - and _"
    return f"= is missing between key and value (as in {key[1]} = ...)"


def _value(line: str, column: int, error: str) -> str:
    statement = _STATEMENT.match(line)
    if statement is None:
        return ""
    key, value = statement["key"], _without_comment(statement["value"])
    if not value:
        return f'the value of {key} is missing; an empty text is ""'
    if key.endswith(SECRET_KEYS) and value[0] not in "\"'{[":  # a secret is a text, even if it looks like a number
        return _unquoted(key, value)
    for rule in _VALUE_RULES:
        if advice := rule(key, value):
            return advice
    return _unquoted(key, value)


def _without_comment(value: str) -> str:
    return value if value[:1] in ('"', "'") else re.sub(r"(?:^|\s)#.*", "", value).strip()


def _word(key: str, value: str) -> str:
    if value.lower() in _WORDS:
        return f"write {key} = {_WORDS[value.lower()]}"
    return f"TOML has no {value}: delete the line" if value.lower() in ("none", "null", "nil") else ""


def _number(key: str, value: str) -> str:
    if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", value):
        return f"use a decimal point: {key} = {value.replace(',', '.')}"
    if re.fullmatch(r"[+-]?(?:\.[0-9]+|[0-9]+\.|0[0-9]+(?:\.[0-9]*)?)", value):
        return f"write digits on both sides of the decimal point, and no leading 0: {key} = {float(value):g}"
    if unit := re.fullmatch(
        r"([+-]?[0-9]+(?:\.[0-9]+)?)\s*(?:[smhdVC%]|ms|sec\w*|min\w*|hours?|days?|k?Hz|°C|°F)", value
    ):
        return f"write the number without its unit: {key} = {unit[1]} (docs/settings.md has the unit of each setting)"
    return ""


def _quotes(key: str, value: str) -> str:
    quote = value[:3] if value[:3] in ('"' * 3, "'" * 3) else value[0]
    if quote[0] not in "\"'":
        return ""
    if value.count(quote) == 1:
        return f"the closing {quote} is missing"
    rest = value[value.index(quote, len(quote)) + len(quote) :].strip()
    if re.match(r"[,;]", rest):
        return f"nothing may follow the value: delete the {rest[0]}"
    if re.match(r"[A-Za-z0-9_-]+\s*=", rest):
        return "write each NAME = VALUE on a line of its own"
    other = "'" if quote == '"' else '"'
    return f"a {quote} in the text ends the text: put it in {other}...{other}"


def _brackets(key: str, value: str) -> str:
    if value.startswith("("):
        return f'put a list in square brackets: {key} = ["...", "..."]'
    if value.startswith("["):
        if value.count("[") > value.count("]"):
            return "the closing ] of the list that begins here is missing"
        return f'put each text of a list in quotes, with a comma between two: {key} = ["...", "..."]'
    if value.startswith("{"):
        if value.count("{") > value.count("}"):
            return "write {...} on one line, or use a [table]"
        return f'within {{...}} write NAME = VALUE, with commas between: {key} = {{input = 1, convert = "counts"}}'
    return ""


def _several(key: str, value: str) -> str:
    if re.match(r"\S+\s+[A-Za-z0-9_-]+\s*=", value):
        return "write each NAME = VALUE on a line of its own"
    if re.fullmatch(r"[+-]?[0-9.]+\s*[,;]|(?:true|false)\s*[,;]", value):
        return f"nothing may follow the value: delete the {value[-1]}"
    return ""


def _unquoted(key: str, value: str) -> str:
    shown = (
        "..."
        if key.endswith((*SECRET_KEYS, "url", "topic")) or '"' in value or "\\" in value or len(value) > 60
        else value
    )
    return f'put text in quotes: {key} = "{shown}"'


_Rule = Callable[[str, int, str], str]
_RULES: Sequence[_Rule] = (_letters, _characters, _no_settings, _header, _assignment, _value)
_RULES_WITHIN: Sequence[_Rule] = (_letters, _characters, _element)
_VALUE_RULES: Sequence[Callable[[str, str], str]] = (_word, _number, _quotes, _brackets, _several)
