"""Checks of the optional libraries that the settings call for, in the Python that runs the program.

Errors: none; a library that is missing is a finding with the command that installs it there.
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

_PYTHON_S = 10.0  # for another interpreter to start: a Pi Zero takes a second


class Library(NamedTuple):
    """One library: the module that is imported, Debian's package, and PyPI's."""

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


def libraries(settings: Settings, program: str, service: Service | None) -> Iterator[Finding]:
    """Yield the libraries that are missing for brokers and databases of a program's settings."""
    for (table, key), library in _OF_SETTINGS.items():
        if (program == "server" or table == "mqtt") and settings[table, key]:
            for finding in missing(library, service):
                yield finding._replace(about=f"[{table}] {key}: {finding.about}")


def missing(library: Library, service: Service | None) -> Iterator[Finding]:
    """Yield the finding where a library is missing in the Python of a service, or in this one."""
    if not is_installed(library.module, service):
        name = library.module.partition(".")[0]
        yield Finding("wrong", f"the Python module {name} is missing", _remedy(library, service))


def _remedy(library: Library, service: Service | None) -> str:
    if in_our_container():
        return f'docker compose build --build-arg EXTRA="{library.debian}", then docker compose up -d'
    if service is None and sys.prefix != sys.base_prefix:  # an environment of its own does not see Debian's
        return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(library.pypi)}"
    again = f" && {as_root(f'systemctl restart {service.unit}')}" if service is not None else ""
    return as_root(f"apt install {library.debian}") + again


def is_installed(module: str, service: Service | None = None) -> bool:
    """Return True if a module can be imported, by the Python of the service where there is one."""
    other = service.path(service.interpreter) if service is not None and service.interpreter else ""
    if other and os.path.exists(other):
        find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module.partition('.')[0]!r}) is None)"
        try:
            return subprocess.run([other, "-c", find], capture_output=True, timeout=_PYTHON_S, cwd="/").returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return True  # that it does not run is a finding of its own
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
