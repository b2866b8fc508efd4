"""One thread that serves many connections: it waits for all of their sockets together (epoll), and for their times.

Each member belongs to this thread; any other may `add` and `wake` it. `_changed` (a Condition and its lock) guards who
is a member and whether the thread runs; it is held for one change. The thread lives as long as there are members.

A member does what can be done at once and never waits. Samples for which there is no room it holds (`hold`), so that
the next are decoded while those before are being stored; when members hold MOST_HELD together, none is read (`pause`),
and their peers wait. Many peers that send a little each are read together, every ROUND_S: to wake a thread costs
several times what one sample does. Of live samples it only matters that they are read before the next commit: while
there is nothing else, sockets and times are looked at every CALM_S and shortly before each commit, and what a peer has
sent until then is decoded together. Members that are woken are served at once.
Errors: what `serve` raises is told to the member (`fail`), and concerns no other. What is raised beside that is logged,
and all members are looked at again.
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

ROUND_S = 0.02  # from one round to the next, at least, when there are more members than FEW
FEW = 8
CALM_S = 0.5  # the longest rest while members have only live samples
AHEAD_S = 0.04  # this rest ends so long before the next commit, which is to have them
STIR_S = 1.0  # there is none for so long after a member has read more than live samples,
EXPECT_S = 2.0  # nor while it waits for an answer, at most so long: a silent peer must not keep all others busy
HURRY_S = 0.1  # so long there is no rest after a member has read as much as it can at once
FULL_S = 0.05  # after which it is tried again whether there is room, should nobody wake the loop
MOST_HELD = 32_768  # samples, of all members together
MOST_HELPERS = 4


class LoopMember:
    """A connection, or what makes one: all methods but `serve` and `fail` are the loop's."""

    watched_fd = -1
    watched_events = 0
    due_s = math.inf

    def serve(self, events: int) -> None:
        """Do what can be done now. `events`: those of the socket (epoll); 0: it was woken, or its time has come."""
        raise NotImplementedError

    def hand_on(self) -> None:
        """Hand on what it holds as far as there is room now, and `hold` the rest."""
        raise NotImplementedError

    def resume(self) -> None:
        """Be read again, after `pause`."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """`serve` has raised this: end the connection, and say so."""
        raise NotImplementedError


class ConnectionLoop:
    """The thread and its members."""

    def __init__(self, clock: Clock, next_commit_s: Callable[[], float] = lambda: 0.0) -> None:
        """
        next_commit_s  returns when what members hand on is committed next, by `clock.monotonic`; a time in
                        the past: as soon as possible
        """
        self.clock = clock
        self._next_commit_s = next_commit_s
        self.lookup = NameLookup()
        self.helpers = HelperThreads("ask the store", MOST_HELPERS)  # which may wait for it
        self._changed = threading.Condition()
        self._members: dict[LoopMember, None] = {}
        self._thread: threading.Thread | None = None
        self._wake_pipe: WakePipe | None = None
        self._woken: list[LoopMember] = []
        self._is_woken = False  # the pipe has been written to since the loop has looked
        # The rest is the thread's own.
        self._serves_all = False  # each member is to be looked at: something has failed
        self._epoll: Any = None
        self._watched: dict[int, LoopMember] = {}  # by descriptor
        self._due: list[tuple[float, int, LoopMember]] = []  # a heap; entries that are not the member's `due_s` are old
        self._numbers = itertools.count()
        self._held: dict[LoopMember, int] = {}  # samples,
        self._held_count = 0  # and their sum
        self._paused: dict[LoopMember, None] = {}
        self._expecting: dict[LoopMember, float] = {}  # since when, the newest last
        self._began_s = self._hurried_s = self._stirred_s = 0.0  # the last round; when `hurry` and `stir` were called
        self.rare_log = RareLog(log, clock)

    # ------------------------------------------------------------------------------------ from any thread

    def add(self, member: LoopMember) -> None:
        """Serve `member` from now on. Raises OSError or RuntimeError when there is no descriptor or thread for it."""
        with self._changed:
            if self._thread is None:
                self._begin()
            self._members[member] = None
        self.wake(member)

    def wake(self, member: LoopMember) -> None:
        """Have `member` served soon; nothing happens to one that was removed."""
        pipe = self._wake_pipe
        if pipe is not None:
            self._woken.append(member)
            if not self._is_woken:
                self._is_woken = True
                pipe.wake()

    def wait_for_end(self, member: LoopMember, limit_s: float) -> bool:
        """Return True if `member` was removed within `limit_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: member not in self._members, limit_s)

    def _begin(self) -> None:
        """Start the thread; with `_changed`."""
        epoll = select.epoll()
        try:
            pipe = WakePipe()
            epoll.register(pipe.fileno(), select.EPOLLIN)
            thread = threading.Thread(target=self._run, args=(epoll, pipe), name="collect", daemon=True)
            self._is_woken = False
            self._wake_pipe = pipe
            thread.start()
        except BaseException:
            self._wake_pipe = None  # which closes it
            epoll.close()
            raise
        self._thread = thread

    # ------------------------------------------------------------------------------- from the loop's thread

    @property
    def is_full(self) -> bool:
        """Members hold as much as they may: one that would read more calls `pause` instead."""
        return self._held_count >= MOST_HELD

    def watch(self, member: LoopMember, fd: int, events: int) -> None:
        """Serve `member` when its socket has one of these events (epoll); in place of the socket of before.

        Before a socket is closed it is no longer watched: `unwatch`. Raises OSError.
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
        """Watch no socket for `member`."""
        fd = member.watched_fd
        member.watched_fd, member.watched_events = -1, 0
        if fd >= 0 and self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_in(self, member: LoopMember, seconds: float) -> None:
        """Serve `member` in so many seconds, or sooner: an earlier time that was set before stays."""
        due_s = self.clock.monotonic() + seconds
        if due_s < member.due_s:
            heapq.heappush(self._due, (due_s, next(self._numbers), member))
            member.due_s = due_s

    def hold(self, member: LoopMember, count: int) -> None:
        """`member` holds so many samples for which there is no room; its `hand_on` is called when there may be."""
        self._held_count += count - self._held.pop(member, 0)
        if count:
            self._held[member] = count

    def pause(self, member: LoopMember) -> None:
        """Call `resume` of `member` when members hold less than MOST_HELD again."""
        self._paused[member] = None

    def forget(self, member: LoopMember) -> None:
        """`member` has nothing to hand on or to read any more."""
        self.hold(member, 0)
        self._paused.pop(member, None)
        self._expecting.pop(member, None)

    def expect(self, member: LoopMember, is_expecting: bool) -> None:
        """Note whether `member` waits for its peer: then it is read soon after something has come."""
        if is_expecting:
            self._expecting.setdefault(member, self.clock.monotonic())
        else:
            self._expecting.pop(member, None)

    def stir(self) -> None:
        """A member has read more than live samples are: all are read often for a while."""
        self._stirred_s = self.clock.monotonic()

    def hurry(self) -> None:
        """A member has more to read than it read now: no rest for a while."""
        self._hurried_s = self._stirred_s = self.clock.monotonic()

    def remove(self, member: LoopMember) -> None:
        """Serve `member` no more."""
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
            except Exception as error:  # between two members, or where one of them could not be ended
                self._serves_all = True  # so that nothing is forgotten
                time.sleep(PAUSE_S)
                with contextlib.suppress(MemoryError):
                    text = "there is no memory" if isinstance(error, MemoryError) else "internal error"
                    self.rare_log.say(logging.ERROR, text, f"{text}; it is tried again", is_traceback=True)
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
        for holder in list(self._held):  # before others bring more: what came first is first to be taken
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
        if self._paused and not self.is_full:  # last: those that may be read again are read before their time comes
            for member in list(self._paused):
                self._paused.pop(member, None)
                self._call(member, member.resume)

    def _serve_woken(self) -> None:
        self._is_woken = False  # before the list is read: who adds to it from here on writes to the pipe
        if self._woken or self._serves_all:
            woken = self._woken[:]
            del self._woken[: len(woken)]  # others may have added meanwhile
            if self._serves_all:
                woken += self._members
                self._serves_all = False
            for member in dict.fromkeys(woken):
                self._serve(member, 0)

    def _rest(self, pipe: WakePipe) -> bool:
        """Wait until it is time for the next round. Returns True if members were woken before: only they are served."""
        now_s = self.clock.monotonic()
        if len(self._members) <= FEW or now_s - self._hurried_s <= HURRY_S:
            return False
        left_s = self._calm_s(now_s)
        if left_s > ROUND_S:
            is_woken = self._wait_for_wake(pipe, left_s)
            if is_woken:
                time.sleep(ROUND_S)  # others soon are, too: a commit wakes all
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
        """Return the seconds in which nobody needs to be read; 0 or less: there are none."""
        expected_s = next(reversed(self._expecting.values()), -math.inf)
        if self._held or self._paused or self._serves_all or now_s - expected_s <= EXPECT_S:
            return 0.0
        if now_s - self._stirred_s <= STIR_S:
            return 0.0
        return min(self._began_s + CALM_S, self._next_commit_s() - AHEAD_S) - now_s

    def _wait_s(self) -> float:
        """Seconds for which to wait for events; -1: without a limit."""
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
