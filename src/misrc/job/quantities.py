"""Sizes and durations as people write them in declarations: `50GiB`, `72h`."""

from __future__ import annotations

import re
from typing import Union

_SIZE = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TIME = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(value: Union[int, str]) -> int:
    """Bytes of a size: a whole number, or one with the unit B, KiB, MiB, GiB or TiB."""
    return _parse(value, _SIZE, "a size like 512MiB or 50GiB")


def parse_duration(value: Union[int, str]) -> int:
    """Seconds of a duration: a whole number, or one with the unit s, m, h or d."""
    return _parse(value, _TIME, "a duration like 90s, 30m or 72h")


def _parse(value: Union[int, str], units: "dict[str, int]", wanted: str) -> int:
    if isinstance(value, bool):
        raise ValueError(f"{wanted} is needed")
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{wanted} is needed, not a negative number")
        return value
    match = re.fullmatch(r"([0-9]{1,15}) ?([A-Za-z]{0,3})", value, re.ASCII)
    if not match or match[2] not in units:
        raise ValueError(f"{wanted} is needed")
    return int(match[1]) * units[match[2]]


def format_size(count: float) -> str:
    """A size for people: three significant digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
