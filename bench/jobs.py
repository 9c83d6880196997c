"""No-op jobs a second through both ends: MInt's client library, the API server, a real agent and real programs.

Nothing is left out: every job is registered, released, claimed, written to the site's ledger before and after, started
as a process of its own, and answered with a manifest and a signed receipt; both stores are durable. Several jobs are
under way at once, as several workflows would have them. With `signed`, MInt signs every spec and the site verifies it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from chain import Chain, chain
from stage import median

from misrc.job.interface import Interface
from misrc.job.manifest import digest_manifest
from misrc.job.spec import OpenRequest
from misrc.job.states import Outcome
from misrc.mint.announcement import announce
from misrc.mint.jobs import MintJob
from misrc.mint.link.link import Link
from misrc.mint.link.links import make_link
from misrc.mint.sites import load_site

JOBS = 150
AT_ONCE = 8
WAIT = 30


def rate(base: Path, signed: bool, rounds: int) -> float:
    """Jobs a second, the median of several rounds."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as name, chain(Path(name) / "lab") as whole:
        _prepare(whole, signed)
        os.environ["XDG_CONFIG_HOME"] = str(whole.mint.root / "config")
        site = load_site(whole.mint.root / "inventory", whole.site.name)
        found = [_rate(site) for _ in range(rounds)]
    each = ", ".join(f"{value:.1f}" for value in found)
    print(f"  {'signed' if signed else 'unsigned'} jobs: {each} a second", file=sys.stderr, flush=True)
    return median(found)


def _prepare(whole: Chain, signed: bool) -> None:
    whole.site.policy["limits"] = {**whole.site.policy.get("limits", {}), "jobs": AT_ONCE, "waiting": 4 * AT_ONCE}
    if signed:
        whole.site.policy["require_signature"] = [whole.mint.make_signing_key()]
        whole.declare(signed=True)
    whole.configure()
    whole.stop_agent()
    whole.start_agent()


def _rate(site: Interface) -> float:
    work: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for _ in range(JOBS):
        work.put(str(uuid.uuid4()))
    failed: list[BaseException] = []
    clients = [threading.Thread(target=_client, args=(site, work, failed)) for _ in range(AT_ONCE)]
    began = time.perf_counter()
    for client in clients:
        work.put(None)
        client.start()
    for client in clients:
        client.join()
    if failed:
        raise failed[0]
    return JOBS / (time.perf_counter() - began)


def _client(site: Interface, work: queue.SimpleQueue[str | None], failed: list[BaseException]) -> None:
    try:
        with contextlib.closing(make_link(site)) as link:
            while job := work.get():
                _one(site, link, job)
    except BaseException as error:
        failed.append(error)


def _one(site: Interface, link: Link, job: str) -> None:
    record = MintJob(job, "", "", site.id, "noop", {}, "")
    told = announce(site, record, digest_manifest(()))
    request = OpenRequest(told.spec, start=True, inline=(), wait=WAIT, signature=told.signature)
    reply, sections = link.announce(request, {}, None)
    if reply.outcome is not Outcome.SUCCEEDED or not {"receipt", "manifest"} <= sections.keys():
        raise RuntimeError(f"not the expected end: {reply}")
    link.finish(job)
