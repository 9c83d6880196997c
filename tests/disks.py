"""A small file system of its own for an ordinary user: a tmpfs in a namespace, over a folder that is there."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Disk:
    """`prefix` stands before a command that sees it; `place` is the folder as everybody else sees it."""

    prefix: list[str]
    place: Path

    @property
    def room(self) -> int:
        """Free bytes."""
        status = os.statvfs(self.place)
        return status.f_bavail * status.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all of the room but so many bytes; with no byte left, really try to write one more."""
        with (self.place / "ballast").open("ab", buffering=0) as file:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + max(0, self.room - leave))
            while leave == 0 and self.room:
                file.write(bytes(4096))

    def clear(self) -> None:
        """Give the room back."""
        (self.place / "ballast").unlink()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Disk]:
    """So much for what lies below `folder`, for those that enter by `prefix`; gone afterwards."""
    inner = f"exec unshare -Um --map-user={os.getuid()} --map-group={os.getgid()} sh -c 'echo ready; exec sleep 3600'"
    mount = f"mount -t tmpfs -o size={size},mode=700 none {folder} && {inner}"
    holder = subprocess.Popen(["unshare", "-Urm", "sh", "-c", mount], stdout=subprocess.PIPE, start_new_session=True)
    assert holder.stdout is not None
    try:
        if holder.stdout.readline() != b"ready\n":
            pytest.skip("this kernel gives an ordinary user no file system of its own")
        enter = ["nsenter", "-t", str(holder.pid), "-U", "-m", "--preserve-credentials"]
        yield Disk(enter, Path(f"/proc/{holder.pid}/root{folder}"))
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
