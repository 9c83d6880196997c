"""The manifest: name, size and sha256 of every file. Files count only when their manifest matches what arrived.

A document is one canonical JSON line per file, sorted by name, so that equal sets have equal digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import Callable, Iterable, Tuple

from .codec import CodecError, parse_json
from .names import SHA256, NameRefused, check_distinct

MAX_DOCUMENT_BYTES = 64 << 20
BLOCK = 1 << 20
_DIGEST = re.compile(SHA256, re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One file: relative name, size in bytes, sha256 in lower-case hex."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if self.size < 0 or not _DIGEST.fullmatch(self.sha256):
            raise ValueError("a manifest entry needs a size and a sha256")


Manifest = Tuple[Entry, ...]


def make_manifest(entries: Iterable[Entry]) -> Manifest:
    """The entries in canonical order."""
    return tuple(sorted(entries, key=lambda entry: entry.name.encode("utf-8")))


def total_bytes(manifest: Manifest) -> int:
    """Sum of the files' sizes in bytes."""
    return sum(entry.size for entry in manifest)


def render_manifest(manifest: Manifest) -> bytes:
    """The manifest's document."""
    return b"".join(
        b'{"name":%s,"sha256":"%s","size":%d}\n'
        % (json.dumps(entry.name, ensure_ascii=False).encode("utf-8"), entry.sha256.encode("ascii"), entry.size)
        for entry in manifest
    )


def digest_manifest(manifest: Manifest) -> str:
    """sha256 of the manifest's document, in hex."""
    return hashlib.sha256(render_manifest(manifest)).hexdigest()


def parse_manifest(document: bytes, check_name: Callable[[str], None], max_files: int) -> Manifest:
    """Parse a manifest that somebody else wrote: bounded, names checked, canonical order, no two names alike."""
    if len(document) > MAX_DOCUMENT_BYTES:
        raise CodecError("the manifest is too long")
    if document and not document.endswith(b"\n"):
        raise CodecError("the manifest is cut")
    if document.count(b"\n") > max_files:
        raise CodecError("the manifest has too many files")
    try:
        lines = document.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError:
        raise CodecError("the manifest is not UTF-8") from None
    return check_manifest(map(_parse_line, lines), check_name)


# The canonical form and no other: a line that any other JSON writer would spell differently is refused.
_LINE = re.compile(
    r'\{"name":"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)","sha256":"([0-9a-f]{64})","size":(0|[1-9][0-9]{0,17})\}'
)


def _parse_line(line: str) -> Entry:
    match = _LINE.fullmatch(line)
    if match is None:
        raise CodecError("the manifest has a line that is not an entry in canonical form")
    name, sha256, size = match.groups()
    return Entry(parse_json(f'"{name}"'.encode()) if "\\" in name else name, int(size), sha256)


def check_manifest(entries: Iterable[Entry], check_name: Callable[[str], None]) -> Manifest:
    """The entries as a manifest, if every name is legal and stands in canonical order."""
    given = tuple(entries)
    try:
        for entry in given:
            check_name(entry.name)
        check_distinct(entry.name for entry in given)
    except NameRefused as error:
        raise CodecError(f"a file name {error}") from None
    if given != make_manifest(given):
        raise CodecError("the manifest is not in order")
    return given


def hash_descriptor(descriptor: int, size_hint: int) -> Tuple[int, str]:
    """Bytes from an open file's position to its end, and their sha256. `size_hint` spares a large buffer."""
    digest = hashlib.sha256()
    size = 0
    if size_hint < BLOCK:
        data = os.read(descriptor, size_hint + 1)
        digest.update(data)
        size = len(data)
        if size == size_hint:
            return size, digest.hexdigest()
    view = memoryview(bytearray(BLOCK))
    while True:
        count = os.readv(descriptor, [view])
        if not count:
            return size, digest.hexdigest()
        digest.update(view[:count])
        size += count


def identify(status: os.stat_result) -> str:
    """What changes when a file is replaced or written to."""
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
