"""One thread that serves many connections: it waits for all their sockets (epoll) and timers at the same time.

All connections share one thread because a server may collect from thousands of nodes that each send little data.
A thread for each node would need memory, and waking a thread takes several times as long as decoding a sample.

The loop's thread owns the members; any other thread may only call `add`, `wake` and `wait_for_end`. `_changed` (a
Condition and its lock) guards the set of members and whether the thread runs; it is held for one change. The thread
runs while there are members.

Rules for members and loop:

- A member never waits. It keeps samples that the ingestor cannot accept yet and reports their number with `hold`, so
  that it can decode the next samples while the earlier ones are being stored. While all members together hold
  MOST_HELD samples, no member reads (`pause`), and TCP flow control makes the peers wait.
- With more than FEW members, sockets are read in rounds, ROUND_S apart, so that one wake-up serves many peers.
- Live samples only have to be read before the next commit. With more than FEW members and no other work, the loop
  rests: it reads the sockets only every CALM_S and AHEAD_S before each commit, and decodes all samples received until
  then together. This takes a fraction of the processor time. Members that are woken are served without this delay.

Errors: an exception from `serve` is passed to that member (`fail`) and does not affect the others. Any other exception
is logged, and then all members are served again.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import math
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from pigeonpost.core.clock import Clock
from pigeonpost.core.helper_threads import HelperThreads
from pigeonpost.core.name_lookup import NameLookup
from pigeonpost.core.rare_log import RareLog
from pigeonpost.core.shortage import PAUSE_S
from pigeonpost.core.wake_pipe import WakePipe

log = logging.getLogger(__name__)

ROUND_S = 0.02  # minimum time from one round to the next when there are more than FEW members
FEW = 8  # up to this number of members, sockets are read immediately: without rounds and rests
CALM_S = 0.5  # longest rest while members receive only live samples
AHEAD_S = 0.04  # the rest ends this long before the next commit, so that the commit includes the samples
STIR_S = 1.0  # no rest for this time after a member has read more bytes than live samples have
EXPECT_S = 2.0  # no rest for this time after a member began to expect an answer; not longer, since a peer may be silent
HURRY_S = 0.1  # neither rest nor rounds for this time after a member has filled its read buffer
FULL_S = 0.05  # after this time held samples are submitted again, even if nothing wakes the loop
MOST_HELD = 32_768  # maximum number of held samples of all members together

MOST_HELPERS = 4  # maximum number of threads for work that may wait for the store


class LoopMember:
    """A connection, or an attempt to connect, that a ConnectionLoop serves; only the loop's thread calls its methods.

    `watched_fd`, `watched_events` and `due_s` belong to the loop.
    """

    watched_fd = -1
    watched_events = 0
    due_s = math.inf

    def serve(self, events: int) -> None:
        """Do what is possible now without waiting.

        Args:
            events: Events of the socket (epoll), or 0 if the member was woken or its timer has expired.
        """
        raise NotImplementedError

    def hand_on(self) -> None:
        """Submit held samples until the ingestor is full, and `hold` the rest."""
        raise NotImplementedError

    def resume(self) -> None:
        """Continue to read after `pause`."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """End the connection, because `serve` has raised `error`, and log the reason."""
        raise NotImplementedError


class ConnectionLoop:
    """Thread that serves its members; it runs while there are members.

    Args:
        clock: Clock for timers.
        next_commit_s: Function that returns the time of the next commit, by `clock.monotonic`. If that time is in the
            past, the loop does not rest.
    """

    def __init__(self, clock: Clock, next_commit_s: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock
        self._next_commit_s = next_commit_s
        self.lookup = NameLookup()
        self.helpers = HelperThreads("ask the store", MOST_HELPERS)
        self._changed = threading.Condition()
        self._members: dict[LoopMember, None] = {}
        self._thread: threading.Thread | None = None
        self._wake_pipe: WakePipe | None = None
        self._woken: list[LoopMember] = []
        self._is_woken = False  # the pipe has been written to since the loop last read `_woken`
        # Used by the loop's thread only:
        self._serves_all = False  # after an error: serve each member in the next round
        self._epoll: Any = None
        self._watched: dict[int, LoopMember] = {}  # by file descriptor
        # A heap. An entry is outdated if it differs from the member's `due_s`.
        self._due: list[tuple[float, int, LoopMember]] = []
        self._numbers = itertools.count()
        self._held: dict[LoopMember, int] = {}  # number of samples that each member holds
        self._held_count = 0  # their sum
        self._paused: dict[LoopMember, None] = {}
        self._expecting: dict[LoopMember, float] = {}  # monotonic time of the first `expect`, the newest last
        self._began_s = self._hurried_s = self._stirred_s = 0.0  # times of the last round, `hurry` and `stir`
        self.rare_log = RareLog(log, clock)

    # ------------------------------------------------------------------------------------ from any thread

    def add(self, member: LoopMember) -> None:
        """Serve `member` from now on.

        Raises:
            OSError: There is no free file descriptor.
            RuntimeError: The thread cannot be started.
        """
        with self._changed:
            if self._thread is None:
                self._begin()
            self._members[member] = None
        self.wake(member)

    def wake(self, member: LoopMember) -> None:
        """Have `member` served soon; do nothing if it was removed."""
        pipe = self._wake_pipe
        if pipe is not None:
            self._woken.append(member)
            if not self._is_woken:
                self._is_woken = True
                pipe.wake()

    def wait_for_end(self, member: LoopMember, limit_s: float) -> bool:
        """Wait until `member` is removed, at most `limit_s` seconds; return True if it is."""
        with self._changed:
            return self._changed.wait_for(lambda: member not in self._members, limit_s)

    def _begin(self) -> None:
        """Start the thread; the caller holds `_changed`."""
        epoll = select.epoll()
        try:
            pipe = WakePipe()
            epoll.register(pipe.fileno(), select.EPOLLIN)
            thread = threading.Thread(target=self._run, args=(epoll, pipe), name="collect", daemon=True)
            self._is_woken = False
            self._wake_pipe = pipe
            thread.start()
        except BaseException:
            self._wake_pipe = None  # drops the last reference, which closes the pipe
            epoll.close()
            raise
        self._thread = thread

    # ------------------------------------------------------------------------------- from the loop's thread

    @property
    def is_full(self) -> bool:
        """True while the members hold as many samples as allowed: a member then calls `pause` instead of reading."""
        return self._held_count >= MOST_HELD

    def watch(self, member: LoopMember, fd: int, events: int) -> None:
        """Serve `member` when its socket has one of `events`, instead of the socket that was watched for it before.

        Call `unwatch` before the socket is closed.

        Args:
            member: The member that owns the socket.
            fd: File descriptor of the socket.
            events: Mask of epoll events.

        Raises:
            OSError: The kernel cannot watch the socket.
        """
        if fd != member.watched_fd:
            self.unwatch(member)
            self._epoll.register(fd, events)
            self._watched[fd] = member
            member.watched_fd, member.watched_events = fd, events
        elif events != member.watched_events:
            self._epoll.modify(fd, events)
            member.watched_events = events

    def unwatch(self, member: LoopMember) -> None:
        """Stop watching the socket of `member`."""
        fd = member.watched_fd
        member.watched_fd, member.watched_events = -1, 0
        if fd >= 0 and self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_in(self, member: LoopMember, seconds: float) -> None:
        """Serve `member` in `seconds` at the latest; an earlier time that was set before is kept."""
        due_s = self.clock.monotonic() + seconds
        if due_s < member.due_s:
            heapq.heappush(self._due, (due_s, next(self._numbers), member))
            member.due_s = due_s

    def hold(self, member: LoopMember, count: int) -> None:
        """Record that `member` holds `count` samples; call its `hand_on` when the ingestor may have capacity."""
        self._held_count += count - self._held.pop(member, 0)
        if count:
            self._held[member] = count

    def pause(self, member: LoopMember) -> None:
        """Call `resume` of `member` once all members together hold fewer than MOST_HELD samples again."""
        self._paused[member] = None

    def forget(self, member: LoopMember) -> None:
        """Clear the number of held samples, the pause and the expected answer of `member`."""
        self.hold(member, 0)
        self._paused.pop(member, None)
        self._expecting.pop(member, None)

    def expect(self, member: LoopMember, is_expecting: bool) -> None:
        """Record whether `member` waits for an answer (`is_expecting`); while it does, the loop does not rest."""
        if is_expecting:
            self._expecting.setdefault(member, self.clock.monotonic())
        else:
            self._expecting.pop(member, None)

    def stir(self) -> None:
        """Do not rest for STIR_S: a member has read more bytes than live samples have."""
        self._stirred_s = self.clock.monotonic()

    def hurry(self) -> None:
        """Do not rest or wait for the next round for HURRY_S: a member has more to read than it has read now."""
        self._hurried_s = self._stirred_s = self.clock.monotonic()

    def remove(self, member: LoopMember) -> None:
        """Stop serving `member`."""
        self.unwatch(member)
        self.forget(member)
        with self._changed:
            self._members.pop(member, None)
            self._changed.notify_all()

    def _run(self, epoll: Any, pipe: WakePipe) -> None:
        self._epoll = epoll
        while True:
            try:
                self._serve_round(epoll, pipe)
            except Exception as error:  # outside of `serve`, or in `fail`
                self._serves_all = True  # no event may be lost
                time.sleep(PAUSE_S)
                with contextlib.suppress(MemoryError):
                    text = "out of memory" if isinstance(error, MemoryError) else "internal error"
                    self.rare_log.log(logging.ERROR, text, f"{text}; trying again", is_traceback=True)
            with self._changed:
                if not self._members:
                    self._thread, self._wake_pipe = None, None
                    self._woken.clear()
                    self._due.clear()
                    pipe.close()
                    epoll.close()
                    return

    def _serve_round(self, epoll: Any, pipe: WakePipe) -> None:
        if self._rest(pipe):
            pipe.drain()
            self._serve_woken()
            return
        self._began_s = self.clock.monotonic()
        ready = epoll.poll(self._wait_s(), len(self._watched) + 1)
        for holder in list(self._held):  # before others read more: samples are submitted in the order of arrival
            self._call(holder, holder.hand_on)
        for fd, events in ready:
            member = self._watched.get(fd)
            if member is not None:
                self._serve(member, events)
            elif fd == pipe.fileno():
                pipe.drain()
        self._serve_woken()
        now_s = self.clock.monotonic()
        while self._due and self._due[0][0] <= now_s:
            due_s, _, member = heapq.heappop(self._due)
            if due_s == member.due_s:
                member.due_s = math.inf
                self._serve(member, 0)
        if self._paused and not self.is_full:  # last, after the timers: `resume` reads, and may fill the loop again
            for member in list(self._paused):
                self._paused.pop(member, None)
                self._call(member, member.resume)

    def _serve_woken(self) -> None:
        self._is_woken = False  # before the list is read, so that any later `wake` writes to the pipe
        if self._woken or self._serves_all:
            woken = self._woken[:]
            del self._woken[: len(woken)]  # other threads may have appended in the meantime
            if self._serves_all:
                woken += self._members
                self._serves_all = False
            for member in dict.fromkeys(woken):
                self._serve(member, 0)

    def _rest(self, pipe: WakePipe) -> bool:
        """Wait until the next round is due. Return True if members were woken before that: only those are served."""
        now_s = self.clock.monotonic()
        if len(self._members) <= FEW or now_s - self._hurried_s <= HURRY_S:
            return False
        left_s = self._calm_s(now_s)
        if left_s > ROUND_S:
            is_woken = self._wait_for_wake(pipe, left_s)
            if is_woken:
                time.sleep(ROUND_S)  # a commit wakes many members: collect them in one round
            return is_woken
        left_s = self._began_s + ROUND_S - now_s
        if left_s > 0:
            time.sleep(min(left_s, ROUND_S))
        return False

    @staticmethod
    def _wait_for_wake(pipe: WakePipe, limit_s: float) -> bool:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        return bool(poll.poll(limit_s * 1000))

    def _calm_s(self, now_s: float) -> float:
        """Return the seconds for which the loop may rest; 0 or less if it may not."""
        expected_s = next(reversed(self._expecting.values()), -math.inf)
        if self._held or self._paused or self._serves_all or now_s - expected_s <= EXPECT_S:
            return 0.0
        if now_s - self._stirred_s <= STIR_S:
            return 0.0
        return min(self._began_s + CALM_S, self._next_commit_s() - AHEAD_S) - now_s

    def _wait_s(self) -> float:
        """Return how many seconds to wait for events, or -1 for no limit."""
        if self._serves_all:
            return 0.0
        if self._held:
            return FULL_S
        return max(0.0, self._due[0][0] - self.clock.monotonic()) if self._due else -1

    def _serve(self, member: LoopMember, events: int) -> None:
        if member not in self._members:
            return
        try:
            member.serve(events)
        except Exception as error:
            member.fail(error)

    @staticmethod
    def _call(member: LoopMember, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            member.fail(error)
