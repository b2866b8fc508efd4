"""Detection of containers, and of host names that are only a container's id.

Sources: docker-run(1) (`--hostname`; the default is the first 12 hex digits of the container's id); podman-run(1)
(/run/.containerenv, which is missing in a container with a read-only root, and the variable `container`).
"""

from __future__ import annotations

import os
import socket

_SIGNS = ("/.dockerenv", "/run/.containerenv")  # Docker and balena, Podman


def in_container() -> bool:
    """Return True if this program runs in a container of Docker, Podman or balena."""
    has_variable = "BALENA" in os.environ or os.environ.get("container") == "podman"  # noqa: SIM112
    return has_variable or any(map(os.path.exists, _SIGNS))


def is_named_by_id() -> bool:
    """Return True if the host name is a container's id, which changes whenever the container is created again."""
    name = socket.gethostname()
    return in_container() and len(name) == 12 and set(name) <= set("0123456789abcdef")
