"""Non-blocking lookup of host names, in a few threads that end when no names are left.

If a name server does not answer, a thread is blocked until the C library gives up. Numeric addresses need no thread.
Errors: an OSError of the lookup is part of the outcome that the callback receives.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from typing import Any

from pigeonpost.core.helper_threads import HelperThreads

MOST_THREADS = 8

Found = list[tuple[int, Any]]  # address family, and address for socket.connect
Answer = Callable[[Callable[[], Found]], object]


class NameLookup:
    """Resolver of host names."""

    def __init__(self) -> None:
        self._helpers = HelperThreads("look up names", MOST_THREADS)

    def find(self, address: tuple[str, int], answer: Answer) -> None:
        """Look up `address`, a pair (host, port), and call `answer` with the outcome.

        The outcome is a function that returns the addresses, or raises OSError. `answer` is called from another thread,
        or immediately for a numeric address.

        Raises:
            RuntimeError: No thread can be started.
        """
        try:
            found = _addresses(address, socket.AI_NUMERICHOST)
        except OSError:  # not a numeric address
            self._helpers.run(functools.partial(_addresses, address), answer)
        else:
            answer(lambda: found)


def _addresses(address: tuple[str, int], flags: int = 0) -> Found:
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, flags)
    except UnicodeError as error:  # not a valid name: a label is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r:.80} is not a valid host name") from error
    return [(family, where) for family, _, _, _, where in found]
