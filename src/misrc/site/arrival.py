"""What arrived in `in/`, checked against its manifest before a start is accepted."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable, Dict, Iterator

from ..job.manifest import Entry, Manifest, hash_descriptor, identify
from ..wire.refusals import Denied, Refusal
from . import files, transfer_state
from .jobs import JobFolder

# From so many files on, a second process pays for itself.
_SHARED_FROM = 1000


def check_inputs(job: JobFolder, manifest: Manifest) -> None:
    """Exactly the manifest's files lie in `in/`, with the manifest's content; Denied(INPUTS) otherwise."""
    with files.opened(job.sub("in")) as folder:
        if set(os.listdir(folder)) != {entry.name for entry in manifest}:
            raise Denied(Refusal.INPUTS, "other files arrived than were announced")
        found = transfer_state.read_found(job)
        if len(manifest) < _SHARED_FROM:
            _check_files(folder, manifest, found)
            return
        half = len(manifest) // 2
        with _helped(lambda: _check_files(folder, manifest[:half], found)):
            _check_files(folder, manifest[half:], found)


@contextlib.contextmanager
def _helped(work: Callable[[], None]) -> Iterator[None]:
    """Do `work` beside a block, in a process of its own; what that could not finish well is done once more here."""
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    try:
        yield
    finally:
        well = os.waitpid(helper, 0)[1] == 0
    if not well:
        work()


def _check_files(folder: int, entries: Manifest, found: Dict[str, Any]) -> None:
    for entry in entries:
        if not _is_announced(folder, entry, found.get(entry.name)):
            raise Denied(Refusal.INPUTS, "a file is not the announced one")


def _is_announced(folder: int, entry: Entry, found: object) -> bool:
    """Whether the file is a plain one with the entry's content; `found` is what a transfer noted of it."""
    try:
        descriptor, status = files.open_known(folder, entry.name, single=True)
    except OSError:
        raise Denied(Refusal.INPUTS, "what arrived is not a plain file") from None
    try:
        if found is not None and found == [entry.size, entry.sha256, identify(status)]:
            return True
        return status.st_size == entry.size and hash_descriptor(descriptor, entry.size)[1] == entry.sha256
    finally:
        os.close(descriptor)
