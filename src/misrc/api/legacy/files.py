"""The files inside the predecessor's documents: out of a body as it comes, and into an answer as it goes.

Small files go into the database with their job, so that a job of a few kilobytes costs no file at all; larger ones go
straight to the spool. A body of two gigabytes is never in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ...job.codec import CodecError, dump_json
from ...job.spec import MAX_INLINE_BYTES
from ...wire.api import MAX_SMALL_FILES, ApiError
from ...wire.content import Blob, Content, FileSource
from ...wire.legacy import Call as OldCall
from ...wire.scanner import Limits, Path, TooLarge
from .. import records
from ..call import Call
from ..problems import Refused, malformed
from ..records import FileRecord
from ..service import Service
from ..spool import storage
from .scanner import encode_result, request_scanner

BLOCK = 1 << 20
SMALL_FILE = 64 << 10
PIECE = 1 << 20
BYTES = ("application/octet-stream;", "charset=binary")


@dataclass
class Sink:
    """Takes one file's bytes; in memory while it is small."""

    service: Service
    job: str
    side: str
    number: int = field(default_factory=records.new_number)
    size: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256()
        self._held = bytearray()
        self._descriptor = -1

    def write(self, data: bytes, /) -> None:
        """The next bytes."""
        self._digest.update(data)
        self.size += len(data)
        self._held += data
        if len(self._held) > SMALL_FILE:
            self._spill()

    def close(self) -> None:
        """All bytes are here: those in the spool are on disk."""
        if self._descriptor >= 0 and not self.closed:
            self._spill()
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                raise storage(error) from None
            finally:
                os.close(self._descriptor)
        self.closed = True

    def keep_on_disk(self) -> None:
        """To the spool, although it is small: there are too many of its kind."""
        self.closed = False
        self._spill()
        self.close()

    def _spill(self) -> None:
        if self._descriptor < 0:
            self.service.spool.check_room(self.size)
            path = self.service.spool.path(self.job, self.side, self.number)
            self._descriptor = self.service.spool.open_writable(path)
        try:
            view = memoryview(self._held)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise storage(error) from None
        self._held = bytearray()

    def record(self, name: str, media: tuple[str, str]) -> FileRecord:
        """The file as the store keeps it."""
        content = bytes(self._held) if self._descriptor < 0 else None
        words = dump_json(list(media)).decode()
        return FileRecord(
            self.job, self.side, self.number, name, self.size, self._digest.hexdigest(), True, content, words
        )


class Intake:
    """One body with files on its way into the spool. What is not kept in the end is deleted."""

    def __init__(self, service: Service, job: str, side: str) -> None:
        self._service, self._job, self._side = service, job, side
        self._sinks: list[Sink] = []

    def _open(self, _path: Path) -> Sink:
        self._sinks.append(Sink(self._service, self._job, self._side))
        return self._sinks[-1]

    async def read(self, call: Call, kind: OldCall) -> Any:
        """The body's document, with a `Blob` for each file; raises Refused."""
        limits = Limits(total=self._service.job_bytes)
        scanner = request_scanner(kind, self._open, limits)
        in_thread = self._service.transfers.in_thread
        buffer, pending = bytearray(), None
        try:
            async for piece in call.pieces(self._service.job_bytes * 4 // 3 + (8 << 20)):
                buffer += piece
                if len(buffer) >= BLOCK:
                    if pending is not None:
                        await pending
                    block, buffer = bytes(buffer), bytearray()
                    pending = asyncio.ensure_future(in_thread(scanner.feed, block))
            if pending is not None:
                await pending
                pending = None
            return await in_thread(_last, scanner, bytes(buffer))
        except TooLarge:
            raise Refused(ApiError.TOO_LARGE, "the body, or a file in it, is too long") from None
        except CodecError as error:
            raise malformed(str(error)[:200]) from None
        finally:
            if pending is not None:
                await asyncio.wait((pending,))
                pending.exception()
            await in_thread(scanner.abort)

    async def keep(self, files: dict[str, tuple[Content, tuple[str, str]]]) -> list[FileRecord]:
        """These files, by the name that they get, as the store keeps them."""
        held = 0
        found: list[FileRecord] = []
        for name, (content, media) in files.items():
            sink = content.sink if isinstance(content, Blob) else self._in_memory(content)
            record: FileRecord = sink.record(name, media)
            if record.content is not None:
                held += record.size
                if held > MAX_INLINE_BYTES or len(found) >= MAX_SMALL_FILES:
                    await self._service.transfers.in_thread(sink.keep_on_disk)
                    record = sink.record(name, media)
            found.append(record)
        return found

    def _in_memory(self, content: Content) -> Sink:
        sink = self._open(())
        if isinstance(content, bytes):
            sink.write(content)
        sink.close()
        return sink

    async def drop(self, kept: list[FileRecord] | None = None) -> None:
        """Delete what lies in the spool and is not among those."""
        numbers = {file.number for file in kept or ()}
        for sink in self._sinks:
            if sink.number not in numbers:
                path = self._service.spool.path(self._job, self._side, sink.number)
                await self._service.transfers.in_thread(self._service.spool.remove_file, path)


def _last(scanner: Any, block: bytes) -> Any:
    scanner.feed(block)
    return scanner.finish()


def source_of(service: Service, file: FileRecord) -> Content:
    """A file for an answer: its bytes, or where they are read from while the answer is sent."""
    if file.content is not None:
        return file.content
    path = service.spool.path(file.job, file.side, file.number)
    return FileSource(file.size, lambda: _open(path))


def _open(path: Any) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return io.BufferedReader(io.FileIO(descriptor, "rb"), BLOCK)


def guess_types(data: bytes) -> tuple[str, str]:
    """The two words of `file -i -b`. Old clients decode what is called a text, and break off where it is none."""
    for charset in ("us-ascii", "utf-8"):
        try:
            text = data.decode(charset)
        except UnicodeDecodeError:
            continue
        if all(c in "\t\n\r\f\x1b" or c >= " " for c in text):
            return "text/plain;", f"charset={charset}"
    return BYTES


async def stream_document(service: Service, document: Any) -> tuple[AsyncIterator[bytes], int]:
    """A document with files in it, as pieces, and its whole length."""
    body = encode_result(document)
    pieces = iter(body)

    def some() -> bytes:
        found = bytearray()
        for piece in pieces:
            found += piece
            if len(found) >= PIECE:
                break
        return bytes(found)

    async def send() -> AsyncIterator[bytes]:
        while piece := await service.transfers.in_thread(some):
            yield piece

    return send(), len(body)


def copy_files(service: Service, files: list[FileRecord], descriptor: int) -> int:
    """Write files one behind the other into an open file, in place of what is there; how many bytes that were."""
    size = 0
    try:
        for file in files:
            if file.content is not None:
                size += os.pwrite(descriptor, file.content, size)
                continue
            with _open(service.spool.path(file.job, file.side, file.number)) as stream:
                while block := stream.read(BLOCK):
                    size += os.pwrite(descriptor, block, size)
        os.ftruncate(descriptor, size)
        os.fdatasync(descriptor)
    except OSError as error:
        raise storage(error) from None
    return size
