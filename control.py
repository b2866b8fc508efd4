"""Command line for operators: tokens, passwords, status, commands to nodes, checks.

    python3 control.py token basement            create a token for a node
    python3 control.py status                    show the state of all nodes
    python3 control.py send basement off         turn sampling of a node off

Commands read and write the files in the data folder, or call the JSON API of the running server, or connect to a node.
Exit status: 0 on success; 1 on failure, with one line per fault; 2 for a usage error or invalid settings.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - older versions cannot parse the modules imported below
    sys.exit(
        "Pigeonpost needs Python 3.11 or later, as in Raspberry Pi OS bookworm; this is %d.%d" % sys.version_info[:2]
    )

import argparse
import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pigeonpost.cli import (
    alerts,
    alive,
    backup,
    bundle,
    calibrate,
    certificate,
    doctor,
    export,
    import_,
    install,
    list_nodes,
    operators,
    read_outbox,
    scan,
    schema,
    status,
    tokens,
)
from pigeonpost.cli.contract import Command, Context, discard_output
from pigeonpost.compat.file_drop import cli as file_drop
from pigeonpost.compat.file_drop.storage import node_of_file
from pigeonpost.compat.multicast_bus import cli as multicast_bus
from pigeonpost.compat.multicast_bus import convert_config
from pigeonpost.core import config
from pigeonpost.core.config import Settings
from pigeonpost.core.errors import PigeonpostError, SettingsError
from pigeonpost.core.redact import hide_secrets
from pigeonpost.core.version import VERSION
from pigeonpost.settings import load_server

COMMANDS: Mapping[str, Command] = {
    **tokens.COMMANDS,
    **status.COMMANDS,
    **alive.COMMANDS,
    **alerts.COMMANDS,
    **backup.COMMANDS,
    **export.COMMANDS,
    **import_.COMMANDS,
    **schema.COMMANDS,
    **certificate.COMMANDS,
    **bundle.COMMANDS,
    **install.COMMANDS,
    **list_nodes.COMMANDS,
    **operators.COMMANDS,
    **calibrate.COMMANDS,
    **file_drop.COMMANDS,
    **multicast_bus.COMMANDS,
    **convert_config.COMMANDS,
    **scan.COMMANDS,
    **read_outbox.COMMANDS,
    **doctor.COMMANDS,
}

SERVICE_DATA = "/var/lib/pigeonpost-server"  # as in deploy/pigeonpost-server.service
_SECTIONS = re.compile(r"\n\s*(?:Args|Returns|Raises):\n")  # of docstrings in Google style
_NEGATIVE_POINT = re.compile(r"-[0-9.][^=]*=").match  # a point of `calibrate` with a negative raw value
# Flags that are accepted both before and after the command.
_EVERYWHERE: Sequence[tuple[str, Mapping[str, Any]]] = (
    (
        "--data",
        {"metavar": "DIR", "help": "data folder of the server (default: ./data, else that of the installed service)"},
    ),
    ("--config", {"metavar": "FILE", "help": "settings file of the server (default: server.toml)"}),
)

_EXAMPLES = """examples:
  python3 control.py token basement
  python3 control.py --data /var/lib/pigeonpost-server status
  python3 control.py send basement off
  python3 control.py watch --from C4
  python3 control.py backup /mnt/usb/
  python3 control.py status --link 192.168.1.20:5003
  python3 control.py send-files server.local readings/
  */5 * * * * python3 control.py check || mail -s pigeonpost you@example.org"""


class _Help(argparse.HelpFormatter):
    """Formatter of the help of a command. It does not wrap examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def data_folder(settings: Settings) -> str:
    """Return the path of the server's data folder.

    This is the folder in `settings` or in $STATE_DIRECTORY. If neither is set, it is ./data if that exists, else the
    folder of the installed service if that exists.
    """
    folder = config.data_folder(settings["server", "data"])
    is_chosen = settings["server", "data"] or "STATE_DIRECTORY" in os.environ
    # lexists, not exists: the path is a link into a folder that only root may read.
    return SERVICE_DATA if not is_chosen and not os.path.isdir(folder) and os.path.lexists(SERVICE_DATA) else folder


def help_text(command: Command) -> str:
    """Return the description of a `command` in --help: its docstring without the sections Args, Returns and Raises."""
    return _SECTIONS.split(command.run.__doc__ or "", maxsplit=1)[0]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. The parsed arguments have the command's function as their attribute `run`."""
    parser = argparse.ArgumentParser(
        prog="control.py", description="Manage Pigeonpost: tokens, passwords, status, data.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for flag, options in _EVERYWHERE:
        parser.add_argument(flag, **options)
    parser.add_argument("--version", action="version", version=f"pigeonpost {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.help, description=help_text(command), aliases=command.aliases,
            epilog=command.examples, formatter_class=_Help,
        )  # fmt: skip
        sub.set_defaults(run=command.run, loads_settings=command.loads_settings)
        for flag, options in _EVERYWHERE:  # SUPPRESS: a default here would overwrite a flag before the command
            sub.add_argument(flag, **options, default=argparse.SUPPRESS)
        for argument, options in command.arguments:
            sub.add_argument(argument, **options)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command given by `arguments` (by default those of the command line), and return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    # argparse takes -0.5=0 for a flag, unlike an argument that begins with a space.
    chosen = make_parser().parse_args([f" {text}" if _NEGATIVE_POINT(text) else text for text in given])
    try:
        flags = argparse.Namespace(config=chosen.config, server_data=chosen.data)
        settings = Settings() if chosen.loads_settings else load_server(flags)
        data = "" if chosen.loads_settings else data_folder(settings)
        context = Context(data, chosen, settings, functools.partial(node_of_file, data))
        exit_status: int = chosen.run(context)
        sys.stdout.flush()  # here, where a closed pipe is still handled
        return exit_status
    except BrokenPipeError:  # the reader of the output has closed the pipe, as `head` does
        discard_output()
        return 1
    except KeyboardInterrupt:
        return 130  # the status that a shell reports for a program that SIGINT ended
    except (PigeonpostError, ValueError) as error:
        print(f"control.py: {hide_secrets(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) or not isinstance(error, PigeonpostError) else 1


if __name__ == "__main__":
    sys.exit(main())
