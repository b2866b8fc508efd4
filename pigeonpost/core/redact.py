"""Hiding of secrets in texts that people read: settings that are shown, errors, lines of the log."""

from __future__ import annotations

import re

HIDDEN = "***"
# Endings of the keys of settings whose values are secrets; the headers of a request may have a token.
SECRET_KEYS = ("password", "passwort", "token", "secret", "api_key", "headers")


def hide_secrets(text: str) -> str:
    """Return `text` with *** in the place of passwords and keys that it is seen to have.

    Those are: user and password of an address (`https://user:pw@host`, also without a scheme), and values behind the
    names that such values have, in queries (`?apikey=...`), connection strings (`password='...'`), and JSON; and a PEM
    block, to its end.
    """
    if "=" not in text and "@" not in text and ":" not in text and "earer " not in text and _PEM_BEGIN not in text:
        return text  # most lines of the log
    text = _PEM.sub(HIDDEN, text)
    text = _USER.sub(lambda found: f"{found[1] or ''}{HIDDEN}@", text)
    return _BEARER.sub(rf"\1{HIDDEN}", _NAMED.sub(rf"\1{HIDDEN}", text))


_PEM_BEGIN = "-----BEGIN"  # RFC 7468, section 2
_PEM = re.compile(rf"{_PEM_BEGIN}(?:.*?-----END[^-]{{0,80}}-----|.*)", re.DOTALL)
# In an address up to the last @ before a slash; behind user and colon a password may have slashes, a port has none.
# Lengths are bounded, so that a long text takes no longer than its length is worth.
_USER = re.compile(
    r"""(//)(?:[^\s/"'?#@:]{0,256}:(?!\d+[/?#])[^\s"']{0,1024}@|[^\s/"'?#]{0,1024}@)"""
    r"""|(?<![^\s"'=(,\[])()[^\s:/@"'=,()\[]{1,256}:[^\s/@"']{1,1024}@(?=[A-Za-z0-9\[])"""
)  # fmt: skip
_NAMED = re.compile(
    r"""((?:(?:api_?key|app_?id|token|passw(?:or)?[dt]|passphrase|secret|signature)|(?<![A-Za-z0-9])"""
    r"""(?:key|pass|pwd|pw|pin|sig|auth)|(?<=[?&])(?:k|code))(?:\s{0,8}=\s{0,8}|["']\s{0,8}:\s{0,8}))"""
    r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|['"]?[^\s&#"',;}\])]+)""", re.IGNORECASE,
)  # fmt: skip
_BEARER = re.compile(r"\b(Bearer )[!-~]+")
