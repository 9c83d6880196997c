"""The receipt: what the site says happened, signed with the site's key; both sides keep it, and must agree."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Optional

from .codec import decode, dump_json, encode, parse_json
from .states import Outcome

NAMESPACE = "misrc-receipt"
MAX_RECEIPT_BYTES = 64 << 10


@dataclass(frozen=True)
class Receipt:
    """One job's end. `inputs` and `outputs` are manifest digests; `program` is a salted hash of the program file."""

    site: str
    job: str
    spec: str
    inputs: str
    program: str
    outputs: str
    files: int
    bytes: int
    started: Optional[str]
    ended: str
    exit_status: Optional[int]
    outcome: Outcome
    reason: str
    misrc: str
    version: int = 1


def salted_hash(salt: str, sha256: str) -> str:
    """A program's identity that says "the same as before" to MInt, and nothing about the file: `salt` is secret."""
    return hashlib.sha256(f"{salt}:{sha256}".encode()).hexdigest()


def render_receipt(receipt: Receipt) -> bytes:
    """The bytes that are signed."""
    return dump_json(encode(receipt)) + b"\n"


def parse_receipt(document: bytes) -> Receipt:
    """Parse a receipt's signed bytes."""
    if len(document) > MAX_RECEIPT_BYTES:
        raise ValueError("the receipt is too long")
    return decode(Receipt, parse_json(document))
