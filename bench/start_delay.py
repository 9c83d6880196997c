"""How long a job waits for its start at a site that polls: from its release at the API server to its first instruction.

500 other agents keep their polls open meanwhile. The program itself tells when it began; the clock is one machine's.
`noop-s` is from the submission to the known end with its documents through the client library, each job on a new
connection; `run-s` is the whole `misrc run` of the same program.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

from apiserver import USER
from chain import Chain, chain
from conftest import make_program
from idle_agents import idle_agents
from stage import Row, row

from misrc.job.interface import Interface
from misrc.job.manifest import digest_manifest
from misrc.job.spec import JobSpec, OpenRequest
from misrc.job.states import Outcome
from misrc.mint.link.link import Link
from misrc.mint.link.links import make_link
from misrc.mint.sites import load_site

AGENTS = 500
JOBS = 200
NOOPS = 30
RUNS = 9
WAIT = 30


def measure(jobs: int | None) -> list[Row]:
    """All cases, in seconds."""
    count = jobs or JOBS
    base = Path(__file__).resolve().parents[1] / ".cache"
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as name, chain(Path(name) / "lab") as whole:
        _prepare(whole)
        site = load_site(whole.mint.root / "inventory", whole.site.name)
        os.environ["XDG_CONFIG_HOME"] = str(whole.mint.root / "config")
        with contextlib.closing(make_link(site)) as link, _others(whole):
            delays = [_delay(link) for _ in range(count + 3)][3:]
            noops = [_noop(site) for _ in range(NOOPS)]
            runs = [_run(whole, number) for number in range(RUNS + 1)][1:]
    _tell("start", delays)
    _tell("no-op", noops)
    _tell("misrc run", runs)
    return [
        row("median-s", statistics.median(delays), "s", "lower"),
        row("p99-s", sorted(delays)[min(len(delays) - 1, round(0.99 * len(delays)))], "s", "lower"),
        row("noop-s", statistics.median(noops), "s", "lower"),
        row("run-s", statistics.median(runs), "s", "lower"),
    ]


def _tell(what: str, values: list[float]) -> None:
    ordered = sorted(values)
    text = ", ".join(
        f"{share} % {ordered[min(len(ordered) - 1, len(ordered) * share // 100)]:.3f}" for share in (0, 50, 90, 99)
    )
    print(f"  {what}: {len(values)} jobs, {text}, slowest {ordered[-1]:.3f} s", file=sys.stderr, flush=True)


def _prepare(whole: Chain) -> None:
    """A program whose first instruction is to look at the clock, and a second site for the other agents."""
    program = make_program(whole.site.root / "programs/clock", "date +%s.%N > out.dat\n")
    rule = {"path": str(program), "returns": ["out.dat"], "logs": "none", "network": "allow"}
    whole.site.policy["programs"]["clock"] = rule
    whole.site.policy["keep_days"] = 0
    whole.configure()
    programs = {**whole.mint.declaration["programs"], "clock": {"outputs": {"out.dat": "required"}}}
    whole.declare(programs=programs)
    others = {**whole.mint.declaration, "id": "other-site"}
    whole.api.declare(others)
    whole.api.add_token("others", "--user", USER, "--scope", "agent", "--site", "other-site")
    whole.stop_agent()
    whole.start_agent()


def _others(whole: Chain) -> contextlib.AbstractContextManager[object]:
    return idle_agents(whole.api.port, whole.api.root / "tls/ca.pem", "other-site", whole.api.tokens["others"], AGENTS)


def _delay(link: Link) -> float:
    """One job on a connection that stands: from its release to its start."""
    spec = JobSpec(str(uuid.uuid4()), link.site.id, "clock", manifest=digest_manifest(()))
    link.announce(OpenRequest(spec), {}, None)
    released = time.time()
    link.start(spec.job, b"")
    _, sections = link.wait(spec.job, WAIT)
    link.finish(spec.job)
    return float(sections["file:out.dat"]) - released


def _noop(site: Interface) -> float:
    """One job on a connection of its own: from its submission to its known end, with all that the site says of it."""
    spec = JobSpec(str(uuid.uuid4()), site.id, "clock", manifest=digest_manifest(()))
    began = time.perf_counter()
    link = make_link(site)
    try:
        reply, sections = link.announce(OpenRequest(spec, start=True, inline=(), wait=WAIT), {}, None)
        took = time.perf_counter() - began
        assert reply.outcome is Outcome.SUCCEEDED and "receipt" in sections, reply
        link.finish(spec.job)
    finally:
        link.close()
    return took


def _run(whole: Chain, number: int) -> float:
    began = time.perf_counter()
    done = whole.mint.command("run", whole.site.name, "clock", "--results", f"out/{number}")
    took = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    assert (whole.mint.root / f"out/{number}/out.dat").exists()
    return took
