"""Tokens of nodes: the secrets that a node shares with its servers, stored in `tokens.json`.

All functions may be called from any thread. The file is read again when it has changed, so control.py works while a
server is running. Both programs write the file. Each change locks the data folder (flock), so that no change is lost.

A rotation replaces a token. The previous token is accepted until the new one has been used, but at most for an hour. It
is stored in a separate file, `replaced_tokens.json`, so that tokens.json keeps the format `{node: token}`, which every
version of the programs can read. After a downgrade, an older version accepts the new token only.

Errors: SettingsError for a token file that cannot be read; DiskError for a file that cannot be written.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.data_folder import REPLACED_TOKENS, TOKENS
from pigeonpost.core.errors import DiskError, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.core.json_file import JsonFile, changes_locked

log = logging.getLogger(__name__)

SHORTEST, LONGEST = 16, 1024  # length in characters of a token chosen by the operator; node.py has the same minimum

# The tokens, and the previous tokens that are still accepted, both by node name.
Accepted = tuple[Mapping[str, str], Mapping[str, str]]

REPLACED_S = 3600.0  # maximum time for which the previous token is accepted after a rotation


class _Replaced(NamedTuple):
    """Previous token of a node, and the time until which it is accepted, in milliseconds since 1970 (UTC)."""

    token: str
    until_ms: int


class Tokens(Mapping[str, LinkKey]):
    """Mapping of node names to the keys of the nodes' tokens. Only the owner of the file can read it.

    Args:
        data: Path of the data folder.
        faults: Faults of a running server, for JsonFile; None in control.py.
        wall_ms: Function that returns the time in milliseconds since 1970 (UTC).
    """

    def __init__(
        self, data: str, faults: Faults | None = None, wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self._folder, self._wall_ms = data, wall_ms
        self._replaced_file = JsonFile(
            os.path.join(data, REPLACED_TOKENS), "a list of replaced tokens", read_replaced, faults
        )
        self._file = JsonFile(os.path.join(data, TOKENS), "a list of tokens", read_token, faults)
        # The tokens, and their nodes by digest. A lookup compares digests only, so its time does not reveal a token.
        self._by_digest: tuple[dict[str, str], dict[bytes, str]] | None = None
        # The tokens as last read from the file, and the nodes whose previous token has been searched for since then.
        self._searched: tuple[dict[str, str], set[str]] = {}, set()

    def make(self, node: str, token: str = "") -> str:
        """Set the token of `node` and return it: `token`, or a new random one if that is empty.

        The tokens that the node had are no longer accepted.
        """
        token = token or secrets.token_hex(16)
        with changes_locked(self._folder):
            self._forget_replaced(node)
            self._file.write({**self._file.now(), node: token})
        return token

    def rotate(self, node: str) -> str | None:
        """Replace the token of `node` and return the new one. Return None if the node has no token.

        The previous token is accepted until the new one has been used, but at most for REPLACED_S.
        """
        with changes_locked(self._folder):
            old = self._file.now().get(node)
            if old is None:
                return None
            # On a second rotation before the new token was used, the node still has the oldest of the three tokens.
            old = self._replaced().get(node, old)
            until_ms = self._wall_ms() + int(REPLACED_S * 1000)
            token = secrets.token_hex(16)
            # This file is written first: if the second write fails, the token has not changed.
            self._write_replaced({**self._replaced_entries(), node: _Replaced(old, until_ms)})
            self._file.write({**self._file.now(), node: token})
        return token

    def share(self, node: str, new: str) -> None:
        """Copy the tokens of `node`, current and previous, to the node name `new`."""
        with changes_locked(self._folder):
            entries, tokens = self._replaced_entries(), self._file.now()
            if node in entries:
                self._write_replaced({**entries, new: entries[node]})
            if node in tokens:
                self._file.write({**tokens, new: tokens[node]})

    def revoke(self, node: str) -> bool:
        """Delete the tokens of `node`. Return True if it had one."""
        with changes_locked(self._folder):
            self._forget_replaced(node)
            tokens = dict(self._file.now())
            if tokens.pop(node, None) is None:
                return False
            self._file.write(tokens)
        return True

    def accepted(self) -> Accepted:
        """Return two mappings by node name: the tokens, and the previous tokens that are still accepted."""
        return self._file.now(), self._replaced()

    def _replaced(self) -> dict[str, str]:
        """Return the previous tokens that are still accepted, by node name.

        If the clock was set back by more than REPLACED_S, no previous token is accepted until it has been set again.
        """
        now_ms = self._wall_ms()
        return {
            node: entry.token
            for node, entry in self._replaced_entries().items() if 0 < entry.until_ms - now_ms <= REPLACED_S * 1000
        }  # fmt: skip

    def _replaced_entries(self) -> Mapping[str, _Replaced]:
        """Return the entries of the file; none if it is damaged, so that tokens can still be created and revoked."""
        try:
            return self._replaced_file.now()
        except SettingsError:  # a server shows it as a fault until the next rotation
            return {}

    def _forget_replaced(self, node: str) -> None:
        entries = self._replaced_entries()
        if node in entries:
            self._write_replaced({name: entry for name, entry in entries.items() if name != node})

    def _write_replaced(self, entries: Mapping[str, _Replaced]) -> None:
        now_ms = self._wall_ms()
        self._replaced_file.write({node: entry._asdict() for node, entry in entries.items() if entry.until_ms > now_ms})

    def _retire(self, node: str, token: str) -> None:
        """Stop accepting the previous token of `node`, because the node has used `token`.

        Do nothing if `token` is not the new token. This happens if the node used the previous token while a rotation
        had written only the first of its two files.
        """
        try:
            with changes_locked(self._folder):
                if self._file.now().get(node) != token:
                    return
                self._forget_replaced(node)
        except DiskError as error:
            log.warning("%s: the previous token is still accepted: %s", node, error)
        else:
            log.info("%s: the new token was used; the previous one is no longer accepted", node)

    def text_of(self, node: str) -> str | None:
        """Return the token of `node` as plain text for the operator, or None if it has none."""
        return self._file.now().get(node)

    def node_of(self, token: str) -> str | None:
        """Return the name of the node with this `token`, or None.

        The time taken does not depend on how similar an unknown token is to an existing one.
        """
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        tokens = self._file.now()
        node = self._nodes(tokens).get(digest)
        if node is not None:
            self._retire_once(node, tokens)
            return node
        replaced = self._replaced()
        old = {hashlib.sha256(token.encode()).digest(): node for node, token in replaced.items() if node in self}
        return old.get(digest)

    def _retire_once(self, node: str, tokens: dict[str, str]) -> None:
        """Retire the previous token of `node`, if there is one, because the node has used its token in `tokens`.

        The search for a previous token reads the status of two files, and each push calls this method. Therefore the
        search is done only once after each change of the tokens.
        """
        if self._searched[0] is not tokens:
            self._searched = tokens, set()
        searched = self._searched[1]
        if node in searched:
            return
        if node in self._replaced_entries():  # includes tokens that will be accepted only after the clock is set
            self._retire(node, tokens[node])
        else:
            searched.add(node)

    def _nodes(self, tokens: dict[str, str]) -> dict[bytes, str]:
        if self._by_digest is None or self._by_digest[0] is not tokens:
            found: dict[bytes, str] = {}
            # If two nodes have the same token, the first counts. The other is a future name of the node: see `share`.
            for node, token in tokens.items():
                found.setdefault(hashlib.sha256(token.encode()).digest(), node)
            self._by_digest = tokens, found
        return self._by_digest[1]

    def __getitem__(self, node: str) -> LinkKey:
        token = self._file.now()[node]
        if node not in self._replaced_entries():
            return LinkKey(token)
        replaced = self._replaced().get(node)
        return LinkKey(token, LinkKey(replaced) if replaced else None, functools.partial(self._retire, node, token))

    def __contains__(self, node: object) -> bool:
        return node in self._file.now()  # unlike Mapping.__contains__, creates no LinkKey: each push calls this

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.now())

    def __len__(self) -> int:
        return len(self._file.now())


def read_replaced(entry: Any) -> _Replaced:
    """Return the previous token in the object `entry`. Raise ValueError, TypeError or KeyError if it is invalid."""
    return _Replaced(read_token(entry["token"]), int(entry["until_ms"]))


def read_token(entry: object) -> str:
    """Return the token in the JSON value `entry`. Raise ValueError if it is not a non-empty string."""
    if not isinstance(entry, str) or not entry:  # str(None) would be the token "None"
        raise ValueError("a token must be a non-empty string")
    return entry
