"""Exceptions of Pigeonpost, each with its code on the wire and the exit status of a program that it ends.

Each class is ours and a built-in at once, so that a caller can catch either. Exit statuses above 2 are those of
sysexits.h (BSD), which systemd and other supervisors print by name.
"""

from __future__ import annotations


class PigeonpostError(Exception):
    """The root of all of them. `exit_status` is what a program ends with when nobody handled it."""

    exit_status = 1


def detach(error: BaseException) -> None:
    """Take its traceback and the exception before it from `error`, for whoever keeps it, or has handled it.

    Frames in a traceback often have the exception itself in a variable: such a cycle would keep all their variables,
    a request's body for example, until Python collects garbage.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None


class SettingsError(PigeonpostError, ValueError):
    """A setting, a flag or a settings file is wrong. The message names file, table and key, and what would be right."""

    exit_status = 2


class MissingLibrary(SettingsError):
    """An optional Python library that the settings need is missing. The message has the command that installs it."""


class DamagedFile(SettingsError):
    """A file of the data folder cannot be read as what it should be. The message names it, and the exact remedy."""


class SensorError(PigeonpostError, OSError):
    """A sensor gave no reading this time. The message says why and, where there is one, the exact remedy."""


class DiskError(PigeonpostError, OSError):
    """The disk did not take what must be durable. The program stops; its supervisor starts it again."""

    exit_status = 74  # EX_IOERR


class NotStored(PigeonpostError, OSError):
    """The store could not take it now: its disk is full, or it is locked. Nothing is acknowledged, the nodes keep
    everything, and it is tried again."""


class StoreDamaged(NotStored):
    """What is stored is damaged, or is not what it was. The message names the file, what is wrong, and the remedy.
    Nothing is acknowledged; trying again does not help."""

    exit_status = 74  # EX_IOERR


class InUse(PigeonpostError):
    """Another process already works on the same data."""

    exit_status = 75  # EX_TEMPFAIL


class BadPacket(PigeonpostError, ValueError):
    """A datagram that is no packet of the multicast bus, or a value that fits none."""


class WireError(PigeonpostError, ValueError):
    """What the other end said was wrong: a line, or a request.

    `code` is what `ERROR` names on the wire (docs/protocol.md); `closes` tells whether the connection ends with it.
    """

    code = "bad-argument"
    closes = False


class BadArgument(WireError):
    """A known word with arguments that do not fit."""


class BeyondLimit(BadArgument):
    """Samples or a gap with which their node would pass a limit of the store: see server/node_limits.py."""

    closes = True


class UnknownWord(WireError):
    """A line that starts with none of the words of the link."""

    code = "unknown-word"


class NotUtf8(WireError):
    """A line whose bytes are not UTF-8."""

    code = "not-utf8"


class TooLong(WireError):
    """A line over the limit. What follows it cannot be trusted to start at a line's beginning."""

    code = "too-long"
    closes = True


class AuthFailed(WireError):
    """The peer did not prove that it knows the node's token."""

    code = "auth"
    closes = True


class Protected(WireError):
    """The node has no token, so it answers only this machine."""

    code = "protected"
    closes = True


class WrongVersion(WireError):
    """The peer speaks another version of the link."""

    code = "version"
    closes = True


class Unexpected(WireError):
    """A right word at the wrong moment, or samples that leave a hole."""

    code = "expected"
    closes = True


class BadAck(WireError):
    """An acknowledgement of something that was never sent."""

    code = "bad-ack"
    closes = True


class TooMany(WireError):
    """As many connections as are allowed are open already."""

    code = "too-many"
    closes = True
