"""Delayed refusal of clients of older systems that send wrong secrets.

These clients do not understand status 429. They receive the refusal of their own protocol, after a delay. Each wrong
secret is counted, and logged at most once per minute and address. The functions run in the threads of the web server.
At most MOST_DELAYED threads wait here at the same time. A client with the correct secret never waits.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from pigeonpost.auth.throttle import LONGEST_DELAY_S

if TYPE_CHECKING:
    from pigeonpost.transports.contract import ServerContext

# Maximum number of refusals that wait at the same time. The server handles 32 requests at the same time, and the other
# clients need the rest.
MOST_DELAYED = 4

_delay_slots = threading.BoundedSemaphore(MOST_DELAYED)


def refuse_later(context: ServerContext, log: logging.Logger, host: str, text: str) -> None:
    """Count and log a wrong secret, and wait for the delay of its refusal.

    This is for secrets that cannot be guessed (64 random bits or more). The caller accepts a correct one without
    calling this function.

    Args:
        context: Context of the server, with its throttle and clock.
        log: Logger of the caller.
        host: Address of the client.
        text: Description of the wrong secret, for the log.
    """
    delay_s, retry_after_s = context.throttle.begin(host)
    wait(context, log, host, text, LONGEST_DELAY_S if retry_after_s else delay_s)


def wait(context: ServerContext, log: logging.Logger, host: str, text: str, delay_s: float) -> None:
    """Log a wrong secret and wait. Return immediately if MOST_DELAYED refusals are already waiting.

    Args:
        context: Context of the server, with its throttle and clock.
        log: Logger of the caller.
        host: Address of the client.
        text: Description of the wrong secret, for the log.
        delay_s: Delay in seconds.
    """
    context.throttle.log_failure(log, host, text)
    if delay_s and _delay_slots.acquire(blocking=False):
        try:
            context.clock.wait(threading.Event(), delay_s)
        finally:
            _delay_slots.release()
