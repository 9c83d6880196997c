"""What only Linux gives, in one place: subreaper, parent-death signal, network namespace, reflink, process table.

Each function says what is weaker where the kernel does not offer it.
"""

from __future__ import annotations

import fcntl
import os
from typing import Any, Dict, Iterator, List, Optional, Tuple

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_FICLONE = 0x40049409


def _libc() -> Any:
    import ctypes  # heavy, and most verbs ask the kernel for nothing special

    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> bool:
    return bool(_libc().prctl(option, value, 0, 0, 0) == 0)


def become_subreaper() -> bool:
    """Inherit orphaned descendants, so that none escapes. False: a double fork can get away until the next scan."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signal_number: int) -> bool:
    """Ask for a signal when the parent dies. False: a transfer's helper ends at its own time limit instead."""
    return _prctl(_PR_SET_PDEATHSIG, signal_number)


def forbid_new_privileges() -> bool:
    """No setuid program will raise its rights from here on."""
    return _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def leave_network() -> bool:
    """Move this process into a network namespace with nothing in it. False: not possible here, so do not go on."""
    uid, gid = os.getuid(), os.getgid()
    if _libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError:
        return False
    return True


def has_network() -> bool:
    """Whether this process sees more than the loopback device. Where the kernel does not tell, it might."""
    try:
        with open("/proc/self/net/dev", encoding="ascii") as file:
            names = [line.partition(":")[0].strip() for line in file.readlines()[2:]]
    except OSError:
        return True
    return any(name != "lo" for name in names)


def clone_file(source: int, target: int) -> bool:
    """Share the blocks of one open file with another. False: copy them."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def boot_id() -> str:
    """This boot's id; empty where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _read_stat(pid: int) -> Optional[Tuple[str, int, int]]:
    """State, parent and start time (in ticks since boot) of a process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return words[0].decode("ascii"), int(words[1]), int(words[19])


def start_time(pid: int) -> int:
    """When a process started, in ticks since boot; 0 if it is gone. With the pid it names a process for good."""
    stat = _read_stat(pid)
    return stat[2] if stat and stat[0] != "Z" else 0


def _processes() -> Iterator[Tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = _read_stat(int(name))
            if stat and stat[0] != "Z":
                yield int(name), stat[1]


def _has_marker(pid: int, marker: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return marker in file.read(1 << 20).split(b"\0")
    except OSError:
        return False


def find_processes(roots: List[int], marker: bytes, spare: List[int]) -> List[int]:
    """Live processes below `roots`, or with `marker` in their environment, without `spare`.

    Not covered: a process that was orphaned while no subreaper lived and has wiped its own environment.
    """
    parents: Dict[int, int] = dict(_processes())
    found = []
    for pid in parents:
        ancestor, seen = parents[pid], 0
        while ancestor not in roots and ancestor in parents and ancestor > 1 and seen < 4096:
            ancestor, seen = parents[ancestor], seen + 1
        if (ancestor in roots or _has_marker(pid, marker)) and pid not in spare and pid not in roots:
            found.append(pid)
    return found
