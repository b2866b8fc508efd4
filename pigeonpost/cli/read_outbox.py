"""Command `read-outbox`, which prints the samples in a node's outbox file, even if it is damaged.

    python3 control.py read-outbox data/outbox.ring
    python3 control.py read-outbox --format jsonl --node basement outbox.ring.damaged-20261129-231500 > rescued.jsonl

The file is only read, and the node may be running. Errors: Failed if no sample can be read.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator

from pigeonpost.cli.contract import Command, Context, Failed, discard_output, node_name
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import counted
from pigeonpost.core.strict_json import read_json, write_json
from pigeonpost.node import ring_format as layout
from pigeonpost.node.ring_format import Header
from pigeonpost.node.ring_records import SeqRange, Slot
from pigeonpost.node.ring_scan import (
    Read,
    find_header,
    find_runs,
    forked,
    guess_header,
    read_slot,
    read_state,
    slot_position,
)

_SECTOR_BYTES = 512
HEAD = "time,node,epoch,seq,sensor,value\n"


def _read_outbox(context: Context) -> int:
    """Print the readable samples of a node's outbox file as CSV or as JSON lines.

    Each range of damaged samples is reported on standard error. If there is any damage, the exit status is 1.
    """
    path, chosen = context.arguments.FILE, context.arguments
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Failed(f"{path} is not a regular file")
        faults = _print_all(lambda count, at: _read(fd, count, at), path, chosen.format, chosen.node or "")
    except BrokenPipeError:
        discard_output()
        return 0
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    finally:
        os.close(fd)
    return 1 if faults else 0


def _read(fd: int, count: int, at: int) -> bytes:
    """Return bytes of the file. Sectors that the disk cannot read are returned as zeros, which are not a valid slot."""
    try:
        return os.pread(fd, count, at)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    sectors = []
    for start in range(at, at + count, _SECTOR_BYTES):
        size = min(_SECTOR_BYTES, at + count - start)
        try:
            sectors.append(os.pread(fd, size, start))
        except OSError:
            sectors.append(bytes(size))
    return b"".join(sectors)


def _print_all(read: Read, path: str, form: str, node: str) -> int:
    """Print all samples. Report each fault on standard error, and return the number of faults."""
    faults = 0

    def report(text: str) -> None:
        nonlocal faults
        faults += 1
        print(f"{path}: {text}", file=sys.stderr)

    header = _header(read, report)
    if header is None:
        raise Failed(f"{path} is not an outbox file: no sample can be read from it")
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
            count = run.number - expected
            report(
                f"{counted(count, 'sample')} before sample {run.first} of epoch {run.epoch}"
                f" {'is' if count == 1 else 'are'} damaged"
            )
        expected = run.last_number + 1
        for seq, slot in _samples(read, header, run, report):
            sys.stdout.write(show(node, run.epoch, seq, slot))
    sys.stdout.flush()
    return faults


def _header(read: Read, report: Callable[[str], None]) -> Header | None:
    """Return the header of the file, or None if there is none. Report damage to it."""
    header = find_header(read)
    if header is None:
        header = guess_header(read)
        if header:
            report("the header is damaged; the samples were found without it")
        return header
    if header.version > layout.VERSION:
        raise Failed(
            f"the file has the format of a newer version ({header.version}): use control.py of the version that wrote"
            " it"
        )
    if layout.parse_header(read(layout.HEADER_BYTES, 0)) is None:
        report("the header is damaged; it was read from its copy, or one byte was corrected")
    end = layout.SLOTS_AT + header.slots * header.slot_bytes
    if not read(1, end - 1):
        report(f"the file is shorter than its original size, {end:,} bytes")
    return header


def _samples(read: Read, header: Header, run: SeqRange, report: Callable[[str], None]) -> Iterator[tuple[int, Slot]]:
    """Yield the intact samples of a run with their sequence numbers. Report each range of damaged samples."""
    damaged: list[int] = []

    def report_damaged() -> None:
        if damaged:
            more = f" to {damaged[-1]}" if len(damaged) > 1 else ""
            report(f"sample{'s' if more else ''} {damaged[0]}{more} of epoch {run.epoch}: damaged")
            damaged.clear()

    for seq in range(run.first, run.last + 1):
        number = run.number + seq - run.first
        at = slot_position(header, number)
        slot = read_slot(read(header.slot_bytes, at), number, header.tag)
        if slot is None:  # a node may have been writing this slot: read it again
            block = read(header.slot_bytes, at)
            slot = read_slot(block, number, header.tag)
            if slot is None and read_slot(block, number + header.slots, header.tag) is not None:
                continue  # overwritten since the file was scanned
        if slot is None:
            damaged.append(seq)
            continue
        report_damaged()
        yield seq, slot
    report_damaged()


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
        "print the readable samples of a node's outbox file, even if it is damaged",
        [
            (
                "FILE",
                {
                    "help": "outbox.ring of a node, or a damaged outbox that the node has renamed"
                    " (outbox.ring.damaged-...)"
                },
            ),
            (
                "--format",
                {
                    "choices": ("csv", "jsonl"),
                    "default": "csv",
                    "help": "csv: one row per value (default); jsonl: one JSON object per sample",
                },
            ),
            (
                "--node",
                {
                    "type": node_name,
                    "metavar": "NODE",
                    "help": "node name to print, because the file does not contain it (default: empty)",
                },
            ),
        ],
        _read_outbox,
    )
}
