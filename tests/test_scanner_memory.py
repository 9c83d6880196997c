"""The scanner with bodies as large as the predecessor's form allows, in a process whose memory is measured."""

from __future__ import annotations

import subprocess
import sys

from misrc.wire.content import text_length

MEASURE = """
import sys
from misrc.api.legacy.scanner import request_scanner
from misrc.wire.legacy import Call
from misrc.wire.scanner import TooLarge
class Null:
    def write(self, data): pass
    def close(self): pass
block = b"QUJDREVG" * 8192
scanners = [request_scanner(Call.SEND_RESULTS, lambda path: Null()) for _ in range(4)]


def peak():
    # Not ru_maxrss: that begins with the size of the process that started this one.
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])


before = peak()
for s in scanners:
    s.feed(b'{"result_files":{"n":{"content":"')
whole, rest = divmod(int(sys.argv[1]), len(block))
try:
    for _ in range(whole):
        for s in scanners:
            s.feed(block)
    for s in scanners:
        s.feed(block[:rest] + b'"}}}')
        print(s.finish()["result_files"]["n"]["content"].size)
except TooLarge as error:
    print(error)
print(peak() - before, "KiB more", file=sys.stderr)
"""


def measured(characters: int) -> tuple[list[str], int]:
    """What four scanners, fed in turn in a process of their own, say, and the memory (KiB) that it took."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", MEASURE, str(characters)], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines(), int(done.stderr.split()[0])


def test_h42_four_files_of_just_under_2_gib_in_bounded_memory() -> None:
    """2 147 483 644 characters of base64 (the last multiple of 4 below 2 GiB), four at once, take no memory."""
    sizes, more = measured(2**31 - 4)
    assert sizes == [str((2**31 - 4) // 4 * 3)] * 4
    assert more < 16 << 10


def test_h42_a_text_of_2_gib_is_too_large() -> None:
    """One more block is refused, and before the text has ended."""
    assert measured(2**31)[0] == ["a file's text is too long"]
    assert text_length(3 * 2**29) == 2**31
