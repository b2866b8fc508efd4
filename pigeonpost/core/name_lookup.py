"""Look-up of host names without waiting: in a few threads that live as long as there are names to look up.

A name server that does not answer keeps a thread for as long as the C library waits for it; addresses in numbers need
no thread. Errors: an OSError of the look-up is the answer to who has asked.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from typing import Any

from pigeonpost.core.helper_threads import HelperThreads

MOST_THREADS = 8

Found = list[tuple[int, Any]]  # family, and address as socket.connect takes it
Answer = Callable[[Callable[[], Found]], object]


class NameLookup:
    """Looks up the addresses of hosts."""

    def __init__(self) -> None:
        self._helpers = HelperThreads("look up names", MOST_THREADS)

    def find(self, address: tuple[str, int], answer: Answer) -> None:
        """Call `answer` with a function that returns the addresses of (host, port), or raises OSError; from another
        thread, or at once.

        Raises RuntimeError when no thread can be started for it.
        """
        try:
            found = _addresses(address, socket.AI_NUMERICHOST)
        except OSError:  # it is a name
            self._helpers.run(functools.partial(_addresses, address), answer)
        else:
            answer(lambda: found)


def _addresses(address: tuple[str, int], flags: int = 0) -> Found:
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, flags)
    except UnicodeError as error:  # no name at all: a part of it is empty, or too long
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r:.80} is no name of a host") from error
    return [(family, where) for family, _, _, _, where in found]
