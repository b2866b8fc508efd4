"""The tokens of nodes: what a node and its servers both know, and nobody else.

Runs on: node (LinkKey of its own), server (Tokens: all that it made), control.  Reached from: the programs.
Hands on to: session, as `Key`.  Threads: none; `Tokens` may be read by any, and re-reads its file when that has
  changed.
Errors: SettingsError for a token file that does not read.

A token is never sent on the link: either side proves by HMAC-SHA-256 (RFC 2104) over both sides' fresh nonces that it
knows it. This file imports hashlib, which costs 3.7 MiB; so a node without a token does not import this file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.data_folder import TOKENS
from pigeonpost.core.json_file import JsonFile


class Tokens(Mapping[str, LinkKey]):
    """All tokens that this server made, by node: `tokens.json` in its data folder, for its owner's eyes only."""

    def __init__(self, data: str) -> None:
        self._file = JsonFile(os.path.join(data, TOKENS), "a list of tokens", str)
        # By the digests of the tokens, and of which tokens: looking one up compares digests, which tell nothing of it.
        self._by_digest: tuple[dict[str, str], dict[bytes, str]] | None = None

    def make(self, node: str) -> str:
        """A new token for `node`, in place of any it had."""
        token = secrets.token_hex(16)
        self._file.write({**self._file.now(), node: token})
        return token

    def revoke(self, node: str) -> bool:
        """Forget the node's token; whether it had one."""
        tokens = dict(self._file.now())
        if tokens.pop(node, None) is None:
            return False
        self._file.write(tokens)
        return True

    def text_of(self, node: str) -> str | None:
        """The token itself, to be shown to the owner."""
        return self._file.now().get(node)

    def node_of(self, token: str) -> str | None:
        """The node that has this token; None: nobody has. Takes the same time whether one is nearly right."""
        return self._nodes().get(hashlib.sha256(token.encode(errors="replace")).digest())

    def _nodes(self) -> dict[bytes, str]:
        tokens = self._file.now()
        if self._by_digest is None or self._by_digest[0] is not tokens:
            found = {hashlib.sha256(token.encode()).digest(): node for node, token in tokens.items()}
            self._by_digest = tokens, found
        return self._by_digest[1]

    def __getitem__(self, node: str) -> LinkKey:
        return LinkKey(self._file.now()[node])

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.now())

    def __len__(self) -> int:
        return len(self._file.now())
