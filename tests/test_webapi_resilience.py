"""The one guarantee of the resilience suite on the way through the API server.

Each job reaches exactly one final state, its program is started exactly once, and its results are identical, whoever is
killed and wherever a connection is cut: the workflow's or the agent's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
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
    assert run_by_mint(whole.mint, f"clean{shard}") == 1
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


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chain, dict[str, Relay]]]:
    """A relay before the server for each of its two clients."""
    root = tmp_path_factory.mktemp("lines")
    with chain(root / "lab") as made:
        add_program(made.site, "large", "cat *.dat > .all; mv .all out.dat\n")
        declare(made.mint, "large")
        with Relay(made.api.port) as ours, Relay(made.api.port) as theirs:
            made.stop_agent()
            made.configure(url=f"https://localhost:{theirs.port}")
            made.declare(api={**made.mint.declaration["api"], "url": f"https://localhost:{ours.port}"})
            made.start_agent()
            made.mint.file("in.dat", DATA)
            yield made, {"mint": ours, "agent": theirs}


def run_once(made: Chain, results: str) -> str:
    source = made.mint.root / "inputs/in.dat"
    done = made.mint.command("run", "test-site", "large", "--in", f"in.dat={source}", "--results", results)
    assert done.returncode == 0, (done.stderr, made.said())
    assert (made.mint.root / results / "out.dat").read_bytes() == DATA
    return str(made.mint.jobs()[-1]["job"])


CASES = [(side, direction) for side in ("mint", "agent") for direction in ("up", "down")]


def cut_often(made: Chain, relay: Relay, side: str, direction: str, count: int) -> None:
    before = getattr(relay, direction)
    run_once(made, f"clean-{side}-{direction}-{count}")
    most = getattr(relay, direction) - before
    assert most > len(DATA)
    seeded = random.Random(f"{side} {direction} {count}")
    struck = 0
    for number in range(count):
        cuts, offset = relay.cuts, seeded.randrange(1, most)
        relay.cut_after(**{direction: offset})
        job = run_once(made, f"{side}-{direction}-{count}-{number}")
        relay.cut_after()
        struck += relay.cuts - cuts
        check_site(made.site, job)
    assert struck >= 0.6 * count


@pytest.mark.parametrize(("side", "direction"), CASES)
def test_p26_cuts(lines: tuple[Chain, dict[str, Relay]], side: str, direction: str) -> None:
    """Cut at seeded byte offsets of either client's connection: the one call brings the one result."""
    made, relays = lines
    cut_often(made, relays[side], side, direction, 3)


@pytest.mark.full
@pytest.mark.parametrize(("side", "direction"), CASES)
def test_p26_many_cuts(lines: tuple[Chain, dict[str, Relay]], side: str, direction: str) -> None:
    """The same at 25 places each."""
    made, relays = lines
    cut_often(made, relays[side], side, direction, 25)
