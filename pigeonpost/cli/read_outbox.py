"""Command that prints the samples of a node's outbox file, also of a damaged one. It never writes to the file.

    python3 control.py read-outbox data/outbox.ring
    python3 control.py read-outbox --format jsonl --node basement outbox.ring.damaged-20261129-231500 > rescued.jsonl

It works beside a node that runs. Errors: Failed, where nothing can be read.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator

from pigeonpost.cli.contract import Command, Context, Failed, discard_output, node_name
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.strict_json import read_json, write_json
from pigeonpost.node import ring_format as layout
from pigeonpost.node.ring_format import Header
from pigeonpost.node.ring_records import SeqRange, Slot
from pigeonpost.node.ring_scan import Read, find_header, find_runs, forked, guess_header, place, read_slot, read_state

_SECTOR_BYTES = 512
HEAD = "time,node,epoch,seq,sensor,value\n"


def read_outbox(context: Context) -> int:
    """Print what can be read of a node's outbox: CSV with a row per value, or a JSON object per sample. On standard
    error: one line for each range of damaged samples. Status 1 if there is any damage.
    """
    path, chosen = context.arguments.FILE, context.arguments
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Failed(f"{path} is not a file")
        damages = _print_all(lambda count, at: _read(fd, count, at), path, chosen.format, chosen.node or "")
    except BrokenPipeError:
        discard_output()
        return 0
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    finally:
        os.close(fd)
    return 1 if damages else 0


def _read(fd: int, count: int, at: int) -> bytes:
    """Read from the file; sectors that the disk cannot read are zeros, which no slot is."""
    try:
        return os.pread(fd, count, at)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    pieces = []
    for start in range(at, at + count, _SECTOR_BYTES):
        size = min(_SECTOR_BYTES, at + count - start)
        try:
            pieces.append(os.pread(fd, size, start))
        except OSError:
            pieces.append(bytes(size))
    return b"".join(pieces)


def _print_all(read: Read, path: str, form: str, node: str) -> int:
    """Print all samples. Returns the number of damaged places."""
    damages = 0

    def tell(text: str) -> None:
        nonlocal damages
        damages += 1
        print(f"{path}: {text}", file=sys.stderr)

    header = _header(read, tell)
    if header is None:
        raise Failed(f"{path} is not an outbox, and not one sample can be read of it")
    state = read_state(read)
    runs = find_runs(read, header)
    last = runs[-1].last_number if runs else 0
    runs = forked(runs, state[1]["forks"] if state else [], last - header.slots + 1)
    show = _as_csv if form == "csv" else _as_json
    if form == "csv":
        sys.stdout.write(HEAD)
    expected = runs[0].number if runs else 1
    for run in runs:
        if run.number > expected:
            tell(f"{run.number - expected} samples before sample {run.first} of epoch {run.epoch} are damaged")
        expected = run.last_number + 1
        for seq, slot in _samples(read, header, run, tell):
            sys.stdout.write(show(node, run.epoch, seq, slot))
    sys.stdout.flush()
    return damages


def _header(read: Read, tell: Callable[[str], None]) -> Header | None:
    """Return the file's header, and tell what is wrong with it."""
    header = find_header(read)
    if header is None:
        header = guess_header(read)
        if header:
            tell("its header is damaged; the samples are found by themselves")
        return header
    if header.version > layout.VERSION:
        raise Failed(f"it is of a newer version ({header.version}): use the control.py of the program that wrote it")
    if layout.parse_header(read(layout.HEADER_BYTES, 0)) is None:
        tell("its header is damaged; it is read from a copy, or one byte is corrected")
    end = layout.SLOTS_AT + header.slots * header.slot_bytes
    if not read(1, end - 1):
        tell(f"it is shorter than the {end} bytes that it had")
    return header


def _samples(read: Read, header: Header, run: SeqRange, tell: Callable[[str], None]) -> Iterator[tuple[int, Slot]]:
    """Yield the whole samples of a run with their seq; `tell` gets the damaged ones, one line for each range."""
    damaged: list[int] = []

    def tell_damaged() -> None:
        if damaged:
            more = f" to {damaged[-1]}" if len(damaged) > 1 else ""
            tell(f"sample{'s' if more else ''} {damaged[0]}{more} of epoch {run.epoch}: damaged")
            damaged.clear()

    for seq in range(run.first, run.last + 1):
        number = run.number + seq - run.first
        at = place(header, number)
        slot = read_slot(read(header.slot_bytes, at), number, header.tag)
        if slot is None:  # a node may have been writing it
            block = read(header.slot_bytes, at)
            slot = read_slot(block, number, header.tag)
            if slot is None and read_slot(block, number + header.slots, header.tag) is not None:
                continue  # overwritten since the file was looked through
        if slot is None:
            damaged.append(seq)
            continue
        tell_damaged()
        yield seq, slot
    tell_damaged()


def _as_csv(node: str, epoch: str, seq: int, slot: Slot) -> str:
    values = read_json("{" + slot.body + "}")["values"]
    start = f"{rfc3339(slot.wall_ms)},{node},{epoch},{seq}"
    return "".join(f"{start},{name},{'' if value is None else repr(value)}\n" for name, value in values.items())


def _as_json(node: str, epoch: str, seq: int, slot: Slot) -> str:
    sample = {"time": rfc3339(slot.wall_ms), "node": node, "epoch": epoch, "seq": seq, "up": slot.up_ms}
    clock = {} if slot.clock_set else {"clock": "unset"}
    return write_json(sample | read_json("{" + slot.body + "}") | clock) + "\n"


COMMANDS = {
    "read-outbox": Command(
        "print what can be read of a node's outbox file, also of a damaged one",
        [
            ("FILE", {"help": "a node's outbox.ring, or an outbox.ring.damaged-... that a node has put aside"}),
            ("--format", {"choices": ("csv", "jsonl"), "default": "csv", "help": "csv (a row per value) or jsonl"}),
            ("--node", {"type": node_name, "help": "the node's name, which is not in the file"}),
        ],
        read_outbox,
    )
}
