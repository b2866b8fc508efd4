"""Command that creates a self-signed certificate for the web interface with openssl, and prints its fingerprint.

Errors: Failed, with the message of openssl, if openssl is missing or fails.
"""

from __future__ import annotations

import argparse
import os
import re
import sys

from pigeonpost.cli.contract import Command, Context, Failed
from pigeonpost.core.addresses import own_address, own_name
from pigeonpost.core.certificate import IS_ADDRESS, make_certificate
from pigeonpost.core.data_folder import CERTIFICATE, CERTIFICATE_KEY
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.files import replace_file
from pigeonpost.web.tls import fingerprint_of

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?").fullmatch


def _certificate(context: Context) -> int:
    """Create a certificate for the web interface, or show the fingerprint of the existing certificate."""
    path, key = (os.path.join(context.data, name) for name in (CERTIFICATE, CERTIFICATE_KEY))
    if not context.arguments.new and os.path.exists(path) and os.path.exists(key):
        print(f"{path} exists already (--new replaces it; nodes that have this fingerprint will refuse the new one)",
              file=sys.stderr)  # fmt: skip
    else:
        names = context.arguments.names or _own_names()
        try:
            made, made_key = make_certificate(context.data, names)
        except SettingsError as error:
            raise Failed(str(error)) from None
        replace_file(key, made_key, mode=0o600)
        replace_file(path, made)
        print(f"{path}: created for {', '.join(names)}; valid for ten years", file=sys.stderr)
    print(fingerprint_of(path))
    print(
        f'To use it, add these lines to [web] in server.toml, and restart the server:\n    certificate = "{path}"\n'
        f'    key = "{key}"\nFor a node that pushes to this server, set [push] certificate in its node.toml to the'
        " fingerprint above.",
        file=sys.stderr,
    )
    return 0


def _own_names() -> list[str]:
    """Return the names and addresses by which other machines may reach this machine, its host name first."""
    name = own_name()
    found = [name, f"{name.partition('.')[0]}.local", "localhost", "127.0.0.1", own_address()]
    return [each for each in dict.fromkeys(found) if each]


def _host(text: str) -> str:
    """Return a command-line argument that is a host name or an address."""
    if not _NAME(text) and not IS_ADDRESS(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid host name or address")
    return text


_NAMES = (
    "names",
    {
        "metavar": "NAME",
        "nargs": "*",
        "type": _host,
        "help": "host names and addresses of the server (default: those of this machine)",
    },
)
_NEW = ("--new", {"action": "store_true", "help": "replace an existing certificate"})
_HELP = "create a certificate for the web interface (TLS), and show its fingerprint"

COMMANDS = {"certificate": Command(_HELP, [_NAMES, _NEW], _certificate)}
