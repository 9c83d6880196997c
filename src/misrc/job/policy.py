"""The site's own policy: what may run here, and what may leave. MInt never needs to see it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Mapping, Optional, Tuple, Union

from .arguments import ArgumentRule
from .codec import FieldError, decode, parse_json
from .descriptions import described
from .names import ARGUMENT_NAME, PROGRAM_NAME, SHA256
from .public_keys import parse_public_key
from .quantities import parse_duration, parse_size
from .windows import Window, parse_window

MAX_POLICY_BYTES = 1 << 20


def _choose(value: str, allowed: Tuple[str, ...], what: str) -> None:
    if value not in allowed:
        raise FieldError(what, f"one of {', '.join(allowed)} is needed")


@dataclass(frozen=True)
class JobKey:
    """One key that may log in."""

    key: str = described("MInt's public key (`ssh-ed25519`)")
    from_: Tuple[str, ...] = described("networks that it may come from", (), "any")
    until: Optional[str] = described("last day on which it may log in, YYYY-MM-DD", None, "no end")


@dataclass(frozen=True)
class Limits:
    """Bounds of the site."""

    jobs: int = described("programs that run at a time", 4)
    waiting: int = described("further jobs that may wait; above that, `E22`", 100)
    job_bytes: Union[int, str] = described(
        "size of one job's inputs, and of the largest file that its program may write", "50GiB", "50GiB"
    )
    files: int = described(
        "number of input files, and of files that may leave; with more than that none leaves", 100_000
    )
    hours: Union[int, str] = described("run time of one program: whole hours, or with a unit, such as `90m`", 48)
    processes: int = described("processes of the **whole account**", 512)
    memory: Union[int, str, None] = described("address space of **one process**", None, "no limit")
    log_bytes: Union[int, str] = described("size of each log file; the rest is dropped and marked", "1GiB", "1GiB")
    jobs_per_day: Optional[int] = described("new jobs that are taken on one day; above that, `E24`", None, "no limit")
    bytes_out_per_day: Union[int, str, None] = described(
        "bytes of results that leave on one day; what would go above that stays, with `E25`", None, "no limit"
    )

    def __post_init__(self) -> None:
        for name in ("jobs", "waiting", "files", "processes", "jobs_per_day"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FieldError(name, "must be 1 or more")
        for name in ("job_bytes", "memory", "log_bytes", "bytes_out_per_day"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, self._parse(name, value))
        if self.run_seconds < 1:
            raise FieldError("hours", "must be more than nothing")
        if self.bytes_out_per_day == 0:
            raise FieldError("bytes_out_per_day", "must be 1 or more; to stop everything, freeze the site")

    def _parse(self, name: str, value: Union[int, str]) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            raise FieldError(name, str(error)) from None

    @property
    def run_seconds(self) -> int:
        """How long one program may run, in seconds."""
        if isinstance(self.hours, int):
            return self.hours * 3600
        if self.hours.isdigit():
            # "48" could be hours, as in the number 48, or seconds, as in other durations.
            raise FieldError("hours", "a whole number of hours without quotes, or a duration with a unit, is needed")
        try:
            return parse_duration(self.hours)
        except ValueError as error:
            raise FieldError("hours", str(error)) from None

    def size(self, name: str) -> Optional[int]:
        """A size limit in bytes; None means no limit."""
        value = getattr(self, name)
        return None if value is None else parse_size(value)


@dataclass(frozen=True)
class ProgramRule:
    """One program that may run: where it is, which arguments it takes, and which of its files may leave."""

    path: str = described("the program: an absolute path (no `~`), an executable file, not a link")
    returns: Tuple[str, ...] = described(
        'what may leave: names or patterns. **Nothing leaves that is not named**; everything is `["**"]`'
    )
    withhold: Tuple[str, ...] = described(
        "what stays although `returns` names it; upper and lower case count as the same", ()
    )
    arguments: Mapping[str, ArgumentRule] = described("the words that the program gets, in this order; see below", dict)
    inputs: Tuple[str, ...] = described("which input names are taken", ("*",), '`["*"]`')
    command: Optional[str] = described(
        "the command line by which clients of the predecessor ask for this program", None
    )
    requires: Tuple[str, ...] = described("files without which a run counts as failed", ())
    sha256: Optional[str] = described(
        "the program file's hash; it runs only if it matches. Helpers that it calls are not covered",
        None,
        "not checked",
    )
    logs: str = described(
        "how much of its output may leave: `full`; `tail` (the last 64 KiB, at the end); `none`", "tail"
    )
    network: str = described("`deny`: the program has no network at all, not even loopback; `allow`", "deny")
    hold: bool = described("`true`: what a run made, also a failed one, and its log wait until you release them", False)
    restartable: bool = described(
        "`true`: may be started again if it vanished, for example in a reboot; else it is reported `lost`", False
    )
    profile: str = described("no effect in this version", "strict")
    reason: Optional[str] = described("why, for auditors", None)

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or "\0" in self.path or "/../" in self.path:
            raise FieldError("path", "must be absolute, without '..'")
        if self.sha256 is not None and not re.fullmatch(SHA256, self.sha256):
            raise FieldError("sha256", "must be 64 lower-case hex digits")
        _choose(self.logs, ("full", "tail", "none"), "logs")
        _choose(self.network, ("deny", "allow"), "network")
        _choose(self.profile, ("strict", "hpc"), "profile")
        for name in self.arguments:
            if not re.fullmatch(ARGUMENT_NAME, name):
                raise FieldError("arguments", "an argument's name is not well formed")


@dataclass(frozen=True)
class Policy:
    """The whole policy of one site installation."""

    work_root: str = described(
        "folder for jobs, an absolute path in plain ASCII; it belongs to the account, and nobody else may write there"
    )
    programs: Mapping[str, ProgramRule] = described("the programs that may run, by the name that MInt uses; see below")
    job_keys: Tuple[JobKey, ...] = described("keys that may log in; several while keys change; see below", ())
    windows: Tuple[str, ...] = described("times at which jobs may start; others wait; see below", (), "always")
    keep_days: int = described("days after which a closed job is deleted; 0: as soon as MInt closes it", 30)
    limits: Limits = described("bounds; see below", Limits, "as below")  # noqa: RUF009 (it makes a field)
    install: str = described("`root` or `user`: who installs", "user")
    require_signature: Tuple[str, ...] = described(
        "MInt's signing keys (`ssh-ed25519`): only jobs that one of them signed are taken; several while keys change",
        (),
    )
    signature_days: int = described("days after which a signed job that never came is not taken any more", 7)
    batch: str = described("not available yet; leave out", "none")
    reason: Optional[str] = described("why, for auditors", None)

    def __post_init__(self) -> None:
        _choose(self.install, ("root", "user"), "install")
        _choose(self.batch, ("none", "slurm", "pbs", "torque", "sge", "pjm"), "batch")
        if not self.work_root.startswith("/") or "/../" in self.work_root:
            raise FieldError("work_root", "must be absolute, without '..'")
        if self.keep_days < 0:
            raise FieldError("keep_days", "cannot be negative")
        if self.signature_days < 1:
            raise FieldError("signature_days", "must be 1 or more")
        object.__setattr__(
            self, "require_signature", tuple(map(self._parse_signer, range(len(self.require_signature))))
        )
        for name in self.programs:
            if not re.fullmatch(PROGRAM_NAME, name, re.ASCII):
                raise FieldError("programs", "a program's name is not well formed")
        object.__setattr__(self, "_opening", tuple(map(self._parse_window, range(len(self.windows)))))
        self._refuse_what_this_version_cannot_hold()

    def _parse_signer(self, number: int) -> str:
        try:
            return parse_public_key(self.require_signature[number])
        except ValueError as error:
            raise FieldError(f"require_signature[{number}]", str(error)) from None

    def _parse_window(self, number: int) -> Window:
        try:
            return parse_window(self.windows[number])
        except ValueError as error:
            raise FieldError(f"windows[{number}]", str(error)) from None

    @property
    def opening(self) -> Tuple[Window, ...]:
        """The windows, parsed; none means that jobs may start at any time."""
        parsed: Tuple[Window, ...] = self.__dict__["_opening"]
        return parsed

    def _refuse_what_this_version_cannot_hold(self) -> None:
        """A promise that the code does not keep yet must not be declared as if it did."""
        if self.batch != "none":
            raise FieldError("batch", "not available in this version; leave it out")


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
