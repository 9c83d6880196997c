"""The two accounts of a root install: the gate's, which MInt logs in to, and the jobs', which owns nothing else."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from ..job.units import GATE_ACCOUNT, JOB_ACCOUNT


@dataclass(frozen=True)
class Account:
    """A numeric user and its group."""

    uid: int
    gid: int


def _find(name: str) -> Account:
    entry = pwd.getpwnam(name)
    return Account(entry.pw_uid, entry.pw_gid)


def gate_account() -> Account:
    """Who holds the gate; KeyError where this host has no root install."""
    return _find(GATE_ACCOUNT)


def job_account() -> Account:
    """Who runs programs; KeyError where this host has no root install."""
    return _find(JOB_ACCOUNT)


def may_own(uid: int) -> bool:
    """Whether what belongs to `uid` is our own: root's, this account's, and to root also the gate's."""
    if uid in (0, os.getuid()):
        return True
    try:
        return os.getuid() == 0 and uid == gate_account().uid
    except KeyError:
        return False
