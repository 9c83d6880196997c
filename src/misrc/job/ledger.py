"""The ledger's codec: an append-only file of canonical JSON lines, each holding the hash of the line before it.

The chain shows an edited, deleted, inserted or reordered line. A cut tail shows only against a checkpoint kept
elsewhere: MInt keeps the latest one it was told.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, Mapping, Optional, Tuple

from .codec import CodecError, dump_json, parse_json

GENESIS = "0" * 64
# More than the largest job spec, whose arguments the record of its start repeats.
MAX_LINE_BYTES = 128 << 10


class LedgerBroken(ValueError):
    """The chain does not hold; the message names the line."""


@dataclass(frozen=True)
class Checkpoint:
    """Sequence number and hash of a ledger's last line; seq -1 is the empty ledger."""

    seq: int
    hash: str


def hash_line(line: bytes) -> str:
    """sha256 over 0x00 and the line without its end (RFC 6962's leaf hash, so that a Merkle tree can follow)."""
    return hashlib.sha256(b"\0" + line).hexdigest()


def render_record(last: Checkpoint, fields: Mapping[str, Any]) -> Tuple[bytes, Checkpoint]:
    """The next line (without its end) and the checkpoint after it."""
    line = dump_json({**fields, "v": 1, "seq": last.seq + 1, "prev": last.hash})
    if len(line) > MAX_LINE_BYTES:
        raise ValueError("a ledger record is too long")
    return line, Checkpoint(last.seq + 1, hash_line(line))


def parse_record(line: bytes) -> "dict[str, Any]":
    """One line as a mapping; raises LedgerBroken."""
    try:
        record = parse_json(line)
    except CodecError as error:
        raise LedgerBroken(str(error)) from None
    if not isinstance(record, dict) or type(record.get("seq")) is not int:
        raise LedgerBroken("not a ledger record")
    return record


def verify_lines(lines: Iterable[bytes], checkpoint: Optional[Checkpoint] = None) -> Iterator["dict[str, Any]"]:
    """Yield the records while checking the chain, and at the end that it passes through `checkpoint`."""
    last = Checkpoint(-1, GENESIS)
    met = checkpoint is None or checkpoint.seq < 0
    for number, raw in enumerate(lines, 1):
        if not raw.endswith(b"\n"):
            raise LedgerBroken(f"line {number} is cut")
        line = raw[:-1]
        record = parse_record(line)
        if record["seq"] != last.seq + 1 or record.get("prev") != last.hash:
            raise LedgerBroken(f"line {number} does not follow the line before it")
        if line != dump_json(record):
            raise LedgerBroken(f"line {number} is not in canonical form")
        last = Checkpoint(last.seq + 1, hash_line(line))
        if checkpoint is not None and last.seq == checkpoint.seq:
            if last.hash != checkpoint.hash:
                raise LedgerBroken(f"line {number} is not the one that the checkpoint saw")
            met = True
        yield record
    if not met:
        raise LedgerBroken("the ledger ends before the checkpoint: its tail was cut")
