"""Removal of secrets from texts that people read: displayed settings, errors and log lines."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"
# Arrays of tables whose `url` and `topic` are secrets as a whole, as in [webhook].
SECRET_TABLES = {"channel": ("url", "topic"), "forward": ("url",)}
# Suffixes of settings keys whose values are secrets. The headers of a request may contain a token.
SECRET_KEYS = ("password", "passwort", "token", "secret", "api_key", "headers")
_HIDDEN_FROM = 4  # characters: a shorter text is not hidden, because it can be a part of other words


def hide_secrets(text: str) -> str:
    """Return `text` with *** instead of the passwords and keys that are recognised in it.

    It recognises user and password in an address (`https://user:pw@host`, also without a scheme), and PEM blocks. It
    also recognises values after names that indicate a secret, in queries (`?apikey=...`), in connection strings
    (`password='...'`) and in JSON; and the secret paths of addresses of well-known services, such as those of the
    webhooks of Slack.
    """
    if "=" not in text and "@" not in text and ":" not in text and "earer " not in text and _PEM_BEGIN not in text:
        return text  # fast path for most log lines
    text = _PEM.sub(HIDDEN, text)
    text = _USER.sub(lambda found: f"{found[1] or ''}{HIDDEN}@", text)
    text = _SECRET_PATH.sub(rf"\1{HIDDEN}", text)
    return _BEARER.sub(rf"\1{HIDDEN}", _NAMED.sub(rf"\1{HIDDEN}", text))


def hide_these(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with *** instead of each of the `secrets` that has at least four characters."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= _HIDDEN_FROM:
            text = text.replace(secret, HIDDEN)
    return text


def secrets_in(target: str, headers: Mapping[str, str]) -> set[str]:
    """Return the parts of an HTTP request that may be secrets, in the forms in which a server may repeat them.

    Args:
        target: Its path and query.
        headers: Its headers that may contain secrets.
    """
    from base64 import b64decode
    from html import escape
    from urllib.parse import quote, unquote

    found = {target, *re.split("[/?&=]", target)}
    for value in headers.values():
        scheme, _, pair = value.partition(" ")
        if scheme == "Basic":
            with contextlib.suppress(ValueError):
                login = b64decode(pair).decode()
                found |= {login, *login.partition(":")}
        found |= {value, *re.split(r"[\s:]+", value)} - {"Basic", "Bearer", "Token"}
    found |= {unquote(text) for text in found}
    return found | {form for text in found for form in (escape(text), quote(text, safe=""))}


_PEM_BEGIN = "-----BEGIN"  # RFC 7468, section 2
_PEM = re.compile(rf"{_PEM_BEGIN}(?:.*?-----END[^-]{{0,80}}-----|.*)", re.DOTALL)
# In an address: everything up to the last @ before a slash. A password after "user:" may contain slashes, but
# a port number may not. Lengths are bounded, so that the time grows only in proportion to the text's length.
_USER = re.compile(
    r"""(//)(?:[^\s/"'?#@:]{0,256}:(?!\d+[/?#])[^\s"']{0,1024}@|[^\s/"'?#]{0,1024}@)"""
    r"""|(?<![^\s"'=(,\[])()[^\s:/@"'=,()\[]{1,256}:[^\s/@"']{1,1024}@(?=[A-Za-z0-9\[])"""
)  # fmt: skip
_NAMED = re.compile(
    r"""((?:(?:api_?key|app_?id|token|passw(?:or)?[dt]|passphrase|secret|signature)|(?<![A-Za-z0-9])"""
    r"""(?:key|pass|pwd|pw|pin|sig|auth)|(?<=[?&])(?:k|code))(?:\s{0,8}=\s{0,8}|["']\s{0,8}:\s{0,8}))"""
    r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|['"]?[^\s&#"',;}\])]+)""", re.IGNORECASE,
)  # fmt: skip
# In the addresses of Telegram, Slack, Discord, Mattermost, Uptime Kuma and healthchecks.io.
_SECRET_PATH = re.compile(
    r"((?:/bot(?=[0-9]+:)|/services/(?=T[A-Z0-9]+/)|/api/webhooks/|//[^\s/]{1,256}/hooks/|/api/push/|//hc-ping\.com/))"
    r"[^\s\"'<>,;)?]+"
)
_BEARER = re.compile(r"\b(Bearer )[!-~]+")
