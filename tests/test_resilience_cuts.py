"""The one guarantee of the resilience suite, here with a relay between MInt's ssh and the site's sshd:

each job reaches exactly one final state, its program is started exactly once, and its results are identical byte by
byte, or the call ends with a clear error and the same call made again finishes the job.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Mint, Site, eventually, make_mint, make_site
from relay import Relay
from resilience import add_program, check_site, declare, driven_by, finish, kill, started, starts

MIB = 1 << 20
# Nothing in it repeats, so that no transfer is shorter than its bytes.
DATA = random.Random(1).randbytes(3 * MIB)
LARGE = random.Random(2).randbytes(24 * MIB)
# Handshake, answers, checksums of what had arrived: what a call costs besides its payload.
OVERHEAD = 2 * MIB


@dataclass
class Line:
    """A site, a relay before it, and MInt's side, which knows only the relay."""

    site: Site
    relay: Relay
    mint: Mint

    def words(self, results: str, seconds: str = "0", data: str = "in.dat") -> list[str]:
        source = self.mint.root / "inputs" / data
        arguments = ["--arg", f"seconds={seconds}", "--results", results]
        return ["test-site", "carry", "--in", f"in.dat={source}", *arguments]

    def result(self, results: str) -> bytes:
        return (self.mint.root / results / "out.dat").read_bytes()

    def last_job(self) -> str:
        return str(self.mint.jobs()[-1]["job"])


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    root = tmp_path_factory.mktemp("cuts")
    site = make_site(root / "site-host")
    add_program(site, "carry", 'sleep "$1"; cp in.dat out.dat\n')
    site.start_sshd()
    with Relay(site.port) as relay:
        mint = make_mint(root / "mint", site, relay.port)
        declare(mint, "carry")
        mint.file("in.dat", DATA)
        mint.file("large.dat", LARGE)
        yield Line(site, relay, mint)
    site.stop_sshd()


@dataclass
class Window:
    """What passes the relay until a job reaches each step: measured once, with nothing cut."""

    stage: int
    start: int
    wait: int
    retrieve: int


@pytest.fixture(scope="module")
def clean(line: Line) -> Window:
    """Bytes up at the end of staging, and down at the end of everything; also the control: uncut it works."""
    line.mint.environment["MISRC_PATIENCE"] = "1"
    up, down = line.relay.up, line.relay.down
    [done] = finish(line.mint, *line.words("clean"))
    assert done.returncode == 0 and line.result("clean") == DATA and line.relay.cuts == 0
    check_site(line.site, line.last_job())
    all_up, all_down = line.relay.up - up, line.relay.down - down
    assert all_up > len(DATA) and all_down > len(DATA)
    return Window(stage=len(DATA), start=all_up - len(DATA), wait=all_down - len(DATA), retrieve=len(DATA))


def offsets(step: str, clean: Window, count: int) -> list[tuple[str, int]]:
    """Seeded places to cut: a direction and how many bytes pass first."""
    seeded = random.Random(step)
    found = []
    for _ in range(count):
        if step == "stage":
            found.append(("up", seeded.randrange(1, clean.stage)))
        elif step == "start":
            found.append(("up", clean.stage + seeded.randrange(0, clean.start)))
        elif step == "wait":
            found.append(("down", seeded.randrange(1, clean.wait)))
        else:
            found.append(("down", clean.wait + seeded.randrange(0, clean.retrieve)))
    return found


def cut_at(line: Line, results: str, direction: str, offset: int) -> None:
    """One job with one cut: the call itself goes on, and nothing of the cut shows in the end."""
    cuts = line.relay.cuts
    line.relay.cut_after(**{direction: offset})
    done = line.mint.command("run", *line.words(results))
    struck = line.relay.cuts - cuts
    line.relay.cut_after()
    assert done.returncode == 0, (direction, offset, done.stderr)
    assert line.result(results) == DATA
    check_site(line.site, line.last_job())
    assert struck <= 1


STEPS = ["stage", "start", "wait", "retrieve"]


@pytest.mark.parametrize("step", STEPS)
def test_cuts(line: Line, clean: Window, step: str) -> None:
    """A connection cut after any number of bytes, in any step: the same call ends well by itself."""
    before = line.relay.cuts
    for number, (direction, offset) in enumerate(offsets(step, clean, 5)):
        cut_at(line, f"{step}{number}", direction, offset)
    assert line.relay.cuts >= before + 3, "hardly anything was cut"


@pytest.mark.full
@pytest.mark.parametrize("shard", range(4))
@pytest.mark.parametrize("step", STEPS)
def test_more_cuts(line: Line, clean: Window, step: str, shard: int) -> None:
    """The same at 25 places per step."""
    for number, (direction, offset) in list(enumerate(offsets(step, clean, 25)))[shard::4]:
        cut_at(line, f"more-{step}{number}", direction, offset)


def test_many_cuts_of_one_job(line: Line, clean: Window) -> None:
    """A line that is cut again and again, after 1 to 3 MiB each time, still carries the job."""
    process = line.mint.spawn("run", *line.words("again", data="large.dat"))
    cuts = line.relay.cuts
    seeded = random.Random(3)
    while process.poll() is None and line.relay.cuts - cuts < 8:
        if not line.relay.armed:
            line.relay.cut_after(up=seeded.randrange(MIB, 3 * MIB), down=seeded.randrange(MIB, 3 * MIB))
        time.sleep(0.02)
    line.relay.cut_after()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert line.relay.cuts - cuts >= 4
    assert line.result("again") == LARGE
    check_site(line.site, line.last_job())


# -- a cut transfer goes on where it stopped --------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cut_transfer_goes_on(line: Line, direction: str) -> None:
    """Bytes at the relay: after a cut at three quarters only the rest is sent, not all of it again."""
    before = line.relay.up, line.relay.down
    cut = {direction: len(LARGE) * 3 // 4}
    line.relay.cut_after(**cut)
    cuts = line.relay.cuts
    [done] = finish(line.mint, *line.words(f"on-{direction}", data="large.dat"))
    assert line.relay.cuts == cuts + 1 and done.returncode == 0
    assert line.result(f"on-{direction}") == LARGE
    for passed in (line.relay.up - before[0], line.relay.down - before[1]):
        assert len(LARGE) <= passed < len(LARGE) + OVERHEAD + 4 * MIB
    check_site(line.site, line.last_job())


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_killed_transfer_goes_on(line: Line, direction: str) -> None:
    """The same where `misrc run` is killed in the middle, and the same call is made again."""
    before = line.relay.up, line.relay.down
    words = line.words(f"killed-{direction}", data="large.dat")
    line.relay.delay = 0.0
    process = line.mint.spawn("run", *words)
    base = {"up": before[0], "down": before[1]}[direction]
    _stall_at(line.relay, direction, base + len(LARGE) // 2, process)
    kill(process)
    eventually(lambda: not driven_by(process.pid), what="the end of what it had started")
    line.relay.cut()
    line.relay.flow()
    finish(line.mint, *words)
    assert line.result(f"killed-{direction}") == LARGE
    for passed in (line.relay.up - before[0], line.relay.down - before[1]):
        assert len(LARGE) <= passed < len(LARGE) + OVERHEAD + 8 * MIB
    check_site(line.site, line.last_job())


def _stall_at(relay: Relay, direction: str, total: int, process: subprocess.Popen[str]) -> None:
    """Let nothing pass any more as soon as so many bytes have passed."""
    end = time.monotonic() + 60
    while getattr(relay, direction) < total:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.0005)
    relay.stall()


# -- other weather ----------------------------------------------------------------------------------------------------


def test_a_slow_line(line: Line) -> None:
    """200 ms each way: everything takes longer, nothing else changes."""
    line.relay.delay = 0.2
    try:
        [done] = finish(line.mint, *line.words("slow"))
    finally:
        line.relay.delay = 0.0
    assert done.returncode == 0 and line.result("slow") == DATA
    check_site(line.site, line.last_job())


def test_refused_for_a_while(line: Line) -> None:
    """Nobody listens when the call is made, and a little later somebody does: the call ends well."""
    line.relay.refuse()
    process = line.mint.spawn("run", *line.words("refused"))
    time.sleep(2)
    assert process.poll() is None
    line.relay.accept()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert line.result("refused") == DATA
    check_site(line.site, line.last_job())


def test_a_black_hole_while_the_program_runs(line: Line) -> None:
    """Nothing passes for a while, though every connection stays open; then it is cut: the call ends well."""
    process = line.mint.spawn("run", *line.words("hole", seconds="5"))
    count = len(starts(line.site))
    eventually(lambda: len(starts(line.site)) > count, 60, "the start")
    eventually(lambda: not driven_by(process.pid), 30, "the end of the first play")
    line.relay.stall()
    job = started(line.site)
    eventually(lambda: Path(line.site.job_file(job, "receipt.json")).exists(), 30, "the end at the site")
    line.relay.cut()
    time.sleep(1)
    assert process.poll() is None
    line.relay.flow()
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert line.result("hole") == DATA
    check_site(line.site, job)
