"""Command `bundle`, which packs one of the programs into a single file that is easy to copy to another machine.

Source: the module zipapp, and "Interface options" in Python's documentation of its command line.
"""

from __future__ import annotations

import io
import os
import shlex
import zipfile

from pigeonpost.cli.contract import Command, Context
from pigeonpost.cli.program_files import PROGRAMS, program_files
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.files import is_device, replace_file

_FIRST_LINE = b"#!/usr/bin/env python3\n"
_MAIN = """import sys

from {program} import main

sys.exit(main())
"""


def _bundle(context: Context) -> int:
    """Write a program as a single file. `python3 FILE.pyz` runs it, with the same flags, settings and data.

    The other machine needs Python 3.11 or later. A node with an MCP3008 also needs python3-spidev.
    """
    program, path = context.arguments.program, context.arguments.file
    if os.path.isdir(path):
        raise SettingsError(
            f"{path} is a folder: give the name of a file, such as {os.path.join(path, program + '.pyz')}"
        )
    if is_device(path):
        raise SettingsError(f"{path} is not a regular file: name another one")
    content = bundle_of(program)
    replace_file(path, content, 0o755)
    print(f"{path}: {len(content) / 1e6:.1f} MB; copy it and run it: {shlex.join(['python3', os.path.basename(path)])}")
    return 0


def bundle_of(program: str) -> bytes:
    """Return the content of the bundle of `program`: `node`, `server` or `control`."""
    content = io.BytesIO()
    content.write(_FIRST_LINE)
    with zipfile.ZipFile(content, "a") as archive:
        _add(archive, "__main__.py", _MAIN.format(program=program).encode())
        for name, file in program_files():
            _add(archive, name, file)
    return content.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file with a fixed date, so that the same program always produces the same bytes."""
    archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


COMMANDS = {
    "bundle": Command(
        "write a program as a single file, to copy to another machine",
        [
            ("program", {"choices": PROGRAMS, "help": "program to write"}),
            ("file", {"metavar": "FILE.pyz", "help": "file to write"}),
        ],
        _bundle,
    ),
}
