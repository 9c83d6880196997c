"""The ledger file at the site. Where it cannot be written, nothing new starts and nothing leaves.

`cancel` and `close` must still work on a full disk: they may use up a reserve that was allocated at install.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any, BinaryIO, Callable, Iterator, Mapping, Optional, Sequence, TypeVar

from ..job.faults import reach
from ..job.ledger import GENESIS, MAX_LINE_BYTES, Checkpoint, hash_line, parse_record, render_record
from ..wire.refusals import Denied, Refusal
from .contract import Contract, is_frozen
from .files import locked, open_folder, opened
from .kernel import boot_id, uptime

FILE = "ledger.jsonl"
RESERVE = "ledger.reserve"
RESERVE_BYTES = 256 << 10
# Most lines are short: the last one is looked for in so much of the file first.
_TAIL_BYTES = 4 << 10

T = TypeVar("T")


class Ledger:
    """The append-only file in `folder`; every append is on disk before it returns.

    With a `contract` a record is added only where that allows what the record stands for.
    """

    def __init__(self, folder: str, **actor: Any) -> None:
        self.folder = folder
        self._actor = actor
        self.contract: Optional[Contract] = None
        self.checkpoint: Optional[Checkpoint] = None

    def append(self, event: str, essential: bool = False, **fields: Any) -> Checkpoint:
        """Add one record; raises Denied(LEDGER) where that is not possible. `essential` may use the reserve."""
        return self.append_all(event, [fields], essential)

    def append_all(self, event: str, records: Sequence[Mapping[str, Any]], essential: bool = False) -> Checkpoint:
        """Add several records of one event: one write, one sync."""
        return self._append_locked(event, records, essential, None)

    def switch(self, event: str, effect: Callable[[int], None], **fields: Any) -> Checkpoint:
        """Add one record and then do `effect` in the ledger's folder, both under one lock; may use the reserve."""
        return self._append_locked(event, [fields], True, effect)

    def is_frozen(self) -> bool:
        """Whether the site takes and starts no jobs now."""
        return is_frozen(self.folder)

    def allows(self, event: str, **fields: Any) -> bool:
        """Whether the contract would let this record in now; adds nothing."""
        try:
            with opened(open_folder(self.folder)) as folder, locked(folder, "ledger.lock"), _open(folder) as file:
                self._check(folder, file, event, [fields])
        except (Denied, OSError, ValueError):
            return False
        return True

    def _append_locked(
        self,
        event: str,
        records: Sequence[Mapping[str, Any]],
        essential: bool,
        effect: Optional[Callable[[int], None]],
    ) -> Checkpoint:
        reach(f"ledger.{event}.before")
        try:
            with opened(open_folder(self.folder)) as folder, locked(folder, "ledger.lock"):
                self.checkpoint = self._with_reserve(essential, lambda: self._append(folder, event, records))
                reach(f"ledger.{event}.written")
                if effect is not None:
                    self._with_reserve(essential, lambda: effect(folder))
        except (OSError, ValueError) as error:
            raise Denied(Refusal.LEDGER, f"ledger: {error}") from None
        reach(f"ledger.{event}.after")
        return self.checkpoint

    def _with_reserve(self, essential: bool, action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            if not essential or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.truncate(f"{self.folder}/{RESERVE}", 0)
            return action()

    def _check(self, folder: int, file: Any, event: str, records: Sequence[Mapping[str, Any]]) -> None:
        if self.contract is not None:
            self.contract.check(folder, file.fileno(), event, records)

    def _append(self, folder: int, event: str, records: Sequence[Mapping[str, Any]]) -> Checkpoint:
        with _open(folder) as file:
            checkpoint = _mend_tail(file, folder)
            self._check(folder, file, event, records)
            text = b""
            for fields in records:
                line, checkpoint = render_record(checkpoint, {**self._actor, **_now(), **fields, "event": event})
                text += line + b"\n"
            size = os.fstat(file.fileno()).st_size
            try:
                if file.write(text) != len(text):
                    raise OSError(errno.ENOSPC, "the ledger took only a part of a line")
                _sync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise
            return checkpoint


def _open(folder: int) -> Any:
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(FILE, flags, dir_fd=folder), "r+b", buffering=0)


# Elsewhere than on Linux the file's times are synced too.
_sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def _now() -> "dict[str, Any]":
    return {
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "boot": boot_id(),
        "uptime": int(uptime() * 1000),
    }


def _mend_tail(file: Any, folder: int) -> Checkpoint:
    """The last whole line's checkpoint; a torn last line (a crash while writing) is set aside first."""
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - _TAIL_BYTES)
    tail = os.pread(file.fileno(), size - start, start)
    if start and tail.count(b"\n") < 2:
        start = max(0, size - MAX_LINE_BYTES - 2)
        tail = os.pread(file.fileno(), size - start, start)
    if tail and not tail.endswith(b"\n"):
        whole = tail.rfind(b"\n") + 1
        with open(
            os.open("ledger.torn", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600, dir_fd=folder), "ab"
        ) as torn:
            torn.write(tail[whole:] + b"\n")
        os.ftruncate(file.fileno(), start + whole)
        tail = tail[:whole]
    if not tail:
        return Checkpoint(-1, GENESIS)
    line = tail[:-1].rpartition(b"\n")[2]
    return Checkpoint(parse_record(line)["seq"], hash_line(line))


def create_ledger(folder: str) -> None:
    """Make the empty ledger and its reserve, unless they are there."""
    for name, size in ((FILE, 0), (RESERVE, RESERVE_BYTES)):
        with open(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as file:
            if os.fstat(file.fileno()).st_size == 0 and size:
                file.write(b"\0" * size)


def read_lines(folder: str) -> Iterator[bytes]:
    """The ledger's raw lines."""
    stream: BinaryIO
    with open(f"{folder}/{FILE}", "rb") as stream:
        while True:
            line = stream.readline(MAX_LINE_BYTES + 2)
            if not line:
                return
            yield line
