"""Where an installation keeps its things, and whether they are fit to be used.

A user install follows the XDG folders of the account; `--prefix DIR` puts everything below one folder instead.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from typing import Optional

from ..job.codec import CodecError
from ..job.policy import Policy, parse_policy
from ..job.units import LEDGER_FOLDER
from ..wire.refusals import Denied, Refusal
from .accounts import may_own
from .files import open_folder, open_regular, opened, read_json, reason

# Where a root install keeps its code; whatever runs from there serves the host's installation and no other.
SYSTEM_SHARE = "/usr/libexec/misrc"


@dataclass(frozen=True)
class Home:
    """The folders of one installation, as absolute paths."""

    config: str
    state: str
    share: str

    @classmethod
    def locate(cls, prefix: Optional[str] = None) -> Home:
        """The account's installation, the host's, or the one below `prefix`. The environment has no say in it."""
        if prefix is not None:
            return cls(f"{prefix}/config", f"{prefix}/state", f"{prefix}/share")
        if os.getuid() == 0 or os.path.abspath(__file__).startswith(f"{SYSTEM_SHARE}/"):
            return cls("/etc/misrc", LEDGER_FOLDER, SYSTEM_SHARE)
        base = pwd.getpwuid(os.getuid()).pw_dir
        return cls(f"{base}/.config/misrc", f"{base}/.local/state/misrc", f"{base}/.local/share/misrc")

    @property
    def of_host(self) -> bool:
        """Whether this is a root install, in which a root-owned service does what a door may not."""
        return self.share == SYSTEM_SHARE

    @property
    def policy(self) -> str:
        """The policy file."""
        return f"{self.config}/policy.json"

    @property
    def key(self) -> str:
        """The private key that signs receipts."""
        return f"{self.config}/site_key"

    @property
    def code(self) -> str:
        """The unpacked program that the forced command runs."""
        return f"{self.share}/current"


def read_policy(home: Home) -> Policy:
    """The policy, or Denied(CONFIG): a site whose own rules cannot be trusted serves nobody."""
    try:
        with opened(open_folder(home.config)) as folder:
            _require_private(os.fstat(folder), "the configuration folder", home.of_host)
            descriptor = open_regular(folder, "policy.json", single=True)
        with open(descriptor, "rb") as file:
            _require_private(os.fstat(descriptor), "the policy", home.of_host)
            return parse_policy(file.read((1 << 20) + 1))
    except FileNotFoundError:
        raise Denied(Refusal.CONFIG, f"there is no {home.policy}: `install` puts it there") from None
    except (OSError, CodecError, ValueError) as error:
        raise Denied(Refusal.CONFIG, f"{home.policy}: {reason(error)}") from None


def read_site(home: Home) -> str:
    """The site id that this installation was made for."""
    with opened(open_folder(home.config)) as folder:
        installed = read_json(folder, "installed.json")
    if not isinstance(installed, dict) or not isinstance(installed.get("site"), str):
        raise ValueError("the installation is not complete: install again")
    return str(installed["site"])


def open_work_root(policy: Policy) -> int:
    """The work root as an open folder, or Denied(CONFIG) where it is not this account's own private folder."""
    try:
        folder = open_folder(policy.work_root)
        _require_private(os.fstat(folder), "the work root", policy.install == "root")
        return folder
    except (OSError, ValueError) as error:
        raise Denied(Refusal.CONFIG, f"{policy.work_root} (work_root): {reason(error)}") from None


def _require_private(status: os.stat_result, what: str, of_host: bool) -> None:
    if not (may_own(status.st_uid) if of_host else status.st_uid == os.getuid()):
        raise ValueError(f"{what} belongs to another account")
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise ValueError(f"{what} can be written by others")
