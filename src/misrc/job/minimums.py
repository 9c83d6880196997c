"""The oldest versions that a site may run, and where a distribution mended an older one.

It exists because a version number alone says too little: distributions carry security fixes back without raising it.
A package counts as mended only where its version is listed here, with the distribution's own word for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

RSYNC: Tuple[int, ...] = (3, 5, 0)
OPENSSH: Tuple[int, ...] = (8, 1)
# A root install names settings that older ones do not know.
OPENSSH_ROOT: Tuple[int, ...] = (8, 7)
PYTHON: Tuple[int, ...] = (3, 9)
FLOORS: Dict[str, Tuple[int, ...]] = {
    "rsync": RSYNC,
    "openssh": OPENSSH,
    "openssh_root": OPENSSH_ROOT,
    "python": PYTHON,
}


@dataclass(frozen=True)
class Patched:
    """A distribution's package that is as good as the upstream minimum; `word` is where it says so."""

    system: str
    package: str
    version: str
    word: str


# `system` is ID and VERSION_ID of /etc/os-release. Later versions of the same system's package count too.
PATCHED: Tuple[Patched, ...] = (
    Patched("debian-12", "rsync", "3.5.0+ds1-0+deb12u1", "its changelog names the 33 CVEs of 3.5.0"),
    Patched("debian-13", "rsync", "3.5.0+ds1-0+deb13u1", "its changelog names the 33 CVEs of 3.5.0"),
)


@dataclass(frozen=True)
class Found:
    """What a host has: `upstream` as the program says, `package` as the package system says (Debian), if it has one."""

    system: str
    name: str
    upstream: str
    package: Optional[str] = None


def judge(found: Found, minimum: Tuple[int, ...]) -> str:
    """Why this version cannot be used, in one line, or an empty text where it can."""
    version = parse_upstream(found.upstream)
    if version is not None and version >= minimum:
        return ""
    needed = ".".join(map(str, minimum))
    for patched in PATCHED:
        if (patched.system, patched.package) == (found.system, found.name) and found.package is not None:
            if compare_debian(found.package, patched.version) >= 0:
                return ""
            needed += f", or the package {patched.version} of {patched.system}"
    return (
        f"{found.name} {found.upstream or 'is missing: none'} is too old: {needed} or later is needed{_advice(found)}"
    )


def _advice(found: Found) -> str:
    if found.name != "rsync":
        return ""
    if found.system == "debian-11":
        return ". Debian 11 has no such rsync: use a newer system, or the WebAPI method"
    return ". Install the distribution's security updates"


def parse_upstream(text: str) -> Optional[Tuple[int, ...]]:
    """`3.5.0` or `9.2p1` as numbers; None where there are none."""
    match = re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?", text)
    return None if match is None else tuple(int(part) for part in match.groups() if part is not None)


def compare_debian(one: str, other: str) -> int:
    """-1, 0 or 1, by Debian's own order of package versions (epoch, upstream, revision; `~` before everything)."""
    left, right = _split(one), _split(other)
    if left[0] != right[0]:
        return -1 if left[0] < right[0] else 1
    return _compare(left[1], right[1]) or _compare(left[2], right[2])


def _split(version: str) -> Tuple[int, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    return (int(epoch), upstream, revision) if dash else (int(epoch), rest, "0")


def _compare(one: str, other: str) -> int:
    """The parts are read as text and number in turn."""
    left, right = _parts(one), _parts(other)
    for index in range(max(len(left), len(right))):
        a = left[index] if index < len(left) else ([0], 0)
        b = right[index] if index < len(right) else ([0], 0)
        if a != b:
            return -1 if a < b else 1
    return 0


def _parts(text: str) -> List[Tuple[List[int], int]]:
    """Each pair is a run of other characters, by their weights, and the number behind it."""
    pairs = re.findall(r"([^0-9]*)([0-9]*)", text)
    return [([*map(_weigh, word), 0], int(number or 0)) for word, number in pairs if word or number]


def _weigh(character: str) -> int:
    """`~` before the end, the end before letters, letters before everything else."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256
