"""Refusal of wrong secrets of older systems' clients: counted, delayed, and logged once a minute.

Those clients know no 429: they get the refusal of their own protocol, but later. Runs in the threads of the web server,
of which MOST_DELAYED wait here at once; a client with the right secret never waits.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from pigeonpost.auth.throttle import LONGEST_DELAY_S

if TYPE_CHECKING:
    from pigeonpost.transports.contract import ServerContext

MOST_DELAYED = 4  # refusals that wait at once; 32 requests are at work at most, and others need the rest

_places = threading.BoundedSemaphore(MOST_DELAYED)


def refuse_later(context: ServerContext, log: logging.Logger, host: str, text: str) -> None:
    """Count a wrong secret of `host`, and wait as long as its refusal is to be delayed.

    text  what was wrong, for the log

    For secrets that nobody guesses at any rate (64 random bits and more): a right one is accepted without asking here.
    """
    delay_s, retry_after_s = context.throttle.begin(host)
    wait(context, log, host, text, LONGEST_DELAY_S if retry_after_s else delay_s)


def wait(context: ServerContext, log: logging.Logger, host: str, text: str, delay_s: float) -> None:
    """Log a wrong secret of `host`, and wait before it is refused; not at all where MOST_DELAYED wait already."""
    context.throttle.log_failure(log, host, text)
    if delay_s and _places.acquire(blocking=False):
        try:
            context.clock.wait(threading.Event(), delay_s)
        finally:
            _places.release()
