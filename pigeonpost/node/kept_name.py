"""The name of a node whose settings give none: this machine's, and in a container the one of its first start.

A container without a host name of its own has its id for one, which changes each time that the container is made, as by
an update. The node's name must not: servers know its samples and its token by it. So the first one is kept in the data
folder, which is the container's volume. Errors: DiskError; SettingsError for a file that holds no name.
"""

from __future__ import annotations

import logging
import os

from pigeonpost.core.addresses import own_name
from pigeonpost.core.container import is_named_by_id
from pigeonpost.core.data_folder import KEPT_NAME
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.files import replace_file
from protocol import NODE_NAME, NODE_NAME_TAKES

log = logging.getLogger(__name__)


def node_name(data: str) -> str:
    """Return the name of the node with that data folder, for settings without one."""
    name = own_name()
    if "BALENA_DEVICE_NAME_AT_INIT" in os.environ or not is_named_by_id():
        return name
    path = os.path.join(data, KEPT_NAME)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            kept = file.read().strip()
    except FileNotFoundError:
        replace_file(path, f"{name}\n".encode())
        log.info("named %s after this container's first start; PIGEONPOST_NODE_NAME gives a better name", name)
        return name
    if not NODE_NAME(kept):
        raise SettingsError(f"{path} holds no node name ({NODE_NAME_TAKES}): write the node's name into it")
    return kept
