"""MInt's job keys: made here, never overwritten, never leaving this node, and gone for good when they are destroyed.

Not covered: a file system or a disk that keeps old blocks. Who must be sure of that encrypts the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..job.errors import BadRequest
from ..job.faults import reach
from ..job.public_keys import fingerprint as fingerprint
from ..job.public_keys import parse_public_key
from ..job.records import write_record
from .link.link import last_line
from .messages.catalog import say

KEYGEN = "/usr/bin/ssh-keygen"
MAX_KEY_BYTES = 16 << 10


def public_line(public: str, site: str) -> str:
    """The public key with the comment that says whose it is."""
    return f"{public} misrc-{site}"


def public_file(private: Path) -> Path:
    """Where the public half lies beside a private key."""
    return private.with_name(private.name + ".pub")


def read_public(private: Path) -> str:
    """The public half of a private key, from the private key itself; BadRequest where it cannot be used."""
    done = subprocess.run(
        [KEYGEN, "-y", "-P", "", "-f", str(private)], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode != 0:
        why = last_line(done.stderr.decode("utf-8", "replace")) or "?"
        raise BadRequest(say("key.unusable", path=private, why=why))
    try:
        return parse_public_key(done.stdout.decode("utf-8", "replace").strip())
    except ValueError as error:
        raise BadRequest(say("key.unusable", path=private, why=error)) from None


def read_public_of(data: bytes, name: str) -> str:
    """The public half of a private key that is not in its place yet; BadRequest calls it `name`."""
    with tempfile.TemporaryDirectory(prefix="misrc-key-") as room:
        path = Path(room, "key")
        path.touch(mode=0o600)
        path.write_bytes(data)
        try:
            return read_public(path)
        except BadRequest as error:
            raise BadRequest(str(error).replace(str(path), name)) from None


def make_key(private: Path, site: str, given: bytes | None = None) -> str:
    """Make the key `private` (or take the `given` one); its public half. An existing file is never replaced."""
    private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _workshop(private) as room:
        fresh = room / "key"
        if given is None:
            words = [KEYGEN, "-q", "-t", "ed25519", "-N", "", "-C", f"misrc-{site}", "-f", str(fresh)]
            subprocess.run(words, stdin=subprocess.DEVNULL, check=True)
        else:
            fresh.touch(mode=0o600)
            fresh.write_bytes(given)
        public = read_public(fresh)
        _sync(fresh)
        reach("key.made")
        try:
            os.link(fresh, private)
        except FileExistsError:
            raise BadRequest(say("key.exists", path=private)) from None
    _sync(private.parent)
    reach("key.placed")
    write_public(private, public, site)
    return public


def write_public(private: Path, public: str, site: str) -> None:
    """Write the public half beside a private key, for people."""
    with folder(private.parent) as descriptor:
        write_record(descriptor, public_file(private).name, f"{public_line(public, site)}\n".encode())


def destroy(private: Path) -> None:
    """Write over a private key and remove it, with its public half; doing it again changes nothing."""
    public_file(private).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        wipe(private)
        private.unlink()
        _sync(private.parent)


def replace(private: Path, following: Path, site: str) -> None:
    """The key `following` takes the place of `private`, which is gone with that."""
    public = read_public(following)
    public_file(following).unlink(missing_ok=True)
    with private.open("r+b") as old:
        following.rename(private)
        old.write(b"\0" * os.fstat(old.fileno()).st_size)
    write_public(private, public, site)


def wipe(path: Path) -> None:
    """Write zeros over a file's content, as far as the file system does that in place."""
    with path.open("r+b") as file:
        file.write(b"\0" * os.fstat(file.fileno()).st_size)
        file.flush()
        os.fsync(file.fileno())


def read_key_file(path: str, option: str) -> bytes:
    """The bytes of a small file that an option names; `-` is standard input."""
    import sys

    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_KEY_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise BadRequest(say("option.file", option=option, path=path, why=error.strerror)) from None
    if not data.strip() or len(data) > MAX_KEY_BYTES:
        raise BadRequest(say("option.file", option=option, path=path, why="empty, or longer than 16 KiB"))
    return data


def parse_public_lines(data: bytes, option: str) -> tuple[str, ...]:
    """The public keys in a file, one per line, as `ssh_host_ed25519_key.pub` holds them; BadRequest names the line."""
    keys = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            keys.append(parse_public_key(line))
        except ValueError as error:
            raise BadRequest(say("option.key", option=option, number=number, why=error)) from None
    if not keys:
        raise BadRequest(say("option.key", option=option, number=1, why="-"))
    return tuple(dict.fromkeys(keys))


@contextlib.contextmanager
def locked(private: Path) -> Iterator[None]:
    """One change of a site's keys at a time; another one is refused, not queued."""
    private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = private.with_name(f".{private.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadRequest(say("key.busy", path=private)) from None
        _sweep(private)
        yield
    finally:
        os.close(descriptor)


def _sweep(private: Path) -> None:
    """Remove what a killed command left unfinished; while the lock is held, nobody else is at work on it."""
    name = glob.escape(private.name)
    for part in ("new-*", "pub.*", "next.new-*", "next.pub.*", "rotation.json.*"):
        for left in private.parent.glob(f".{name}.{part}"):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


@contextlib.contextmanager
def folder(path: Path) -> Iterator[int]:
    """An open folder, for `write_record`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _workshop(private: Path) -> Iterator[Path]:
    """A private folder beside the key, so that a key gets its name only when it is whole."""
    room = Path(tempfile.mkdtemp(prefix=f".{private.name}.new-", dir=private.parent))
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
