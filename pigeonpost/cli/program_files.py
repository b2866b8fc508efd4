"""Files of the program.

The program runs from a folder, from a single file (`control.py bundle`), or from a virtual environment with pip.
"""

from __future__ import annotations

import contextlib
import os
import sysconfig
import zipfile
from collections.abc import Iterator

from pigeonpost.core.errors import PigeonpostError

PROGRAMS = ("node", "server", "control")
MODULES = (*PROGRAMS, "protocol", "adc", "csvbuffer", "webui")  # at the root, next to the package
PACKAGE = "pigeonpost"
# Files that are not code, for `install` and for users. pip installs them in share/pigeonpost of the environment.
_DATA_FILES = ("node.default.toml", "server.default.toml", "LICENSE")
_ROOT_FILES = (*(f"{module}.py" for module in MODULES), *_DATA_FILES)
_DEPLOY = "deploy"
_NOT_COPIED = ("__pycache__", "deb")  # deb has the files from which the Debian package is built
# Three folders up: pigeonpost/cli/program_files.py.
FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def program_files() -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of every file of the program, sorted by path.

    A path is relative to the root of the program and has slashes.

    Raises:
        PigeonpostError: A file is missing, so that this copy of the program is incomplete.
    """
    with _archive() as archive:
        names = sorted(_names(archive))
        for name in _ROOT_FILES:
            if name not in names:
                path = os.path.join(FOLDER, name)
                raise PigeonpostError(f"{path} is missing: copy the complete folder of Pigeonpost again")
        for name in names:
            yield name, _content(archive, name)


def read_program_file(name: str) -> bytes:
    """Return the content of the program's file `name`, a path relative to the root of the program."""
    with _archive() as archive:
        return _content(archive, name)


@contextlib.contextmanager
def _archive() -> Iterator[zipfile.ZipFile | None]:
    """Open the single file from which the program runs. Yield None if it runs from a folder."""
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
    """Return the folder in which pip installs the files that are not code."""
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
