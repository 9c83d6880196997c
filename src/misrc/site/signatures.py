"""Job specs that MInt signed: whoever stands between MInt and the site cannot make work, or change it.

The signature covers the spec's canonical text, and through the digest of the inputs' manifest every input. The same
spec sent twice is the same job, and a deleted job's id is never used again; its age bounds what is left: a work root
that was made anew.

Not covered: what a program reads beside its inputs, and a signing key that somebody took at MInt.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from typing import Iterator, Optional, Tuple

from ..job.policy import Policy
from ..job.spec import NAMESPACE, JobSpec, render_spec
from ..wire.refusals import Denied, Refusal

KEYGEN = "/usr/bin/ssh-keygen"
# How far MInt's clock may be ahead.
CLOCK_SECONDS = 600
_DAY = 86400


def check_signature(policy: Policy, spec: JobSpec, signature: Optional[str], only_asked: bool = False) -> None:
    """Denied unless the policy asks for no signature, or `signature` is a good and recent one.

    A question that makes no job (`only_asked`) need not say what its inputs are.
    """
    if not policy.require_signature:
        return
    if not signature:
        raise Denied(Refusal.SIGNATURE, "the job spec is not signed")
    if spec.issued is None or (spec.manifest is None and not only_asked):
        raise Denied(Refusal.SIGNATURE, "the signed job spec lacks its time or its inputs' digest")
    if not verify(policy.require_signature, render_spec(spec), signature):
        raise Denied(Refusal.SIGNATURE, "the signature is not one of a key that the policy names")
    if not -CLOCK_SECONDS <= time.time() - spec.issued <= policy.signature_days * _DAY:
        raise Denied(Refusal.STALE, "the job spec was signed too long ago, or in the future")


def verify(keys: Tuple[str, ...], text: bytes, signature: str) -> bool:
    """Whether one of `keys` (`ssh-ed25519 BASE64`) signed `text` as a job spec."""
    signers = "".join(f'mint namespaces="{NAMESPACE}" {key}\n' for key in keys)
    try:
        with _readable(signers.encode("ascii")) as known, _readable(signature.encode("ascii")) as given:
            words = [KEYGEN, "-q", "-Y", "verify", "-f", known[1], "-I", "mint", "-n", NAMESPACE, "-s", given[1]]
            done = subprocess.run(
                words,
                input=text,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[known[0], given[0]],
                timeout=30,
                check=False,
                env={"PATH": "/usr/bin:/bin"},
            )
    except UnicodeEncodeError:
        return False
    return done.returncode == 0


@contextlib.contextmanager
def _readable(data: bytes) -> Iterator[Tuple[int, str]]:
    """Bytes as a descriptor and a path that a child can read; in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("misrc")
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp(prefix="misrc-")
    try:
        os.write(descriptor, data)
        yield descriptor, path
    finally:
        os.close(descriptor)
        if not path.startswith("/proc/"):
            os.unlink(path)
