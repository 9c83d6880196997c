"""A scanner for JSON documents with huge base64 strings in them, in memory that does not grow with them.

A usual parser holds a body of 2 GiB several times. This one is fed with chunks. Strings at designated places are
decoded block by block into sinks; everything else, the skeleton, is kept, bounded, and parsed at the end by Python's
own `json`, with `""` where a designated string stood. So it can accept no document that `json` refuses: a designated
string that was left out consists of nothing but base64, and a document is as valid with it as without.

Refused beyond that: a byte-order mark and all that is not UTF-8, lone surrogates, duplicate keys, NaN, infinities and
numbers that overflow, integers of more than 18 digits, a designated string that is not base64 with padding, and
whatever is deeper, longer or more than the limits. White space inside base64 is refused; escapes (`\\/`, `\\u002b`) are
understood, because JSON encoders in use write them.

A sink may have been written when a later part of the document is refused: only `finish` makes anything true.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Optional, Protocol, Sequence, Tuple, Union

from ..job.codec import MAX_DIGITS, CodecError
from .content import MAX_TEXT, Blob
from .legacy import Place

Path = Tuple[Union[str, int], ...]
STEP = 1 << 17  # characters decoded at once: larger blocks are slower, as each is given back to the system

_STRUCTURE = re.compile(rb'["{}\[\],:]')
_TEXT_END = re.compile(rb'["\\]')
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


class ScanError(CodecError):
    """The document is not JSON, or not as it must be."""


class TooLarge(ScanError):
    """The document, or a part of it, is beyond its limit."""


class Sink(Protocol):
    """Where a designated string's bytes go. `close` is called once, at the string's end or when the scan breaks off."""

    def write(self, data: bytes, /) -> object: ...

    def close(self) -> object: ...


@dataclass(frozen=True)
class Limits:
    """What a document may have: sizes in bytes, `text` in characters of one designated string."""

    depth: int = 16
    items: int = 1 << 16
    skeleton: int = 2 << 20
    files: int = 4096
    text: int = MAX_TEXT
    total: Optional[int] = None  # of all sinks together, decoded


def decode_block(block: bytes) -> bytes:
    """The bytes of base64 whose length is a multiple of 4; padding only at the end. Standard library only."""
    padding = 2 if block.endswith(b"==") else 1 if block.endswith(b"=") else 0
    if block[: len(block) - padding].translate(None, _ALPHABET):
        raise ValueError("not base64")
    return binascii.a2b_base64(block)


class _Text:
    """One designated string on its way into its sink."""

    def __init__(self, sink: Sink, limit: int, decode: Callable[[bytes], bytes]) -> None:
        self.sink = sink
        self.size = 0
        self._left = limit
        self._decode = decode
        self._rest = b""
        self._escape = b""
        self._padded = False

    def take(self, segment: bytes) -> None:
        """Some of the characters between the quotes, as they stand in the document."""
        if self._escape or b"\\" in segment:
            segment = self._unescape(self._escape + segment)
        self._left -= len(segment)
        if self._left < 0:
            raise TooLarge("a file's text is too long")
        if self._rest:
            segment = self._rest + segment
        whole = len(segment) & ~3
        self._rest = segment[whole:]
        if whole:
            self._put(segment[:whole] if self._rest else segment)

    def _put(self, block: bytes) -> None:
        if self._padded:
            raise ScanError("not base64: text after the padding")
        try:
            data = self._decode(block)
        except ValueError:
            raise ScanError("not base64") from None
        self._padded = block[-1] == 0x3D
        if self._padded and base64.b64encode(data[-(len(data) % 3) :]) != block[-4:]:
            raise ScanError("not base64: bits beyond the end")
        self.size += len(data)
        self.sink.write(data)

    def _unescape(self, segment: bytes) -> bytes:
        """What the segment means. An escape that may be cut off at its end is kept for the next one."""
        last = segment.rfind(b"\\")
        self._escape = b""
        if last >= 0 and len(segment) - last < (6 if segment[last + 1 : last + 2] == b"u" else 2):
            segment, self._escape = segment[:last], segment[last:]
        try:
            return str(json.loads(b'"' + segment + b'"')).encode("ascii")
        except ValueError:
            raise ScanError("not base64") from None

    def end(self) -> Blob:
        """The string has ended."""
        if self._rest or self._escape:
            raise ScanError("not base64: the text is cut")
        return Blob(self.size, self.sink)


class _Level:
    """One object or list that is open: where in it the scanner is."""

    __slots__ = ("at", "is_object", "wants_key")

    def __init__(self, is_object: bool) -> None:
        self.is_object = is_object
        self.at: Union[str, int] = "" if is_object else 0
        self.wants_key = is_object


class Scanner:
    """Fed with chunks, gives the document at the end, with a `Blob` for each string at one of the `places`.

    `open_sink` gets the keys and indexes that lead to the string, before its first byte; what it raises goes to the
    caller of `feed`. `decode` turns base64 blocks into bytes and raises ValueError for what is not strictly base64.
    """

    def __init__(
        self,
        places: Sequence[Place],
        open_sink: Callable[[Path], Sink],
        limits: Optional[Limits] = None,
        decode: Callable[[bytes], bytes] = decode_block,
    ) -> None:
        self._places = tuple(places)
        self._lengths = {len(place) for place in places}
        self._open_sink = open_sink
        self._limits = limits or Limits()
        self._decode = decode
        self._levels: List[_Level] = []
        self._skeleton = bytearray()
        self._items = 0
        self._total = 0
        self._blobs: Dict[Path, Blob] = {}
        self._big: Optional[_Text] = None
        self._text_start: Optional[int] = None  # where in the skeleton the open small string begins
        self._escaped = False

    def feed(self, chunk: bytes) -> None:
        """The next bytes, in pieces of any size. Raises ScanError, and whatever a sink raises."""
        position = 0
        try:
            while position < len(chunk):
                if self._big is not None:
                    position = self._feed_big(self._big, chunk, position)
                elif self._text_start is not None:
                    position = self._feed_text(self._text_start, chunk, position)
                else:
                    position = self._feed_plain(chunk, position)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Close the sink that is open, if any: nothing more will come."""
        if self._big is not None:
            big, self._big = self._big, None
            big.sink.close()

    def finish(self) -> Any:
        """The document, now that all has been fed; raises ScanError."""
        if self._big is not None or self._text_start is not None or self._levels:
            self.abort()
            raise ScanError("not JSON: the document is cut")
        document = _parse_skeleton(bytes(self._skeleton))
        for path, blob in self._blobs.items():
            _replace(document, path, blob)
        return document

    def _keep(self, data: bytes) -> None:
        if len(self._skeleton) + len(data) > self._limits.skeleton:
            raise TooLarge("the document is too long, its files left aside")
        self._skeleton += data

    def _feed_big(self, big: _Text, chunk: bytes, position: int) -> int:
        limit = min(position + STEP, len(chunk))
        end = chunk.find(b'"', position, limit)
        before = big.size
        big.take(chunk[position : limit if end < 0 else end])
        self._count(big.size - before)
        if end < 0:
            return limit
        self._blobs[self._path()] = big.end()
        self._big = None
        big.sink.close()
        self._keep(b'"')
        return end + 1

    def _count(self, size: int) -> None:
        self._total += size
        if self._limits.total is not None and self._total > self._limits.total:
            raise TooLarge("the files are too large together")

    def _feed_text(self, start: int, chunk: bytes, position: int) -> int:
        if self._escaped:
            self._keep(chunk[position : position + 1])
            self._escaped = False
            return position + 1
        match = _TEXT_END.search(chunk, position)
        end = match.end() if match else len(chunk)
        self._keep(chunk[position:end])
        if match and match[0] == b"\\":
            self._escaped = True
        elif match:
            self._end_text(start)
        return end

    def _end_text(self, start: int) -> None:
        self._text_start = None
        level = self._levels[-1] if self._levels else None
        if level is not None and level.wants_key:
            level.at = _parse_key(bytes(self._skeleton[start:]))
            level.wants_key = False

    def _feed_plain(self, chunk: bytes, position: int) -> int:
        match = _STRUCTURE.search(chunk, position)
        end = match.end() if match else len(chunk)
        self._keep(chunk[position:end])
        if match and match[0] == b'"':
            self._begin_string()
        elif match:
            self._move(match[0])
        return end

    def _move(self, sign: bytes) -> None:
        if sign in b"{[":
            self._item()
            self._levels.append(_Level(sign == b"{"))
            if len(self._levels) > self._limits.depth:
                raise TooLarge("nested too deeply")
        elif sign in b"}]":
            if not self._levels or self._levels.pop().is_object is not (sign == b"}"):
                raise ScanError("not JSON: a bracket does not fit")
        elif sign == b",":
            self._next()

    def _next(self) -> None:
        self._item()
        if not self._levels:
            raise ScanError("not JSON: a comma outside")
        level = self._levels[-1]
        if isinstance(level.at, int):
            level.at += 1
        level.wants_key = level.is_object

    def _item(self) -> None:
        self._items += 1
        if self._items > self._limits.items:
            raise TooLarge("too many values")

    def _begin_string(self) -> None:
        wants_key = bool(self._levels) and self._levels[-1].wants_key
        if not wants_key and len(self._levels) in self._lengths and self._designated(self._path()):
            self._begin_big(self._path())
        else:
            self._text_start = len(self._skeleton) - 1

    def _begin_big(self, path: Path) -> None:
        if path in self._blobs:
            raise ScanError("duplicate key")
        if len(self._blobs) >= self._limits.files:
            raise TooLarge("too many files")
        self._big = _Text(self._open_sink(path), self._limits.text, self._decode)

    def _path(self) -> Path:
        return tuple(level.at for level in self._levels)

    def _designated(self, path: Path) -> bool:
        return any(
            len(place) == len(path) and all(want is None or _same(want, have) for want, have in zip(place, path))
            for place in self._places
        )


def _same(want: Union[str, int], have: Union[str, int]) -> bool:
    return type(want) is type(have) and want == have


def _parse_key(literal: bytes) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:
        raise ScanError("not JSON: a key") from None


def _parse_skeleton(skeleton: bytes) -> Any:
    try:
        text = skeleton.decode("utf-8")
        document = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except ScanError:
        raise
    except UnicodeError:
        raise ScanError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise ScanError("not JSON") from None
    return document


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ScanError("duplicate key")
    return result


def _constant(text: str) -> Any:
    raise ScanError(f"{text} is not a JSON number")


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise ScanError("integer too long")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ScanError("number too large")
    return value


def _replace(document: Any, path: Path, blob: Blob) -> None:
    """Put the blob where the path leads. In a document that parsed, the path leads to the `""` left in its place."""
    for key in path[:-1]:
        document = document[key]
    if document[path[-1]] != "":
        raise ScanError("not JSON: a string where none can be")
    document[path[-1]] = blob


def scan(
    chunks: Iterable[bytes],
    places: Sequence[Place],
    open_sink: Callable[[Path], Sink],
    limits: Optional[Limits] = None,
    decode: Callable[[bytes], bytes] = decode_block,
) -> Any:
    """Scan all of an iterable of chunks; the sink that is open is closed also where the chunks break off."""
    scanner = Scanner(places, open_sink, limits, decode)
    try:
        for chunk in chunks:
            scanner.feed(chunk)
    except BaseException:
        scanner.abort()
        raise
    return scanner.finish()
