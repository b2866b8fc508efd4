"""Default name of a node: the name of this machine or, in a container, the name at the first start.

The default host name of a container is its id, which changes whenever the container is created again, for example by an
update. The name of a node must not change, because servers find its samples and its token by that name. Therefore the
first name is kept in the data folder, which is a volume of the container.
Errors: DiskError; SettingsError for a file that does not contain a valid name.
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
    """Return the default name of the node whose data folder is `data`.

    Raises:
        DiskError: The name cannot be stored.
        SettingsError: The stored name is not valid.
    """
    name = own_name()
    if "BALENA_DEVICE_NAME_AT_INIT" in os.environ or not is_named_by_id():
        return name
    path = os.path.join(data, KEPT_NAME)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            kept = file.read().strip()
    except FileNotFoundError:
        replace_file(path, f"{name}\n".encode())
        log.info("node name: %s, the container's id at its first start; set PIGEONPOST_NODE_NAME to change it", name)
        return name
    if not NODE_NAME(kept):
        raise SettingsError(f"{path} does not contain a valid node name ({NODE_NAME_TAKES}): write one in this file")
    return kept
