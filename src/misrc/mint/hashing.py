"""The inputs' manifest, made in a thread: hashing goes on while a connection is made, or while the files are sent."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence

from ..job.errors import BadRequest, MisrcError
from ..job.manifest import Entry, Manifest, hash_descriptor, make_manifest
from .jobs import InputFile
from .messages.catalog import say


class Hashing:
    """Hashes `inputs` from its making on."""

    def __init__(self, inputs: Sequence[InputFile]) -> None:
        self._inputs = inputs
        self._manifest: Manifest = ()
        self._error: MisrcError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._manifest = make_manifest(map(_hash_input, self._inputs))
        except MisrcError as error:
            self._error = error
        except OSError as error:
            self._error = BadRequest(f"{error.filename}: {error.strerror}")

    def result(self) -> Manifest:
        """The manifest, when all is hashed; BadRequest where a file is not as it was when the call was made."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._manifest


def _hash_input(item: InputFile) -> Entry:
    descriptor = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadRequest(say("input.missing", path=item.path, name=item.name))
        size, digest = hash_descriptor(descriptor, item.size)
    finally:
        os.close(descriptor)
    if size != item.size:
        raise BadRequest(say("input.changed", path=item.path, name=item.name))
    return Entry(item.name, size, digest)
