"""The content of one file inside a JSON document: small and in memory, or big and never in memory.

Without it, a file of 1.5 GiB would be held three times: as base64, as a JSON string, and decoded. So a document is
passed around with a `Blob` where a big string was read (its bytes are in a sink already), and with a `FileSource` where
one is to be written (its bytes are read while the document is sent).
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Callable, Union

from ..job.codec import CodecError

MAX_TEXT = 2**31 - 1
"""The longest base64 text of one file, in characters."""

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", re.ASCII)


@dataclass(frozen=True)
class Blob:
    """Content that was streamed to `sink` (what the reader of the document opened for it); `size` is in bytes."""

    size: int
    sink: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class FileSource:
    """Content that will be read from a file while it is sent: exactly `size` bytes from what `open` gives."""

    size: int
    open: Callable[[], BinaryIO] = field(compare=False)


Content = Union[bytes, Blob, FileSource]


def content_size(content: Content) -> int:
    """How many bytes the content has, decoded."""
    return len(content) if isinstance(content, bytes) else content.size


def text_length(size: int) -> int:
    """How many characters the base64 text of `size` bytes has."""
    return (size + 2) // 3 * 4


def decode_text(text: str) -> bytes:
    """The bytes of a base64 text; white space, other alphabets, wrong padding and stray bits are refused."""
    if not _BASE64.fullmatch(text):
        raise CodecError("not base64")
    data = binascii.a2b_base64(text)
    if base64.b64encode(data[len(data) // 3 * 3 :]).decode("ascii") not in ("", text[-4:]):
        raise CodecError("not base64: bits beyond the end")
    return data


def parse_content(value: Any, where: str) -> Content:
    """What stands in a parsed document as content: a string, or the `Blob` that a scanner put there."""
    if isinstance(value, Blob):
        return value
    if type(value) is not str:
        raise CodecError(f"{where}: a string is needed")
    try:
        return decode_text(value)
    except CodecError as error:
        raise CodecError(f"{where}: {error}") from None


def render_content(content: Content) -> Any:
    """What a document to be sent has as content: a string, or the `FileSource` itself."""
    if isinstance(content, bytes):
        return base64.b64encode(content).decode("ascii")
    if isinstance(content, Blob):
        raise TypeError("a streamed content is sent from its file, as a FileSource")
    return content
