"""The one guarantee of the resilience suite, here at every fault point of both sides (`misrc.job.faults`):

each job reaches exactly one final state, its program is started exactly once, and its results are identical byte by
byte, or the call ends with a clear error and the same call made again finishes the job.

A clean job first says which points it passes, and how often. Then, for every single passage, a job is killed there.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from conftest import ROOT, Mint, Site, eventually, make_mint, make_site
from faultpoints import check_all_struck, points
from resilience import add_program, check_site, declare, driven_by, site_record

CALLS = 4
SHARDS = range(4)
INPUTS = {"a.dat": b"alpha\n" * 50, "b.dat": bytes(range(256))}
# Larger than what travels inside a reply, so that rsync is used both ways.
LARGE = b"0123456789abcdef" * 80_000


class Faults:
    """A folder of `misrc.job.faults`: what was passed, and what is to be struck next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def passages(self) -> list[str]:
        """Every passage since the last `clear`, as `name number`."""
        seen: Counter[str] = Counter()
        found = []
        trace = self.folder / "trace"
        for name in trace.read_text(encoding="ascii").split() if trace.exists() else []:
            seen[name] += 1
            found.append(f"{name} {seen[name]}")
        return found

    def clear(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()

    def arm(self, point: str, file: str = "kill") -> None:
        self.clear()
        (self.folder / file).write_text(point, encoding="ascii")

    def struck(self, file: str = "kill") -> bool:
        return (self.folder / f"{file}.struck").exists()


# -- the site's side, by its gate -------------------------------------------------------------------------------------


def run_by_gate(site: Site, job: str) -> Mapping[str, bytes]:
    """Open, wait, close, each made again until it is answered; what came back."""
    found: Mapping[str, bytes] = {}
    for _ in range(CALLS):
        opened = site.gate(f"open {job}".encode(), site.open_request(job, "join", INPUTS))
        found = found or (_await_results(site, job) if opened.status == 0 else {})
        if found and site.gate(f"close {job}".encode()).status == 0:
            return found
    raise AssertionError(f"not done after {CALLS} rounds")


def _await_results(site: Site, job: str) -> Mapping[str, bytes]:
    for _ in range(20):
        waited = site.gate(f"wait {job} 1 0".encode())
        if waited.status == 0 and waited.reply.state is not None and waited.reply.state.final:
            return {name: data for name, data in waited.sections.items() if name.startswith("file:")}
    return {}


def cancel_by_gate(site: Site, job: str, program: str, state: str) -> Mapping[str, bytes]:
    """Open, wait for a state, cancel until the site says that the job has ended."""
    request = site.open_request(job, program, arguments={"seconds": "300"} if program == "sleep" else {})
    for _ in range(CALLS):
        if site.gate(f"open {job}".encode(), request).status == 0:
            break
    for _ in range(200):
        if site_record(site, job)["state"] == state:
            break
        site.gate(f"wait {job} 0 0".encode())
    for _ in range(CALLS):
        done = site.gate(f"cancel {job}".encode())
        if done.status == 0 and done.reply.outcome is not None:
            assert done.reply.outcome.value == "cancelled"
            return {}
    raise AssertionError(f"not cancelled after {CALLS} rounds")


SCENARIOS: dict[str, tuple[Callable[[Site, str], Mapping[str, bytes]], str]] = {
    "run": (run_by_gate, "succeeded"),
    "cancel": (lambda site, job: cancel_by_gate(site, job, "sleep", "running"), "cancelled"),
    "cancel held": (lambda site, job: cancel_by_gate(site, job, "held", "held"), "cancelled"),
}


@pytest.fixture
def struck_site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path / "site-host", faults=True)
    add_program(made, "held", "echo held > out.dat\n", hold=True)
    add_program(made, "join", "cat a.dat b.dat > out.dat; echo joined\n")
    add_program(made, "large", "cat large.dat > out.dat\n")
    yield made
    made.stop_sshd()


def passages_of(site: Site, faults: Faults, scenario: str) -> list[str]:
    faults.clear()
    SCENARIOS[scenario][0](site, str(uuid.uuid4()))
    return faults.passages()


@pytest.mark.parametrize("shard", SHARDS)
def test_every_name_at_the_site(struck_site: Site, shard: int) -> None:
    """Whatever process of the site is killed where it first passes a point, the same verbs bring the same end."""
    assert struck_site.faults is not None
    passed = sorted(set(passages_of(struck_site, Faults(struck_site.faults), "run")))
    mine = [point for point in passed if point.endswith(" 1")]
    assert len(mine) > 25
    strike_site(struck_site, "run", mine[shard :: len(SHARDS)])


@pytest.mark.full
@pytest.mark.parametrize("shard", SHARDS)
def test_every_later_passage_at_the_site(struck_site: Site, shard: int) -> None:
    """The same for every passage after the first."""
    assert struck_site.faults is not None
    passed = sorted(set(passages_of(struck_site, Faults(struck_site.faults), "run")))
    later = [point for point in passed if not point.endswith(" 1")]
    assert len(later) > 10
    strike_site(struck_site, "run", later[shard :: len(SHARDS)])


@pytest.mark.parametrize("point", points("gate"))
def test_each_point_of_the_gate(struck_site: Site, point: str) -> None:
    """The points that the list names are passed and struck, one by one."""
    strike_site(struck_site, "run", [f"{point} 1"], all_struck=True)


@pytest.mark.parametrize("point", points("gate-cancel"))
def test_each_point_of_a_cancel_at_the_gate(struck_site: Site, point: str) -> None:
    """The same for those that a cancel passes."""
    strike_site(struck_site, "cancel", [f"{point} 1"], all_struck=True)


@pytest.mark.parametrize("point", points("gate-hello"))
def test_each_point_of_a_hello(struck_site: Site, point: str) -> None:
    """A question that is killed is asked again."""
    assert struck_site.faults is not None
    faults = Faults(struck_site.faults)
    faults.arm(point)
    assert struck_site.gate(b"hello").status != 0 or point.endswith("leave")
    assert faults.struck()
    assert struck_site.gate(b"hello").status == 0


@pytest.mark.parametrize("scenario", ["cancel", "cancel held"])
def test_every_new_name_while_cancelling(struck_site: Site, scenario: str) -> None:
    """The same for the points that only a cancel passes."""
    assert struck_site.faults is not None
    faults = Faults(struck_site.faults)
    known = {point.partition(" ")[0] for point in passages_of(struck_site, faults, "run")}
    points = [point for point in passages_of(struck_site, faults, scenario) if point.partition(" ")[0] not in known]
    assert {"verb.cancel.enter 1", "ledger.cancel.before 1"} <= set(points)
    strike_site(struck_site, scenario, points)


@pytest.mark.full
@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("scenario", ["cancel", "cancel held"])
def test_every_passage_while_cancelling(struck_site: Site, scenario: str, shard: int) -> None:
    """The same for every passage of a job that is cancelled."""
    assert struck_site.faults is not None
    points = sorted(set(passages_of(struck_site, Faults(struck_site.faults), scenario)))
    strike_site(struck_site, scenario, points[shard :: len(SHARDS)])


def strike_site(struck_site: Site, scenario: str, points: list[str], all_struck: bool = False) -> None:
    drive, outcome = SCENARIOS[scenario]
    assert struck_site.faults is not None
    faults = Faults(struck_site.faults)
    clean_job = str(uuid.uuid4())
    clean = drive(struck_site, clean_job)
    check_site(struck_site, clean_job, outcome)
    assert (clean["file:out.dat"] == INPUTS["a.dat"] + INPUTS["b.dat"]) if scenario == "run" else not clean
    struck = 0
    for point in points:
        faults.arm(point)
        job = str(uuid.uuid4())
        got = drive(struck_site, job)
        struck += faults.struck()
        try:
            count = 1 if outcome == "succeeded" else min(1, _starts(struck_site, job))
            check_site(struck_site, job, outcome, count=count)
            assert got == clean
        except AssertionError as error:
            raise AssertionError(f"killed at {point}: {error}") from None
    # A passage that depends on timing (a second look at a lock) may not come again.
    assert struck >= (1.0 if all_struck else 0.8) * len(points)


def _starts(site: Site, job: str) -> int:
    path = site.root / "starts"
    return path.read_text(encoding="ascii").split().count(job) if path.exists() else 0


# -- both sides, by `misrc run` ---------------------------------------------------------------------------------------


@pytest.fixture
def struck_mint(struck_site: Site, tmp_path: Path) -> Mint:
    struck_site.start_sshd()
    mint = make_mint(tmp_path / "mint", struck_site)
    declare(mint, "large")
    mint.file("large.dat", LARGE)
    mint.environment["MISRC_FAULTS"] = str(Faults(tmp_path / "mint-faults").folder)
    return mint


def run_by_mint(mint: Mint, results: str) -> list[str]:
    """The same call until it succeeds; what each said. A killed call says nothing, any other says what is wrong."""
    source = str(mint.root / "inputs/large.dat")
    said: list[str] = []
    for _ in range(CALLS):
        process = mint.spawn("run", "test-site", "large", "--in", f"large.dat={source}", "--results", results)
        _, errors = process.communicate(timeout=120)
        said.append(errors)
        assert "Traceback" not in errors, errors
        if process.returncode == 0:
            return said
        assert process.returncode == -9 or "misrc: " in errors, (process.returncode, errors)
        # What a killed call leaves is over soon, whether or not anybody calls again.
        eventually(lambda: not driven_by(process.pid), 30, "the end of the play")  # noqa: B023
    raise AssertionError(f"not done after {CALLS} calls: {said}")


def check_mint(mint: Mint, results: str) -> None:
    """The results are identical, nothing is left beside them, and both sides agree."""
    folder = mint.root / results
    assert (folder / "out.dat").read_bytes() == LARGE
    assert sorted(path.name for path in folder.iterdir()) == ["out.dat", "remote_program_exec.log"]
    records = [record for record in mint.jobs() if record["results"] == str(folder)]
    assert [(record["state"], record["outcome"]) for record in records] == [("closed", "succeeded")], records
    check_site(mint.site, records[0]["job"])


def strike_all(mint: Mint, faults: Faults, points: list[str], file: str = "kill") -> int:
    struck = 0
    for number, point in enumerate(points):
        faults.arm(point, file)
        run_by_mint(mint, f"r{number}")
        struck += faults.struck(file)
        faults.clear()
        try:
            check_mint(mint, f"r{number}")
        except AssertionError as error:
            raise AssertionError(f"killed at {point}: {error}") from None
    return struck


def clean_run(mint: Mint, faults: Faults) -> list[str]:
    assert len(said := run_by_mint(mint, "clean")) == 1, said
    check_mint(mint, "clean")
    return sorted(set(faults.passages()))


@pytest.mark.parametrize("shard", SHARDS)
def test_every_name_at_mint(struck_mint: Mint, shard: int) -> None:
    """Whatever process of MInt's is killed where it first passes a point, the same call brings the same results."""
    faults = Faults(Path(struck_mint.environment["MISRC_FAULTS"]))
    points = [point for point in clean_run(struck_mint, faults) if point.endswith(" 1")]
    assert len(points) > 20
    mine = points[shard :: len(SHARDS)]
    assert strike_all(struck_mint, faults, mine) >= 0.8 * len(mine)


@pytest.mark.full
@pytest.mark.parametrize("shard", SHARDS)
def test_every_later_passage_at_mint(struck_mint: Mint, shard: int) -> None:
    """The same for every passage after the first: a record is written at each change of a job's state."""
    faults = Faults(Path(struck_mint.environment["MISRC_FAULTS"]))
    points = [point for point in clean_run(struck_mint, faults) if not point.endswith(" 1")]
    assert len(points) > 10
    mine = points[shard :: len(SHARDS)]
    assert strike_all(struck_mint, faults, mine) >= 0.8 * len(mine)


def test_ansible_runner_dies_at_every_step(struck_mint: Mint) -> None:
    """The same where ansible-runner's own process is killed while a plugin passes a point."""
    faults = Faults(Path(struck_mint.environment["MISRC_FAULTS"]))
    plugin = re.compile(r"(stage|start|wait|retrieve)\.")
    points = [point for point in clean_run(struck_mint, faults) if plugin.match(point)]
    names = [point.partition(" ")[0] for point in points if point.endswith(" 1")]
    assert {"stage.enter", "start.enter", "retrieve.enter", "retrieve.received"} <= set(names)
    assert strike_all(struck_mint, faults, names, "kill-parent") == len(names)


def test_transfers_die_at_the_site(struck_mint: Mint) -> None:
    """The gate killed before, in and after a transfer: `misrc run` tries again by itself and succeeds in one call."""
    site = struck_mint.site
    assert site.faults is not None
    faults = Faults(site.faults)
    wanted = r"transfer\.|verb\.(put|get|start)|pid"
    points = [point for point in clean_run(struck_mint, faults) if re.search(wanted, point)]
    check_all_struck("gate-large", points)
    assert strike_all(struck_mint, faults, points) == len(points)


# -- is that all of them? -------------------------------------------------------------------------------------------


# Whose points other tests strike: `fault_points.json` says which.
ELSEWHERE = {"add", "rotate", "retire", "key", "delete", "sweep", "agent", "transfer_worker", "legacy", "api"}


def test_no_fault_point_is_missed(struck_mint: Mint) -> None:
    """Every fault point that the source names is passed by the jobs above, or struck where its commands are tried."""
    site = struck_mint.site
    assert site.faults is not None
    mint_faults, site_faults = Faults(Path(struck_mint.environment["MISRC_FAULTS"])), Faults(site.faults)
    seen = {point.partition(" ")[0] for point in clean_run(struck_mint, mint_faults)}
    for drive, _ in SCENARIOS.values():
        drive(site, str(uuid.uuid4()))
    seen |= {point.partition(" ")[0] for point in site_faults.passages()}
    named = set()
    for path in (ROOT / "src/misrc").rglob("*.py"):
        named |= set(re.findall(r"\breach\(f?\"([^\"]+)\"\)", path.read_text(encoding="utf-8")))
    missed = {
        name
        for name in named
        if name.split(".")[0] not in ELSEWHERE
        and not any(re.fullmatch(re.sub(r"\\\{.*?\\\}", ".+", re.escape(name)), point) for point in seen)
    }
    assert len(named) > 25 and not missed
