"""Throttling of failed attempts with passwords, tokens, and the keys and ids of older systems' clients.

A server has one LoginThrottle for all these secrets. All functions may be called from any thread. `_lock` guards the
counts and is held for one lookup or change.

Failures are counted as follows:
- Per address (IPv6: per /64 network). After a few failures each further attempt is answered with a delay. After more
  failures, attempts are refused for some minutes. Passwords and keys are counted separately, so that a device with a
  wrong key does not lock out the users who log in through the same router or proxy.
- Per proxy that forwards its clients' addresses, for passwords only. A proxy may forward an address that its client
  has invented, as nginx does by default. This count limits a client that invents a new address for each attempt.
- Per account, over all addresses together. This count only delays attempts. If an account could be locked, any client
  could lock its owner out, from any address and permanently. The number of guesses from many addresses is limited by
  the one thread that hashes passwords (auth/hash_thread.py).
- A success clears the failures of its own account only. The owner of one account therefore cannot use it to continue
  guessing the password of another.
- Keys of 128 random bits are looked up before they are counted, so only failures are throttled. Such a key cannot be
  guessed in practice, and an attacker does not lock out an honest client at the same address.
"""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

from pigeonpost.core.clock import Clock
from pigeonpost.core.format import counted
from pigeonpost.http.message import HTTPError

FREE = 3  # failures without a delay; after that, each delay is longer than the one before, up to LONGEST_DELAY_S

MOST = 10  # failures of an address after which its attempts are refused

MOST_OF_PROXY = 100  # failures of all clients of a proxy together after which attempts are refused

CLOSED_S = 300.0  # time without a failure after which attempts are accepted again

LONGEST_DELAY_S = 1.0

# Maximum number of attempts that are delayed at the same time over HTTP: half of the requests that the server handles
# at the same time. Further attempts are refused. Attempts with keys may occupy only half of these slots: they are not
# counted per proxy, so a client that invents addresses could occupy all slots, and no user could log in.
MOST_DELAYED = 16

LINE_EVERY_S = 60.0  # minimum time between two log lines about the same address

MOST_LINES = 30  # maximum number of log lines in LINE_EVERY_S: a client of a proxy may invent addresses

MOST_COUNTED = 1024  # maximum number of addresses, and of accounts; those with the fewest failures are dropped first

_LAST_LINE = "; failures from further addresses are not logged for a minute"

_ACCOUNT_CHARACTERS = 63  # longer account names are cut off


class _Count(NamedTuple):
    """Failures by account, and the time of the last failure. Keys have no account and are counted under `""`."""

    last_s: float
    by_account: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_account.values())


class LoginThrottle:
    """Counts of failed attempts by address, proxy and account. An attempt counts as failed until it succeeds.

    Args:
        clock: Clock for times and delays.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._addresses: dict[str, _Count] = {}
        self._accounts: dict[str, _Count] = {}
        self._proxies: dict[str, _Count] = {}
        self._delayed = 0  # attempts that are waiting now
        # By address: the time of the last log line, and the number of failures since then that were not logged.
        self._lines: dict[str, tuple[float, int]] = {}
        # Start of the current period of LINE_EVERY_S, and the number of log lines in it.
        self._period_start_s = -LINE_EVERY_S
        self._period_lines = 0

    def begin(self, host: str, account: str = "", proxy: str = "") -> tuple[float, float]:
        """Count an attempt, and return its delay or the time for which attempts are refused.

        Args:
            host: Address of the client.
            account: User whose password is tried; an empty string for a key that the caller has already found invalid.
            proxy: Address of the proxy that forwarded the request for `host`, or an empty string if there is none.

        Returns:
            `(delay_s, retry_after_s)`. `delay_s` is the number of seconds by which to delay the answer. `retry_after_s`
            is 0, or the number of seconds until attempts are accepted again. In that case the attempt must be refused
            without checking the secret.
        """
        account, now_s = account[:_ACCOUNT_CHARACTERS], self._clock.monotonic()
        with self._lock:
            count = self._count(self._addresses, _network(host), now_s)
            keys = count.by_account.get("", 0)
            failures = count.total - keys if account else keys
            if failures >= MOST:
                return 0.0, max(count.last_s + CLOSED_S - now_s, 0.001)
            if account and proxy not in ("", host):
                of_proxy = self._count(self._proxies, proxy, now_s)
                if of_proxy.total >= MOST_OF_PROXY:
                    return 0.0, max(of_proxy.last_s + CLOSED_S - now_s, 0.001)
                self._add(self._proxies, proxy, of_proxy, account, now_s)
            self._add(self._addresses, _network(host), count, account, now_s)
            if account:
                of_account = self._count(self._accounts, account, now_s)
                failures = max(failures, of_account.total)
                self._add(self._accounts, account, of_account, account, now_s)
        return (min(0.1 * 2.0 ** min(failures - FREE, 9), LONGEST_DELAY_S) if failures >= FREE else 0.0), 0.0

    def succeeded(self, host: str, account: str = "", proxy: str = "") -> None:
        """Clear the failures of `account` after a success: those of `host`, of `proxy`, and of the account itself."""
        account = account[:_ACCOUNT_CHARACTERS]
        with self._lock:
            for count in (self._addresses.get(_network(host)), self._proxies.get(proxy)):
                if count is not None:
                    count.by_account.pop(account, None)
            self._accounts.pop(account, None)

    def refused_addresses(self) -> list[str]:
        """Return the addresses (IPv6: /64 networks) whose attempts are refused now, after too many failures."""
        now_s = self._clock.monotonic()
        with self._lock:
            return [
                address for address, count in self._addresses.items()
                if now_s - count.last_s < CLOSED_S
                and max(keys := count.by_account.get("", 0), count.total - keys) >= MOST
            ]  # fmt: skip

    def delay_or_refuse(self, host: str, account: str = "", proxy: str = "") -> None:
        """Count an attempt over HTTP, and wait for its delay. Older systems' paths use `wrong_secrets` instead.

        Args:
            host: Address of the client.
            account: User whose password is tried; an empty string for a key.
            proxy: Address of the proxy that forwarded the request, or an empty string.

        Raises:
            HTTPError: 429: the attempt is refused.
        """
        delay_s, retry_after_s = self.begin(host, account, proxy)
        if retry_after_s > 0:
            with self._lock:
                if _network(host) in self._lines:
                    last_s, unlogged = self._lines[_network(host)]
                    self._lines[_network(host)] = last_s, unlogged + 1
            raise HTTPError(
                429, "Too many attempts have failed from your address. Try again in a few minutes.", "attempts",
                {"Retry-After": str(int(retry_after_s) + 1)},
            )  # fmt: skip
        if delay_s <= 0:
            return
        with self._lock:
            if self._delayed >= (MOST_DELAYED if account else MOST_DELAYED // 2):
                raise HTTPError(
                    429, "Too many failed attempts are waiting for their answers. Try again in a moment.", "attempts",
                    {"Retry-After": "2"},
                )  # fmt: skip
            self._delayed += 1
        try:
            self._clock.wait(threading.Event(), delay_s)
        finally:
            with self._lock:
                self._delayed -= 1

    def log_failure(self, log: logging.Logger, host: str, text: str) -> None:
        """Log a warning about a failed attempt, at a limited rate.

        There is at most one line per address and LINE_EVERY_S, and at most MOST_LINES lines about all addresses. A line
        contains the number of attempts of the address that were not logged since its previous line, including refused
        ones.

        Args:
            log: Logger of the caller.
            host: Address of the client.
            text: Reason, such as `wrong user or password`.
        """
        key, now_s = _network(host), self._clock.monotonic()
        with self._lock:
            last_s, unlogged = self._lines.get(key, (now_s - LINE_EVERY_S, 0))
            is_due = now_s - last_s >= LINE_EVERY_S and self._may_log(now_s)
            is_last = is_due and self._period_lines == MOST_LINES
            if key not in self._lines and len(self._lines) >= MOST_COUNTED:
                del self._lines[next(iter(self._lines))]
            self._lines[key] = (now_s, 0) if is_due else (last_s, unlogged + 1)
        if is_due:
            more = (
                f" ({counted(unlogged, 'more attempt')} failed since the last line about this address)"
                if unlogged
                else ""
            )
            log.warning("%s: %s%s%s", host, text, more, _LAST_LINE if is_last else "")

    def _may_log(self, now_s: float) -> bool:
        """Count a log line, and return True if it is one of the first MOST_LINES in LINE_EVERY_S."""
        if now_s - self._period_start_s >= LINE_EVERY_S:
            self._period_start_s, self._period_lines = now_s, 0
        self._period_lines += 1
        return self._period_lines <= MOST_LINES

    def _count(self, counts: dict[str, _Count], key: str, now_s: float) -> _Count:
        count = counts.get(key)
        return count if count is not None and now_s - count.last_s < CLOSED_S else _Count(now_s, {})

    def _add(self, counts: dict[str, _Count], key: str, count: _Count, account: str, now_s: float) -> None:
        count.by_account[account] = count.by_account.get(account, 0) + 1
        if key not in counts and len(counts) >= MOST_COUNTED:
            # Expired entries are dropped first. By number of failures alone, they could stay and fill the table.
            del counts[min(counts, key=lambda entry: _weight(counts[entry], now_s))]
        counts[key] = _Count(now_s, count.by_account)


def _weight(count: _Count, now_s: float) -> tuple[bool, int, float]:
    """Return the sort key of an entry. Entries with the smallest key are dropped first."""
    return now_s - count.last_s < CLOSED_S, count.total, count.last_s


def _network(host: str) -> str:
    """Return the part of an address that is counted.

    This is the first half of an IPv6 address, since each client has 2^64 addresses.
    """
    if ":" not in host:
        return host
    head, _, tail = host.partition("::")
    groups = head.split(":") if head else []
    missing = 8 - len(groups) - (len(tail.split(":")) if tail else 0)
    return ":".join((groups + ["0"] * missing + tail.split(":"))[:4])
