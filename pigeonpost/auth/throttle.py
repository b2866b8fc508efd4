"""Throttling of failed attempts with secrets: passwords, tokens, and the keys and ids of older systems' clients.

A server has one LoginThrottle for all of them. May be used by any thread; `_lock` guards the counts, and is held for
one lookup or change.

What is counted, and why so:
- Per address, of IPv6 per /64: after a few failures each is answered later, then none is looked at for a while.
  Passwords and keys are counted apart, so that a device with a wrong key does not shut out the people who log in
  through the same router or proxy.
- Per proxy that names its clients, passwords only: it may pass on what a client says of its own address (nginx does, by
  itself), and who invents an address for each attempt is stopped here.
- Per account, from all addresses together: by delay only. If an account could be closed, anybody could lock its owner
  out, from everywhere and for as long as they like. How many guesses many addresses have is bounded by the one thread
  that hashes passwords (auth/users.py).
- A success forgives the failures of its own account and no others: whoever has an account cannot use it to go on
  guessing at another.
- Keys of 128 random bits are looked up before they are counted, so only failures are throttled. Nobody guesses such a
  key at any rate; and an honest client is not shut out by an attacker at the same address.
"""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

from pigeonpost.core.clock import Clock
from pigeonpost.http.message import HTTPError

FREE = 3  # failures that are answered at once; then each is answered later than the one before,

MOST = 10  # and after so many of an address none is looked at

MOST_OF_PROXY = 100  # of all clients of a proxy together

CLOSED_S = 300.0  # until nothing failed for so long

LONGEST_DELAY_S = 1.0

# At once, over HTTP: half of the connections that the page serves; further ones are refused. Of keys half as many: they
# are not counted for a proxy, so who invents addresses would take all places, and nobody could log in.
MOST_DELAYED = 16

LINE_EVERY_S = 60.0  # at most one log line about an address in this time,

MOST_LINES = 30  # and so many about all: who asks through a proxy may invent an address for each attempt

MOST_COUNTED = 1024  # addresses, and accounts; those with the fewest failures are forgotten first

_LAST_LINE = "; further addresses are logged in a minute"

_ACCOUNT_CHARACTERS = 63  # of a name that is remembered


class _Count(NamedTuple):
    """Failures since `last_s` minus less than CLOSED_S; of an address by account ("": keys, which have none)."""

    last_s: float
    by_account: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_account.values())


class LoginThrottle:
    """Counts failed attempts of each address and at each account. An attempt counts as failed until it succeeds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._addresses: dict[str, _Count] = {}
        self._accounts: dict[str, _Count] = {}
        self._proxies: dict[str, _Count] = {}
        self._delayed = 0  # attempts that wait now
        self._lines: dict[str, tuple[float, int]] = {}  # by address: when one was logged, and how many were not since
        self._of_all_s = -LINE_EVERY_S  # when the first of the last lines about all was logged, and how many were
        self._of_all = 0

    def begin(self, host: str, account: str = "", proxy: str = "") -> tuple[float, float]:
        """Begin an attempt of `host`.

        account  whose password is tried; empty: a key, of which the caller has seen that it is wrong
        proxy    address of the proxy that says that it asks for `host`; empty: none does

        Returns (delay_s, retry_after_s): the seconds by which to delay the answer; and, if the attempt must be refused
        without a look at the secret, the seconds until the next one is looked at, else 0.
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
        """Forgive the failures of `host` with this account, through `proxy` too, and those at the account from
        everywhere."""
        account = account[:_ACCOUNT_CHARACTERS]
        with self._lock:
            for count in (self._addresses.get(_network(host)), self._proxies.get(proxy)):
                if count is not None:
                    count.by_account.pop(account, None)
            self._accounts.pop(account, None)

    def delay_or_refuse(self, host: str, account: str = "", proxy: str = "") -> None:
        """Begin an attempt over HTTP, on a path of our own: wait out its delay. Raises HTTPError 429 if refused."""
        delay_s, retry_after_s = self.begin(host, account, proxy)
        if retry_after_s > 0:
            with self._lock:
                if _network(host) in self._lines:
                    last_s, left_out = self._lines[_network(host)]
                    self._lines[_network(host)] = last_s, left_out + 1
            raise HTTPError(
                429, "Too many attempts have failed from your address. Try again in some minutes.", "attempts",
                {"Retry-After": str(int(retry_after_s) + 1)},
            )  # fmt: skip
        if delay_s <= 0:
            return
        with self._lock:
            if self._delayed >= (MOST_DELAYED if account else MOST_DELAYED // 2):
                raise HTTPError(
                    429, "Too many attempts are being answered late. Try again in a moment.", "attempts",
                    {"Retry-After": "2"},
                )  # fmt: skip
            self._delayed += 1
        try:
            self._clock.wait(threading.Event(), delay_s)
        finally:
            with self._lock:
                self._delayed -= 1

    def log_failure(self, log: logging.Logger, host: str, text: str) -> None:
        """Log a warning that an attempt failed, at most once in LINE_EVERY_S for an address and MOST_LINES times for
        all; then with the number of those of the address that were not logged since, refused ones included.

        text  what failed: `wrong user or password`
        """
        key, now_s = _network(host), self._clock.monotonic()
        with self._lock:
            last_s, left_out = self._lines.get(key, (now_s - LINE_EVERY_S, 0))
            is_due = now_s - last_s >= LINE_EVERY_S and self._may_log(now_s)
            is_last = is_due and self._of_all == MOST_LINES
            if key not in self._lines and len(self._lines) >= MOST_COUNTED:
                del self._lines[next(iter(self._lines))]
            self._lines[key] = (now_s, 0) if is_due else (last_s, left_out + 1)
        if is_due:
            more = f" ({left_out} more attempts failed since the last line about it)" if left_out else ""
            log.warning("%s: %s%s%s", host, text, more, _LAST_LINE if is_last else "")

    def _may_log(self, now_s: float) -> bool:
        """Return True for one of the first MOST_LINES lines in LINE_EVERY_S."""
        if now_s - self._of_all_s >= LINE_EVERY_S:
            self._of_all_s, self._of_all = now_s, 0
        self._of_all += 1
        return self._of_all <= MOST_LINES

    def _count(self, counts: dict[str, _Count], key: str, now_s: float) -> _Count:
        count = counts.get(key)
        return count if count is not None and now_s - count.last_s < CLOSED_S else _Count(now_s, {})

    def _add(self, counts: dict[str, _Count], key: str, count: _Count, account: str, now_s: float) -> None:
        count.by_account[account] = count.by_account.get(account, 0) + 1
        if key not in counts and len(counts) >= MOST_COUNTED:
            # Those that no longer count go first: with many failures each they would stay, and leave no room.
            del counts[min(counts, key=lambda one: _weight(counts[one], now_s))]
        counts[key] = _Count(now_s, count.by_account)


def _weight(count: _Count, now_s: float) -> tuple[bool, int, float]:
    """Return what is forgotten last, as the larger value."""
    return now_s - count.last_s < CLOSED_S, count.total, count.last_s


def _network(host: str) -> str:
    """Return the part of an address that is counted: of IPv6 the first half, since each client has 2^64 addresses."""
    if ":" not in host:
        return host
    head, _, tail = host.partition("::")
    groups = head.split(":") if head else []
    missing = 8 - len(groups) - (len(tail.split(":")) if tail else 0)
    return ":".join((groups + ["0"] * missing + tail.split(":"))[:4])
