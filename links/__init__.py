"""The roads from node to server: what every road's two ends have in common.

Runs on: node and server.  Reached from: the programs, which make the ends; the members, which are them.
Members: tcp.  Both ends of a road stand in one file, named by the house they belong to and not by their part in TCP: on
`tcp` it is the *node* that listens.
Threads: each end owns its own, and ends them within the limit that `stop` is given.
Errors: those of one connection end that connection, are logged once, and are tried again where it is ours to try.
"""

from __future__ import annotations


class End:
    """One end of a road."""

    def start(self) -> None:
        """Open it; returns when it can be reached, or is trying to reach. Raises SettingsError when it never will."""
        raise NotImplementedError

    def stop(self, limit_s: float) -> str | None:
        """Send what is due within `limit_s` seconds, and close. Stopping twice is fine. Says what was left undone."""
        raise NotImplementedError
