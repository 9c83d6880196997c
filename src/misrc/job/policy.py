"""The site's own policy: what may run here, and what may leave. MInt never needs to see it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Mapping, Optional, Tuple, Union

from .arguments import ArgumentRule
from .codec import decode, parse_json
from .names import ARGUMENT_NAME, PROGRAM_NAME, SHA256
from .quantities import parse_size

MAX_POLICY_BYTES = 1 << 20


def _choose(value: str, allowed: Tuple[str, ...], what: str) -> None:
    if value not in allowed:
        raise ValueError(f"{what}: one of {', '.join(allowed)} is needed")


@dataclass(frozen=True)
class JobKey:
    """One key that may log in: an OpenSSH public key, the networks it comes from, and its last day (YYYY-MM-DD)."""

    key: str
    from_: Tuple[str, ...] = ()
    until: Optional[str] = None


@dataclass(frozen=True)
class Limits:
    """Bounds of the site. Sizes in bytes (or `50GiB`), `hours` per program run, the rest are counts."""

    jobs: int = 4
    waiting: int = 100
    job_bytes: Union[int, str] = "50GiB"
    files: int = 100_000
    hours: int = 48
    processes: int = 512
    memory: Union[int, str, None] = None
    log_bytes: Union[int, str] = "1GiB"
    jobs_per_day: Optional[int] = None
    bytes_out_per_day: Union[int, str, None] = None

    def __post_init__(self) -> None:
        for name in ("jobs", "waiting", "files", "hours", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"limits.{name} must be 1 or more")
        for name in ("job_bytes", "memory", "log_bytes", "bytes_out_per_day"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, parse_size(value))

    def size(self, name: str) -> Optional[int]:
        """A size limit in bytes; None means no limit."""
        value = getattr(self, name)
        return None if value is None else parse_size(value)


@dataclass(frozen=True)
class ProgramRule:
    """One program that may run: where it is, which arguments it takes, and which of its files may leave."""

    path: str
    returns: Tuple[str, ...]
    withhold: Tuple[str, ...] = ()
    arguments: Mapping[str, ArgumentRule] = field(default_factory=dict)
    inputs: Tuple[str, ...] = ("*",)
    requires: Tuple[str, ...] = ()
    sha256: Optional[str] = None
    logs: str = "tail"
    network: str = "deny"
    hold: bool = False
    restartable: bool = False
    profile: str = "strict"
    reason: Optional[str] = None

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or "\0" in self.path or "/../" in self.path:
            raise ValueError("path must be absolute, without '..'")
        if self.sha256 is not None and not re.fullmatch(SHA256, self.sha256):
            raise ValueError("sha256 must be 64 lower-case hex digits")
        _choose(self.logs, ("full", "tail", "none"), "logs")
        _choose(self.network, ("deny", "allow"), "network")
        _choose(self.profile, ("strict", "hpc"), "profile")
        for name in self.arguments:
            if not re.fullmatch(ARGUMENT_NAME, name):
                raise ValueError("an argument's name is not well formed")


@dataclass(frozen=True)
class Policy:
    """The whole policy of one site installation."""

    work_root: str
    programs: Mapping[str, ProgramRule]
    job_keys: Tuple[JobKey, ...] = ()
    install: str = "user"
    require_signature: Tuple[str, ...] = ()
    keep_days: int = 30
    limits: Limits = field(default_factory=Limits)
    windows: Tuple[str, ...] = ()
    batch: str = "none"
    reason: Optional[str] = None

    def __post_init__(self) -> None:
        _choose(self.install, ("root", "user"), "install")
        _choose(self.batch, ("none", "slurm", "pbs", "torque", "sge", "pjm"), "batch")
        if not self.work_root.startswith("/") or "/../" in self.work_root:
            raise ValueError("work_root must be absolute, without '..'")
        if self.keep_days < 0:
            raise ValueError("keep_days cannot be negative")
        for name in self.programs:
            if not re.fullmatch(PROGRAM_NAME, name, re.ASCII):
                raise ValueError("a program's name is not well formed")
        self._refuse_what_this_version_cannot_hold()

    def _refuse_what_this_version_cannot_hold(self) -> None:
        """A promise that the code does not keep yet must not be declared as if it did."""
        for value, what in (
            (self.require_signature, "require_signature"),
            (self.windows, "windows"),
            (self.batch != "none", "batch"),
            (self.limits.jobs_per_day is not None, "limits.jobs_per_day"),
            (self.limits.bytes_out_per_day is not None, "limits.bytes_out_per_day"),
        ):
            if value:
                raise ValueError(f"{what} is not available in this version")


def parse_policy(data: bytes) -> Policy:
    """Parse `policy.json`; raises CodecError naming the place."""
    if len(data) > MAX_POLICY_BYTES:
        raise ValueError("the policy is longer than 1 MiB")
    return decode(Policy, _rename_from(parse_json(data)))


def _rename_from(value: object) -> object:
    """`from` is the file's word and no Python name."""
    if isinstance(value, dict) and isinstance(value.get("job_keys"), list):
        for key in value["job_keys"]:
            if isinstance(key, dict) and "from" in key and "from_" not in key:
                key["from_"] = key.pop("from")
    return value
