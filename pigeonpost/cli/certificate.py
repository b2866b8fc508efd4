"""Command that makes a self-signed certificate for the server's page with openssl, known by its fingerprint.

Errors: Failed where openssl is missing or fails, with its message.
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


def certificate(context: Context) -> int:
    """Make a certificate for the server's page, or show the fingerprint of the one that was made before."""
    path, key = (os.path.join(context.data, name) for name in (CERTIFICATE, CERTIFICATE_KEY))
    if not context.arguments.new and os.path.exists(path) and os.path.exists(key):
        print(f"{path} is there already (--new makes another one, which nodes that know this one refuse)",
              file=sys.stderr)  # fmt: skip
    else:
        names = context.arguments.names or _own_names()
        try:
            made, made_key = make_certificate(context.data, names)
        except SettingsError as error:
            raise Failed(str(error)) from None
        replace_file(key, made_key, mode=0o600)
        replace_file(path, made)
        print(f"{path} is for {', '.join(names)}, and good for ten years", file=sys.stderr)
    print(fingerprint_of(path))
    print(
        f'The server speaks TLS with it when its server.toml has, under [web]:\n    certificate = "{path}"\n'
        f'    key = "{key}"\nA node that pushes knows it by the line above: [push] certificate in its node.toml.',
        file=sys.stderr,
    )
    return 0


def _own_names() -> list[str]:
    """How this machine may be called by others: itself first."""
    name = own_name()
    found = [name, f"{name.partition('.')[0]}.local", "localhost", "127.0.0.1", own_address()]
    return [each for each in dict.fromkeys(found) if each]


def _host(text: str) -> str:
    """An argument that is a name or an address of this machine."""
    if not _NAME(text) and not IS_ADDRESS(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no host name or address")
    return text


_NAMES = (
    "names",
    {"metavar": "NAME", "nargs": "*", "type": _host, "help": "names and addresses it is for (this machine's)"},
)
_NEW = ("--new", {"action": "store_true", "help": "make another one in place of the one that is there"})
_HELP = "make a certificate for the page (TLS), and show its fingerprint"

COMMANDS = {"certificate": Command(_HELP, [_NAMES, _NEW], certificate)}
