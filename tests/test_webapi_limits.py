"""What MInt's server does not take from a site: the job ends all the same, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chain import Chain, chain
from conftest import make_program


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Chain]:
    """A chain whose server takes little; the site lets everything leave."""
    with chain(tmp_path / "lab") as made:
        programs = made.site.root / "programs"
        counted = f'echo "$MISRC_JOB_ID" >> {made.site.root}/starts\n'
        for name, body in (
            ("chatty", "head -c 600000 /dev/zero | tr '\\0' x; echo end > out.dat\n"),
            ("large", "head -c 3000000 /dev/zero > out.dat\n"),
        ):
            path = make_program(programs / name, counted + body)
            rule = {"path": str(path), "returns": ["**"], "logs": "full", "network": "allow"}
            made.site.policy["programs"][name] = rule
            made.mint.declaration["programs"][name] = {"outputs": {"out.dat": "required"}}
        made.stop_agent()
        made.configure()
        made.declare()
        made.api.kill()
        made.api.config["limits"] = {"log_bytes": 200_000, "job_bytes": 2 << 20}
        made.api.write_config()
        made.api.start()
        made.mint.declaration["api"]["url"] = f"https://localhost:{made.api.port}"
        made.declare()
        made.configure()
        made.start_agent()
        yield made


def test_p60_a_log_that_the_server_has_no_room_for_ends_no_job(narrow: Chain) -> None:
    """The server takes no more of the log: results, outcome and the log among the results still arrive."""
    done = narrow.mint.command("run", "test-site", "chatty", "--results", "r")
    assert done.returncode == 0, (done.stderr, narrow.said())
    assert (narrow.mint.root / "r/out.dat").read_text() == "end\n"
    assert (narrow.mint.root / "r/remote_program_exec.log").stat().st_size == 600000


def test_p61_results_that_the_server_does_not_take_end_the_job(narrow: Chain) -> None:
    """Results beyond the server's bound: the call hears why, the files stay at the site, the next job is served."""
    done = narrow.mint.command("run", "test-site", "large", "--results", "r", timeout=300)
    assert done.returncode == 3, (done.stderr, narrow.said())
    assert "does not take the results" in done.stderr
    job = narrow.mint.jobs()[-1]["job"]
    assert narrow.site.job_file(job, "return/out.dat").stat().st_size == 3000000
    assert narrow.starts() == [job]
    assert narrow.mint.command("run", "test-site", "noop", "--results", "n").returncode == 0
