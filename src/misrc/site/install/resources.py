"""Resources of a host that shall be so: accounts, folders, files. Each knows whether it is, and can make itself so."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
from dataclasses import dataclass
from typing import Callable

from .. import files


class HostError(Exception):
    """Why the host cannot be installed; the message says what to do."""


@dataclass(frozen=True)
class Resource:
    """One resource that shall be so."""

    name: str
    is_so: Callable[[], bool]
    make_so: Callable[[], None]


def account(name: str, shell: str, home: str) -> Resource:
    """An account without a password (`*`: a key still works, whatever PAM says) and an empty home."""

    def make() -> None:
        run(
            "useradd",
            "--system",
            "--user-group",
            "--home-dir",
            home,
            "--shell",
            shell,
            "--password",
            "*",
            name,
        )

    def is_so() -> bool:
        try:
            return pwd.getpwnam(name).pw_shell == shell
        except KeyError:
            return False

    return Resource(f"account {name}", is_so, make)


def folder(path: str, owner: str, group: str, mode: int) -> Resource:
    """A folder with its owner and mode."""

    def is_so() -> bool:
        return _stands(path, stat.S_ISDIR, owner, group, mode)

    def make() -> None:
        os.makedirs(path, exist_ok=True)
        _own(path, owner, group, mode)

    return Resource(f"folder {path}", is_so, make)


def file(path: str, data: bytes, owner: str, group: str, mode: int) -> Resource:
    """A file with its content, owner and mode."""

    def is_so() -> bool:
        if not _stands(path, stat.S_ISREG, owner, group, mode):
            return False
        with open(path, "rb") as present:
            return present.read(len(data) + 1) == data

    def make() -> None:
        with files.opened(files.open_folder(os.path.dirname(path))) as place:
            files.write_record(place, os.path.basename(path), data)
        _own(path, owner, group, mode)

    return Resource(f"file {path}", is_so, make)


def _stands(path: str, kind: Callable[[int], bool], owner: str, group: str, mode: int) -> bool:
    try:
        status = os.lstat(path)
        wanted = (pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid, mode)
    except (OSError, KeyError):
        return False
    return kind(status.st_mode) and (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == wanted


def _own(path: str, owner: str, group: str, mode: int) -> None:
    os.chown(path, pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid, follow_symlinks=False)
    os.chmod(path, mode)


def run(*words: str) -> None:
    """Carry out a command of the host; HostError is its last line."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostError(f"{words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
