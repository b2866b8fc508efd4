"""File of the outbox: a preallocated ring of slots, each with one sample and its own CRC (layout: ring_format).

The outbox ensures that only one thread at a time appends samples or changes the state. Other threads can read at the
same time, because a slot that changes during the read fails its CRC.
Errors: DiskError if the disk reports an error, or for a file of a newer version.

The file is filled with zeros and synced before its first use. Later writes need no additional space, so a full disk
does not prevent sampling. A slot that is only partly written because of a crash fails its CRC and counts as damaged.

A file of an earlier version is used as it is; new samples are written in the present format.

A damaged file never prevents a node from sampling. If the damage can be repaired, the file is repaired. Otherwise all
readable samples are copied to a new file, and the damaged file is kept under another name. The repair or the copy is
logged and listed in `faults`.
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
from pigeonpost.core.format import counted
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.node import ring_format as layout
from pigeonpost.node.ring_format import MARK_BYTES, SLOT_HEAD, SLOTS_AT, TAG_BYTES, VERSION, Header
from pigeonpost.node.ring_records import SeqRange, Slot, UnnumberedSample
from pigeonpost.node.ring_scan import (
    find_header,
    find_runs,
    forked,
    get_slots,
    guess_header,
    joined,
    read_state,
    slot_position,
)
from protocol import sample_body

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

# Lengths in characters, from which the size of a slot is calculated.
_LONGEST_NUMBER = 24  # repr of a float: sign, 17 digits, point, e-308
_USUAL_NUMBER = 8
_SHORTEST_REASON = 30  # a useful error text needs at least this, for example "/dev/spidev0.0 does not exist:"
_CHUNK = 1 << 18  # bytes per read or write of a large part of the file


class FileOps:
    """System calls used by the ring. Tests replace them to simulate errors, lost writes and power cuts."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))  # macOS has only fsync
    fsync = staticmethod(os.fsync)
    rename = staticmethod(os.rename)
    link = staticmethod(os.link)
    exists = staticmethod(os.path.exists)


def slot_bytes_for(names: Sequence[str]) -> int:
    """Return the slot size in bytes, a power of two, that is large enough for every sample of the channels `names`.

    A slot is large enough for the longest possible values. It is also large enough for values of usual length together
    with the error text of one channel.

    Raises:
        ValueError: The size would be larger than layout.LARGEST_SLOT.
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
    """An open ring file. All attributes are read-only for callers.

    Attributes:
        slots: Number of slots, which is the capacity in samples.
        slot_bytes: Size of a slot in bytes.
        identity: Id of the outbox, 16 hex digits.
        runs: Ranges of consecutive samples in the file, oldest first.
        last: Running number of the newest sample; 0 if there is none.
        state: State that is kept when the node restarts: `on` and `forks`.
        faults: Damage found when the file was opened, with the action taken: one text per fault.
    """

    def __init__(self, folder: str, slots: int, slot_bytes: int, disk: FileOps | None = None) -> None:
        """Open the file outbox.ring, or create it if it does not exist.

        Args:
            folder: Folder of the file.
            slots: Capacity in samples; used only when the file is created.
            slot_bytes: Minimum size of a slot in bytes. A file with smaller slots is copied to one with larger slots.
            disk: Replacement for the system calls, for tests.

        Raises:
            DiskError: The file cannot be opened, created or repaired, or it has a newer version.
        """
        self._disk = disk or FileOps()
        self._folder = folder
        self.faults: list[str] = []
        self.runs: list[SeqRange]
        self.last: int
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
        """Maximum number of samples for one call of `append`."""
        return layout.most_at_once(self.slots)

    # -------------------------------------------------------------------------------------------- samples

    def append(self, epoch: str, seq: int, boot_id: str, samples: Sequence[UnnumberedSample]) -> None:
        """Write samples durably.

        Args:
            epoch: Epoch of the samples, 16 hex digits.
            seq: Sequence number of the first sample; the others follow.
            boot_id: Id of the present boot of the machine, 16 hex digits.
            samples: The samples, at most `most_at_once`.

        Raises:
            DiskError: The samples cannot be written.
        """
        number = self.last + 1
        slots = []
        for k, sample in enumerate(samples):
            body = self._body(sample)
            head = layout.SLOT.pack(number + k, int(epoch, 16), seq + k, sample.wall_ms, sample.up_ms, int(boot_id, 16),
                                    sample.clock_set, len(body))  # fmt: skip
            slots.append(layout.pack_slot(head + body, self.slot_bytes, self._tag))
        try:  # not with `_named_errors`, which would take as much time as all of the above
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
        """Add the range `new` to `runs`, and remove the samples that it has overwritten."""
        held_from = self.last - self.slots + 1
        runs = self.runs
        if runs and runs[0].number >= held_from and runs[-1].epoch == new.epoch and runs[-1].last == new.first - 1:
            _, first, _, number = runs[-1]  # the fast path: nearly always taken until the ring is full
            self.runs = [*runs[:-1], SeqRange(new.epoch, first, new.last, number)]
        else:
            self.runs = joined([*runs, new], held_from)

    def read(self, number: int, count: int) -> list[Slot | None]:
        """Return up to `count` samples, beginning with the running `number`; None in place of a damaged sample.

        Raises:
            DiskError: The file cannot be read.
        """
        count = min(count, self.last + 1 - number, self.slots - number % self.slots)
        with self._named_errors():
            block = self._read(count * self.slot_bytes, self._position(number))
        return get_slots(block.ljust(count * self.slot_bytes, b"\0"), number, self._header)

    def _position(self, number: int) -> int:
        return slot_position(self._header, number)

    def _body(self, sample: UnnumberedSample) -> bytes:
        """Return the JSON body of a sample, with error texts shortened until it fits in a slot.

        The values always fit (see slot_bytes_for). All sensors of a chip often fail with the same text. Before texts
        are shortened, which could remove the remedy, a repeated text is replaced by a reference to its first channel.
        """
        if not sample.errors:
            return sample_body(sample.values, {}).encode()
        once: dict[str, str] = {}
        for name, text in sample.errors.items():
            first = next((other for other in once if sample.errors[other] == text), None)
            once[name] = f"see {first}" if first else text
        for longest in (0, 200, 160, 120, 100, 80, 60, 40, 20):
            errors = {name: text[: longest or 200] for name, text in (once if longest else sample.errors).items()}
            # "replace", because an error text can contain a file name, which is not always valid Unicode.
            body = sample_body(sample.values, errors).encode(errors="replace")
            if len(body) <= self.slot_bytes - SLOT_HEAD - MARK_BYTES - TAG_BYTES:
                return body
        while errors:  # not even their beginnings fit: keep those of the first channels
            errors = dict(list(errors.items())[: len(errors) // 2])
            body = sample_body(sample.values, errors).encode(errors="replace")
            if len(body) <= self.slot_bytes - SLOT_HEAD - MARK_BYTES - TAG_BYTES:
                break
        return body

    # ---------------------------------------------------------------------------------------------- forks

    def fork(self, number: int, end: int, epoch: str) -> None:
        """Assign a range of samples to another epoch, with the sequence numbers 1, 2, 3 ..., durably.

        The fork is stored in the state, because the slots still contain the previous epoch and sequence numbers.

        Args:
            number: Running number of the first sample.
            end: Running number of the last sample.
            epoch: The new epoch, 16 hex digits.

        Raises:
            DiskError: The state cannot be written.
        """
        self.change_state(forks=[*self.forks_held(), [number, end, epoch]])
        self.runs = self._with_forks(self.runs)

    def _with_forks(self, runs: Sequence[SeqRange]) -> list[SeqRange]:
        return forked(runs, self.state["forks"], self.last - self.slots + 1)

    def forks_held(self) -> list[Any]:
        """Return [first number, last number, epoch] of each fork whose samples are not all overwritten."""
        return [fork for fork in self.state["forks"] if fork[1] > self.last - self.slots]

    # ---------------------------------------------------------------------------------------------- state

    def change_state(self, **changes: Any) -> None:
        """Change values of the state, `on` or `forks`, durably: pass each in `changes`, as a keyword argument.

        Raises:
            DiskError: The state cannot be written.
        """
        state = {**self.state, **changes}
        copy = self._state_copy(self._state_count + 1, state)
        with self._named_errors():
            # The current copy is overwritten last, so that one valid copy exists at any time.
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
            raise DiskError(f"{self._path}: the state is too long for its block; there are too many forks")
        return copy

    # ----------------------------------------------------------------------------------------------- file

    def close(self) -> None:
        """Close the file. Nothing is written, because all accepted samples are already durable."""
        self._disk.close(self._fd)

    def _open(self, slots: int, slot_bytes: int, is_new: bool = False) -> None:
        """Open and check the file, and replace it if it cannot be used.

        `slots` and `slot_bytes` are those of the replacement. `is_new` is true if this file already is the replacement.
        """
        self._fd = self._disk.open(self._path, os.O_RDWR)
        header = find_header(self._read)
        if header and header.version > VERSION:
            raise DiskError(
                f"{self._path} was written by a newer version of this program (file version {header.version};"
                f" this program supports {VERSION}): update the program, or move the file to start with an empty outbox"
            )
        if header is None or not self._read(1, SLOTS_AT + header.slots * header.slot_bytes - 1):
            if is_new:
                raise DiskError(f"{self._path}: the data read differs from the data just written; the disk is broken")
            self._start_new(header, slots, slot_bytes)
            return
        self._use(header)
        self._confirm()

    def _use(self, header: Header) -> None:
        """Read header, state and ranges of samples from the open file."""
        self._header, self._tag = header, header.tag
        self.slots, self.slot_bytes = header.slots, header.slot_bytes
        self.identity = f"{header.identity:016x}"
        state = read_state(self._read)
        if state:
            self._state_count, self.state = state
        elif any(any(self._read(layout.STATE_BYTES, at)) for at in layout.STATE_AT):
            self.faults.append(f"{self._path}: both copies of the state are damaged; sampling is ON")
        runs = find_runs(self._read, header)
        self.last = runs[-1].last_number if runs else 0
        self.runs = self._with_forks(runs)
        self._has_room = not self.last or layout.has_mark(self._read(self.slot_bytes, slot_position(header, self.last)))

    def _confirm(self) -> None:
        """Write the header, the state and the newest batch again, unchanged, and sync the file.

        After `kill -9` or a failed sync, they may be only in the memory of the kernel. After a failed sync the kernel
        does not write them again automatically, because it reports a write error only once (fsync(2)). No transport may
        send a sample that is not durable.
        """
        self._confirm_header()
        if self._state_count:
            copy = self._state_copy(self._state_count, self.state)
            for at in layout.STATE_AT:
                self._write(self._fd, copy, at)
        first = max(1, self.last - self.most_at_once + 1)
        while first <= self.last:
            count = min(self.last + 1 - first, self.slots - first % self.slots)
            at = self._position(first) - MARK_BYTES
            self._write(self._fd, self._read(MARK_BYTES + count * self.slot_bytes, at), at)
            first += count
        self._disk.fdatasync(self._fd)
        folder = self._disk.open(self._folder, os.O_RDONLY)
        self._disk.fsync(folder)  # makes the name of the file durable
        self._disk.close(folder)

    def _confirm_header(self) -> None:
        """Repair the copies of the header that differ. Each copy is durable before the next one is overwritten."""
        expected = layout.pack_header(self._header._replace(version=VERSION))
        positions = [at for at in layout.HEADER_AT if self._read(len(expected), at) != expected]
        if positions and (self._header.version == VERSION or layout.parse_header(self._read(len(expected), 0)) is None):
            self.faults.append(f"{self._path}: the header was damaged; it is repaired, and no sample is lost")
        for at in reversed(positions):
            self._write(self._fd, expected, at)
            self._disk.fdatasync(self._fd)
        self._header = self._header._replace(version=VERSION)

    def _make(self, header: Header) -> None:
        """Create a complete empty file with the suffix `.new`, sync it, and leave it open."""
        self._fd = self._disk.open(self._path + ".new", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        end = SLOTS_AT + header.slots * header.slot_bytes
        # Do not begin at 0. With aligned writes of this size the page cache would use equally large pages, and a write
        # of one slot would make such a page dirty and rewrite all of it.
        for at in range(layout.STATE_AT[0], end, _CHUNK):
            self._write(self._fd, bytes(min(_CHUNK, end - at)), at)
        for at in layout.HEADER_AT:
            self._write(self._fd, layout.pack_header(header), at)
        self._disk.fsync(self._fd)

    def _widen(self, slot_bytes: int) -> None:
        """Copy all samples, with the same numbers, to a file with larger slots, and replace this file atomically."""
        old = self._fd
        self._copy(self._header, self._header._replace(slot_bytes=slot_bytes))
        self._disk.rename(self._path + ".new", self._path)
        self._disk.close(old)
        self._open(self.slots, slot_bytes)

    def _copy(self, old: Header, new: Header, renumbers: bool = False) -> int:
        """Create a new file with the samples and the state of the open file. Return the number of undamaged samples."""
        from pigeonpost.node.ring_repair import copy_slots

        fd, state = self._fd, read_state(self._read)
        self._make(new)
        whole, shift = copy_slots(
            lambda count, at: self._disk.pread(fd, count, at), old,
            lambda data, at: self._write(self._fd, data, at), new, renumbers,
        )  # fmt: skip
        if state:
            count, content = state
            content["forks"] = [[first - shift, last - shift, epoch] for first, last, epoch in content["forks"]]
            for at in layout.STATE_AT:
                self._write(self._fd, self._state_copy(count, content), at)
        self._disk.fsync(self._fd)
        self._disk.close(self._fd)
        return whole

    def _start_new(self, header: Header | None, slots: int, slot_bytes: int) -> None:
        """Replace the damaged file with a new one that contains its readable samples, and keep it under another name.

        `header` is None if the header cannot be read. Otherwise the file is only truncated, and the new file keeps the
        id and the running numbers.
        """
        old, damaged, found = header or guess_header(self._read), self._fd, 0
        if header:
            what, new = "has been truncated", header
        else:
            what, runs = "is not an outbox, or its header is damaged", find_runs(self._read, old) if old else []
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
                f"{self._path} {what}, and a new file cannot be created in the same folder: {error.strerror or error}."
                " Free space on the disk, or move the file to another folder"
                f" (python3 control.py read-outbox {self._path} prints its samples)"
            ) from error
        self._disk.close(damaged)
        kept = self._keep_damaged()
        self._disk.rename(self._path + ".new", self._path)
        self.faults.append(
            f"{self._path} {what}; {counted(found, 'sample')} could be read and copied to a new outbox. "
            f"The damaged file is kept: python3 control.py read-outbox {kept}"
        )
        self._open(slots, slot_bytes, is_new=True)

    def _keep_damaged(self) -> str:
        """Give the damaged file a second name and return it, so that its first name can be replaced atomically."""
        name = f"{self._path}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        kept, n = name, 1
        while self._disk.exists(kept):
            kept, n = f"{name}-{n}", n + 1
        try:
            self._disk.link(self._path, kept)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            # A file system without hard links, such as FAT.
            self._disk.rename(self._path, kept)
        return kept

    def _read(self, count: int, at: int) -> bytes:
        return self._disk.pread(self._fd, count, at)

    def _write_samples(self, number: int, epoch: int, seq: int, slots: Sequence[bytes]) -> None:
        """Write the slots of consecutive samples, beginning with `number`.

        Each slot is written together with the mark that precedes it, if the previous slot has space for the mark.
        """
        pieces: list[tuple[int, bytes]] = []
        marks: list[int] = []  # positions in the file
        has_room = self._has_room
        # A mark and its slot are adjacent, so both are written with one call. A mark in the slot itself could be
        # damaged together with it.
        for k, slot in enumerate(slots):
            at = self._position(number + k)
            if has_room or at == SLOTS_AT:  # there is always space before slot 0
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
        """Erase the marks of samples that could not be written. They would otherwise count as accepted and damaged."""
        for at in marks:
            try:
                self._disk.pwrite(self._fd, bytes(MARK_BYTES), at)
            except OSError:
                return  # the caller reports the error of the write

    def _write(self, fd: int, data: bytes, at: int) -> None:
        written = self._disk.pwrite(fd, data, at)
        if written == len(data):
            return
        if written <= 0:
            raise OSError("the disk accepted no more data")
        view, at = memoryview(data)[written:], at + written
        while view:
            written = self._disk.pwrite(fd, view, at)
            if written <= 0:
                raise OSError("the disk accepted no more data")
            view, at = view[written:], at + written

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Convert an OSError to a DiskError that contains the path of the file."""
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
    """Yield the `pieces` of a file, each as (position, data), after joining adjacent pieces."""
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
