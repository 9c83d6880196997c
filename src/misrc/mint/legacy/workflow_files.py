"""The files of the predecessor's workflow client: inputs are read while they are sent, results appear whole or not.

Results are received into a private folder beside their places and moved there when the whole answer was understood, so
that no half file is ever seen under a result's name. A file that was not asked for is never written at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ...job.errors import BadRequest
from ...wire.content import MAX_TEXT, Blob, FileSource, text_length
from ...wire.legacy_files import InputFile, ResultFile
from ...wire.scanner import Path as Place
from ...wire.scanner import Sink
from ..messages.catalog import say
from .client import printable

_SAMPLE = 1 << 20
_BYTES = ("application/octet-stream;", "charset=binary")


def load_input(name: str, show: Callable[[str], None]) -> InputFile:
    """An input as it will be registered; one that is not there is told as missing. Raises BadRequest."""
    try:
        with open(name, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadRequest(say("wf.input", path=name, why="not a regular file"))
            words = describe(stream.read(_SAMPLE + 1))
    except FileNotFoundError:
        show(say("wf.input-missing", path=name))
        return InputFile(name, b"", "", "")
    except OSError as error:
        raise BadRequest(say("wf.input", path=name, why=error.strerror or error)) from None
    if text_length(status.st_size) > MAX_TEXT:
        raise BadRequest(say("wf.too-large", path=name))
    path = os.path.abspath(name)
    return InputFile(name, FileSource(status.st_size, lambda: open(path, "rb")), *words)


def describe(data: bytes) -> tuple[str, str]:
    """The two words that `file -i -b` would say, where that much is known.

    Old clients decode what is called a text, and break off where it is none: only what was looked at whole is one.
    """
    if not data:
        return "inode/x-empty;", "charset=binary"
    if b"\0" in data or len(data) > _SAMPLE:
        return _BYTES
    for charset in ("us-ascii", "utf-8"):
        with contextlib.suppress(UnicodeDecodeError):
            data.decode(charset)
            return "text/plain;", f"charset={charset}"
    return _BYTES


class _Nothing:
    """A sink for what was not asked for."""

    def write(self, data: bytes, /) -> object:
        return len(data)

    def close(self) -> object:
        return None


class _Durable:
    """A file that is on the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - the scanner closes it
        self.path = path

    def write(self, data: bytes, /) -> object:
        return self._file.write(data)

    def close(self) -> object:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        return None


class Results:
    """What comes back for the `names` that were asked for, which are checked already; written below `folder`."""

    def __init__(self, names: Sequence[str], folder: Path, private: Path) -> None:
        self._names = frozenset(names)
        self._folder = folder
        self._private = private

    def open_sink(self, place: Place) -> Sink:
        """Where the content of one result goes while the answer comes in."""
        name = str(place[-2])
        if name not in self._names:
            return _Nothing()
        return _Durable(self._private / hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest())

    def deliver(self, files: Sequence[ResultFile], show: Callable[[str], None]) -> None:
        """Give the files their names, now that the answer is whole."""
        for file in files:
            if file.name not in self._names:
                show(say("wf.unasked", name=printable(file.name)))
            elif file.failed:
                show(say("wf.no-result", name=file.name, why=printable(file.mimetype2)))
            elif isinstance(file.content, Blob) and isinstance(file.content.sink, _Durable):
                self._move(file.content.sink.path, self._folder / file.name)
        for name in sorted(self._names - {file.name for file in files}):
            show(say("wf.no-result", name=name, why="-"))

    def _move(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)


@contextlib.contextmanager
def receiving(names: Sequence[str], folder: Path) -> Iterator[Results]:
    """A place for the results, which is gone afterwards."""
    private = Path(tempfile.mkdtemp(prefix=".misrc-results-", dir=folder))
    try:
        yield Results(names, folder, private)
    finally:
        shutil.rmtree(private, ignore_errors=True)
