"""The one guarantee of the resilience suite on the way through the API server.

Each job reaches exactly one final state, its program is started exactly once, and its results are identical, whoever is
killed and wherever a connection is cut: the workflow's or the agent's.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from apiserver import Api
from chain import Chain, chain
from conftest import Mint
from faultpoints import points
from relay import Relay
from resilience import add_program, check_site, declare
from test_resilience_faults import LARGE, SHARDS, Faults, run_by_mint, strike_all

MIB = 1 << 20
DATA = random.Random(3).randbytes(3 * MIB)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    root = tmp_path_factory.mktemp("resilience")
    with chain(root / "lab") as made:
        add_program(made.site, "large", "cat *.dat > .all; mv .all out.dat\n")
        made.configure()
        declare(made.mint, "large")
        made.declare()
        made.mint.file("large.dat", LARGE)
        made.mint.environment["MISRC_FAULTS"] = str(Faults(root / "faults").folder)
        yield made


@pytest.mark.parametrize("shard", SHARDS)
def test_p26_every_name_at_mint(whole: Chain, shard: int) -> None:
    """Whatever process of MInt's is killed where it first passes a point, the same call brings the same results."""
    faults = Faults(Path(whole.mint.environment["MISRC_FAULTS"]))
    faults.clear()
    assert len(said := run_by_mint(whole.mint, f"clean{shard}")) == 1, said
    points = [point for point in sorted(set(faults.passages())) if point.endswith(" 1")]
    assert len(points) > 20
    mine = points[shard :: len(SHARDS)]
    shifted = _Results(whole.mint, f"s{shard}")
    assert strike_all(shifted, faults, mine) >= 0.8 * len(mine)


@pytest.mark.parametrize("point", points("mint-api"))
def test_p26_a_kill_at_each_step_of_mint(whole: Chain, point: str) -> None:
    """The points of the list, one by one: each is passed on this way too, and struck."""
    faults = Faults(Path(whole.mint.environment["MISRC_FAULTS"]))
    assert strike_all(_Results(whole.mint, f"p-{point}"), faults, [f"{point} 1"]) == 1


class _Results(Mint):
    """The same MInt with results folders of this test's own."""

    def __init__(self, mint: Mint, prefix: str) -> None:
        self.__dict__.update(mint.__dict__)
        self.root = mint.root / prefix
        (self.root / "inputs").mkdir(parents=True)
        (self.root / "inputs/large.dat").write_bytes(LARGE)
        self._plain = mint.env()

    @property
    def state(self) -> Path:
        return Path(self._plain["MISRC_STATE"])

    def env(self) -> dict[str, str]:
        return self._plain


# What is asked in each phase of a job, and by whom.
PHASES = {
    "register": ("mint", r"PUT [^ ]*/jobs/[0-9a-f-]{36} "),
    "upload": ("mint", r"(PUT|PATCH) [^ ]*/inputs/"),
    "release": ("mint", r"POST [^ ]*/release "),
    "wait": ("mint", r"GET [^ ]*\?version="),
    "documents": ("mint", r"GET [^ ]*/documents "),
    "download": ("mint", r"GET [^ ]*/results/"),
    "close": ("mint", r"POST [^ ]*/close "),
    "claim": ("agent", r"POST [^ ]*/poll "),
    "fetch": ("agent", r"GET [^ ]*/inputs/"),
    "report": ("agent", r"POST [^ ]*/report "),
    "push": ("agent", r"(PUT|PATCH) [^ ]*/results/"),
    "end": ("agent", r"POST [^ ]*/end "),
}


@dataclasses.dataclass
class Lines:
    """The whole way in the clear on loopback, with a relay before the server for each of its two clients."""

    made: Chain
    relays: dict[str, Relay]
    sizes: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lines]:
    root = tmp_path_factory.mktemp("lines")
    with chain(root / "lab", server=lambda root: Api(root, tls=None)) as made:
        add_program(made.site, "slow", "sleep 1; cat *.dat > .all; mv .all out.dat\n")
        declare(made.mint, "slow")
        with Relay(made.api.port) as ours, Relay(made.api.port) as theirs:
            made.stop_agent()
            made.configure(ca=None, url=f"http://127.0.0.1:{theirs.port}")
            made.declare(api={**made.mint.declaration["api"], "url": f"http://127.0.0.1:{ours.port}"})
            made.start_agent()
            made.mint.file("in.dat", DATA)
            relays = {"mint": ours, "agent": theirs}
            run_once(made, "clean")
            sizes = {phase: smallest(relays[side], pattern) for phase, (side, pattern) in PHASES.items()}
            yield Lines(made, relays, sizes)


def smallest(relay: Relay, pattern: str) -> tuple[int, int]:
    """How many bytes such a request and its answer have at least, in a run that nobody disturbs."""
    found = [call for call in relay.calls if re.match(pattern, call.line) and call.down]
    assert found, (pattern, [call.line for call in relay.calls])
    return min(call.up for call in found), min(call.down for call in found)


def run_once(made: Chain, results: str) -> str:
    source = made.mint.root / "inputs/in.dat"
    done = made.mint.command("run", "test-site", "slow", "--in", f"in.dat={source}", "--results", results)
    assert done.returncode == 0, (done.stderr, made.said())
    assert (made.mint.root / results / "out.dat").read_bytes() == DATA
    return str(made.mint.jobs()[-1]["job"])


def cut_often(lines: Lines, phase: str, count: int) -> None:
    side, pattern = PHASES[phase]
    relay, (up, down) = lines.relays[side], lines.sizes[phase]
    seeded = random.Random(f"{phase} {count}")
    struck = 0
    for number in range(count):
        # Of the two, the one with the file in it is cut more often, and each at least sometimes.
        upwards = seeded.randrange(up + down + 2000) < up + 1000
        offset = seeded.randrange(1, up if upwards else down)
        if phase == "claim":
            relay.refuse()  # whoever waits asks anew, so that this question is the one to be cut
        cuts = relay.cuts
        relay.cut_in(pattern, **{"up" if upwards else "down": offset})
        relay.accept()
        job = run_once(lines.made, f"{phase}-{count}-{number}")
        struck += relay.cuts - cuts
        relay.cut()
        check_site(lines.made.site, job)
    print(f"{phase}: {struck} of {count} runs cut, request {up} bytes, answer {down} bytes")
    assert struck >= 0.9 * count


@pytest.mark.parametrize("phase", PHASES)
def test_p26_cuts(lines: Lines, phase: str) -> None:
    """Cut at seeded byte offsets of this phase's requests and answers: the one call brings the one result."""
    cut_often(lines, phase, 3)


@pytest.mark.full
@pytest.mark.parametrize("phase", PHASES)
def test_p26_many_cuts(lines: Lines, phase: str) -> None:
    """The same at 25 places each."""
    cut_often(lines, phase, 25)
