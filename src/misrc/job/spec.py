"""The job spec: what MInt asks a site to do. It selects a program and fills declared arguments, nothing more."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Dict, Mapping, Optional, Tuple

from .codec import CodecError, decode, dump_json, encode, parse_json
from .manifest import Entry, check_manifest, digest_manifest, total_bytes
from .names import ARGUMENT_NAME, JOB_ID, PROGRAM_NAME, SHA256, SITE_ID, check_input_name

MAX_SPEC_BYTES = 64 << 10
MAX_INLINE_BYTES = 1 << 20
MAX_OPEN_WAIT = 30
ORIGIN = ("user", "run", "workflow")
ORIGIN_VALUE = "[A-Za-z0-9._@-]{1,128}"
# What a signature over a spec is made for; `ssh-keygen -Y` keeps it apart from all others.
NAMESPACE = "misrc-spec"
MAX_SIGNATURE_BYTES = 4 << 10


def _require(pattern: str, text: str, what: str) -> None:
    if not re.fullmatch(pattern, text, re.ASCII):
        raise ValueError(f"{what} is not well formed")


@dataclass(frozen=True)
class JobSpec:
    """What one job is: the site keeps it word for word, and a signature (where a site asks for one) covers it.

    `files` and `bytes` announce the inputs before a byte moves; `manifest` is the digest of their manifest, where
    the caller knows it when the job is opened (it is known for all small inputs, and for every signed spec). `issued`
    is when MInt signed it, in UTC seconds: a site that asks for signatures takes no old ones. `origin` says who asked:
    MInt's `user`, `run` and `workflow`, as far as MInt knows them; the site writes it into its ledger.
    """

    job: str
    site: str
    program: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    manifest: Optional[str] = None
    issued: Optional[int] = None
    origin: Optional[Mapping[str, str]] = None
    version: int = 1

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ValueError("only version 1 of the job spec is known")
        _require(JOB_ID, self.job, "job id")
        _require(SITE_ID, self.site, "site id")
        _require(PROGRAM_NAME, self.program, "program name")
        for name in self.arguments:
            _require(ARGUMENT_NAME, name, "argument name")
        if self.files < 0 or self.bytes < 0:
            raise ValueError("files and bytes cannot be negative")
        if self.manifest is not None:
            _require(SHA256, self.manifest, "manifest digest")
        if self.issued is not None and self.issued < 0:
            raise ValueError("issued cannot be negative")
        for name, value in (self.origin or {}).items():
            if name not in ORIGIN:
                raise ValueError("the origin has user, run and workflow")
            _require(ORIGIN_VALUE, value, "the origin")

    def is_same_job(self, other: JobSpec) -> bool:
        """Whether both ask for the same: a spec that was signed anew asks for nothing new."""
        return replace(self, issued=None) == replace(other, issued=None)


def render_spec(spec: JobSpec) -> bytes:
    """The spec's canonical text, which is what is signed; keys without a value are left out."""
    return dump_json(_compact(spec))


def parse_spec(text: bytes) -> JobSpec:
    """A spec's text; CodecError where it is not one."""
    if len(text) > MAX_SPEC_BYTES:
        raise CodecError("the job spec is longer than 64 KiB")
    return decode(JobSpec, parse_json(text))


def _compact(value: object) -> Dict[str, Any]:
    return {key: item for key, item in encode(value).items() if item is not None}


@dataclass(frozen=True)
class OpenRequest:
    """What `open` carries on standard input: the spec, the wish to start, and small inputs that follow as bytes.

    With the wish to start, `wait` lets the answer come when the program has ended, or after that many seconds.
    `signature` is an armoured OpenSSH signature over the spec's canonical text.
    """

    spec: JobSpec
    start: bool = False
    dry_run: bool = False
    inline: Optional[Tuple[Entry, ...]] = None
    wait: int = 0
    signature: Optional[str] = None

    def __post_init__(self) -> None:
        if self.signature is not None and len(self.signature) > MAX_SIGNATURE_BYTES:
            raise ValueError("the signature is too long")
        if not 0 <= self.wait <= MAX_OPEN_WAIT:
            raise ValueError("the wait is out of bounds")
        if self.inline is None:
            if self.start and self.spec.files:
                raise ValueError("a start needs the inputs in the same request")
            return
        check_manifest(self.inline, check_input_name)
        if total_bytes(self.inline) > MAX_INLINE_BYTES:
            raise ValueError("too many bytes to come along; use put")
        announced = (len(self.inline), total_bytes(self.inline), digest_manifest(self.inline))
        if announced != (self.spec.files, self.spec.bytes, self.spec.manifest):
            raise ValueError("the inputs are not those that the spec announces")


def parse_open(line: bytes) -> OpenRequest:
    """The first line of `open`'s standard input."""
    if len(line) > MAX_SPEC_BYTES:
        raise CodecError("the job spec is longer than 64 KiB")
    return decode(OpenRequest, parse_json(line))


def render_open(request: OpenRequest) -> bytes:
    """The line that `parse_open` reads, with its line end."""
    return dump_json({**_compact(request), "spec": _compact(request.spec)}) + b"\n"
