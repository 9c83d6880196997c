"""What only Linux gives, in one place: subreaper, parent-death signal, network namespace, reflink, process table.

Each function says what is weaker where the kernel does not offer it, and `weaknesses` says it for people.
"""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import sys
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_FICLONE = 0x40049409

_linux = sys.platform.startswith("linux")
# Any other system names no start time: a process is then told apart by its number alone.
_SOME_TIME = 1


@functools.lru_cache(maxsize=None)
def _libc() -> Any:
    import ctypes  # heavy, and most verbs ask the kernel for nothing special

    return ctypes.CDLL(None, use_errno=True)


def load() -> None:
    """For a process that stays and forks: load once what each of its children would load anew."""
    if _linux:
        _libc()


def do_without_linux() -> None:
    """Behave as on another system: for tests, and for whoever wants to see how the site would be there."""
    global _linux
    _linux = False


def _prctl(option: int, value: int) -> bool:
    return _linux and bool(_libc().prctl(option, value, 0, 0, 0) == 0)


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
    if not _linux or _libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
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
    if not _linux:
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def boot_id() -> str:
    """This boot's id; empty where the kernel does not tell."""
    try:
        return _read_boot_id() if _linux else ""
    except OSError:
        return ""


@functools.lru_cache(maxsize=None)
def _read_boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def uptime() -> float:
    """Seconds on a clock that goes on while the machine sleeps. Elsewhere: one that may not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _linux else time.monotonic()


def age_limit(start: int, seconds: float) -> float:
    """When, on `uptime`'s clock, a process that started at `start` is so old. Elsewhere it counts from now."""
    return (start / os.sysconf("SC_CLK_TCK") if _linux else uptime()) + seconds


def watch_process(pid: int) -> int:
    """A descriptor that can be read when a process has ended; -1 where it has to be looked for."""
    return os.pidfd_open(pid) if _linux and hasattr(os, "pidfd_open") else -1


def reap(pid: int) -> Optional[int]:
    """The exit status of child `pid` if it has ended (negative: a signal's number); orphans that came are reaped.

    The child itself is left, so that its next parent can see it. Elsewhere it is reaped too: who dies now loses it.
    """
    if not _linux:
        return _reap_now(pid)
    try:
        while True:
            child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if child is None:
                return None
            if child.si_pid == pid:
                return child.si_status if child.si_code == os.CLD_EXITED else -child.si_status
            os.waitpid(child.si_pid, 0)
    except ChildProcessError:
        return None


def _reap_now(pid: int) -> Optional[int]:
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    if not done:
        return None
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)


def is_child(pid: int) -> bool:
    """Whether it is, or was until just now, a child of ours. Elsewhere orphans are never ours."""
    try:
        if _linux:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return _linux


def weaknesses() -> List[str]:
    """What this system does not give, as sentences on what is weaker without it. On Linux there is nothing to say."""
    found = []
    if not _linux:
        found.append("a program that detaches itself may be overlooked when its job is stopped")
        found.append("processes are told apart by their number alone")
        found.append("a job that a reboot ended may count as running while another process has its number")
        found.append("programs cannot be cut off the network: those with network: deny do not start")
    if not _linux or not hasattr(os, "pidfd_open"):
        found.append("the end of a program is noticed up to a second later")
    return found


def _read_stat(pid: int) -> Optional[Tuple[str, int, int]]:
    """State, parent and start time (in ticks since boot) of a process."""
    if not _linux:
        return _ask_for(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return words[0].decode("ascii"), int(words[1]), int(words[19])


def _ask_for(pid: int) -> Optional[Tuple[str, int, int]]:
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return None
    return "?", 0, _SOME_TIME


def start_time(pid: int) -> int:
    """When a process started, in ticks since boot; 0 if it is gone. With the pid it names a process for good."""
    stat = _read_stat(pid)
    return stat[2] if stat and stat[0] != "Z" else 0


def _processes() -> Iterator[Tuple[int, int]]:
    if not _linux:
        yield from _list_processes()
        return
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = _read_stat(int(name))
            if stat and stat[0] != "Z":
                yield int(name), stat[1]


def _list_processes() -> Iterator[Tuple[int, int]]:
    """What `ps` tells, but for `ps` itself."""
    words = ["/bin/ps", "-A", "-o", "pid=,ppid=,stat="]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={}) as lister:
        told = lister.communicate()[0]
    for line in told.splitlines():
        pid, parent, state = line.split()[:3]
        if int(pid) != lister.pid and not state.startswith(b"Z"):
            yield int(pid), int(parent)


def _has_marker(pid: int, marker: bytes) -> bool:
    if not _linux:
        return False
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
