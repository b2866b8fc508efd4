"""Line numbers of the keys and tables in a TOML text, for error messages. tomllib does not report them.

The reader accepts the same syntax as tomllib. At a syntax error it stops, and has the lines before the error.
Source: TOML 1.0.0 (toml.io).
"""

from __future__ import annotations

import re
import tomllib

Path = tuple["str | int", ...]  # keys of tables, and indices (from 0) of arrays

_DEEPEST = 20  # nested arrays and inline tables

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")  # within arrays, and between statements
_END_OF_LINE = re.compile(r"(?:#[^\n]*)?(?:\n|$)")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""")
_STRING = re.compile(
    r'''"""(?:\\.|[^\\])*?""""{0,2}|\'\'\'.*?\'\'\'\'{0,2}|"(?:\\.|[^"\\\n])*"|'[^'\n]*\'''', re.DOTALL
)  # fmt: skip
_WORD = re.compile(r"[^\s,\]}#\"'\[{=]+(?: [0-9]{2}:[0-9:.]+(?:Z|[+-][0-9:]+)?)?")  # including a date and its time


class _End(Exception):
    """The rest of the text cannot be read."""


class TomlLines:
    """Line numbers of the keys and tables of a TOML text.

    Args:
        text: The TOML text.

    Attributes:
        lines: Line (from 1) by path: ("node", "every") for that key of [node], ("sensor", 1, ...) in the second
            [[sensor]].
        repeated: First key or table that occurs twice: its path and both lines, or None. tomllib reports the same one.
        statement: Line of the statement at which the reader stopped, or 0 if it read the complete text.
        starts: Lines in which statements begin.
    """

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self.repeated: tuple[Path, int, int] | None = None
        self.statement = 0
        self.starts: list[int] = []
        self._text, self._at = text.replace("\r\n", "\n"), 0
        self._table: Path = ()
        self._sizes: dict[Path, int] = {}  # number of tables in each array of tables
        self._given: set[Path] = set()  # paths of values, and of tables with a header
        try:
            while self._blank() < len(self._text):
                self.statement = self._line()
                self.starts.append(self.statement)
                self._read_statement()
            self.statement = 0
        except (_End, tomllib.TOMLDecodeError):  # TOMLDecodeError: an invalid key in quotes
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
            self._stop_at_repetition(path, line)
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
        """Return the path of the last table if `path` is an array of tables, or else `path`."""
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
                self._stop_at_repetition(path, line)
            self.lines.setdefault(path, line)
        path = (*path, last)
        if path in self.lines:
            self._stop_at_repetition(path, line)
        self.lines[path] = line
        self._given.add(path)
        self._match(_SPACE)
        self._read_value(path, depth)

    def _stop_at_repetition(self, path: Path, line: int) -> None:
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
        """Return the parts of a key, and move to the text after it."""
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
        is_match = self._text.startswith(text, self._at)
        self._at += len(text) * is_match
        return is_match

    def _blank(self) -> int:
        """Skip space and comments between statements. Return the new position."""
        self._match(_BLANK)
        return self._at

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1
