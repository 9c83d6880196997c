"""Files on their way in and out: resumable, bounded in memory, on disk before they are counted.

One writer at a time holds a file (a lock on the file itself, so that several servers on one spool agree). A new call
for the same upload ends the old one: its sender has given up, or it would not ask.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
import fcntl
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..job.faults import reach
from ..wire import api
from ..wire.api import ApiError
from .call import Answer, Call, Gone, answer_value
from .problems import Refused, malformed
from .records import FileRecord
from .spool import Spool, storage

BLOCK = 1 << 20
PIECE = 256 << 10
FLUSH_BYTES = 64 << 20
LOCK_SECONDS = 10.0
MAX_HASHERS = 256
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):", re.ASCII)


def parse_digest(text: str | None) -> str:
    """The sha256 in hex out of a `Repr-Digest` header."""
    match = _DIGEST.fullmatch(text or "")
    if match is None:
        raise malformed("Repr-Digest: sha-256=:BASE64: is needed")
    try:
        return base64.b64decode(match[1], validate=True).hex()
    except binascii.Error:
        raise malformed("the digest is not well formed") from None


def render_digest(sha256: str) -> str:
    """The header's value."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


class Receiver:
    """Appends to one file of the spool. Bytes go to disk in blocks, in a thread, while the next ones come in."""

    def __init__(self, pool: ThreadPoolExecutor, descriptor: int, offset: int, hasher: Any) -> None:
        self._pool, self._descriptor, self._hasher = pool, descriptor, hasher
        self.offset = offset  # what has been written
        self._buffer = bytearray()
        self._pending: asyncio.Future[None] | None = None
        self._unflushed = 0

    async def feed(self, piece: bytes) -> None:
        """Take the next bytes; raises Refused `full`."""
        self._buffer += piece
        if len(self._buffer) >= BLOCK:
            await self._settle()
            self._hand_over(False)

    async def finish(self) -> None:
        """Everything that was fed is on disk."""
        await self._settle()
        self._hand_over(True)
        await self._settle()

    def _hand_over(self, flush: bool) -> None:
        block, self._buffer = self._buffer, bytearray()
        self._pending = asyncio.get_running_loop().run_in_executor(self._pool, self._append, block, flush)

    async def _settle(self) -> None:
        """The block under way is written; a caller that is cancelled here leaves it under way."""
        if self._pending is not None:
            pending = self._pending
            try:
                await asyncio.shield(pending)
            finally:
                if pending.done():
                    self._pending = None

    def _append(self, block: bytearray, flush: bool = False) -> None:
        view = memoryview(block)
        try:
            while view:
                count = os.pwrite(self._descriptor, view, self.offset)
                self._hasher.update(view[:count])
                self.offset += count
                self._unflushed += count
                view = view[count:]
            if flush or self._unflushed >= FLUSH_BYTES:
                os.fdatasync(self._descriptor)
                self._unflushed = 0
        except OSError as error:
            raise storage(error) from None


class Transfers:
    """All transfers of this process."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.pool = ThreadPoolExecutor(8, "misrc-file")
        self._active: dict[Path, asyncio.Task[Any]] = {}
        # How far which bytes were hashed, so that a transfer in many pieces is not read again at its end.
        self._hashers: OrderedDict[Path, tuple[int, Any]] = OrderedDict()

    async def in_thread(self, work: Any, *values: Any) -> Any:
        """Do what waits for the disk outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *values)

    @contextlib.asynccontextmanager
    async def hold(self, path: Path) -> AsyncIterator[int]:
        """The file, open for writing and nobody else's; an earlier call for it is ended first."""
        await self.interrupt(path)
        task = asyncio.current_task()
        if task is not None:
            self._active[path] = task
        descriptor = -1
        try:
            descriptor = await self.in_thread(self.spool.open_writable, path)
            await _lock(descriptor)
            yield descriptor
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            if self._active.get(path) is task:
                del self._active[path]

    async def interrupt(self, path: Path) -> None:
        """End the call that writes this file now, and wait until what it had is on disk."""
        task = self._active.get(path)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait((task,), timeout=LOCK_SECONDS)

    async def receive(self, call: Call, path: Path, descriptor: int, length: int, start: int) -> tuple[int, str | None]:
        """Append the body at `start`; where it ends, and the sha256 if the whole is here. Keeps what came of a cut."""
        await self.in_thread(self.spool.check_room, length - start)
        receiver = Receiver(self.pool, descriptor, start, self._take_hasher(path, start) or _NoHash())
        try:
            room = length - start
            announced = call.content_length()
            if announced is not None and announced > room:
                raise Refused(ApiError.TOO_LARGE, "more bytes than the upload has", start)
            async for piece in call.pieces():
                room -= len(piece)
                if room < 0:
                    raise Refused(ApiError.TOO_LARGE, "more bytes than the upload has", start)
                await receiver.feed(piece)
                reach("api.upload.fed")
            await receiver.finish()
        except Refused as refused:
            if refused.code is ApiError.TOO_LARGE:
                receiver.offset = await self.in_thread(_cut, descriptor, start)
                raise
            await _keep(receiver)
            refused.offset = receiver.offset
            raise
        except (Gone, asyncio.CancelledError):
            await asyncio.shield(_keep(receiver))
            raise
        reach("api.upload.flushed")
        if receiver.offset < length:
            self._keep_hasher(path, receiver.offset, receiver._hasher)
            return receiver.offset, None
        if isinstance(receiver._hasher, _NoHash):
            return length, await self.in_thread(hash_file, descriptor)
        return length, receiver._hasher.hexdigest()

    def _take_hasher(self, path: Path, offset: int) -> Any:
        known, hasher = self._hashers.pop(path, (0, None))
        if offset == 0:
            return hashlib.sha256()
        return hasher if known == offset else None

    def _keep_hasher(self, path: Path, offset: int, hasher: Any) -> None:
        if not isinstance(hasher, _NoHash):
            self._hashers[path] = (offset, hasher)
            if len(self._hashers) > MAX_HASHERS:
                self._hashers.popitem(last=False)

    async def stream(self, path: Path, start: int, stop: int) -> AsyncIterator[bytes]:
        """A part of a file; one piece is read ahead."""
        descriptor = await self.in_thread(_open_readable, path)
        try:
            ahead = asyncio.ensure_future(self.in_thread(os.pread, descriptor, min(PIECE, stop - start), start))
            while start < stop:
                piece = await ahead
                if not piece:
                    raise Gone
                start += len(piece)
                if start < stop:
                    following = asyncio.ensure_future(
                        self.in_thread(os.pread, descriptor, min(PIECE, stop - start), start)
                    )
                    yield piece
                    ahead = following
                else:
                    yield piece
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()


class _NoHash:
    """In place of a hash whose beginning is not known: the file is read at the end."""

    def update(self, _data: object) -> None:
        """Nothing."""


async def _keep(receiver: Receiver) -> None:
    """Flush what came, if the disk still can."""
    for _ in range(2):  # the first may meet a block that failed; the second flushes what is there
        with contextlib.suppress(Refused):
            await receiver.finish()
            return


def _cut(descriptor: int, size: int) -> int:
    os.ftruncate(descriptor, size)
    os.fdatasync(descriptor)
    return size


def cut_to_nothing(descriptor: int) -> None:
    """The upload starts again from zero."""
    _cut(descriptor, 0)


async def _lock(descriptor: int) -> None:
    """Another server may be writing this file."""
    end = asyncio.get_running_loop().time() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise storage(error) from None
        if asyncio.get_running_loop().time() > end:
            raise Refused(ApiError.BUSY, "another call is writing this file")
        await asyncio.sleep(0.05)


def _open_readable(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise storage(error) from None


def hash_file(descriptor: int) -> str:
    """The sha256 of a whole open file."""
    digest = hashlib.sha256()
    view = memoryview(bytearray(BLOCK))
    offset = 0
    while count := os.preadv(descriptor, [view], offset):
        digest.update(view[:count])
        offset += count
    return digest.hexdigest()


# -- downloads ---------------------------------------------------------------------------------------------------------


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """First byte and end of a single `Range: bytes=…`; None for the whole. Refused where it cannot be served."""
    if text is None:
        return None
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", text, re.ASCII)
    if match is None or not (match[1] or match[2]):
        raise Refused(ApiError.OFFSET, "only one range of bytes is served", size)
    if not match[1]:
        start, stop = max(0, size - int(match[2])), size
    else:
        start, stop = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    if size == 0 and start == 0:
        return None  # all of nothing
    if start >= stop:
        raise Refused(ApiError.OFFSET, "the range lies outside the file", size)
    return start, stop


def send_file(transfers: Transfers, call: Call, file: FileRecord, path: Path) -> Answer:
    """The bytes of a file, or the part that is asked for."""
    etag = f'"{file.sha256}"'
    wanted = call.text_header("range")
    if call.headers.get(b"if-range", etag.encode()) != etag.encode():
        wanted = None
    part = parse_range(wanted, file.size)
    start, stop = part or (0, file.size)
    headers = [
        (b"etag", etag.encode()),
        (b"repr-digest", render_digest(file.sha256).encode()),
        (b"accept-ranges", b"bytes"),
        (b"content-disposition", b"attachment"),
    ]
    if part is not None:
        headers.append((b"content-range", f"bytes {start}-{stop - 1}/{file.size}".encode()))
    answer = Answer(206 if part is not None else 200, b"", headers, b"application/octet-stream")
    if file.content is not None:
        answer.body = file.content[start:stop]
    else:
        answer.stream, answer.length = transfers.stream(path, start, stop), stop - start
    return answer


def answer_offset(status: int, offset: int, length: int) -> Answer:
    """How much of an upload is here."""
    headers = [(b"upload-offset", str(offset).encode()), (b"upload-length", str(length).encode())]
    return answer_value(api.LogOffset(offset), status, [*headers, (b"cache-control", b"no-store")])
