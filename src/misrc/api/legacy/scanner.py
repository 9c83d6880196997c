"""The predecessor's big bodies at the server's full speed: the scanner and the writer of `wire`, with pybase64.

pybase64 decodes and encodes with the processor's vector instructions, several times as fast as the standard library,
which is what a site has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pybase64

from ...wire.bodies import Body
from ...wire.legacy import INPUTS_PLACE, RESULTS_PLACE, Call, Place
from ...wire.scanner import Limits, Path, Scanner, Sink

PLACES: dict[Call, Sequence[Place]] = {Call.ADD_CALCINFO: (INPUTS_PLACE,), Call.SEND_RESULTS: (RESULTS_PLACE,)}


def decode_block(block: bytes) -> bytes:
    """The bytes of strict base64; raises ValueError."""
    data: bytes = pybase64.b64decode(block, validate=True)
    return data


def request_scanner(call: Call, open_sink: Callable[[Path], Sink], limits: Limits | None = None) -> Scanner:
    """A scanner for the body of `call`; files go to sinks only in the two calls that carry them."""
    return Scanner(PLACES.get(call, ()), open_sink, limits, decode_block)


def encode_result(document: Any) -> Body:
    """An answer's document as chunks, its `FileSource` values read while it is sent; `len()` is its Content-Length."""
    return Body(document, pybase64.b64encode)
