"""rsync's daemon protocol over the gate: the version floor, the per-job configuration, and the client's options.

The gate builds its own argv and a configuration for one job; rsync's own parser and module root do the confining.
Facts: rsyncd.conf(5) and rsync(1) of rsync 3.5.0.
"""

from __future__ import annotations

import re
from typing import Iterator, List, Optional, Sequence, Tuple

# 3.5.0 mends CVE-2026-53783 (a restricted directory could be left) and 32 more.
MINIMUM = (3, 5, 0)
PUT_MODULE = "in"
GET_MODULE = "return"
IO_TIMEOUT = 600

# What our own client sends; the daemon refuses every other option before it looks at a path.
_ALLOWED = (
    "server",
    "daemon",
    "sender",
    "recursive",
    "r",
    "times",
    "t",
    "timeout",
    "e",
    "rsh",
    # Without these two a cut transfer would start from zero; at a sender they only arrive, and change nothing.
    "partial",
    "inplace",
)
# A wildcard refusal spares these, so they are named: arguments and lists over standard input, and what bends output.
_SPARED = (
    "secluded-args",
    "s",
    "dry-run",
    "n",
    "from0",
    "checksum-seed",
    "out-format",
    "log-format",
    "copy-devices",
    "write-devices",
)


def parse_version(text: str) -> Optional[Tuple[int, int, int]]:
    """The version that `rsync --version` names, if it can be read."""
    match = re.match(r"rsync +version v?([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})", text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def render_config(module: str, path: str, lock_file: str, log_file: str) -> str:
    """The configuration for one transfer of one job; `path` is the only place it can reach."""
    for value in (path, lock_file, log_file):
        if not re.fullmatch(r"/[A-Za-z0-9._/ +@-]+", value, re.ASCII):
            raise ValueError("the work root has a character that rsync's configuration cannot carry")
    put = module == PUT_MODULE
    options = " ".join([*("!" + option for option in _ALLOWED), *_SPARED])
    lines = [
        "use chroot = no",
        "munge symlinks = yes",
        "reverse lookup = no",
        f"timeout = {IO_TIMEOUT}",
        f"lock file = {lock_file}",
        f"log file = {log_file}",
        "transfer logging = no",
        f"[{module}]",
        f"path = {path}",
        f"read only = {'no' if put else 'yes'}",
        f"write only = {'yes' if put else 'no'}",
        "list = no",
        f"refuse options = * {options}",
    ]
    if put:
        # Inputs are flat. A folder would hide what lies in it from the count of what arrived.
        lines += ["incoming chmod = D700,F600", "exclude = */ /*/**"]
    return "\n".join(lines) + "\n"


def server_argv(rsync: str, config: str) -> List[str]:
    """The argv that the gate executes."""
    return [rsync, "--server", "--daemon", f"--config={config}", "."]


def put_argv(rsync: str, rsh: str, job: str, names: Sequence[str]) -> List[str]:
    """The client's argv for sending files of its current directory, flat.

    The names stand in argv because rsync reads a list of names one byte at a time; `split_names` keeps them few enough.
    """
    argv = [rsync, "-t", "--partial", "--inplace", "--info=progress2"]
    argv += [f"--timeout={IO_TIMEOUT}", f"--rsh={rsh}", f"--rsync-path=put {job}", "--"]
    return [*argv, *("./" + name for name in names), f"site::{PUT_MODULE}/"]


def split_names(names: Sequence[str], most: int = 512 << 10) -> Iterator[Sequence[str]]:
    """The names in runs of at most `most` bytes with their pointers: Linux takes 2 MiB of argv (execve(2))."""
    start = size = 0
    for end, name in enumerate(names):
        cost = len(name.encode("utf-8")) + 11
        if size + cost > most and end > start:
            yield names[start:end]
            start, size = end, 0
        size += cost
    if start < len(names):
        yield names[start:]


def get_argv(rsync: str, rsh: str, job: str) -> List[str]:
    """The client's argv for fetching into its current directory; who may read the files is this side's umask's word."""
    argv = [rsync, "-rt", "--chmod=D700,F666", "--partial", "--inplace", "--info=progress2"]
    argv += [f"--timeout={IO_TIMEOUT}", f"--rsh={rsh}", f"--rsync-path=get {job}"]
    return [*argv, "--", f"site::{GET_MODULE}/", "./"]
