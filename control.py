"""The operator's command line: tokens, passwords, status, commands to nodes, checks.

    python3 control.py token basement            make a token for a node
    python3 control.py status                    ask the running server
    python3 control.py send basement off         turn a node off

Works with the files in the data folder; with a running server, over its JSON API; with a node itself, over the link.
Exit status: 0 done; 1 failed, with one line per fault; 2 wrong usage or settings.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence

from pigeonpost.cli import (
    backup,
    certificate,
    doctor,
    export,
    import_,
    list_nodes,
    read_outbox,
    scan,
    schema,
    status,
    tokens,
)
from pigeonpost.cli.contract import Command, Context
from pigeonpost.compat.file_drop import cli as file_drop
from pigeonpost.compat.file_drop.storage import node_of_file
from pigeonpost.compat.multicast_bus import cli as multicast_bus
from pigeonpost.compat.multicast_bus import convert_config
from pigeonpost.core import config
from pigeonpost.core.errors import PigeonpostError, SettingsError
from pigeonpost.core.redact import hide_secrets
from pigeonpost.core.version import VERSION
from pigeonpost.settings import SERVER, SERVER_ARRAYS

COMMANDS: Mapping[str, Command] = {
    **tokens.COMMANDS,
    **status.COMMANDS,
    **backup.COMMANDS,
    **export.COMMANDS,
    **import_.COMMANDS,
    **schema.COMMANDS,
    **certificate.COMMANDS,
    **list_nodes.COMMANDS,
    **file_drop.COMMANDS,
    **multicast_bus.COMMANDS,
    **convert_config.COMMANDS,
    **scan.COMMANDS,
    **read_outbox.COMMANDS,
    **doctor.COMMANDS,
}

_EXAMPLES = """examples:
  python3 control.py token basement
  python3 control.py --data /var/lib/pigeonpost status
  python3 control.py send basement off
  python3 control.py watch --from C4
  python3 control.py backup /mnt/usb/
  python3 control.py status --link 192.168.1.20:5003
  python3 control.py send-files server.local readings/
  */5 * * * * python3 control.py check || mail -s pigeonpost you@example.org"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="control.py", description="Look after Pigeonpost: tokens, password, status, data.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="the data folder (as the server's)")
    parser.add_argument("--config", metavar="FILE", help="the server's settings file")
    parser.add_argument("--version", action="version", version=f"pigeonpost {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.run.__doc__, aliases=command.aliases)
        sub.set_defaults(run=command.run)
        for argument, options in command.arguments:
            sub.add_argument(argument, **options)
    chosen = parser.parse_args(arguments)
    try:
        flags = argparse.Namespace(config=chosen.config, server_data=chosen.data)
        settings = config.load(SERVER, flags, "server.toml", SERVER_ARRAYS)
        data = config.data_folder(settings["server", "data"])
        context = Context(data, chosen, settings, functools.partial(node_of_file, data))
        exit_status: int = chosen.run(context)
        return exit_status
    except KeyboardInterrupt:
        return 130  # as a shell tells a program that SIGINT ended
    except (PigeonpostError, ValueError) as error:
        print(f"control.py: {hide_secrets(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) or not isinstance(error, PigeonpostError) else 1


if __name__ == "__main__":
    sys.exit(main())
