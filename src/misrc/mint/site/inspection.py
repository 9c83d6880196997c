"""`misrc site check`: logs in with the job key, compares what is there with what is declared, and tries the forbidden.

It starts no job and moves no file. The site's ledger shows each attempt as a refused request.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

from ... import __version__
from ...job.errors import MisrcError, Refused
from ...job.interface import WEBAPI
from ...job.ledger import Checkpoint
from ...job.public_keys import KEY_TYPE
from ...job.quantities import format_size
from ...wire.refusals import Refusal
from ...wire.replies import Hello
from ..jobs import latest_checkpoint
from ..keys import fingerprint, read_public
from ..link.connection import Connection
from ..link.link import last_line
from ..messages.catalog import say
from ..places import next_identity
from .api_inspection import inspect_api
from .declarations import Declaration, find_declaration
from .findings import Finding, exit_status, fail, ok, skipped, warn
from .probes import PROBES, run_probes
from .trial import Trial

# Further apart, dates in ledgers and receipts cannot be compared, and keys expire on another day.
CLOCK_SECONDS = 60.0
MIN_FREE = 1 << 30
OLDEST_PYTHON = (3, 9)
OLDEST_RSYNC = (3, 5, 0)
NOTICE_DAYS = 60
_FACTS = ("job_key", "host_keys", "gate", "site_id", "misrc", "python", "rsync", "clock", "space", "programs", "ledger")
_HOST_KEY = re.compile(rf"Server host key: {KEY_TYPE} (SHA256:\S+)")
_JOB_KEY = re.compile(r"Server accepts key: .*(SHA256:\S+)")
_UNTRUSTED = re.compile(r"Host key verification failed|REMOTE HOST IDENTIFICATION|no matching host key type")


def check_site(site: str, inventory: str | None, as_json: bool) -> int:
    """`misrc site check`: 0 only if nothing failed."""
    declaration = find_declaration(site, inventory)
    findings = []
    for finding in inspect(declaration):
        findings.append(finding)
        if not as_json:
            print(finding.line())
            sys.stdout.flush()
    status = exit_status(findings)
    if as_json:
        print(json.dumps({"site": site, "passed": status == 0, "findings": [asdict(one) for one in findings]}))
    return status


def inspect(declaration: Declaration) -> Iterator[Finding]:
    """All findings, in order."""
    yield _check_agreement(declaration)
    if declaration.site.method == WEBAPI:
        yield from inspect_api(declaration)
        return
    connection = Connection.make(declaration.site)
    try:
        trial = Trial(connection)
        if trial.open():
            yield from _inspect_connected(declaration, trial)
        else:
            yield from _explain_unconnected(trial)
    finally:
        connection.close()


def _check_agreement(declaration: Declaration) -> Finding:
    day = declaration.site.valid_until
    if day is None:
        return ok("agreement", say("note.no_end"))
    left = (datetime.date.fromisoformat(day) - datetime.date.today()).days
    if left < 0:
        return fail("agreement", say("note.ended", day=day))
    return (warn if left < NOTICE_DAYS else ok)("agreement", say("note.ends", day=day, days=left))


def _explain_unconnected(trial: Trial) -> Iterator[Finding]:
    """No connection: one line says why, and all others say that nothing is known."""
    text = trial.log()
    why = last_line("\n".join(line for line in text.splitlines() if not line.startswith("debug1:"))) or "-"
    if _UNTRUSTED.search(text):
        shown = _HOST_KEY.search(text)
        failed = [fail("host_key", say("note.other_host_key", shown=shown[1] if shown else "?"))]
    elif "Permission denied" in text:
        failed = [ok("host_key"), fail("job_key", say("note.key_refused"))]
    else:
        failed = [fail("host_key", say("note.no_answer", why=why))]
    yield from failed
    known = {finding.name for finding in failed}
    for name in ("host_key", *_FACTS, *(name for name, _ in PROBES)):
        if name not in known:
            yield skipped(name, say("note.not_connected"))


def _inspect_connected(declaration: Declaration, trial: Trial) -> Iterator[Finding]:
    text = trial.log()
    yield from _check_host_keys(declaration, text)
    yield _check_job_key(declaration, text)
    began = time.time()
    try:
        reply = trial.hello()
    except MisrcError as error:
        yield from _explain_no_gate(error)
    else:
        if reply.hello is None:
            yield from _explain_no_gate(MisrcError("-"))
        else:
            yield ok("gate")
            yield from _check_hello(declaration, reply.hello, began, time.time())
            yield _check_ledger(declaration, reply.checkpoint)
    yield from run_probes(trial)


def _explain_no_gate(error: MisrcError) -> Iterator[Finding]:
    old_rsync = isinstance(error, Refused) and error.code == Refusal.RSYNC.value
    yield (ok if old_rsync else fail)("gate", str(error))
    for name in _FACTS[_FACTS.index("gate") + 1 :]:
        if old_rsync and name == "rsync":
            yield fail(name, str(error))
        else:
            yield skipped(name, say("note.dead"))


def _check_host_keys(declaration: Declaration, text: str) -> Iterator[Finding]:
    """ssh has compared the key with the pins before anything else; here only which one it was."""
    pinned = [fingerprint(key) for key in declaration.site.host_keys]
    match = _HOST_KEY.search(text)
    shown = match[1] if match else ""
    if shown not in pinned:
        yield fail("host_key", say("note.other_host_key", shown=shown or "?"))
        return
    yield ok("host_key", say("note.host_key", shown=shown, number=pinned.index(shown) + 1, count=len(pinned)))
    if len(pinned) == 1:
        yield warn("host_keys", say("note.last_host_key"))
    else:
        others = ", ".join(key for key in pinned if key != shown)
        yield ok("host_keys", say("note.other_pins", others=others))


def _check_job_key(declaration: Declaration, text: str) -> Finding:
    accepted = _JOB_KEY.findall(text)
    identity = declaration.identity()
    following = next_identity(identity)
    if not accepted:
        return skipped("job_key", say("note.silent"))
    if not following.is_file():
        return ok("job_key", accepted[-1])
    new = accepted[-1] == fingerprint(read_public(following))
    return ok("job_key", say("note.new_key" if new else "note.old_key", shown=accepted[-1]))


def _check_hello(declaration: Declaration, hello: Hello, began: float, ended: float) -> Iterator[Finding]:
    site = declaration.site
    yield ok("site_id") if hello.site == site.id else fail("site_id", say("note.site_id", found=_clean(hello.site)))
    same = hello.misrc == __version__
    yield (ok if same else warn)("misrc", say("note.versions", there=_clean(hello.misrc), here=__version__))
    yield _check_version("python", hello.python, OLDEST_PYTHON)
    yield _check_version("rsync", hello.rsync, OLDEST_RSYNC)
    yield _check_clock(hello.clock, began, ended)
    enough = hello.free_bytes >= MIN_FREE
    yield (ok if enough else fail)("space", say("note.free", free=format_size(hello.free_bytes)))
    missing = [name for name in site.programs if name not in hello.programs]
    if missing:
        yield fail("programs", say("note.programs", missing=", ".join(missing)))
    else:
        yield ok("programs", ", ".join(site.programs))


def _check_version(name: str, text: str, oldest: tuple[int, ...]) -> Finding:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", text, re.ASCII):
        return fail(name, say("note.version", found=_clean(text)))
    if tuple(map(int, text.split("."))) >= oldest:
        return ok(name, text)
    floor = ".".join(map(str, oldest))
    # A gate refuses an rsync that has known holes; one that it took below our floor carries its system's patches.
    return (warn if name == "rsync" else fail)(name, say("note.floor", found=text, floor=floor))


def _check_clock(clock: float, began: float, ended: float) -> Finding:
    """The site read its clock between the question and the answer, so up to that much is unknown."""
    skew = clock - (began + ended) / 2
    note = say("note.clock", skew=f"{skew:+.1f}", error=f"{(ended - began) / 2:.1f}")
    return ok("clock", note) if abs(skew) <= CLOCK_SECONDS else fail("clock", note)


def _check_ledger(declaration: Declaration, now: Checkpoint | None) -> Finding:
    """Against the latest checkpoint that came with a job. The chain between the two only the site can show."""
    known = latest_checkpoint(declaration.site.id)
    if now is None:
        return fail("ledger", say("note.no_checkpoint"))
    note = say("note.checkpoint", seq=now.seq, known=known.seq if known else "-")
    wrong = known is not None and (now.seq < known.seq or (now.seq == known.seq and now.hash != known.hash))
    return fail("ledger", say("note.ledger_cut", note=note)) if wrong else ok("ledger", note)


def _clean(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text)[:64]
