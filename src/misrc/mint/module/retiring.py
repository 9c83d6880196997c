"""Retire the modules of a file: `deleted` becomes true, and not one other byte of the file changes.

The parser only says where the element lies; the bytes around it are kept as they are, comments and layout too.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from ...job.errors import BadRequest
from ..messages.catalog import say
from . import document
from .checking import check_bytes, read_file
from .findings import ERROR

_TAG = re.compile(rb"""<(?:[^>"']|"[^"]*"|'[^']*')*>""")
_NAME = re.compile(rb"</?([^\s:>/]+:)?")


@dataclass
class _Place:
    """Where the element of one module lies in the bytes, or would lie; `prefix` is that of its neighbours."""

    identifier: str = ""
    start: int = 0
    end: int = 0
    value: str | None = None
    prefix: bytes = b""


def retire_file(path: Path, wanted: str | None) -> int:
    """Mark every module of a file, or those with the id `wanted`, as deleted; how many were not so before.

    A file with errors is left alone. The file is replaced whole.
    """
    data = read_file(path)
    # A module on another node can be retired too.
    if any(finding.level == ERROR for finding in check_bytes(data, local=True)):
        raise BadRequest(say("module.broken", path=path))
    new, count = retire_bytes(data, path, wanted)
    if count:
        _replace(path, new)
    return count


def retire_bytes(data: bytes, path: Path, wanted: str | None) -> tuple[bytes, int]:
    """A good file with its modules marked, and how many were not so before."""
    places = [place for place in _find_places(data) if wanted in (None, place.identifier)]
    if not places:
        raise BadRequest(say("module.no_such", path=path, id=wanted))
    changed = [place for place in places if place.value != "true"]
    for place in reversed(changed):
        element = b"<%sdeleted>true</%sdeleted>" % (place.prefix, place.prefix)
        if place.start == place.end:
            element = _indent_before(data, place.start) + element
        data = data[: place.start] + element + data[place.end :]
    return data, len(changed)


def _indent_before(data: bytes, index: int) -> bytes:
    """The line end and the indentation of the line that `index` lies on."""
    start = data.rfind(b"\n", 0, index)
    line = data[start + 1 : index]
    return b"\n" + line[: len(line) - len(line.lstrip())] if start >= 0 else b""


def _find_places(data: bytes) -> list[_Place]:
    finder = _Finder(data)
    finder.parser.Parse(data, True)
    return finder.places


class _Finder:
    """Listens to the parser: it knows at which byte each element begins and ends."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.places: list[_Place] = []
        self._path: list[str] = []
        self._text = ""
        self.parser = expat.ParserCreate(namespace_separator="}")
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._collect

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append("{" + tag)
        self._text = ""
        if len(self._path) == 2:
            self.places.append(_Place())
        elif len(self._path) == 3 and self._path[-1] == document.MODULE_TAGS["deleted"]:
            self.places[-1].start = self.parser.CurrentByteIndex

    def _collect(self, text: str) -> None:
        self._text += text

    def _end(self, tag: str) -> None:
        name, index = self._path.pop(), self.parser.CurrentByteIndex
        if len(self._path) != 2:
            return
        place, end = self.places[-1], self._end_of_tag(index)
        if name == document.MODULE_TAGS["identifier"]:
            place.identifier = self._text
        elif name == document.MODULE_TAGS["model"]:
            place.start = place.end = end
            place.prefix = self._prefix(index)
        elif name == document.MODULE_TAGS["deleted"]:
            place.end, place.value = end, self._text

    def _end_of_tag(self, index: int) -> int:
        found = _TAG.match(self.data, index)
        return found.end() if found else index

    def _prefix(self, index: int) -> bytes:
        found = _NAME.match(self.data, index)
        return (found[1] or b"") if found else b""


def _replace(path: Path, data: bytes) -> None:
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, path.stat().st_mode & 0o777)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        raise BadRequest(say("module.file", path=path, why=error.strerror)) from None
