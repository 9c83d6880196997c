"""What transfers leave beside a job's files: whether one still runs, and the hashes of what was followed on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict

from ..job.codec import parse_json
from ..job.manifest import MAX_DOCUMENT_BYTES
from . import files
from .jobs import DOOR, JobFolder

if TYPE_CHECKING:
    from ..job.following import Found

FOUND = "found.json"


def transfer_running(job: JobFolder, module: str) -> bool:
    """Whether rsync still holds the module."""
    with files.opened(job.sub(DOOR)) as door:
        return files.is_locked(door, f"{module}.lock")


def note_found(door: int, found: "Dict[str, Found]") -> None:
    """Keep the hashes of what was followed, for the check before the start.

    They spare time there, and are not trusted beyond it: the copy for the program is hashed in any case.
    """
    if found:
        listed = {name: [one.size, one.sha256, one.identity] for name, one in found.items()}
        files.write_json(door, FOUND, {**_read_found(door), **listed})


def read_found(job: JobFolder) -> "Dict[str, Any]":
    """What earlier transfers noted."""
    with files.opened(job.sub(DOOR)) as door:
        return _read_found(door)


def _read_found(door: int) -> "Dict[str, Any]":
    document = files.read_record(door, FOUND, MAX_DOCUMENT_BYTES)
    plain = None if document is None else parse_json(document)
    return plain if isinstance(plain, dict) else {}
