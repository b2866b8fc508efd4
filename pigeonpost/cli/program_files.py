"""The files that make up the program, wherever it runs from: a folder, one file (`control.py bundle`), or a virtual
environment that pip filled.
"""

from __future__ import annotations

import contextlib
import os
import sysconfig
import zipfile
from collections.abc import Iterator

from pigeonpost.core.errors import PigeonpostError

PROGRAMS = ("node", "server", "control")
MODULES = (*PROGRAMS, "protocol", "adc", "csvbuffer", "webui")  # at the root, beside the package
PACKAGE = "pigeonpost"
# Not code: what `install` writes and people read. pip puts them into share/pigeonpost of the environment.
_BESIDE = ("node.default.toml", "server.default.toml", "LICENSE")
_ROOT_FILES = (*(f"{module}.py" for module in MODULES), *_BESIDE)
_DEPLOY = "deploy"
_NOT_COPIED = ("__pycache__", "deb")  # the second: what the Debian package is built with
# Three folders up: pigeonpost/cli/program_files.py.
FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def program_files() -> Iterator[tuple[str, bytes]]:
    """Yield every file of the program: its path from the root with slashes, in order, and its content.

    Raises PigeonpostError where one is missing: a half-copied program is not copied on.
    """
    with _archive() as archive:
        names = sorted(_names(archive))
        for name in _ROOT_FILES:
            if name not in names:
                path = os.path.join(FOLDER, name)
                raise PigeonpostError(f"{path} is missing: copy the whole folder of Pigeonpost again")
        for name in names:
            yield name, _content(archive, name)


def read_program_file(name: str) -> bytes:
    """Return the content of a file of the program by its path from the root."""
    with _archive() as archive:
        return _content(archive, name)


@contextlib.contextmanager
def _archive() -> Iterator[zipfile.ZipFile | None]:
    """Open the one file that the program runs from; None where that is a folder."""
    if not zipfile.is_zipfile(FOLDER):
        yield None
        return
    with zipfile.ZipFile(FOLDER) as archive:
        yield archive


def _content(archive: zipfile.ZipFile | None, name: str) -> bytes:
    if archive is not None:
        return archive.read(name)
    with open(_path(name), "rb") as file:
        return file.read()


def _path(name: str) -> str:
    path = os.path.join(FOLDER, name)
    return path if os.path.exists(path) else os.path.join(_shared_folder(), name)


def _shared_folder() -> str:
    """Return where pip puts the files that are not code."""
    return os.path.join(sysconfig.get_path("data"), "share", "pigeonpost")


def _names(archive: zipfile.ZipFile | None) -> Iterator[str]:
    if archive is not None:
        yield from (name for name in archive.namelist() if not name.endswith("/") and name != "__main__.py")
        return
    yield from (name for name in _ROOT_FILES if os.path.exists(_path(name)))
    for folder in (PACKAGE, _DEPLOY):
        yield from _files_below(folder)


def _files_below(name: str) -> Iterator[str]:
    top = _path(name)
    for folder, folders, files in os.walk(top):
        folders[:] = [each for each in folders if each not in _NOT_COPIED]
        for file in files:
            yield os.path.join(name, os.path.relpath(os.path.join(folder, file), top)).replace(os.sep, "/")
