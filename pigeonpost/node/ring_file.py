"""The outbox's file: a preallocated ring of slots, each with one sample and its own CRC (ring_format has the layout).

One thread at a time appends or changes the state, which the outbox ensures; reading is safe beside it, since a slot
that changes during the read fails its CRC.
Errors: DiskError for what the disk refuses, and for a file of a newer version.

The file is filled with zeros and synced before its first use, so no later write needs space: a full disk costs no
sample. A torn slot is no sample. The file of an earlier version is used as it is, and new samples are written as the
present version has them. A damaged file never keeps a node from sampling: what can be repaired is, else what can be
read goes into a new file, and the damaged one is kept beside it. Both are logged, and told in `faults`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pigeonpost.core.data_folder import OUTBOX
from pigeonpost.core.errors import DiskError
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.node import ring_format as layout
from pigeonpost.node.ring_format import MARK_BYTES, SLOT_HEAD, SLOTS_AT, TAG_BYTES, VERSION, Header
from pigeonpost.node.ring_records import SeqRange, Slot, UnnumberedSample
from pigeonpost.node.ring_scan import find_header, find_runs, forked, get_slots, guess_header, joined, place, read_state
from protocol import sample_body

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

# Lengths in characters.
_LONGEST_NUMBER = 24  # repr of a float: sign, 17 digits, point, e-308
_USUAL_NUMBER = 8
_SHORTEST_REASON = 30  # "/dev/spidev0.0 may not be open"
_CHUNK = 1 << 18


class FileOps:
    """The system calls of the ring. Tests replace them by a disk that lies, fails and forgets."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))  # macOS has only the stronger one
    fsync = staticmethod(os.fsync)
    rename = staticmethod(os.rename)
    link = staticmethod(os.link)
    exists = staticmethod(os.path.exists)


def slot_bytes_for(names: Sequence[str]) -> int:
    """The slot size, a power of two, in which a sample of the sensors `names` always fits, whatever they read.

    Beside usual values there is also room for the reason why one sensor fails. Raises ValueError when the size would
    pass layout.LARGEST_SLOT.
    """
    keys = sum(len(name) + len('"":,') for name in names)
    longest = len('"values":{}') + keys + _LONGEST_NUMBER * len(names)
    failing = len('"values":{null},"errors":{"":""}') + keys + _USUAL_NUMBER * (len(names) - 1)
    failing += max(map(len, names), default=0) + _SHORTEST_REASON
    size = layout.SMALLEST_SLOT
    while size < SLOT_HEAD + max(longest, failing + MARK_BYTES + TAG_BYTES):
        size *= 2
    if size > layout.LARGEST_SLOT:
        raise ValueError(f"{len(names)} sensors are too many for one node")
    return size


class Ring:
    """The open file. `slots`, `slot_bytes`, `identity` (16 hex), `runs`, `last` and `state` are for reading.

    `faults` are the damages that were found when it was opened, each with what was done about it.
    """

    def __init__(self, folder: str, slots: int, slot_bytes: int, disk: FileOps | None = None) -> None:
        """Open `folder`/outbox.ring; make it when it is not there.

        slots       how many samples it holds; used only when the file is made
        slot_bytes  at least so large; a file with smaller slots is copied into one with larger
        """
        self._disk = disk or FileOps()
        self._folder = folder
        self.faults: list[str] = []
        self.runs: list[SeqRange]
        self.last: int  # the highest running number
        self.state: dict[str, Any] = {"on": True, "forks": []}
        self._state_count = 0
        self._path = os.path.join(folder, OUTBOX)
        with self._named_errors():
            if not self._disk.exists(self._path):
                self._make(Header(VERSION, slot_bytes, slots, _new_identity()))
                self._disk.close(self._fd)
                self._disk.rename(self._path + ".new", self._path)
            self._open(slots, slot_bytes)
            if self.slot_bytes < slot_bytes:
                self._widen(slot_bytes)
        for fault in self.faults:
            log.error("%s", fault)

    @property
    def most_at_once(self) -> int:
        """How many samples `append` takes."""
        return layout.most_at_once(self.slots)

    # -------------------------------------------------------------------------------------------- samples

    def append(self, epoch: str, seq: int, boot_id: str, samples: Sequence[UnnumberedSample]) -> None:
        """Write `samples`, `most_at_once` at most, as `seq`, `seq` + 1 ... of `epoch`; durable on return."""
        number = self.last + 1
        slots = []
        for k, taken in enumerate(samples):
            body = self._body(taken)
            head = layout.SLOT.pack(number + k, int(epoch, 16), seq + k, taken.wall_ms, taken.up_ms, int(boot_id, 16),
                                    taken.clock_set, len(body))  # fmt: skip
            slots.append(layout.pack_slot(head + body, self.slot_bytes, self._tag))
        try:  # not `_named_errors`, which takes as long as all of the above
            self._write_samples(number, int(epoch, 16), seq, slots)
            self._disk.fdatasync(self._fd)
        except DiskError:
            raise
        except OSError as error:
            raise self._named(error) from error
        self._has_room = len(slots[-1]) < self.slot_bytes
        self.last += len(slots)
        self._record(SeqRange(epoch, seq, seq + len(slots) - 1, number))

    def _record(self, new: SeqRange) -> None:
        """Add what was appended to `runs`, and take what it overwrote from them."""
        held_from = self.last - self.slots + 1
        runs = self.runs
        if runs and runs[0].number >= held_from and runs[-1].epoch == new.epoch and runs[-1].last == new.first - 1:
            _, first, _, number = runs[-1]  # nearly always, as long as the ring is not full
            self.runs = [*runs[:-1], SeqRange(new.epoch, first, new.last, number)]
        else:
            self.runs = joined([*runs, new], held_from)

    def read(self, number: int, count: int) -> list[Slot | None]:
        """The samples with the running numbers from `number` on, `count` of them at most; None for a damaged one."""
        count = min(count, self.last + 1 - number, self.slots - number % self.slots)
        with self._named_errors():
            block = self._read(count * self.slot_bytes, self._place(number))
        return get_slots(block.ljust(count * self.slot_bytes, b"\0"), number, self._header)

    def _place(self, number: int) -> int:
        return place(self._header, number)

    def _body(self, taken: UnnumberedSample) -> bytes:
        """The body, its error texts cut shorter until it fits; the values always fit (slot_bytes_for).

        Sensors of one chip fail with one text: before it is cut, so that its remedy is lost, it is said only once.
        """
        if not taken.errors:
            return sample_body(taken.values, {}).encode()
        once: dict[str, str] = {}
        for name, text in taken.errors.items():
            first = next((other for other in once if taken.errors[other] == text), None)
            once[name] = f"as {first}" if first else text
        for longest in (0, 200, 160, 120, 100, 80, 60, 40, 20):
            errors = {name: text[: longest or 200] for name, text in (once if longest else taken.errors).items()}
            # "replace": an error may name a file, and a file's name need not be Unicode.
            body = sample_body(taken.values, errors).encode(errors="replace")
            if len(body) <= self.slot_bytes - SLOT_HEAD - MARK_BYTES - TAG_BYTES:
                return body
        return sample_body(taken.values, {}).encode()

    # ---------------------------------------------------------------------------------------------- forks

    def fork(self, number: int, end: int, epoch: str) -> None:
        """From now on the samples with the running numbers `number` to `end` are 1, 2, 3 ... of `epoch`; durable.

        Kept in the state, since the slots themselves say otherwise.
        """
        self.change_state(forks=[*self.forks_held(), [number, end, epoch]])
        self.runs = self._with_forks(self.runs)

    def _with_forks(self, runs: Sequence[SeqRange]) -> list[SeqRange]:
        return forked(runs, self.state["forks"], self.last - self.slots + 1)

    def forks_held(self) -> list[Any]:
        """The forks that still matter: [first number, last number, epoch] of those not wholly overwritten."""
        return [fork for fork in self.state["forks"] if fork[1] > self.last - self.slots]

    # ---------------------------------------------------------------------------------------------- state

    def change_state(self, **changes: Any) -> None:
        """Change what is kept over restarts beside the samples (`on`, `forks`); durable on return."""
        state = {**self.state, **changes}
        copy = self._state_copy(self._state_count + 1, state)
        with self._named_errors():
            # A copy in force last: it is whole until the other is durable.
            now = self._state_copy(self._state_count, self.state)
            for at in sorted(layout.STATE_AT, key=lambda at: self._read(len(now), at) == now):
                self._write(self._fd, copy, at)
                self._disk.fdatasync(self._fd)
        self.state = state
        self._state_count += 1

    def _state_copy(self, count: int, state: dict[str, Any]) -> bytes:
        text = json.dumps(state).encode()
        copy = layout.checked(layout.STATE.pack(count, len(text)) + text)
        if len(copy) > layout.STATE_BYTES:
            raise DiskError(f"{self._path}: the state does not fit its block; too many forks")
        return copy

    # ----------------------------------------------------------------------------------------------- file

    def close(self) -> None:
        """Give the file back. Nothing is written: what is accepted is durable already."""
        self._disk.close(self._fd)

    def _open(self, slots: int, slot_bytes: int, is_new: bool = False) -> None:
        """`slots`, `slot_bytes`: of a new file, where this one cannot be used; where that is the case `is_new`."""
        self._fd = self._disk.open(self._path, os.O_RDWR)
        header = find_header(self._read)
        if header and header.version > VERSION:
            raise DiskError(
                f"{self._path} is of a newer version of this program ({header.version}; this one knows {VERSION}): "
                "update this one, or move the file away to start with an empty one (and keep it)"
            )
        if header is None or not self._read(1, SLOTS_AT + header.slots * header.slot_bytes - 1):
            if is_new:
                raise DiskError(f"{self._path}: what was written just now is not what is read; the disk is broken")
            self._start_new(header, slots, slot_bytes)
            return
        self._use(header)
        self._confirm()

    def _use(self, header: Header) -> None:
        """Take from the open file what is in it."""
        self._header, self._tag = header, header.tag
        self.slots, self.slot_bytes = header.slots, header.slot_bytes
        self.identity = f"{header.identity:016x}"
        state = read_state(self._read)
        if state:
            self._state_count, self.state = state
        elif any(any(self._read(layout.STATE_BYTES, at)) for at in layout.STATE_AT):
            self.faults.append(f"{self._path}: both copies of its state are damaged; sampling is ON")
        runs = find_runs(self._read, header)
        self.last = runs[-1].last_number if runs else 0
        self.runs = self._with_forks(runs)
        self._has_room = not self.last or layout.has_mark(self._read(self.slot_bytes, place(header, self.last)))

    def _confirm(self) -> None:
        """Make durable what is seen: write header, state and the newest batch once more, as they are, and sync.

        After kill -9, or after a sync that failed, they may be in the kernel's memory alone; in the second case it
        would not write them again by itself (fsync(2): an error is told once). No link may look at such a sample.
        """
        self._confirm_header()
        if self._state_count:
            copy = self._state_copy(self._state_count, self.state)
            for at in layout.STATE_AT:
                self._write(self._fd, copy, at)
        first = max(1, self.last - self.most_at_once + 1)
        while first <= self.last:
            count = min(self.last + 1 - first, self.slots - first % self.slots)
            at = self._place(first) - MARK_BYTES
            self._write(self._fd, self._read(MARK_BYTES + count * self.slot_bytes, at), at)
            first += count
        self._disk.fdatasync(self._fd)
        folder = self._disk.open(self._folder, os.O_RDONLY)
        self._disk.fsync(folder)  # and the file's name
        self._disk.close(folder)

    def _confirm_header(self) -> None:
        """Write the header where it is not as it should be: a copy of it is durable before another is overwritten."""
        expected = layout.pack_header(self._header._replace(version=VERSION))
        places = [at for at in layout.HEADER_AT if self._read(len(expected), at) != expected]
        if places and (self._header.version == VERSION or layout.parse_header(self._read(len(expected), 0)) is None):
            self.faults.append(f"{self._path}: its header was damaged; it is repaired, and nothing is lost by that")
        for at in reversed(places):
            self._write(self._fd, expected, at)
            self._disk.fdatasync(self._fd)
        self._header = self._header._replace(version=VERSION)

    def _make(self, header: Header) -> None:
        """Write a whole empty file beside the place where it belongs; synced and open."""
        self._fd = self._disk.open(self._path + ".new", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        end = SLOTS_AT + header.slots * header.slot_bytes
        # Not from 0 on: pages of the cache as large as these writes would each be dirty as a whole for one slot.
        for at in range(layout.STATE_AT[0], end, _CHUNK):
            self._write(self._fd, bytes(min(_CHUNK, end - at)), at)
        for at in layout.HEADER_AT:
            self._write(self._fd, layout.pack_header(header), at)
        self._disk.fsync(self._fd)

    def _widen(self, slot_bytes: int) -> None:
        """Copy all into a file with larger slots: the same samples under the same numbers, whole or not at all."""
        old = self._fd
        self._copy(self._header, self._header._replace(slot_bytes=slot_bytes))
        self._disk.rename(self._path + ".new", self._path)
        self._disk.close(old)
        self._open(self.slots, slot_bytes)

    def _copy(self, old: Header, new: Header, renumbers: bool = False) -> int:
        """Make the file anew with what is in the open one; returns how many samples are whole."""
        from pigeonpost.node.ring_repair import copy_slots

        fd, state = self._fd, read_state(self._read)
        self._make(new)
        whole, less = copy_slots(
            lambda count, at: self._disk.pread(fd, count, at), old,
            lambda data, at: self._write(self._fd, data, at), new, renumbers,
        )  # fmt: skip
        if state:
            count, content = state
            content["forks"] = [[first - less, last - less, epoch] for first, last, epoch in content["forks"]]
            for at in layout.STATE_AT:
                self._write(self._fd, self._state_copy(count, content), at)
        self._disk.fsync(self._fd)
        self._disk.close(self._fd)
        return whole

    def _start_new(self, header: Header | None, slots: int, slot_bytes: int) -> None:
        """Go on with a new file that has what can be read of the damaged one, which is kept under another name.

        header  of the damaged one, where it is known: then it is cut short, and id and numbers stay
        """
        old, damaged, found = header or guess_header(self._read), self._fd, 0
        if header:
            what, new = "is shorter than it was made", header
        else:
            what, runs = "is no outbox, or its header is damaged", find_runs(self._read, old) if old else []
            held = runs[-1].last_number - runs[0].number + 1 if runs else 0
            new = Header(VERSION, max(slot_bytes, old.slot_bytes if old else 0), max(slots, held), _new_identity())
        try:
            if old:
                found = self._copy(old, new._replace(version=VERSION), renumbers=header is None)
            else:
                self._make(new)
                self._disk.close(self._fd)
        except OSError as error:
            raise DiskError(
                f"{self._path} {what}, and a new one cannot be made beside it: {error.strerror or error}. Make room on"
                f" the disk, or move the file away (python3 control.py read-outbox {self._path} prints what it holds)"
            ) from error
        self._disk.close(damaged)
        kept = self._keep_damaged()
        self._disk.rename(self._path + ".new", self._path)
        self.faults.append(
            f"{self._path} {what}; {found} samples of it were read and are kept. "
            f"The damaged file is {kept}: python3 control.py read-outbox {kept}"
        )
        self._open(slots, slot_bytes, is_new=True)

    def _keep_damaged(self) -> str:
        """Give the damaged file another name too; its own is then replaced in one step. Returns the name."""
        name = f"{self._path}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        kept, n = name, 1
        while self._disk.exists(kept):
            kept, n = f"{name}-{n}", n + 1
        try:
            self._disk.link(self._path, kept)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            # A file system without links, as FAT.
            self._disk.rename(self._path, kept)
        return kept

    def _read(self, count: int, at: int) -> bytes:
        return self._disk.pread(self._fd, count, at)

    def _write_samples(self, number: int, epoch: int, seq: int, slots: Sequence[bytes]) -> None:
        """Write the slots of samples `number`, ..., each behind its mark where the slot before leaves room for it."""
        pieces: list[tuple[int, bytes]] = []
        marks: list[int] = []  # where they are
        has_room = self._has_room
        for k, slot in enumerate(slots):
            at = self._place(number + k)
            if has_room or at == SLOTS_AT:
                marks.append(at - MARK_BYTES)
                pieces.append((marks[-1], layout.pack_mark(number + k, epoch, seq + k, self._tag)))
            pieces.append((at, slot))
            has_room = len(slot) < self.slot_bytes
        try:
            for start, data in contiguous(pieces):
                self._write(self._fd, data, start)
        except OSError:
            self._erase(marks)
            raise

    def _erase(self, marks: Sequence[int]) -> None:
        """Erase marks of samples that were not written: else these would count as accepted, and as damaged."""
        for at in marks:
            try:
                self._disk.pwrite(self._fd, bytes(MARK_BYTES), at)
            except OSError:
                return  # that the samples were not written is being told

    def _write(self, fd: int, data: bytes, at: int) -> None:
        written = self._disk.pwrite(fd, data, at)
        if written == len(data):
            return
        if written <= 0:
            raise OSError("the disk took no more")
        view, at = memoryview(data)[written:], at + written
        while view:
            written = self._disk.pwrite(fd, view, at)
            if written <= 0:
                raise OSError("the disk took no more")
            view, at = view[written:], at + written

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except DiskError:
            raise
        except OSError as error:
            raise self._named(error) from error

    def _named(self, error: OSError) -> DiskError:
        return DiskError(f"{self._path}: {error.strerror or error}")


def _new_identity() -> int:
    return int.from_bytes(os.urandom(8), "little")


def contiguous(pieces: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield pieces (where, what) of a file so that each is as long as possible: what follows on each other is one."""
    start, end = 0, 0
    parts: list[bytes] = []
    for at, data in pieces:
        if parts and at != end:
            yield start, b"".join(parts)
            parts = []
        if not parts:
            start = at
        parts.append(data)
        end = at + len(data)
    if parts:
        yield start, b"".join(parts)
