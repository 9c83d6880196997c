"""Big JSON documents on their way out: a few chunks at a time, however big the files in them are.

The length is known before the first byte, so that a plain HTTP/1.0 server or client of the predecessor can take it.
A file that changes while it is sent breaks the sending off; a body is never completed with other bytes.
"""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any, Callable, Iterator, List, Tuple, Union

from .content import FileSource, text_length

BLOCK = 3 << 18


class SourceChanged(OSError):
    """A file is not as long as it was when the sending began."""


class Body:
    """A JSON document, in which `FileSource` values become base64 strings, as chunks of bytes; may be read again."""

    def __init__(self, document: Any, encode: Callable[[bytes], bytes] = base64.b64encode) -> None:
        self._encode = encode
        self._pieces = _split(document)
        self.length = sum(len(p) if isinstance(p, bytes) else text_length(p.size) for p in self._pieces)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from self._text(piece)

    def _text(self, source: FileSource) -> Iterator[bytes]:
        left = source.size
        with source.open() as stream:
            while left:
                block = _read(stream.read, min(left, BLOCK))
                left -= len(block)
                yield self._encode(block)
            if stream.read(1):
                raise SourceChanged("a file has grown while it was sent")


def _read(read: Callable[[int], bytes], size: int) -> bytes:
    """Exactly `size` bytes, so that no block but the last one of a file needs padding."""
    block = read(size)
    while len(block) < size:
        more = read(size - len(block))
        if not more:
            raise SourceChanged("a file has shrunk while it was sent")
        block += more
    return block


def _split(document: Any) -> List[Union[bytes, FileSource]]:
    """The document's text, cut where file contents go in. The mark is random: no text of others can hold it."""
    mark = secrets.token_hex(16)
    sources: List[FileSource] = []

    def put_mark(value: Any) -> str:
        if not isinstance(value, FileSource):
            raise TypeError(f"{type(value).__name__} is not a value of JSON")
        sources.append(value)
        return mark

    text = json.dumps(document, default=put_mark, allow_nan=False, separators=(",", ":"))
    parts: Tuple[str, ...] = tuple(text.split(mark))
    pieces: List[Union[bytes, FileSource]] = [parts[0].encode("ascii")]
    for source, part in zip(sources, parts[1:]):
        pieces += [source, part.encode("ascii")]
    return pieces
