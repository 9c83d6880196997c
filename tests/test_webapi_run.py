"""`misrc run` and its kin through an API server: what the client does, whatever the server does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import eventually
from server_double import TOKEN, DoubleJob, Handler, ServerDouble, make_certificates
from webmint import WebMint, make_web_mint

from misrc.job.states import JobState, Outcome
from misrc.mint.link import api_client
from misrc.wire import api

MIB = 1 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerDouble]:
    made = ServerDouble(tmp_path / "server")
    yield made
    made.held.set()
    made.close()


@pytest.fixture
def mint(server: ServerDouble, tmp_path: Path) -> WebMint:
    return make_web_mint(tmp_path / "mint", server.url, server.ca, TOKEN)


def only(server: ServerDouble) -> DoubleJob:
    (held,) = server.jobs.values()
    return held


def end_of(process: subprocess.Popen[str]) -> int:
    """The exit status of a spawned command."""
    process.communicate(timeout=60)
    return process.returncode


def joined(job: DoubleJob) -> dict[str, bytes]:
    """A program that joins its inputs."""
    return {"out.dat": b"".join(bytes(data) for _, (_, _, data) in sorted(job.uploads.items()))}


def test_a_short_job_is_one_call_and_its_results_are_delivered(server: ServerDouble, mint: WebMint) -> None:
    """Small inputs and results travel inside the calls; undeclared results stay out, and the job is closed."""
    server.program = lambda job: {**joined(job), "deep/a.dat": b"deep", "undeclared": b"?"}
    (mint.root / "in").write_bytes(b"hello")
    done = mint.command("run", "test-site", "noop", "--in", "a.txt=in", "--results", "out")
    assert done.returncode == 0, done.stderr
    assert (mint.root / "out/out.dat").read_bytes() == b"hello"
    assert (mint.root / "out/deep/a.dat").read_bytes() == b"deep"
    assert (mint.root / "out/remote_program_exec.log").read_bytes() == b"started\n"
    assert not (mint.root / "out/undeclared").exists()
    held = only(server)
    assert held.job.state is JobState.CLOSED and held.starts == 1
    assert not [route for _, route in server.calls if "/inputs/" in route or "/results/" in route]


def test_the_same_call_finds_its_job(server: ServerDouble, mint: WebMint) -> None:
    """A repeated call computes nothing; with --new another job is made."""
    for words in ([], [], ["--new"]):
        done = mint.command("run", "test-site", "noop", "--results", "out", *words)
        assert done.returncode == 0, done.stderr
    assert sorted(held.starts for held in server.jobs.values()) == [1, 1]


def test_large_files_go_both_ways(server: ServerDouble, mint: WebMint) -> None:
    """Beyond a mebibyte files are uploaded and downloaded each for itself, and arrive as they are."""
    server.program = joined
    data = {f"f{number}.bin": random.Random(number).randbytes(3 * MIB + number) for number in range(3)}
    for name, content in {**data, "empty.bin": b""}.items():
        (mint.root / name).write_bytes(content)
    words = [word for name in [*data, "empty.bin"] for word in ("--in", f"{name}={name}")]
    done = mint.command("run", "test-site", "copy", *words, "--results", "out")
    assert done.returncode == 0, done.stderr
    assert (mint.root / "out/out.dat").read_bytes() == b"".join(data.values())
    assert only(server).spec.manifest is not None


def test_a_job_may_have_many_results(server: ServerDouble, mint: WebMint) -> None:
    """What names thousands of results is longer than an ordinary answer, and is read all the same."""
    many = {f"{'n' * 200}{number}": b"" for number in range(15_000)}
    server.program = lambda job: {"out.dat": b"one of many", **many}
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode == 0, done.stderr
    assert (mint.root / "out/out.dat").read_bytes() == b"one of many"


@pytest.mark.parametrize("seed", range(6))
def test_p26_cuts_lose_nothing(server: ServerDouble, mint: WebMint, seed: int) -> None:
    """P26: cut at seeded byte offsets while uploading and downloading: it goes on there, and the program runs once."""
    server.program = joined
    chance = random.Random(seed)
    data = chance.randbytes(5 * MIB)
    (mint.root / "in.bin").write_bytes(data)
    left = [chance.randrange(5 * MIB) for _ in range(4)]
    moved = {"in": 0, "out": 0}

    def fault(handler: Handler) -> bool:
        kind = "in" if "/inputs/" in handler.route else "out" if "/results/" in handler.route else ""
        if kind and handler.command != "HEAD" and left and moved[kind] < 2:
            moved[kind] += 1
            server.cut_after = left.pop()
        return False

    server.fault = fault
    done = mint.command("run", "test-site", "copy", "--in", "in.bin=in.bin", "--results", "out")
    assert done.returncode == 0, done.stderr
    assert (mint.root / "out/out.dat").read_bytes() == data
    assert only(server).starts == 1
    assert moved == {"in": 2, "out": 2}
    resumed = [route for method, route in server.calls if method == "PATCH"]
    assert resumed, "the upload went on where it was cut"


def test_p26_a_lost_answer_to_each_call_loses_nothing(server: ServerDouble, mint: WebMint) -> None:
    """Every kind of call is done, and its answer lost, once: the same job ends well, started once."""
    server.program = joined
    (mint.root / "in.bin").write_bytes(b"x" * (2 * MIB))
    lost: set[tuple[str, str]] = set()

    def fault(handler: Handler) -> bool:
        kind = (handler.command, handler.route.split("/")[3] if handler.route.count("/") > 2 else "job")
        if kind in lost or kind[1] in ("inputs", "results"):
            return False
        lost.add(kind)
        handler.wfile = open(os.devnull, "wb")  # noqa: SIM115 (it replaces the answer's way)
        handler._route()
        handler.cut()
        return True

    server.fault = fault
    done = mint.command("run", "test-site", "copy", "--in", "in.bin=in.bin", "--results", "out")
    assert done.returncode == 0, done.stderr
    assert only(server).starts == 1
    assert {("PUT", "job"), ("GET", "job"), ("POST", "release"), ("POST", "close"), ("GET", "documents")} <= lost


def test_a_killed_run_is_resumed_by_the_same_call(server: ServerDouble, mint: WebMint) -> None:
    """SIGKILL while the job waits: the same call goes on with the same job."""
    server.held.clear()
    process = mint.spawn("run", "test-site", "noop", "--results", "out")
    eventually(lambda: server.jobs and only(server).job.released, what="the release")
    os.killpg(process.pid, signal.SIGKILL)
    end_of(process)
    server.held.set()
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode == 0, done.stderr
    assert only(server).starts == 1


def test_a_stopped_workflow_cancels_the_job(server: ServerDouble, mint: WebMint) -> None:
    """SIGTERM becomes a cancel at the server; the exit code says so."""
    server.held.clear()
    process = mint.spawn("run", "test-site", "noop", "--results", "out")
    eventually(lambda: server.jobs and only(server).job.released, what="the release")
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == 6
    held = only(server)
    assert held.job.cancel and held.job.outcome is Outcome.CANCELLED and held.starts == 0


def test_the_commands_around_a_job(server: ServerDouble, mint: WebMint) -> None:
    """`status`, `logs`, `jobs`, `cancel` and `fetch` work as they do over SSH; a waiting job says for what."""
    server.held.clear()
    process = mint.spawn("run", "test-site", "noop", "--results", "out")
    eventually(lambda: server.jobs and only(server).job.released, what="the release")
    job = only(server).spec.job
    assert "waits for the site's agent" in mint.command("status", job).stdout
    server.change(only(server), silent_since=time.time() - 60)
    assert "has not been heard" in mint.command("status", job).stdout
    server.change(only(server), silent_since=None, state=JobState.RUNNING)
    only(server).log = b"line one\n"
    server.change(only(server), log_bytes=9)
    assert mint.command("logs", job).stdout == "line one\n"
    assert json.loads(mint.command("status", job, "--json").stdout)["site"]["state"] == "running"
    eventually(lambda: mint.jobs()[0]["state"] == "running", what="our own record of it")
    os.killpg(process.pid, signal.SIGKILL)
    end_of(process)
    server.end(only(server), {"out.dat": b"late"})
    assert mint.command("tend").returncode == 0
    assert (mint.root / "out/out.dat").read_bytes() == b"late"
    assert mint.jobs()[0]["state"] == "closed"


def test_a_dry_run_says_what_it_can(server: ServerDouble, mint: WebMint) -> None:
    """A dry run asks the server, says what that leaves open, in words and as data, and leaves nothing."""
    done = mint.command("run", "test-site", "noop", "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["accepted"] is None
    assert (told["checked"], told["undecided"]) == (["declaration", "server"], ["policy", "signature", "room"])
    for language, words in (
        ("C", ("policy", "signature", "free space")),
        ("ja_JP.UTF-8", ("ポリシー", "署名", "空き")),
    ):
        mint.environment["LANG"] = language
        done = mint.command("run", "test-site", "noop", "--dry-run")
        assert done.returncode == 0 and all(word in done.stderr for word in words), done
    assert server.jobs == {}
    assert {route.rpartition("/")[2] for _, route in server.calls} == {"check"}


def test_a_dry_run_needs_no_server_for_what_is_declared_here(server: ServerDouble, mint: WebMint) -> None:
    """An unknown program, an undeclared input or a wrong argument is a bad request before anybody is asked."""
    path = mint.file("a.dat", b"x")
    for words in (
        ["rm"],
        ["fail", "--in", f"a.dat={path}"],
        ["noop", "--arg", "none=1"],
        ["sleep", "--arg", "seconds=x"],
        ["noop", "--in", "a.dat=/nowhere"],
    ):
        assert mint.command("run", "test-site", *words, "--dry-run").returncode == 2, words
    assert server.calls == []
    assert mint.command("run", "test-site", "copy", "--in", f"a.dat={path}", "--dry-run").returncode == 0


@pytest.mark.parametrize(
    ("outcome", "code"), [(Outcome.FAILED, 1), (Outcome.LOST, 5), (Outcome.REFUSED, 3), (Outcome.CANCELLED, 6)]
)
def test_each_outcome_has_its_exit_code(server: ServerDouble, mint: WebMint, outcome: Outcome, code: int) -> None:
    """How the site ended the job decides the exit code of `misrc run`."""

    def end(job: DoubleJob) -> dict[str, bytes]:
        server.end(job, {}, outcome)
        return {}

    server.program = end
    assert mint.command("run", "test-site", "noop", "--results", "out").returncode == code


def test_changed_results_are_not_delivered(server: ServerDouble, mint: WebMint) -> None:
    """A server that changes a result on the way is caught by the manifest, and nothing is delivered."""

    def spoil(job: DoubleJob) -> dict[str, bytes]:
        return {"out.dat": b"y" * (2 * MIB)}

    def fault(handler: Handler) -> bool:
        if "/results/out.dat" in handler.route:
            only(server).results["out.dat"] = b"z" * (2 * MIB)
        return False

    server.program, server.fault = spoil, fault
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode == 7 and "does not match its manifest" in done.stderr, done.stderr
    assert not (mint.root / "out/out.dat").exists()


def test_receipts_are_checked_as_over_ssh(server: ServerDouble, mint: WebMint, tmp_path: Path) -> None:
    """With `receipt_keys` only a receipt of the site's own key counts: the server cannot make one."""
    for name in ("site", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    mint.declaration["receipt_keys"] = [(tmp_path / "site.pub").read_text().strip()]
    mint.declare()
    server.key = tmp_path / "other"
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode == 7 and "signature" in done.stderr
    server.key = tmp_path / "site"
    assert mint.command("run", "test-site", "noop", "--results", "other").returncode == 0


def test_p21_a_server_that_asked_for_something_else_is_found_out(server: ServerDouble, mint: WebMint) -> None:
    """The site's receipt names the spec that it was asked for: another one than MInt's is no result of this job."""

    def swap(job: DoubleJob) -> dict[str, bytes]:
        job.evil = job.submission.spec.replace('"words":"x"', '"words":"y"')
        assert job.evil != job.submission.spec
        return {"out.dat": b"of another job"}

    server.program = swap
    done = mint.command("run", "test-site", "copy", "--results", "out")
    assert done.returncode == 7 and "spec" in done.stderr, done.stderr
    assert not (mint.root / "out/out.dat").exists()


# -- a server that is not as it should be ---------------------------------------------------------------------------


def test_p24_another_certificate_gets_no_token(server: ServerDouble, mint: WebMint, tmp_path: Path) -> None:
    """P24: the TLS identity decides; without it not a byte of the token is sent, and trying again is not tried."""
    mint.declaration["api"]["ca"] = str(make_certificates(tmp_path / "other-ca"))
    mint.declare()
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode == 4 and "certificate" in done.stderr, done.stderr
    assert server.calls == [] and server.jobs == {}
    mint.declaration["api"]["ca"] = str(server.ca)
    mint.declare()
    assert mint.command("run", "test-site", "noop", "--results", "out").returncode == 0


def test_p13_redirects_are_not_followed(server: ServerDouble, mint: WebMint, tmp_path: Path) -> None:
    """P13: a redirection is no answer of the protocol; the token goes to the declared host only."""
    other = ServerDouble(tmp_path / "other")

    def fault(handler: Handler) -> bool:
        handler.reply(307, Location=f"{other.url}{api.V2}{handler.route}")
        return True

    server.fault = fault
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode == 7 and "307" in done.stderr, done.stderr
    assert other.calls == []
    other.close()


def test_p23_proxies_of_the_environment_are_ignored(server: ServerDouble, mint: WebMint) -> None:
    """P23: HTTPS_PROXY, ALL_PROXY and .netrc are not heeded."""
    mint.environment |= {"HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    assert mint.command("run", "test-site", "noop", "--results", "out").returncode == 0


@pytest.mark.parametrize("code", [api.ApiError.BUSY, api.ApiError.PAUSED, api.ApiError.FULL, api.ApiError.INTERNAL])
def test_p15_a_server_that_cannot_now_is_asked_again(server: ServerDouble, mint: WebMint, code: api.ApiError) -> None:
    """P15: each call is put off once, with an absurd Retry-After: it is tried again soon, and nothing is lost."""
    seen: set[str] = set()

    def fault(handler: Handler) -> bool:
        kind = f"{handler.command} {handler.route}"
        if kind in seen:
            return False
        seen.add(kind)
        handler.refuse(code, Retry_After="1000000000")
        return True

    server.fault = fault
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode == 0, done.stderr
    assert only(server).starts == 1


@pytest.mark.parametrize("status", [100, 204, 302, 400, 404, 418, 500, 502, 599])
def test_p15_odd_answers_end_cleanly(server: ServerDouble, mint: WebMint, status: int) -> None:
    """P15: an answer outside the protocol is an error of one line, in bounded time; the same call then works."""
    mint.declaration["retry"] = {"count": 1, "interval": 0.1}
    mint.declare()

    def fault(handler: Handler) -> bool:
        handler.reply(status, b"" if status in (100, 204) else b"<html>")
        if status == 100:
            handler.cut()
        return True

    server.fault = fault
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode in (4, 7), (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 4, done.stderr
    server.fault = None
    assert mint.command("run", "test-site", "noop", "--results", "out").returncode == 0


def test_a_refused_token_is_said_once(server: ServerDouble, mint: WebMint) -> None:
    """A wrong token is final at once, and no message, log or process list repeats a token."""
    mint.write_token("wrong-" + TOKEN)
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode == 4 and "token" in done.stderr
    assert len(server.calls) == 1
    mint.write_token(TOKEN)
    server.held.clear()
    process = mint.spawn("run", "test-site", "noop", "--results", "out")
    eventually(lambda: server.jobs and only(server).job.released, what="the release")
    seen = subprocess.run(["ps", "axeww", "-o", "args"], capture_output=True, check=True).stdout
    assert TOKEN.encode() not in seen
    server.held.set()
    assert end_of(process) == 0
    assert TOKEN not in done.stdout + done.stderr
    for path in mint.state.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_token_may_come_with_the_environment(server: ServerDouble, mint: WebMint) -> None:
    """MISRC_TOKEN stands in for the file, reaches the steps of the play, and not Ansible's environment."""
    mint.token_file.unlink()
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode == 2 and "MISRC_TOKEN" in done.stderr
    mint.environment["MISRC_TOKEN"] = TOKEN
    assert mint.command("run", "test-site", "noop", "--results", "out").returncode == 0


def test_a_token_that_others_can_read_is_not_used(server: ServerDouble, mint: WebMint) -> None:
    """A file of mode 0644 is refused before anything is sent."""
    mint.write_token(TOKEN, 0o644)
    done = mint.command("run", "test-site", "noop", "--results", "out")
    assert done.returncode == 2 and "chmod 600" in done.stderr
    assert server.calls == []


def test_a_silent_site_is_given_up_as_declared(server: ServerDouble, mint: WebMint) -> None:
    """A server that answers is not a site that does: after `give_up_after` the run ends, and the job stays."""
    mint.declaration["give_up_after"] = 2
    mint.declare()
    server.held.clear()
    process = mint.spawn("run", "test-site", "noop", "--results", "out")
    eventually(lambda: server.jobs and only(server).job.released, what="the release")
    server.change(only(server), silent_since=time.time() - 10)
    assert end_of(process) == 4
    assert not only(server).job.cancel


def test_a_server_that_went_away_is_waited_for(server: ServerDouble, mint: WebMint) -> None:
    """While the job waits the server may be unreachable for a while; the run says so and goes on."""
    server.held.clear()
    process = mint.spawn("run", "test-site", "noop", "--results", "out")
    eventually(lambda: server.jobs and only(server).job.released, what="the release")
    time.sleep(5)  # the first play's patience: from now on the run itself waits
    cut = []

    def fault(handler: Handler) -> bool:
        cut.append(handler.route)
        handler.cut()
        return len(cut) < 6

    server.fault = fault
    server.change(only(server), reason=None)
    eventually(lambda: len(cut) >= 3, what="tries")
    server.fault = None
    server.held.set()
    assert end_of(process) == 0


# -- the commands of a site's life ----------------------------------------------------------------------------------


def test_check_says_what_it_can_know(server: ServerDouble, mint: WebMint) -> None:
    """`site check` asks the server with the token, and says that nothing can be tried at a site without a port."""
    found = json.loads(mint.command("site", "check", "test-site", "--json").stdout)
    verdicts = {one["name"]: one["verdict"] for one in found["findings"]}
    assert verdicts == {"agreement": "ok", "server": "ok", "receipts": "warn", "gate": "skipped"}
    mint.write_token("wrong")
    failed = mint.command("site", "check", "test-site")
    assert failed.returncode != 0 and "token" in failed.stdout
    assert server.jobs == {}


def test_show_and_rotate_know_no_ssh(mint: WebMint) -> None:
    """`site show` implies no file of SSH, and `site rotate` says what is changed instead."""
    shown = mint.command("site", "show", "test-site", "--json")
    assert shown.returncode == 0 and json.loads(shown.stdout)["files"] == []
    rotated = mint.command("site", "rotate", "test-site")
    assert rotated.returncode == 2 and "token" in rotated.stderr


def test_add_declares_what_runs(server: ServerDouble, mint: WebMint) -> None:
    """`site add --api-url` writes a declaration that works with a token where it says; no key is made."""
    words = ["site", "add", "new-site", "--api-url", server.url, "--api-ca", str(server.ca), "--program", "noop"]
    refused = mint.command(*words, "--address", "gw.example.jp")
    assert refused.returncode == 2 and "--address" in refused.stderr
    told = json.loads(mint.command(*words, "--api-user", "mint", "--json").stdout)
    assert "agent --site new-site" in told["tokens"][0] and "--agent agent.json" in told["install"]
    Path(told["identity"]).write_text(TOKEN)
    Path(told["identity"]).chmod(0o600)
    done = mint.command("run", "new-site", "noop", "--results", "out")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in mint.token_file.parent.iterdir()) == ["new-site.token", "test-site.token"]


def test_retire_destroys_the_token(mint: WebMint) -> None:
    """`site retire` ends with a webapi site: its record stays, its token does not."""
    done = mint.command("site", "retire", "test-site", "--reason", "over")
    assert done.returncode == 0, done.stderr
    assert not mint.token_file.exists()
    assert (mint.root / "retired/test-site/record.json").is_file()
    assert mint.command("run", "test-site", "noop").returncode == 2


def test_p27_an_answer_that_never_ends_is_cut(server: ServerDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends something again and again, and never an answer, does not hold a call beyond its bound."""
    monkeypatch.setattr(api_client, "CALL_SECONDS", 1.0)
    client = api_client.ApiClient(server.url, str(server.ca), TOKEN)
    assert client.ask(api.JobList, "GET", "/jobs") == api.JobList(), "the control"

    def fault(handler: Handler) -> bool:
        for _ in range(300):
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.1)
        return True

    server.fault = fault
    began = time.monotonic()
    with pytest.raises(api_client.ApiCut):
        client.ask(api.JobList, "GET", "/jobs")
    assert time.monotonic() - began < 15
    client.close()
