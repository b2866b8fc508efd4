"""Checks of the optional libraries that the settings require, in the Python that runs the program.

No errors are raised: a missing library is a finding with the command that installs it.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from pigeonpost.cli.doctor_checks import Finding, as_root, in_our_container
from pigeonpost.cli.doctor_service import Service
from pigeonpost.core.config import Settings

_PYTHON_S = 10.0  # limit for another interpreter to start: on a Pi Zero it takes one second


class Library(NamedTuple):
    """Optional library.

    Attributes:
        module: Module that is imported.
        debian: Name of the package in Debian.
        pypi: Name of the package on PyPI.
    """

    module: str
    debian: str
    pypi: str


SPIDEV = Library("spidev", "python3-spidev", "spidev")
SMBUS2 = Library("smbus2", "python3-smbus2", "smbus2")
PAHO = Library("paho.mqtt.client", "python3-paho-mqtt", "paho-mqtt")
PSYCOPG = Library("psycopg", "python3-psycopg", "psycopg[binary]")
REDIS = Library("redis", "python3-redis", "redis")
OF_KINDS = {"adc": SPIDEV, "mcp3424": SMBUS2, "mqtt": PAHO}  # kinds of sensors
_OF_SETTINGS = {("mqtt", "host"): PAHO, ("store", "postgres"): PSYCOPG, ("redis", "url"): REDIS}


def check_libraries(settings: Settings, program: str, service: Service | None) -> Iterator[Finding]:
    """Yield a finding for each missing library that a broker or database in the settings of a program requires.

    Args:
        settings: Settings of the program.
        program: `node` or `server`.
        service: Service that runs the program, or None if it is started by hand.
    """
    for (table, key), library in _OF_SETTINGS.items():
        if (program == "server" or table == "mqtt") and settings[table, key]:
            for finding in check_library(library, service):
                yield finding._replace(about=f"[{table}] {key}: {finding.about}")
    if program == "server" and settings.tables.get("device") and not settings["mqtt", "host"]:
        for finding in check_library(PAHO, service):
            yield finding._replace(about=f"[[device]]: {finding.about}")


def check_library(library: Library, service: Service | None) -> Iterator[Finding]:
    """Yield a finding if `library` is missing in the Python of `service`, or in this Python if `service` is None."""
    if not is_installed(library.module, service):
        name = library.module.partition(".")[0]
        yield Finding("wrong", f"the Python module {name} is missing", _remedy(library, service))


def _remedy(library: Library, service: Service | None) -> str:
    if in_our_container():
        return f'docker compose build --build-arg EXTRA="{library.debian}", then docker compose up -d'
    if service is None and sys.prefix != sys.base_prefix:  # a virtual environment does not use Debian's packages
        return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(library.pypi)}"
    again = f" && {as_root(f'systemctl restart {service.unit}')}" if service is not None else ""
    return as_root(f"apt install {library.debian}") + again


def is_installed(module: str, service: Service | None = None) -> bool:
    """Return True if `module` can be imported by the Python of `service`, or by this Python if `service` is None."""
    other = service.path(service.interpreter) if service is not None and service.interpreter else ""
    if other and os.path.exists(other):
        find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module.partition('.')[0]!r}) is None)"
        try:
            return subprocess.run([other, "-c", find], capture_output=True, timeout=_PYTHON_S, cwd="/").returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return True  # an interpreter that does not run is reported by another check
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
