"""Parser for the examples in the documentation: indented blocks, inline code, and the commands in both.

tests/test_document_blocks.py checks each of them; tests/install/test_documents_run.py executes the commands.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.support import ROOT

_INDENT = "    "
_CRON = re.compile(r"\A(?:[0-9*/,-]+ ){5}")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=").match
_PROGRAMS = {
    "control.py": "control", "node.py": "node", "server.py": "server",
    "pigeonpost": "control", "pigeonpost-node": "node", "pigeonpost-server": "server",
}  # fmt: skip
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


class Block(NamedTuple):
    """An example in a document, without its indentation; `line` is the number of its first line."""

    document: str
    line: int
    text: str

    @property
    def where(self) -> str:
        return f"{self.document}:{self.line}"


def documents() -> list[str]:
    """Return the paths of the documents with examples, relative to the root."""
    folder = os.path.join(ROOT, "docs")
    manual = sorted(f"docs/{name}" for name in os.listdir(folder) if name.endswith(".md"))
    return ["README.md", "CONTRIBUTING.md", "SECURITY.md", "bench/README.md", *manual]


def read_document(document: str) -> str:
    """Return the text of a document."""
    with open(os.path.join(ROOT, document), encoding="utf-8") as file:
        return file.read()


def blocks_of(document: str) -> list[Block]:
    """Return the indented blocks of a document in order. A block begins after an empty line."""
    blocks: list[Block] = []
    lines: list[str] = []
    is_after_empty = True
    for number, line in enumerate([*read_document(document).split("\n"), "."], 1):
        if line.startswith(_INDENT) and (lines or is_after_empty):
            lines.append(line.removeprefix(_INDENT))
        elif lines and not line.strip():
            lines.append("")
        elif lines:
            text = "\n".join(lines).rstrip("\n")
            blocks.append(Block(document, number - len(lines), text))
            lines = []
        is_after_empty = not line.strip()
    return blocks


def inline_code(document: str) -> list[Block]:
    """Return the inline code of a document. A line break in it is replaced by a space."""
    lines = ["" if line.startswith(_INDENT) else line for line in read_document(document).split("\n")]
    text = "\n".join(lines)
    found = []
    for match in _INLINE.finditer(text):
        if "\n\n" not in match[1]:
            found.append(Block(document, text.count("\n", 0, match.start()) + 1, " ".join(match[1].split())))
    return found


def command_lines(text: str) -> list[str]:
    """Return the lines of a block of commands, with continuation lines (backslash at the end) joined."""
    return [line for line in re.sub(r"\\\n\s*", "", text).split("\n") if line.strip()]


def without_cron(line: str) -> str:
    """Return `line` without the schedule of a crontab entry, if it has one."""
    return _CRON.sub("", line)


def simple_commands(line: str) -> list[list[str]]:
    """Return the words of each command in a shell or crontab line, without redirections and comments.

    Raises:
        ValueError: A quotation in `line` does not end.
    """
    line = re.sub(r"\d?>&\d", "", without_cron(line))
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if set(word) <= set("<>"):
            next(words)  # the file
        elif set(word) <= set("();|&"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def plain_command(words: Sequence[str]) -> list[str]:
    """Return the command in `words` without leading variables and sudo; empty if there are only variables."""
    left = list(words)
    while left and (_ASSIGNMENT(left[0]) or left[0] == "sudo"):
        if left.pop(0) == "sudo" and left[:1] == ["-u"]:
            del left[:2]
    return left


def own_command(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the Pigeonpost program (control, node or server) that a command runs, and its arguments.

    A command within a container is also recognised: `docker compose exec server python3 control.py password`.

    Returns:
        The name and the arguments; None if the command runs another program.
    """
    command = plain_command(words)
    for at, word in enumerate(command):
        name = os.path.basename(word)
        is_run = at == 0 or command[at - 1] == "python3" or "--entrypoint" in command[:at]
        if name in _PROGRAMS and is_run and (at == 0 or name.endswith(".py")):
            return _PROGRAMS[name], command[at + 1 :]
    return None


def own_commands(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the line, the program and the arguments of each Pigeonpost command in a text of command lines."""
    for line in command_lines(text):
        for words in simple_commands(line):
            if own := own_command(words):
                yield line, *own
