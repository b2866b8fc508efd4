"""The command `bundle`: one of the programs as one file, for machines to which copying a folder is too much.

Source: zipapp, and "Executing zipped files" in the manual of Python's command line.
"""

from __future__ import annotations

import io
import os
import shlex
import zipfile

from pigeonpost.cli.contract import Command, Context
from pigeonpost.cli.program_files import PROGRAMS, program_files
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.files import replace_file

_FIRST_LINE = b"#!/usr/bin/env python3\n"
_MAIN = """import sys

from {program} import main

sys.exit(main())
"""


def _bundle(context: Context) -> int:
    """Write one file that is the program: `python3 FILE.pyz` runs it, with the same flags, settings and data.

    The machine needs Python 3.11 or later, and a node with an MCP3008 python3-spidev; nothing else has to be there.
    """
    program, path = context.arguments.program, context.arguments.file
    if os.path.isdir(path):
        raise SettingsError(f"{path} is a folder: name the file, as {os.path.join(path, program + '.pyz')}")
    content = bundle_of(program)
    replace_file(path, content, 0o755)
    print(
        f"{path}: {len(content) / 1e6:.1f} MB; copy it, and run it: {shlex.join(['python3', os.path.basename(path)])}"
    )
    return 0


def bundle_of(program: str) -> bytes:
    """Return the content of the file of a program: `node`, `server` or `control`."""
    content = io.BytesIO()
    content.write(_FIRST_LINE)
    with zipfile.ZipFile(content, "a") as archive:
        _add(archive, "__main__.py", _MAIN.format(program=program).encode())
        for name, file in program_files():
            _add(archive, name, file)
    return content.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file with the same date in every bundle: the same program gives the same bytes."""
    archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


COMMANDS = {
    "bundle": Command(
        "write one of the programs as one file to copy",
        [
            ("program", {"choices": PROGRAMS, "help": "which program"}),
            ("file", {"metavar": "FILE.pyz", "help": "the file to write"}),
        ],
        _bundle,
    ),
}
