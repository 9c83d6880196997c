"""What an installation would change: the desired state beside the present one, without touching anything.

With it, installing again changes only what is not as it shall be, and a check beforehand tells the truth.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Iterator, List, Optional

from ..ledger import FILE, RESERVE
from .installer import Installation, is_unpacked

_WHAT = {
    "policy.json": "the policy",
    "agent.json": "the agent's configuration",
    "installed.json": "the note of what is installed",
}


@dataclass(frozen=True)
class Change:
    """One thing to do: `action` is `create`, `replace` or `close` (take rights of others away)."""

    action: str
    path: str
    what: str

    def describe(self) -> str:
        """One line for people."""
        return f"{self.action} {self.what}: {self.path}"


def list_changes(installation: Installation) -> List[Change]:
    """Everything that `apply` would change; empty where all is as it shall be."""
    return [*_folders(installation), *_code(installation), *_records(installation), *_keys(installation)]


def _folders(installation: Installation) -> Iterator[Change]:
    home = installation.home
    for path, what in (
        (home.config, "the folder of the policy"),
        (home.state, "the folder of the ledger"),
        (home.share, "the folder of the program"),
        (installation.policy.work_root, "the folder of the jobs"),
    ):
        if not os.path.isdir(path):
            yield Change("create", path, what)
    for name in (FILE, RESERVE):
        if not os.path.exists(f"{home.state}/{name}"):
            yield Change("create", f"{home.state}/{name}", "the ledger")
    if not os.path.exists(home.key):
        yield Change("create", home.key, "the key that signs receipts")


def _code(installation: Installation) -> Iterator[Change]:
    home, target = installation.home, os.path.basename(installation.code_folder)
    if not is_unpacked(home.share, target, installation.sources):
        yield Change("replace" if os.path.islink(home.code) else "create", home.code, "the program")


def _records(installation: Installation) -> Iterator[Change]:
    for name, data in installation.records().items():
        path = f"{installation.home.config}/{name}"
        yield from _file(path, data, _WHAT[name])


def _keys(installation: Installation) -> Iterator[Change]:
    if installation.key_lines() or os.path.exists(installation.authorized_keys):
        yield from _file(installation.authorized_keys, installation.key_file(), "MInt's lines in the key file")


def _file(path: str, data: bytes, what: str) -> Iterator[Change]:
    present = _read(path)
    if present != data:
        yield Change("create" if present is None else "replace", path, what)
    elif stat.S_IMODE(os.stat(path).st_mode) & 0o022:
        yield Change("close", path, what)


def _read(path: str) -> Optional[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
