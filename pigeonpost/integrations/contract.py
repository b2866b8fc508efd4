"""Interface between the forwarder, which keeps a durable position per target, and the targets of each kind.

One thread per target calls `ForwardTarget`. Errors: NotDelivered and RefusedData.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pigeonpost.core.errors import PigeonpostError
from pigeonpost.link.samples import SampleBatch


class NotDelivered(PigeonpostError, OSError):
    """The target did not accept the samples now. The forwarder sends them again later.

    Attributes:
        pause_s: Seconds after which the target wants the next attempt (HTTP: Retry-After), or None.
        has_answered: True if the target itself has answered, on a connection that is still open: it has lost nothing.
    """

    def __init__(self, text: str, pause_s: float | None = None, has_answered: bool = False) -> None:
        super().__init__(text)
        self.pause_s, self.has_answered = pause_s, has_answered


class RefusedData(PigeonpostError, ValueError):
    """The target will never accept these samples. The forwarder divides them, and sets aside the one that is at fault.

    Wrong credentials, a missing database and other faults of the settings are not RefusedData, but NotDelivered.
    """


class ForwardBatch(NamedTuple):
    """Consecutive samples of one epoch, with calibrated values.

    Attributes:
        node: Current name of the node.
        outbox: Id of the node's outbox; empty if it is unknown.
        epoch: Id of the epoch.
        after: Sequence number up to which all samples of the epoch are sent or in a gap: if it is not
            `samples.seq - 1`, the numbers between are a gap.
        samples: The samples.
        units: Units by channel.
    """

    node: str
    outbox: str
    epoch: str
    after: int
    samples: SampleBatch
    units: Mapping[str, str]


class ForwardTarget:
    """Target of one kind that receives samples.

    If the connection is lost, `send` must raise NotDelivered and not connect again in the same call: the target may
    have lost its last samples, and only the forwarder can send them again. The next call may connect.

    Attributes:
        place: Address of the target, without secrets, for pages and messages.
        again_s: Default of `again`: seconds before the last acknowledgement whose samples are sent again after the
            connection to the target was lost, because the target acknowledges before it has synced its disk; 0 for
            targets that sync first.
        most: Maximum number of samples in one call of `send`.
    """

    place: str
    again_s: float = 0.0
    most: int = 5_000

    def send(self, batches: Sequence[ForwardBatch]) -> None:
        """Send the samples, and return when the target has acknowledged all of them.

        Args:
            batches: The samples, in the order of their sequence numbers for each epoch.

        Raises:
            NotDelivered: The target cannot be reached, or did not accept the samples now.
            RefusedData: The target rejected the content of the samples.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Check that the connection of the last `send` is still open, if `again_s` is not 0.

        The forwarder calls this while the target may still lose samples, about every 15 s. It also keeps the connection
        open. By default it does nothing.

        Raises:
            NotDelivered: The connection was lost, or the target does not answer.
        """

    def close(self) -> None:
        """Close the connection. Another thread may call this to end a call of `send`; a second call does nothing."""
