"""The gate's grammar read a second time: a table of words, without regular expressions and without the gate's code."""

from __future__ import annotations

from collections.abc import Callable

Reading = tuple[str, str, int, int]
HEX = b"0123456789abcdef"
DIGITS = b"0123456789"


def is_id(word: bytes) -> bool:
    """A canonical lower-case UUID of version 4, 5 or 8."""
    if len(word) != 36 or any(word[place] != ord("-") for place in (8, 13, 18, 23)):
        return False
    digits = [byte for place, byte in enumerate(word) if place not in (8, 13, 18, 23)]
    return all(byte in HEX for byte in digits) and word[14] in b"458" and word[19] in b"89ab"


def number_below(bound: int) -> Callable[[bytes], bool]:
    """Decimal digits without sign, blank or leading zero, less than `bound`."""

    def check(word: bytes) -> bool:
        if not 1 <= len(word) <= 20 or any(byte not in DIGITS for byte in word):
            return False
        return (word[0] != ord("0") or len(word) == 1) and sum(
            (byte - 48) * 10**place for place, byte in enumerate(reversed(word))
        ) < bound

    return check


def literal(text: bytes) -> Callable[[bytes], bool]:
    return lambda word: word == text


MOVE = (is_id, literal(b"--server"), literal(b"--daemon"), literal(b"."))
TABLE: dict[bytes, tuple[Callable[[bytes], bool], ...]] = {
    b"hello": (),
    b"open": (is_id,),
    b"start": (is_id,),
    b"cancel": (is_id,),
    b"close": (is_id,),
    b"put": MOVE,
    b"get": MOVE,
    b"wait": (is_id, number_below(3601), number_below(10**18)),
}


def read_again(data: bytes) -> Reading | None:
    """What the request is, by the table."""
    verb, *words = data.split(b" ")
    shape = TABLE.get(verb)
    if (
        shape is None
        or len(shape) != len(words)
        or not all(fits(word) for fits, word in zip(shape, words, strict=True))
    ):
        return None
    job = words[0].decode("ascii") if words else ""
    numbers = [int(word.decode("ascii")) for word in words[1:]] if verb == b"wait" else [0, 0]
    return verb.decode("ascii"), job, numbers[0], numbers[1]
