"""Tokens of nodes: the secrets that a node shares with its servers, kept in `tokens.json`.

May be read by any thread; the file is read again when it has changed, so control.py works beside a running server. Both
write: each change locks the data folder (flock), so that none is lost.

A rotation replaces a token. The one before is accepted until the new one was used, for an hour at most. It is kept in a
file of its own, `replaced_tokens.json`: tokens.json stays `{node: token}`, which every version of the programs reads.
An older one, put back in place, accepts the new token only; that is a refusal, and never a leak.
Errors: SettingsError for a token file that cannot be read; DiskError when it cannot be written.
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

SHORTEST, LONGEST = 16, 1024  # characters of a token that was not made here; node.py takes no shorter one

Accepted = tuple[Mapping[str, str], Mapping[str, str]]

REPLACED_S = 3600.0  # that the token before a rotation is accepted, if the new one is not used earlier


class _Replaced(NamedTuple):
    """A token that was rotated away, and until when it is accepted (milliseconds since 1970)."""

    token: str
    until_ms: int


class Tokens(Mapping[str, LinkKey]):
    """All tokens that this server made, by node; the file may be read by its owner only."""

    def __init__(
        self, data: str, faults: Faults | None = None, wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        """
        faults   of a running server, see JsonFile
        wall_ms  the time, in milliseconds since 1970
        """
        self._folder, self._wall_ms = data, wall_ms
        self._replaced_file = JsonFile(
            os.path.join(data, REPLACED_TOKENS), "a list of replaced tokens", read_replaced, faults
        )
        self._file = JsonFile(os.path.join(data, TOKENS), "a list of tokens", read_token, faults)
        # The tokens, and their nodes by digest: a lookup compares digests only, so its time reveals nothing of a token.
        self._by_digest: tuple[dict[str, str], dict[bytes, str]] | None = None
        # Nodes whose token before the last rotation was looked for since the file was read: a rotation changes it.
        self._looked_for: tuple[dict[str, str], set[str]] = {}, set()

    def make(self, node: str, token: str = "") -> str:
        """Give `node` a new token, or this one; any that it had is accepted no more. Returns the token."""
        token = token or secrets.token_hex(16)
        with changes_locked(self._folder):
            self._forget_replaced(node)
            self._file.write({**self._file.now(), node: token})
        return token

    def rotate(self, node: str) -> str | None:
        """Replace the node's token, which is accepted for a while yet. Returns the new one; None: it had none."""
        with changes_locked(self._folder):
            old = self._file.now().get(node)
            if old is None:
                return None
            # Rotated again before the new one was used: the node still has the one before that.
            old = self._replaced().get(node, old)
            until_ms = self._wall_ms() + int(REPLACED_S * 1000)
            token = secrets.token_hex(16)
            # First: where only this is written, the token is the one that it was.
            self._write_replaced({**self._replaced_entries(), node: _Replaced(old, until_ms)})
            self._file.write({**self._file.now(), node: token})
        return token

    def share(self, node: str, new: str) -> None:
        """Let `new` have the token of `node`, and the replaced one that is still accepted, if there are any."""
        with changes_locked(self._folder):
            entries, tokens = self._replaced_entries(), self._file.now()
            if node in entries:
                self._write_replaced({**entries, new: entries[node]})
            if node in tokens:
                self._file.write({**tokens, new: tokens[node]})

    def revoke(self, node: str) -> bool:
        """Delete the node's token. Returns True if it had one."""
        with changes_locked(self._folder):
            self._forget_replaced(node)
            tokens = dict(self._file.now())
            if tokens.pop(node, None) is None:
                return False
            self._file.write(tokens)
        return True

    def accepted(self) -> Accepted:
        """Return the tokens by node, and the replaced ones that are still accepted."""
        return self._file.now(), self._replaced()

    def _replaced(self) -> dict[str, str]:
        """Return the replaced tokens that are still accepted. None is where the clock was set back by hours."""
        now_ms = self._wall_ms()
        return {
            node: entry.token
            for node, entry in self._replaced_entries().items() if 0 < entry.until_ms - now_ms <= REPLACED_S * 1000
        }  # fmt: skip

    def _replaced_entries(self) -> Mapping[str, _Replaced]:
        """Return the entries of the file; none where it is damaged: tokens can be made and revoked all the same."""
        try:
            return self._replaced_file.now()
        except SettingsError:  # a server records it as a fault, until the next rotation
            return {}

    def _forget_replaced(self, node: str) -> None:
        entries = self._replaced_entries()
        if node in entries:
            self._write_replaced({name: one for name, one in entries.items() if name != node})

    def _write_replaced(self, entries: Mapping[str, _Replaced]) -> None:
        now_ms = self._wall_ms()
        self._replaced_file.write({node: one._asdict() for node, one in entries.items() if one.until_ms > now_ms})

    def _retire(self, node: str, token: str) -> None:
        """Accept the token before the last rotation no more, if `token`, which `node` has used, is the new one.

        It is the old one where a rotation has written only the first of its two files yet.
        """
        try:
            with changes_locked(self._folder):
                if self._file.now().get(node) != token:
                    return
                self._forget_replaced(node)
        except DiskError as error:
            log.warning("%s: its token before the last rotation is accepted a while yet: %s", node, error)
        else:
            log.info("%s: has used its new token; the one before is accepted no more", node)

    def text_of(self, node: str) -> str | None:
        """Return the token itself, to be shown to the operator."""
        return self._file.now().get(node)

    def node_of(self, token: str) -> str | None:
        """Return the node that has this token, or None. A nearly right token takes no longer than any other."""
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
        """Retire the token before the last rotation, if there is one: `node` has used its own of `tokens`.

        It is looked for once, since the system has to tell the status of two files for it, and each push asks.
        """
        if self._looked_for[0] is not tokens:
            self._looked_for = tokens, set()
        looked_for = self._looked_for[1]
        if node in looked_for:
            return
        if node in self._replaced_entries():  # also one that is not accepted now: it may be, once the clock is set
            self._retire(node, tokens[node])
        else:
            looked_for.add(node)

    def _nodes(self, tokens: dict[str, str]) -> dict[bytes, str]:
        if self._by_digest is None or self._by_digest[0] is not tokens:
            found: dict[bytes, str] = {}
            # Of two with one token the first: the other is a name to come, see `share`.
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
        return node in self._file.now()  # without a LinkKey, which Mapping would make: each push asks

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.now())

    def __len__(self) -> int:
        return len(self._file.now())


def read_replaced(entry: Any) -> _Replaced:
    """Return one entry of the file of replaced tokens. Raises ValueError, TypeError or KeyError."""
    return _Replaced(read_token(entry["token"]), int(entry["until_ms"]))


def read_token(entry: object) -> str:
    """Return one entry of the file. Raises ValueError: `null` would else be the token "None"."""
    if not isinstance(entry, str) or not entry:
        raise ValueError("a token is a text")
    return entry
