"""The program's folder: its inputs are copied in, and checked once more against the manifest on the way."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Optional

from ...job.manifest import BLOCK, Entry, Manifest, parse_manifest
from ...job.names import check_input_name
from ...job.records import write_all
from .. import files, kernel
from ..accounts import Account
from ..jobs import JobFolder

INPUTS = "inputs.jsonl"


class InputsChanged(Exception):
    """A received input is not the file that was checked at the start."""


def read_inputs(job: JobFolder) -> Manifest:
    """The checked manifest of the inputs."""
    document = files.read_record(job.folder, INPUTS, 64 << 20)
    return parse_manifest(document or b"", check_input_name, 10**7)


def prepare(job: JobFolder, owner: Optional[Account] = None) -> None:
    """Fill `work/` from `in/`, from scratch, for the account that will run the program; raises InputsChanged."""
    empty(job, "work")
    with files.opened(job.sub("in")) as source, files.opened(job.sub("work")) as target:
        if owner is not None:
            os.fchown(target, owner.uid, owner.gid)
        for entry in read_inputs(job):
            _copy(source, target, entry, owner)


def empty(job: JobFolder, name: str) -> None:
    """Make one of the job's folders anew, unless it is empty."""
    with files.opened(job.sub(name)) as folder:
        if not os.listdir(folder):
            return
    import shutil

    shutil.rmtree(files.path_below(job.folder, name, job.path))
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, files.PRIVATE_FOLDER, dir_fd=job.folder)


def _copy(source: int, target: int, entry: Entry, owner: Optional[Account]) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = files.open_regular(source, entry.name, single=True)
    except OSError:
        raise InputsChanged(entry.name) from None
    digest = hashlib.sha256()
    size = 0
    with open(descriptor, "rb", buffering=0) as reader:
        with open(os.open(entry.name, flags, files.PRIVATE_FILE, dir_fd=target), "r+b", buffering=0) as writer:
            if owner is not None:
                os.fchown(writer.fileno(), owner.uid, owner.gid)
            cloned = kernel.clone_file(reader.fileno(), writer.fileno())
            stream = writer if cloned else reader
            while True:
                data = stream.read(BLOCK)
                if not data:
                    break
                digest.update(data)
                size += len(data)
                if not cloned:
                    write_all(writer.fileno(), data)
    if (size, digest.hexdigest()) != (entry.size, entry.sha256):
        raise InputsChanged(entry.name)
