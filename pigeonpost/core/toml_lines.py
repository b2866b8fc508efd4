"""Line numbers of the keys and tables in TOML text, for error messages: tomllib tells what is there, not where.

Reads what tomllib accepts; at anything else it ends, and what came before it is known.
Source: TOML 1.0.0 (toml.io).
"""

from __future__ import annotations

import re
import tomllib

Path = tuple["str | int", ...]  # keys, and numbers from 0 within arrays

_DEEPEST = 20  # arrays and inline tables within each other

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")  # within arrays, and between statements
_END_OF_LINE = re.compile(r"(?:#[^\n]*)?(?:\n|$)")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""")
_STRING = re.compile(
    r'''"""(?:\\.|[^\\])*?""""{0,2}|\'\'\'.*?\'\'\'\'{0,2}|"(?:\\.|[^"\\\n])*"|'[^'\n]*\'''', re.DOTALL
)  # fmt: skip
_WORD = re.compile(r"[^\s,\]}#\"'\[{=]+(?: [0-9]{2}:[0-9:.]+(?:Z|[+-][0-9:]+)?)?")  # with the time of a date


class _End(Exception):
    """Nothing more can be read."""


class TomlLines:
    """Where each key and table of a TOML text is.

    lines      line, from 1, by path: ("node", "every") for that key of [node], ("sensor", 1, ...) in the 2nd [[sensor]]
    repeated   the first key or table that is there twice: its path and both lines; tomllib ends there
    statement  line of the statement in which the reading ended; 0: it came to the end
    starts     lines in which statements begin
    """

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self.repeated: tuple[Path, int, int] | None = None
        self.statement = 0
        self.starts: list[int] = []
        self._text, self._at = text.replace("\r\n", "\n"), 0
        self._table: Path = ()
        self._sizes: dict[Path, int] = {}  # of arrays of tables
        self._given: set[Path] = set()  # values, and tables that have a header
        try:
            while self._blank() < len(self._text):
                self.statement = self._line()
                self.starts.append(self.statement)
                self._read_statement()
            self.statement = 0
        except (_End, tomllib.TOMLDecodeError):  # the latter: of a key in quotes
            pass

    def _read_statement(self) -> None:
        if self._take("[["):
            self._open_table(is_array=True)
        elif self._take("["):
            self._open_table(is_array=False)
        else:
            self._read_pair(self._table, 0)
        self._match(_SPACE)
        if not self._match(_END_OF_LINE) and self._at < len(self._text):
            raise _End

    def _open_table(self, is_array: bool) -> None:
        line = self._line()
        *parents, last = self._key()
        if not self._take("]]" if is_array else "]"):
            raise _End
        path: Path = ()
        for part in parents:
            path = self._inside((*path, part))
            self.lines.setdefault(path, line)
        path = (*path, last)
        if path in self._given or (path in self._sizes and not is_array):
            self._end_at_repetition(path, line)
        self.lines.setdefault(path, line)
        if is_array:
            number = self._sizes.get(path, 0)
            self._sizes[path] = number + 1
            path = (*path, number)
            self.lines[path] = line
        else:
            self._given.add(path)
        self._table = path

    def _inside(self, path: Path) -> Path:
        """Return the path of the last table where this is an array of tables."""
        return (*path, self._sizes[path] - 1) if path in self._sizes else path

    def _read_pair(self, table: Path, depth: int) -> None:
        line = self._line()
        *parents, last = self._key()
        if not self._take("="):
            raise _End
        path = table
        for part in parents:
            path = (*path, part)
            if path in self._given:
                self._end_at_repetition(path, line)
            self.lines.setdefault(path, line)
        path = (*path, last)
        if path in self.lines:
            self._end_at_repetition(path, line)
        self.lines[path] = line
        self._given.add(path)
        self._match(_SPACE)
        self._read_value(path, depth)

    def _end_at_repetition(self, path: Path, line: int) -> None:
        self.repeated = path, self.lines[path], line
        raise _End

    def _read_value(self, path: Path, depth: int) -> None:
        if depth > _DEEPEST:
            raise _End
        if self._take("["):
            self._read_array(path, depth + 1)
        elif self._take("{"):
            self._read_inline_table(path, depth + 1)
        elif not self._match(_STRING) and not self._match(_WORD):
            raise _End

    def _read_array(self, path: Path, depth: int) -> None:
        number = 0
        self._blank()
        while not self._take("]"):
            self.lines[(*path, number)] = self._line()
            self._read_value((*path, number), depth)
            number += 1
            self._blank()
            if self._take(","):
                self._blank()
            elif not self._text.startswith("]", self._at):
                raise _End

    def _read_inline_table(self, path: Path, depth: int) -> None:
        self._match(_SPACE)
        if self._take("}"):
            return
        while True:
            self._match(_SPACE)
            self._read_pair(path, depth)
            self._match(_SPACE)
            if self._take("}"):
                return
            if not self._take(","):
                raise _End

    def _key(self) -> list[str]:
        """Return the parts of a key; what stands behind it is next."""
        parts = []
        while True:
            self._match(_SPACE)
            found = self._match(_KEY)
            if not found:
                raise _End
            parts.append(str(tomllib.loads(f"x = {found}")["x"]) if found[0] in "\"'" else found)
            self._match(_SPACE)
            if not self._take("."):
                return parts

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _take(self, text: str) -> bool:
        is_there = self._text.startswith(text, self._at)
        self._at += len(text) * is_there
        return is_there

    def _blank(self) -> int:
        """Skip what is between statements. Returns the place after it."""
        self._match(_BLANK)
        return self._at

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1
