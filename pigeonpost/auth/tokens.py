"""Tokens of nodes: the secrets that a node shares with its servers, kept in `tokens.json`.

May be read by any thread; the file is read again when it has changed, so control.py works beside a running server.
Errors: SettingsError for a token file that cannot be read.
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
    """All tokens that this server made, by node; the file may be read by its owner only."""

    def __init__(self, data: str) -> None:
        self._file = JsonFile(os.path.join(data, TOKENS), "a list of tokens", str)
        # The tokens, and their nodes by digest: a lookup compares digests only, so its time reveals nothing of a token.
        self._by_digest: tuple[dict[str, str], dict[bytes, str]] | None = None

    def make(self, node: str) -> str:
        """Make a new token for `node`, which replaces any it had."""
        token = secrets.token_hex(16)
        self._file.write({**self._file.now(), node: token})
        return token

    def revoke(self, node: str) -> bool:
        """Delete the node's token. Returns True if it had one."""
        tokens = dict(self._file.now())
        if tokens.pop(node, None) is None:
            return False
        self._file.write(tokens)
        return True

    def text_of(self, node: str) -> str | None:
        """Return the token itself, to be shown to the operator."""
        return self._file.now().get(node)

    def node_of(self, token: str) -> str | None:
        """Return the node that has this token, or None. A nearly right token takes no longer than any other."""
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
