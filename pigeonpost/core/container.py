"""Whether this program runs in a container, and what follows for its host name.

Sources: docker-run(1) (`--hostname`; the default is the first 12 hex digits of the container's id); podman-run(1)
(/run/.containerenv, which a container with a read-only root does not see, and the variable `container`).
"""

from __future__ import annotations

import os
import socket

_SIGNS = ("/.dockerenv", "/run/.containerenv")  # Docker and balena, Podman


def in_container() -> bool:
    """Return True in a container of Docker, Podman or balena."""
    is_told = "BALENA" in os.environ or os.environ.get("container") == "podman"  # noqa: SIM112
    return is_told or any(map(os.path.exists, _SIGNS))


def is_named_by_id() -> bool:
    """Return True if the host name is a container's id: it is another one each time that the container is made."""
    name = socket.gethostname()
    return in_container() and len(name) == 12 and set(name) <= set("0123456789abcdef")
