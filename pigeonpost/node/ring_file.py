"""The outbox's file: a preallocated ring of slots, each with one sample and its own CRC.

One thread at a time appends or changes the state, which the outbox ensures; reading is safe beside it, since a slot
that changes during the read fails its CRC.
Errors: DiskError for what the disk refuses, and for a file of another format.

`outbox.ring`, all numbers little-endian:

    0      magic | slot bytes | slots | outbox id | CRC-32     written once, when the file is made
    4096   state A: CRC-32 | count | length | JSON             the valid copy with the higher count is in force,
    8192   state B: the same                                   the other one is written next
    12288  slot 0, slot 1, ... slot n-1                        sample number i (1, 2, 3 ...) is in slot i mod n

    slot:  CRC-32 | i | epoch | seq | wall ms | up ms | boot id | clock | length | body | zeros

`body` is the part of a sample's JSON that never changes: encoded once, sent as it is. The file is filled with zeros and
synced before its first use, so no later write needs space: a full disk costs no sample. A torn slot is no sample.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pigeonpost.core.data_folder import OUTBOX
from pigeonpost.core.errors import DiskError
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.node.ring_records import SeqRange, Slot, UnnumberedSample
from protocol import sample_body

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

SMALLEST_SLOT = 128
LARGEST_SLOT = 32_768  # a sample must fit a line of the link

_MAGIC = b"PGNPOST1"
_HEADER = struct.Struct("<8sIIQ")
_STATE = struct.Struct("<QH")  # count, length of the JSON
_STATE_AT = (4096, 8192)
_SLOTS_AT = 12_288
_SLOT = struct.Struct("<QQQqQQBH")  # i, epoch, seq, wall ms, up ms, boot id, clock set?, length of the body
_CRC = struct.Struct("<I")  # of all that follows it in the header, the state copy or the slot
_SLOT_HEAD = _CRC.size + _SLOT.size
_LONGEST_NUMBER = 24  # repr of a float: sign, 17 digits, point, e-308
_CHUNK = 1 << 18
_MOST_AT_ONCE = 1_000  # samples made durable by one fdatasync


class FileOps:
    """The system calls of the ring. Tests replace them by a disk that lies, fails and forgets."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))  # macOS has only the stronger one
    fsync = staticmethod(os.fsync)
    rename = staticmethod(os.rename)
    exists = staticmethod(os.path.exists)


def slot_bytes_for(names: Sequence[str]) -> int:
    """The slot size, a power of two, in which a sample of the sensors `names` always fits, whatever they read.

    Raises ValueError when it would pass LARGEST_SLOT.
    """
    longest = len('"values":{}') + sum(len(name) + len('"":,') + _LONGEST_NUMBER for name in names)
    size = SMALLEST_SLOT
    while size < _SLOT_HEAD + longest:
        size *= 2
    if size > LARGEST_SLOT:
        raise ValueError(f"{len(names)} sensors are too many for one node")
    return size


class Ring:
    """The open file. `slots`, `slot_bytes`, `identity` (16 hex), `runs`, `last` and `state` are for reading."""

    def __init__(self, folder: str, slots: int, slot_bytes: int, disk: FileOps | None = None) -> None:
        """Open `folder`/outbox.ring; make it when it is not there.

        slots       how many samples it holds; used only when the file is made
        slot_bytes  at least so large; a file with smaller slots is copied into one with larger
        """
        self._disk = disk or FileOps()
        self._folder = folder
        self.runs: list[SeqRange] = []
        self.last = 0  # the highest running number
        self.state: dict[str, Any] = {"on": True, "forks": []}
        self._state_count = 0
        self._path = os.path.join(folder, OUTBOX)
        with self._named_errors():
            if not self._disk.exists(self._path):
                self._disk.close(self._make(slot_bytes, slots, int.from_bytes(os.urandom(8), "little")))
                self._disk.rename(self._path + ".new", self._path)
            self._open()
            if self.slot_bytes < slot_bytes:
                self._widen(slot_bytes)

    @property
    def most_at_once(self) -> int:
        """How many samples `append` takes; half of all at most, so that a torn write leaves older ones whole."""
        return min(_MOST_AT_ONCE, self.slots // 2)

    # -------------------------------------------------------------------------------------------- samples

    def append(self, epoch: str, seq: int, boot_id: str, samples: Sequence[UnnumberedSample]) -> None:
        """Write `samples`, `most_at_once` at most, as `seq`, `seq` + 1 ... of `epoch`; durable on return."""
        number = self.last + 1
        slots = []
        for k, taken in enumerate(samples):
            body = self._body(taken)
            head = _SLOT.pack(number + k, int(epoch, 16), seq + k, taken.wall_ms, taken.up_ms, int(boot_id, 16),
                              taken.clock_set, len(body))  # fmt: skip
            slots.append(_checked((head + body).ljust(self.slot_bytes - _CRC.size, b"\0")))
        try:  # not `_named_errors`, which takes as long as all of the above
            self._write_slots(number, slots)
            self._disk.fdatasync(self._fd)
        except DiskError:
            raise
        except OSError as error:
            raise self._named(error) from error
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
            self.runs = _joined([*runs, new], held_from)

    def read(self, number: int, count: int) -> list[Slot | None]:
        """The samples with the running numbers from `number` on, `count` of them at most; None for a damaged one."""
        count = min(count, self.last + 1 - number, self.slots - number % self.slots)
        with self._named_errors():
            block = self._disk.pread(self._fd, count * self.slot_bytes, self._place(number))
        return [self._unpack(block, k * self.slot_bytes, number + k) for k in range(count)]

    def _place(self, number: int) -> int:
        return _SLOTS_AT + number % self.slots * self.slot_bytes

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
            if len(body) <= self.slot_bytes - _SLOT_HEAD:
                return body
        return sample_body(taken.values, {}).encode()

    def _unpack(self, block: bytes, at: int, number: int) -> Slot | None:
        slot = block[at : at + self.slot_bytes]
        if not _is_whole(slot):
            return None
        found, _, _, wall_ms, up_ms, boot, clock_set, length = _SLOT.unpack_from(slot, _CRC.size)
        if found != number:
            return None
        return Slot(number, wall_ms, up_ms, boot, bool(clock_set), slot[_SLOT_HEAD : _SLOT_HEAD + length].decode())

    def _scan(self) -> None:
        """Find the newest sample and the runs, from the slots alone: whatever a crash left, whole slots tell it."""
        runs: list[list[int]] = []  # epoch, first, last, number of the first; as they lie in the file
        heads = struct.Struct(f"<4xQQQ{self.slot_bytes - 28}x")
        for start in range(0, self.slots, _CHUNK // self.slot_bytes):
            count = min(_CHUNK // self.slot_bytes, self.slots - start)
            block = memoryview(self._disk.pread(self._fd, count * self.slot_bytes, self._place(start)))
            for k, (number, epoch, seq) in enumerate(heads.iter_unpack(block[: len(block) // heads.size * heads.size])):
                if number == 0 or number % self.slots != start + k:
                    continue
                if not _is_whole(block[k * self.slot_bytes : (k + 1) * self.slot_bytes]):
                    continue
                last = runs[-1] if runs else None
                if last and last[0] == epoch and number - seq == last[3] - last[1] and seq > last[2]:
                    last[2] = seq
                else:
                    runs.append([epoch, seq, seq, number])
        found = sorted(
            (SeqRange(f"{epoch:016x}", first, last, number) for epoch, first, last, number in runs), key=_number
        )
        self.last = max((run.last_number for run in found), default=0)
        self.runs = self._forked(_joined(found, self.last - self.slots + 1))

    # ---------------------------------------------------------------------------------------------- forks

    def fork(self, number: int, end: int, epoch: str) -> None:
        """From now on the samples with the running numbers `number` to `end` are 1, 2, 3 ... of `epoch`; durable.

        Kept in the state, since the slots themselves say otherwise.
        """
        self.change_state(forks=[*self.forks_held(), [number, end, epoch]])
        self.runs = self._forked(self.runs)

    def forks_held(self) -> list[Any]:
        """The forks that still matter: [first number, last number, epoch] of those not wholly overwritten."""
        return [fork for fork in self.state["forks"] if fork[1] > self.last - self.slots]

    def _forked(self, runs: Sequence[SeqRange]) -> list[SeqRange]:
        for start, end, epoch in self.state["forks"]:
            pieces = []
            for run in runs:
                low, high = max(run.number, start), min(run.last_number, end)
                if low > high:
                    pieces.append(run)
                    continue
                if run.number < low:
                    pieces.append(run._replace(last=run.seq_of(low - 1)))
                pieces.append(SeqRange(epoch, low - start + 1, high - start + 1, low))
                if high < run.last_number:
                    pieces.append(run.cut(high + 1))
            runs = pieces
        return _joined(runs, self.last - self.slots + 1)

    # ---------------------------------------------------------------------------------------------- state

    def change_state(self, **changes: Any) -> None:
        """Change what is kept over restarts beside the samples (`on`, `forks`); durable on return."""
        state = {**self.state, **changes}
        text = json.dumps(state).encode()
        copy = _checked(_STATE.pack(self._state_count + 1, len(text)) + text)
        if len(copy) > _STATE_AT[1] - _STATE_AT[0]:
            raise DiskError(f"{self._path}: the state does not fit its block; too many forks")
        with self._named_errors():
            self._write(self._fd, copy, _STATE_AT[self._state_count % 2])
            self._disk.fdatasync(self._fd)
        self.state = state
        self._state_count += 1

    def _read_state(self) -> None:
        for at in _STATE_AT:
            block = self._disk.pread(self._fd, _STATE_AT[1] - _STATE_AT[0], at)
            count, length = _STATE.unpack_from(block, _CRC.size)
            text = _CRC.size + _STATE.size
            if count > self._state_count and _is_whole(block[: text + length]):
                self._state_count = count
                self.state = json.loads(block[text : text + length])

    # ----------------------------------------------------------------------------------------------- file

    def close(self) -> None:
        """Give the file back. Nothing is written: what is accepted is durable already."""
        self._disk.close(self._fd)

    def _open(self) -> None:
        self._fd = self._disk.open(self._path, os.O_RDWR, 0)
        head = self._disk.pread(self._fd, _CRC.size + _HEADER.size, 0)
        if not head.startswith(_MAGIC, _CRC.size) or not _is_whole(head):
            raise DiskError(_UNUSABLE.format(self._path, "no outbox of this program, or its first block is damaged"))
        _, slot_bytes, slots, self._identity = _HEADER.unpack_from(head, _CRC.size)
        if not self._disk.pread(self._fd, 1, _SLOTS_AT + slots * slot_bytes - 1):
            raise DiskError(_UNUSABLE.format(self._path, "shorter than it was made, so some of it was lost"))
        self.slot_bytes: int = slot_bytes
        self.slots: int = slots
        self.identity = f"{self._identity:016x}"
        self._read_state()
        self._scan()
        self._confirm()

    def _confirm(self) -> None:
        """Make durable what is seen: write the state and the newest batch once more, as they are, and sync.

        After kill -9, or after a sync that failed, they may be in the kernel's memory alone; in the second case it
        would not write them again by itself (fsync(2): an error is told once). No link may look at such a sample.
        """
        if self._state_count:
            at = _STATE_AT[(self._state_count - 1) % 2]
            self._write(self._fd, self._disk.pread(self._fd, _STATE_AT[1] - _STATE_AT[0], at), at)
        first = max(1, self.last - self.most_at_once + 1)
        numbers = range(first, self.last + 1)
        self._write_slots(first, [self._disk.pread(self._fd, self.slot_bytes, self._place(n)) for n in numbers])
        self._disk.fdatasync(self._fd)
        folder = self._disk.open(self._folder, os.O_RDONLY, 0)
        self._disk.fsync(folder)  # and the file's name
        self._disk.close(folder)

    def _make(self, slot_bytes: int, slots: int, identity: int) -> int:
        """Write a whole empty file beside the place where it belongs; synced and open."""
        fd = self._disk.open(self._path + ".new", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._write(fd, _checked(_HEADER.pack(_MAGIC, slot_bytes, slots, identity)), 0)
        end = _SLOTS_AT + slots * slot_bytes
        for at in range(_STATE_AT[0], end, _CHUNK):
            self._write(fd, bytes(min(_CHUNK, end - at)), at)
        self._disk.fsync(fd)
        return fd

    def _widen(self, slot_bytes: int) -> None:
        """Copy all into a file with larger slots: the same samples under the same numbers, whole or not at all."""
        new = self._make(slot_bytes, self.slots, self._identity)
        self._write(new, self._disk.pread(self._fd, _SLOTS_AT - _STATE_AT[0], _STATE_AT[0]), _STATE_AT[0])
        for index in range(self.slots):
            slot = self._disk.pread(self._fd, self.slot_bytes, _SLOTS_AT + index * self.slot_bytes)
            if _is_whole(slot):
                wide = _checked(slot[_CRC.size :].ljust(slot_bytes - _CRC.size, b"\0"))
                self._write(new, wide, _SLOTS_AT + index * slot_bytes)
        self._disk.fsync(new)
        self._disk.close(new)
        self._disk.rename(self._path + ".new", self._path)
        self._disk.close(self._fd)
        self._open()

    def _write_slots(self, number: int, slots: Sequence[bytes]) -> None:
        room = self.slots - number % self.slots  # until the end of the file, then on from its beginning
        self._write(self._fd, b"".join(slots[:room]), self._place(number))
        if len(slots) > room:
            self._write(self._fd, b"".join(slots[room:]), _SLOTS_AT)

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


_UNUSABLE = "{} is {}; move it away to start with an empty one (and keep it: what its slots hold can still be read)"


def _checked(content: bytes) -> bytes:
    return _CRC.pack(zlib.crc32(content)) + content


def _is_whole(block: bytes | memoryview) -> bool:
    return _CRC.unpack_from(block) == (zlib.crc32(block[_CRC.size :]),)


def _number(run: SeqRange) -> int:
    return run.number


def _joined(runs: Sequence[SeqRange], held_from: int) -> list[SeqRange]:
    """`runs`, in the order of their numbers, without what is overwritten, and pieces of one run made one."""
    joined: list[SeqRange] = []
    for run in runs:
        if run.last_number < held_from:
            continue
        if run.number < held_from:
            run = run.cut(held_from)
        last = joined[-1] if joined else None
        if last and last.epoch == run.epoch and last.seq_of(run.number) == run.first:
            joined[-1] = last._replace(last=max(last.last, run.last))  # around torn slots they may overlap
        else:
            joined.append(run)
    return joined
