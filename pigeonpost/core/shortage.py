"""Error numbers that report a shortage of file descriptors or memory. Sources: accept(2), open(2)."""

from __future__ import annotations

import errno

SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

PAUSE_S = 0.1  # pause before the next accept if there is no descriptor or thread for a connection
