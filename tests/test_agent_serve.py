"""Both ends of version 2, real: `misrc run`, `misrc serve` with TLS, and the agent of an installed site."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import AgentHost
from api_double import Double
from apiserver import USER, Api
from conftest import eventually, free_port, make_program, make_site
from webmint import PROGRAMS, WebMint, make_web_mint


@dataclasses.dataclass
class Ends:
    """Server, agent and MInt's side."""

    api: Api
    host: AgentHost
    mint: WebMint

    def run(self, *words: str) -> tuple[int, str]:
        done = self.mint.command("run", "test-site", *words, timeout=120)
        return done.returncode, done.stderr


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    port = free_port()
    api = Api(tmp_path / "api", listen=[f"127.0.0.1:{port}"])
    declared = {"id": "test-site", "method": "webapi", "api": {"url": f"https://localhost:{port}", "user": USER}}
    api.declare({**declared, "programs": PROGRAMS})
    api.add_token("workflow", "--user", USER, "--scope", "workflow")
    token = api.add_token("agent", "--user", USER, "--scope", "agent", "--site", "test-site")
    api.start()
    ca = api.root / "tls/ca.pem"
    host = AgentHost(make_site(tmp_path / "site-host"), Double())
    secret = host.site.root / "agent.token"
    secret.write_text(token)
    secret.chmod(0o600)
    host.configure(url=f"https://localhost:{port}", ca=str(ca), token=str(secret))
    mint = make_web_mint(
        tmp_path / "mint",
        f"https://localhost:{port}",
        ca,
        api.tokens["workflow"],
        retry={"count": 200, "interval": 0.5},
    )
    try:
        yield Ends(api, host, mint)
    finally:
        if host.process is not None:
            host.stop()
        if api.process is not None and api.process.poll() is None:
            api.kill()


def test_a_run_through_server_and_agent(ends: Ends) -> None:
    """`misrc run` blocks until the site's agent has computed: exit status 0, results delivered, one start, closed."""
    assert ends.host.check().returncode == 0
    ends.host.start()
    file = ends.mint.file("a.txt", b"hello\n")
    status, errors = ends.run(
        "copy", "--in", f"a.txt={file}", "--arg", "words=over https", "--results", str(ends.mint.root / "r")
    )
    assert status == 0, (errors, ends.host.said())
    assert (ends.mint.root / "r/out.dat").read_bytes() == b"hello\n"
    assert len(ends.host.starts()) == 1
    eventually(lambda: ends.host.state(ends.host.starts()[0]) == "closed")


def test_large_files_through_server_and_agent(ends: Ends) -> None:
    """Files beyond what travels in JSON go by resumable transfer, both ways, and are the same bytes."""
    data = random.Random(1).randbytes(5_000_000)
    ends.host.start()
    file = ends.mint.file("big.bin", data)
    status, errors = ends.run("copy", "--in", f"big.bin={file}", "--results", str(ends.mint.root / "r"))
    assert status == 0, (errors, ends.host.said())
    assert (ends.mint.root / "r/out.dat").read_bytes() == data


def test_the_server_is_killed_while_the_program_runs(ends: Ends) -> None:
    """SIGKILL of the server, and later of the agent: both come back, the program started once, the run ends well."""
    ends.host.start()
    process = ends.mint.spawn("run", "test-site", "sleep", "--arg", "seconds=12", "--results", "r")
    eventually(ends.host.starts, 40, "the start")
    ends.api.kill()
    ends.host.stop()
    ends.host.start()
    ends.api.start()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, (errors, ends.host.said())
    assert (ends.mint.root / "r/out.dat").read_bytes() == b"finished\n"
    assert len(ends.host.starts()) == 1


def test_a_refusal_and_a_failure_reach_the_caller(ends: Ends) -> None:
    """The site's own policy says no: exit status 3. The program fails: exit status 1."""
    del ends.host.site.policy["programs"]["noop"]
    ends.host.site.install()
    ends.host.start()
    assert ends.run("noop", "--results", str(ends.mint.root / "r1"))[0] == 3
    assert ends.run("fail", "--results", str(ends.mint.root / "r2"))[0] == 1
    assert len(ends.host.starts()) == 1


def test_start_delay_and_rate_through_both_ends(ends: Ends) -> None:
    """From release to the program's start in a fraction of a second, and no-op jobs at a useful rate."""
    path = make_program(ends.host.site.root / "programs/noop", "date +%s.%N > out.dat\n")
    ends.host.site.policy["programs"]["noop"] = {
        "path": str(path),
        "returns": ["**"],
        "logs": "tail",
        "network": "allow",
    }
    ends.host.site.install()
    ends.host.start()

    def submit() -> str:
        return ends.api.submit(site="test-site", program="noop", manifest=None)

    def ended(job: str) -> bool:
        return bool(ends.api.job(job)["state"] == "ended")

    first = submit()
    eventually(lambda: ended(first), 40)
    delays = []
    for _ in range(10):
        begun = time.time()
        job = submit()
        eventually(lambda: ended(job))  # noqa: B023
        answer = ends.api.job(job)
        text = ends.host.site.job_file(job, "return/out.dat").read_text()
        delays.append(float(text) - begun)
        assert answer["outcome"] == "succeeded"
    assert statistics.median(delays) < 1.0, delays
    begun = time.time()
    many = [submit() for _ in range(40)]
    eventually(lambda: all(ended(job) for job in many), 60)
    rate = 40 / (time.time() - begun)
    print(f"start delay median {statistics.median(delays):.3f} s, max {max(delays):.3f} s; {rate:.1f} jobs/s")
    assert rate > 2
