"""Shortage of descriptors or memory: how a listener and a reader of files recognise it. Source: accept(2), open(2)."""

from __future__ import annotations

import errno

SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

PAUSE_S = 0.1  # before the next connection is accepted when there is no descriptor or thread for one
