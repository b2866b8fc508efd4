"""Exceptions of Pigeonpost, with their error codes in the link protocol and their exit statuses.

Each class is derived from `PigeonpostError` and, where possible, from a built-in exception, so that a caller can catch
either. Exit statuses above 2 are those of sysexits.h (BSD), which systemd and other supervisors print by name.
"""

from __future__ import annotations


class PigeonpostError(Exception):
    """Base class of all exceptions of Pigeonpost.

    Attributes:
        exit_status: Exit status of a program that ends because of this exception.
    """

    exit_status = 1


def detach(error: BaseException) -> None:
    """Remove the traceback, the cause and the context of `error`, for code that stores the exception or has handled it.

    Frames in a traceback often have the exception itself in a variable. Such a reference cycle would keep all variables
    of these frames in memory, for example the body of a request, until the next garbage collection.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None


class SettingsError(PigeonpostError, ValueError):
    """A setting, a flag or a settings file is invalid.

    The message contains file, table and key, and what is accepted.
    """

    exit_status = 2


class MissingLibrary(SettingsError):
    """A Python library that the settings require is not installed.

    The message contains the command that installs it.
    """


class DamagedFile(SettingsError):
    """A file of the data folder does not have the expected content.

    The message contains its path and the exact remedy.
    """


class SensorError(PigeonpostError, OSError):
    """A sensor returned no reading this time.

    The message contains the reason and, if there is one, the exact remedy.
    """


class DiskError(PigeonpostError, OSError):
    """The disk could not store data that must be durable. The program ends, and its supervisor starts it again."""

    exit_status = 74  # EX_IOERR


class NotStored(PigeonpostError, OSError):
    """The store cannot accept data now, because its disk is full or the database is locked.

    Nothing is acknowledged, and the nodes keep all samples. The server tries again.
    """


class NeverStored(NotStored):
    """The data exceed a limit, so another attempt would fail too."""


class StoreDamaged(NotStored):
    """The stored data are damaged, or were changed by another program.

    The message contains the file, the damage, and the remedy. Nothing is acknowledged, and another attempt would fail
    too.
    """

    exit_status = 74  # EX_IOERR


class InUse(PigeonpostError):
    """Another process already works with the same data."""

    exit_status = 75  # EX_TEMPFAIL


class BadPacket(PigeonpostError, ValueError):
    """A datagram is not a valid packet of the multicast bus, or a value does not fit into one."""


class WireError(PigeonpostError, ValueError):
    """The peer sent an invalid line or request.

    Attributes:
        code: Error code in the `ERROR` message of the link (docs/protocol.md).
        closes: True if the connection is closed after this error.
    """

    code = "bad-argument"
    closes = False


class BadArgument(WireError):
    """A known command has invalid arguments."""


class BeyondLimit(BadArgument):
    """Samples or a gap would exceed a limit of the store for their node: see server/node_limits.py."""

    closes = True


class UnknownWord(WireError):
    """A line does not begin with a command of the link."""

    code = "unknown-word"


class NotUtf8(WireError):
    """A line is not valid UTF-8."""

    code = "not-utf8"


class TooLong(WireError):
    """A line is longer than the limit. The bytes after it cannot be divided into lines reliably."""

    code = "too-long"
    closes = True


class AuthFailed(WireError):
    """The peer did not prove that it knows the node's token."""

    code = "auth"
    closes = True


class Protected(WireError):
    """The node has no token, so it answers only clients on its own machine."""

    code = "protected"
    closes = True


class WrongVersion(WireError):
    """The peer uses another version of the link protocol."""

    code = "version"
    closes = True


class Unexpected(WireError):
    """A valid command arrived at the wrong time, or samples would leave a hole in the sequence."""

    code = "expected"
    closes = True


class BadAck(WireError):
    """The peer acknowledged a sample that was never sent."""

    code = "bad-ack"
    closes = True


class TooMany(WireError):
    """The maximum number of connections is open already."""

    code = "too-many"
    closes = True
