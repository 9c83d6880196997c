"""`misrc run` through the real API server and the real agent, to the site's programs and back."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chain import Chain, chain
from conftest import eventually, job_processes, make_mint
from test_sample import PROGRAM, STEEL
from test_sample import site as sample_site  # noqa: F401 (a fixture)
from test_webapi_run import end_of

MIB = 1 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with chain(tmp_path_factory.mktemp("chain") / "lab") as made:
        yield made


def test_a_job_goes_all_the_way(whole: Chain) -> None:
    """Inputs reach the program, results come back verified, the receipt is the site's, and both ends close."""
    path = whole.mint.file("a.txt", b"hello\n")
    done = whole.mint.command(
        "run", "test-site", "copy", "--in", f"a.txt={path}", "--arg", "words=hi", "--results", "o"
    )
    assert done.returncode == 0, (done.stderr, whole.said())
    assert (whole.mint.root / "o/out.dat").read_bytes() == b"hello\n"
    assert b"args: hi" in (whole.mint.root / "o/remote_program_exec.log").read_bytes()
    job = whole.mint.jobs()[-1]["job"]
    assert whole.starts().count(job) == 1
    eventually(lambda: json.loads(whole.site.job_file(job, "job.json").read_text())["state"] == "closed", what="close")


def test_a_failure_comes_back_as_one(whole: Chain) -> None:
    """The program's own failure is exit code 1, with its log and what it made."""
    done = whole.mint.command("run", "test-site", "fail", "--results", "f")
    assert done.returncode == 1, done.stderr
    assert (whole.mint.root / "f/out.dat").read_bytes() == b"partial\n"
    assert b"bad" in (whole.mint.root / "f/remote_program_exec.log").read_bytes()


def test_large_files_go_both_ways(whole: Chain) -> None:
    """Files beyond what travels inside the calls arrive as they are, at both ends."""
    data = os.urandom(5 * MIB)
    path = whole.mint.file("big.bin", data)
    done = whole.mint.command("run", "test-site", "copy", "--in", f"big.bin={path}", "--results", "big")
    assert done.returncode == 0, (done.stderr, whole.said())
    assert (whole.mint.root / "big/out.dat").read_bytes() == data


def test_a_stopped_workflow_stops_the_program(whole: Chain) -> None:
    """SIGTERM reaches the site's program through server and agent."""
    process = whole.mint.spawn("run", "test-site", "sleep", "--arg", "seconds=300", "--results", "s")
    eventually(lambda: any(job["state"] == "running" for job in whole.mint.jobs()), what="the start")
    job = next(job["job"] for job in whole.mint.jobs() if job["state"] == "running")
    assert "started" in eventually(lambda: whole.mint.command("logs", job).stdout, what="its log")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == 6
    assert time.monotonic() - began < 30
    eventually(lambda: not job_processes(job), what="the end of every process")


def test_refusals_say_why(whole: Chain) -> None:
    """A value that the declaration allows and the policy does not: exit code 3, with the site's code in words."""
    whole.site.policy["programs"]["copy"]["arguments"] = {"words": {"choices": ["x"]}}
    whole.configure()
    done = whole.mint.command("run", "test-site", "copy", "--arg", "words=other", "--results", "r")
    assert done.returncode == 3, (done.stderr, whole.said())
    whole.site.policy["programs"]["copy"]["arguments"] = {"words": {"pattern": "[ -~]{0,200}", "default": "x"}}
    whole.configure()
    done = whole.mint.command("run", "test-site", "copy", "--arg", "words=other", "--results", "r2")
    assert done.returncode == 0, (done.stderr, whole.said())


def test_a_dry_run_asks_what_the_server_declares(whole: Chain) -> None:
    """What this node declares and the server does not is refused by a dry run, which says so; nothing is made."""
    words = ("run", "test-site", "copy", "--arg", "words=hi", "--dry-run")
    jobs = len(whole.api.call("GET", "/mi-distcomp-api/v2/jobs", token="chain-mint").json["jobs"])
    assert whole.mint.command(*words).returncode == 0
    declared = whole.mint.declaration
    other = {key: value for key, value in declared["programs"].items() if key != "copy"}
    try:
        for programs in (other, {**other, "copy": {**declared["programs"]["copy"], "arguments": {}}}):
            whole.api.declare({**declared, "programs": programs})
            done = eventually(lambda: (made := whole.mint.command(*words)).returncode == 3 and made, what="the refusal")
            assert "the API server's declaration" in done.stderr, done.stderr
    finally:
        whole.api.declare(declared)
    eventually(lambda: whole.mint.command(*words).returncode == 0, what="the old declaration")
    assert len(whole.api.call("GET", "/mi-distcomp-api/v2/jobs", token="chain-mint").json["jobs"]) == jobs


def test_server_agent_and_run_may_all_die(whole: Chain) -> None:
    """SIGKILL of server, agent and run while the program runs: the same call brings the one result."""
    words = ("run", "test-site", "sleep", "--arg", "seconds=15", "--results", "dead")
    process = whole.mint.spawn(*words)
    eventually(lambda: any(job["state"] == "running" for job in whole.mint.jobs()), what="the start")
    job = next(job["job"] for job in whole.mint.jobs() if job["state"] == "running")
    whole.stop_agent()
    whole.api.kill()
    os.killpg(process.pid, signal.SIGKILL)
    end_of(process)
    port = whole.api.port
    whole.api.config["listen"] = [f"127.0.0.1:{port}"]
    whole.api.write_config()
    whole.api.start()
    whole.start_agent()
    done = whole.mint.command(*words)
    assert done.returncode == 0, (done.stderr, whole.said())
    assert (whole.mint.root / "dead/out.dat").read_bytes() == b"finished\n"
    assert whole.starts().count(job) == 1


def test_p21_the_chain_takes_only_what_mint_signed(tmp_path: Path) -> None:
    """A site with `require_signature` runs what MInt signed, and refuses what the server was given unsigned."""
    with chain(tmp_path / "lab") as whole:
        whole.site.policy["require_signature"] = [whole.mint.make_signing_key()]
        whole.configure()
        refused = whole.mint.command("run", "test-site", "noop", "--results", "o")
        assert refused.returncode == 3 and "signed" in refused.stderr, (refused.stderr, whole.said())
        assert whole.starts() == []
        whole.mint.declaration["signed"] = True
        whole.mint.declare()
        done = whole.mint.command("run", "test-site", "noop", "--results", "o")
        assert done.returncode == 0, (done.stderr, whole.said())
        large = whole.mint.file("large.bin", os.urandom(2 * MIB))
        done = whole.mint.command("run", "test-site", "copy", "--in", f"large.bin={large}", "--results", "l")
        assert done.returncode == 0, (done.stderr, whole.said())


def test_the_sample_gives_the_same_over_both_ways(tmp_path: Path, sample_site: Path) -> None:  # noqa: F811
    """The notched bar computed over SSH and through the API server: the same files with the same bytes."""
    program = {
        "path": str(sample_site / PROGRAM),
        "arguments": {
            "mesh": {"choices": ["small", "medium"]},
            "analysis": {"choices": ["elastic", "cyclic"]},
            "amplitude": {"pattern": "[0-9]{1,4}"},
        },
        "returns": ["XX.dat", "XX.inp"],
        "logs": "full",
        "network": "allow",
    }
    declared = {
        "inputs": dict.fromkeys(STEEL, "required"),
        "arguments": program["arguments"],
        "outputs": {"XX.dat": "required", "XX.inp": "required"},
    }
    with chain(tmp_path / "lab", {"programs": {"bar": program}}, programs={"bar": declared}) as whole:
        whole.site.start_sshd()
        over_ssh = make_mint(tmp_path / "ssh", whole.site, programs={"bar": declared})
        files = {name: over_ssh.file(name, text.encode()) for name, text in STEEL.items()}
        given = [word for name, path in files.items() for word in ("--in", f"{name}={path}")]
        asked = ["--arg", "mesh=small", "--arg", "analysis=elastic", "--arg", "amplitude=100"]
        words = ["run", "test-site", "bar", *given, *asked, "--results", "o"]
        for mint in (over_ssh, whole.mint):
            done = mint.command(*words, timeout=300)
            assert done.returncode == 0, (done.stderr, whole.said())
        for name in ("XX.dat", "XX.inp"):
            one, other = ((mint.root / "o" / name).read_bytes() for mint in (over_ssh, whole.mint))
            assert one == other and one, name
