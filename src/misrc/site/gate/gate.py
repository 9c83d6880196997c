"""Door 1: the forced command of a job key. Bytes in, one legal command or one refusal, one record, nothing else.

It never runs as uid 0, takes nothing from its environment but the command and the peer's address, and never calls
a shell.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
from typing import List, Optional, Tuple

from ...job.faults import reach
from ...job.names import ANY_KEY
from ...job.policy import Policy
from ...wire.grammar import Command, Verb, parse_command
from ...wire.refusals import EXIT_INTERNAL, Denied, Refusal, render_denial
from ...wire.replies import Reply, render_reply
from ..files import opened
from ..home import Home, open_work_root, read_policy
from ..ledger import Ledger
from ..premises import open_ledger, open_operations
from .verbs import Session

REQUEST_SECONDS = 300
_RECORDED_BYTES = 256
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C", "HOME": "/nonexistent"}


def serve(home: Home, site: str, key: str) -> int:
    """Serve the one request of this connection; the exit status says allowed, refused or failed."""
    reach("gate.enter")
    key = _exposed_key() if key == ANY_KEY else key
    asked, peer = _take_environment()
    os.umask(0o077)
    ledger = open_ledger(home, site=site, key=key, peer=peer)
    try:
        status = _serve(home, site, ledger, asked)
    except Denied as denied:
        return _refuse(ledger, denied, asked)
    except BrokenPipeError:
        _discard_output()
        return 0
    except Exception as error:
        return _refuse(ledger, Denied(Refusal.INTERNAL, f"{type(error).__name__}: {error}"), asked)
    reach("gate.leave")
    return status


def _exposed_key() -> str:
    from .identity import exposed_key

    return exposed_key(os.environ.get("SSH_USER_AUTH", ""))


def _take_environment() -> Tuple[Optional[bytes], str]:
    """The client's command and address; everything else that came from outside is dropped."""
    asked = os.environb.get(b"SSH_ORIGINAL_COMMAND")
    peer = os.environb.get(b"SSH_CONNECTION", b"").split(b" ")[0].decode("ascii", "replace")
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    return asked, peer if all(c in "0123456789abcdef.:" for c in peer) else "?"


def _serve(home: Home, site: str, ledger: Ledger, asked: Optional[bytes]) -> int:
    if os.getuid() == 0 or os.geteuid() == 0:
        raise Denied(Refusal.ROOT, "the gate does not run as root")
    if not asked:
        raise Denied(Refusal.NO_COMMAND)
    command = parse_command(asked)
    if command is None:
        raise Denied(Refusal.GRAMMAR)
    policy = read_policy(home)
    with opened(open_work_root(policy)) as root:
        return _run(home, site, policy, root, ledger, command)


def _run(home: Home, site: str, policy: Policy, root: int, ledger: Ledger, command: Command) -> int:
    if command.verb in (Verb.OPEN, Verb.START):
        _bound_request()
    session = Session(open_operations(home, site, policy, root, ledger), sys.stdin.buffer, sys.stdout.buffer)
    session.run(command)
    return session.exit_status


def _bound_request() -> None:
    """A client that stalls in the middle of a request does not hold a process for ever."""

    def give_up(number: int, frame: object) -> None:
        raise Denied(Refusal.SPEC, "the request did not arrive in time")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(REQUEST_SECONDS)


def _refuse(ledger: Ledger, denied: Denied, asked: Optional[bytes]) -> int:
    """One record, one line, one status."""
    refusal = denied.refusal
    raw = asked or b""
    try:
        ledger.append(
            "refuse",
            essential=True,
            decision="deny",
            reason=refusal.value,
            note=_escape(denied.note),
            input=_escape(raw[:_RECORDED_BYTES].decode("latin-1")),
            input_bytes=len(raw),
            input_sha256=hashlib.sha256(raw).hexdigest(),
        )
    except Denied:
        refusal = Refusal.LEDGER
    with contextlib.suppress(OSError):
        if refusal.exit_status != 64:
            sys.stdout.buffer.write(render_reply(Reply(refused=refusal.value)))
            sys.stdout.buffer.flush()
    with contextlib.suppress(OSError):
        sys.stderr.write(render_denial(refusal) + "\n")
        sys.stderr.flush()
    return refusal.exit_status


def _escape(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")[:1024]


def _discard_output() -> None:
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main(arguments: List[str], home: Home) -> int:
    """`gate SITE KEY`, as the forced command calls it; what the client asked for is never an argument."""
    if len(arguments) != 2:
        sys.stderr.write(render_denial(Refusal.CONFIG) + "\n")
        return EXIT_INTERNAL
    return serve(home, arguments[0], arguments[1])
