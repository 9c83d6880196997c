"""Section F of docs/attacks.md: verbs and the life of a job, at the real gate."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import CLEAN, Site, eventually, job_processes, make_program, make_site, sha256
from oracle import Oracle, bounded_gate, ledger
from transfers import Rsync

from misrc.job.manifest import Entry, digest_manifest, make_manifest

GATE_ENVIRONMENT = {**CLEAN, "SSH_CONNECTION": "127.0.0.1 1 127.0.0.1 2"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with programs that look at what reaches them, and that misbehave."""
    root = tmp_path_factory.mktemp("lab") / "site-host"
    (root / "programs").mkdir(parents=True)
    common: dict[str, Any] = {"returns": ["**"], "logs": "full", "network": "allow"}
    scripts = {
        "show": 'echo started >> "$0.starts"; for word in "$@"; do printf "<%s>" "$word"; done > argv; env -0 > env\n',
        "stubborn": 'trap "" TERM HUP; (setsid sh -c \'trap "" TERM; sleep 900\' &) ; echo up; while :; do sleep 1; done\n',
        "noisy": "head -c 700000 /dev/urandom; printf '\\033[2J\\377\\376'\n",
        "other": "exit 0\n",
    }
    programs = {name: {"path": str(make_program(root / "programs" / name, body)), **common} for name, body in scripts.items()}
    programs["show"]["arguments"] = {
        "any": {"pattern": "[^\\n]{0,100}", "default": "x"}, "mesh": {"choices": ["coarse", "fine"], "default": "fine"},
        "cycles": {"pattern": "[0-9]{1,6}", "default": "1"}}
    programs["show"]["inputs"] = ["*.dat"]
    made = make_site(root, {"programs": {**programs, **sleeper(root)}, "limits": {"jobs": 8, "waiting": 100}})
    yield made
    for record in made.people("jobs", "--json").stdout.splitlines():
        made.gate(f"cancel {json.loads(record)['job']}".encode())


def sleeper(root: Path) -> dict[str, Any]:
    path = make_program(root / "programs/sleeper", 'echo "$MISRC_JOB_ID" >> ' + f'{root}/starts\necho up; sleep "$1"\n')
    seconds = {"seconds": {"pattern": "[0-9.]{1,5}", "default": "600"}}
    return {"sleeper": {"path": str(path), "returns": ["**"], "arguments": seconds, "logs": "full", "network": "allow"}}


def starts(site: Site, job: str) -> int:
    path = site.root / "starts"
    return path.read_text().split().count(job) if path.exists() else 0


def running(site: Site, program: str = "sleeper", **arguments: str) -> str:
    """A job whose program has said something."""
    job = site.submit(program, arguments=arguments)
    eventually(lambda: b"up" in log_bytes(site, job))
    return job


def log_bytes(site: Site, job: str) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return site.job_file(job, "log/stdout").read_bytes()
    return b""


def spec(lab: Site, job: str, **changes: Any) -> dict[str, Any]:
    """An `open` request as plain JSON values, to be spoilt."""
    empty = digest_manifest(())
    plain = {"job": job, "site": lab.name, "program": "show", "arguments": {}, "files": 0, "bytes": 0, "manifest": empty,
             "version": 1}
    return {"spec": {**plain, **changes}, "start": True, "inline": []}


def open_denied(oracle: Oracle, code: str, request: bytes, job: str | None = None) -> None:
    """`open` with this standard input is refused, and no job comes into being."""
    name = job or str(uuid.uuid4())
    oracle.denied(f"open {name}".encode(), code, request)


def spec_denied(oracle: Oracle, code: str, **changes: Any) -> None:
    job = str(uuid.uuid4())
    open_denied(oracle, code, json.dumps(spec(oracle.site, job, **changes)).encode() + b"\n", job)


def show(site: Site, **arguments: str) -> tuple[bytes, dict[bytes, bytes]]:
    """argv and environment as they reach the program."""
    job = site.submit("show", arguments=arguments)
    sections = site.wait(job).sections
    env = dict(item.split(b"=", 1) for item in sections["file:env"].split(b"\0") if item)
    return sections["file:argv"], env


def test_g105_twenty_starts_at_once_are_one(lab: Site) -> None:
    """However often and from how many connections `start` comes, the program starts once; all are told the same."""
    job = Rsync(lab, lab.root / "client").opened(program="sleeper", arguments={"seconds": "3"})
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: lab.gate(f"start {job}".encode()), range(20)))
    assert [result.status for result in results] == [0] * 20
    assert sum(not result.reply.already for result in results) >= 1
    again = lab.gate(f"start {job}".encode()).reply
    assert again.already and again.state is not None and again.state.value in ("queued", "running", "ended")
    assert lab.wait(job).reply.outcome == "succeeded"
    assert lab.gate(f"start {job}".encode()).reply.already
    assert starts(lab, job) == 1
    assert [record["event"] for record in ledger(lab) if record.get("job") == job].count("run") == 1


def test_g105_twenty_opens_at_once_are_one(lab: Site) -> None:
    """`open` with the wish to start, from 20 connections with one id: one job, one start."""
    job = str(uuid.uuid4())
    request = lab.open_request(job, "sleeper", arguments={"seconds": "1"})
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: lab.gate(f"open {job}".encode(), request), range(20)))
    assert [(result.status, result.stderr) for result in results] == [(0, b"")] * 20
    lab.wait(job)
    assert starts(lab, job) == 1
    other = lab.open_request(job, "sleeper", arguments={"seconds": "2"})
    Oracle(lab).denied(f"open {job}".encode(), "E05", other)


def test_g106_only_listed_programs_are_taken(lab: Site) -> None:
    """A program is a name of the policy, matched whole; paths, other case and look-alikes are refused."""
    oracle = Oracle(lab)
    for program in ("nothing", "sho", "showx", "sh"):
        spec_denied(oracle, "E10", program=program)
    for program in ("/bin/sh", "../show", "Show", "SHOW", "show ", " show", "show\0", "show\n", "", "ｓhow", "show;id", "."):
        spec_denied(oracle, "E04", program=program)
    assert show(lab)[0] == b"<x><fine><1>"


@pytest.mark.parametrize("how", ["content", "writable", "not-executable", "link", "missing", "folder", "pipe"])
def test_g107_a_changed_program_is_not_started(tmp_path: Path, how: str) -> None:
    """A program whose hash or mode is not what the policy says, or that is a link, never starts: outcome refused, E13.

    The check is made right before the start, so `open` is still answered, and the refusal is the job's outcome.
    """
    root = tmp_path / "site-host"
    (root / "programs").mkdir(parents=True)
    path = make_program(root / "programs/tool", f"echo x >> {root}/starts\n")
    rule = {"path": str(path), "returns": ["**"], "network": "allow", "sha256": sha256(path.read_bytes())}
    site = make_site(root, {"programs": {"tool": rule}})
    assert site.wait(site.submit("tool")).reply.outcome == "succeeded"
    body = path.read_bytes()
    if how == "content":
        path.write_bytes(body + b"\n")
    elif how in ("writable", "not-executable"):
        path.chmod(0o777 if how == "writable" else 0o644)
    else:
        path.rename(root / "programs/real")
    if how == "link":
        path.symlink_to(root / "programs/real")
    elif how == "folder":
        path.mkdir(0o755)
    elif how == "pipe":
        os.mkfifo(path, 0o755)
    job = site.submit("tool")
    reply = site.wait(job).reply
    assert (reply.outcome, reply.reason) == ("refused", "E13")
    assert (root / "starts").read_text().split() == ["x"] and not site.job_file(job, "started").exists()
    assert [record["outcome"] for record in ledger(site) if record.get("job") == job and record["event"] == "end"] == ["refused"]


def test_g108_arguments_outside_their_rule_are_refused(lab: Site) -> None:
    """A value that its pattern or choices do not allow, an undeclared argument, and too much of everything are refused."""
    oracle = Oracle(lab)
    for value in ("-e", "--exec=sh", ";id", "$(id)", "1\n", "\n", "1;id", "/etc/passwd", "@file", "..", "1 ", "", "１", "-1",
                  "1234567", "1\0", "\ud800"):
        spec_denied(oracle, "E11", arguments={"cycles": value})
    for value in ("Fine", "fine ", "fine\n", "coarse|fine", ""):
        spec_denied(oracle, "E11", arguments={"mesh": value})
    spec_denied(oracle, "E11", arguments={"any": "x" * 5000})
    spec_denied(oracle, "E11", arguments={"any": "two\nlines"})
    spec_denied(oracle, "E11", arguments={"unknown": "1"})
    spec_denied(oracle, "E11", arguments={f"a{number}": "1" for number in range(4000)})
    spec_denied(oracle, "E04", arguments={f"a{number}": "1" for number in range(10_000)})
    spec_denied(oracle, "E04", arguments={"any": "x" * 200_000})
    spec_denied(oracle, "E04", arguments={"any": ["list"]})
    spec_denied(oracle, "E04", arguments={"--flag": "1"})


@pytest.mark.parametrize("value", ["$(id)", ";id", "`id`", "-e", "--exec=sh", "@file", "../..", "/etc/passwd", "a b  c", "*",
                                   "'\"\\", "${HOME}", "日本語", "", "\x7f\x01", "\ud800x"])
def test_g108_what_is_allowed_arrives_as_one_literal_word(lab: Site, value: str) -> None:
    """Even where a pattern allows such characters the value is one word of argv, byte for byte; no shell sees it.

    A lone surrogate cannot be an argument of any program: that job fails by itself and nothing else is disturbed.
    """
    if value == "\ud800x":
        job = lab.submit("show", arguments={"any": value})
        assert lab.wait(job).reply.outcome == "failed"
        assert lab.wait(lab.submit("other")).reply.outcome == "succeeded", "the ledger can still be read and written"
        ledger(lab)
        return
    assert show(lab, any=value)[0] == f"<{value}><fine><1>".encode()


def test_g108_as_many_arguments_as_a_spec_can_hold(tmp_path: Path) -> None:
    """A spec that is nearly 64 KiB long is carried out, and what was started is in the ledger word for word."""
    root = tmp_path / "site-host"
    (root / "programs").mkdir(parents=True)
    rule = {"path": str(make_program(root / "programs/wide", 'echo "$#"\n')), "returns": [], "logs": "full",
            "network": "allow", "arguments": {f"a{number}": {"pattern": ".*"} for number in range(16)}}
    site = make_site(root, {"programs": {"wide": rule}})
    arguments = {f"a{number}": chr(97 + number) * 4050 for number in range(16)}
    job = site.submit("wide", arguments=arguments)
    assert site.wait(job).sections["log"] == b"16\n"
    assert [r["arguments"] for r in ledger(site) if r["event"] == "run"] == [list(arguments.values())]


def nested(depth: int) -> bytes:
    return b'{"spec":' + b"[" * depth + b"]" * depth + b"}"


def test_g109_spoilt_specs_are_refused(lab: Site) -> None:
    """Whatever is not one strict JSON document of the declared shape is refused (E04), within bounded memory."""
    oracle, job = Oracle(lab), str(uuid.uuid4())
    good = spec(lab, job)
    text = json.dumps(good)
    texts = [
        "", "\n", "null\n", "[]\n", "{}\n", "x\n", text, text[:-1] + "\n", text + "}\n", text + " x\n",
        text.replace('"files": 0', '"files": 0, "files": 0') + "\n", text.replace('"start"', '"start": true, "start"') + "\n",
        *(text.replace('"files": 0', f'"files": {value}') + "\n" for value in (
            "NaN", "Infinity", "-Infinity", "-1", "1.0", "1e400", "true", '"0"', "null", "9" * 5000, "0x1", "[0]")),
        text.replace('"start": true', '"start": 1') + "\n", text.replace('"inline": []', '"inline": {}') + "\n",
        text.replace('"version": 1', '"version": 2') + "\n", text.replace('"arguments": {}', '"arguments": null') + "\n",
        "\ufeff" + text + "\n", text.replace("show", "sh\udcffow") + "\n",
    ]
    for line in texts:
        open_denied(oracle, "E04", line.encode("utf-8", "surrogatepass"), job)
    for data in (text.encode("utf-16") + b"\n", text.encode("utf-32") + b"\n", b"\xff\xfe\n", b"\0" * 70000,
                 nested(100_000) + b"\n", nested(40) + b"\n", b'{"a":"' + b"x" * (1 << 20) + b'"}\n', b"\x80" * 66000):
        open_denied(oracle, "E04", data, job)
    for key in ("environment", "env", "path", "shell", "__class__", "hold", "returns"):
        spec_denied(oracle, "E04", **{key: {"A": "1"}})
    spec_denied(oracle, "E15", site="another-site")
    open_denied(oracle, "E04", text.encode() + b"\n", str(uuid.uuid4()))
    oracle.allowed(f"open {job}".encode(), text.encode() + b"\n")
    lab.wait(job)


def test_g109_two_gibibytes_of_spec_are_not_read(lab: Site) -> None:
    """Reading stops after 64 KiB: an endless spec is refused at once and the gate works in 64 MiB."""
    writer = 'head -c 2147483648 /dev/zero | SSH_ORIGINAL_COMMAND="open $1" exec prlimit --as=67108864 "${@:2}"'
    done = subprocess.run(["/bin/bash", "-c", writer, "-", str(uuid.uuid4()), *lab.gate_argv()], capture_output=True,
                          env=GATE_ENVIRONMENT, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (77, b"misrc: denied (E04)\n")
    Oracle(lab).works()


def test_g110_no_environment_comes_from_the_spec(lab: Site) -> None:
    """A spec cannot carry variables; the program's environment is exactly the runner's own list."""
    spec_denied(Oracle(lab), "E04", environment={"LD_PRELOAD": "/x"})
    env = show(lab)[1]
    shell = {b"PWD", b"OLDPWD", b"SHLVL", b"_"}  # what sh adds by itself
    assert set(env) - shell == {b"PATH", b"HOME", b"TMPDIR", b"LANG", b"CALC_DIR", b"MISRC_JOB_ID", b"MISRC_PROGRESS"}


def test_g111_undeclared_inputs_do_not_slip_in_by_a_second_open(lab: Site) -> None:
    """A name that the policy does not take is refused whether it comes along, or was put first and then opened again.

    Control: a declared name on the same two ways.
    """
    oracle, client = Oracle(lab), Rsync(lab, lab.root / "client2")
    for name, code in (("evil.sh", "E12"), ("good.dat", "")):
        job, files = str(uuid.uuid4()), {name: b"data"}
        manifest = make_manifest([Entry(name, 4, sha256(b"data"))])
        request = spec(lab, job, files=1, bytes=4, manifest=digest_manifest(manifest))
        first = json.dumps({**request, "start": False, "inline": None}).encode() + b"\n"
        assert lab.gate(f"open {job}".encode(), first).status == 0
        assert client.push(job, files).returncode == 0
        second = lab.open_request(job, "show", files)
        result = lab.gate(f"open {job}".encode(), second)
        assert result.status == (77 if code else 0), result
        if code:
            oracle.denied(f"open {job}".encode(), code, second)
            oracle.denied(f"open {uuid.uuid4()}".encode(), "E04", second)
        else:
            assert lab.wait(job).reply.outcome == "succeeded"


def test_g112_a_dry_run_starts_nothing_even_for_a_job_that_exists(lab: Site) -> None:
    """`dry_run` only asks, also when the job was opened before and the same request wishes to start."""
    job = str(uuid.uuid4())
    request = json.loads(lab.open_request(job, "sleeper", dry_run=True))
    before = lab.snapshot()
    assert lab.gate(f"open {job}".encode(), json.dumps(request).encode() + b"\n").status == 0
    assert lab.snapshot() == before
    opened = {**request, "dry_run": False, "start": False}
    assert lab.gate(f"open {job}".encode(), json.dumps(opened).encode() + b"\n").status == 0
    reply = lab.gate(f"open {job}".encode(), json.dumps(request).encode() + b"\n").reply
    assert reply.state == "created" and starts(lab, job) == 0


def test_g113_unknown_and_closed_jobs_have_their_own_answers(lab: Site) -> None:
    """`wait U 0 0`: E03 for a job never opened; the kept record for a closed one."""
    Oracle(lab).denied(f"wait {uuid.uuid4()} 0 0".encode(), "E03")
    job = lab.submit("other")
    lab.wait(job)
    assert lab.gate(f"close {job}".encode()).status == 0
    reply = lab.gate(f"wait {job} 0 0".encode()).reply
    assert (reply.state, reply.outcome) == ("closed", "succeeded")


def test_g115_waiting_connections_are_bounded(tmp_path: Path) -> None:
    """Only so many `wait` at once: the others are told to come later (E26), and other requests are served meanwhile.

    Shown with a site for 1 + 3 jobs, whose cap is 8. A status question (`wait U 0 0`) needs no place.
    """
    site = make_site(tmp_path / "site-host", {"limits": {"jobs": 1, "waiting": 3}})
    job = site.submit("sleep", arguments={"seconds": "600"})
    env = {**GATE_ENVIRONMENT, "SSH_ORIGINAL_COMMAND": f"wait {job} 600 0"}
    pipe = subprocess.PIPE
    waits = [subprocess.Popen(site.gate_argv(), stdin=pipe, stdout=pipe, stderr=pipe, env=env) for _ in range(12)]
    eventually(lambda: sum(wait.poll() is not None for wait in waits) == 4, 60)
    refused = [wait for wait in waits if wait.poll() is not None]
    assert [wait.communicate()[1] for wait in refused] == [b"misrc: denied (E26)\n"] * 4
    assert site.gate(b"hello").status == 0 and site.gate(f"wait {job} 0 0".encode()).status == 0
    assert site.gate(f"cancel {job}".encode()).status == 0
    assert all(b"cancelled" in wait.communicate()[0] for wait in waits if wait not in refused)
    assert site.gate(f"wait {job} 5 0".encode()).status == 0


def test_g116_the_bound_of_a_wait_is_kept(lab: Site) -> None:
    """More than 3600 s is not the grammar; a shorter wait ends by its bound with "still running"."""
    job = running(lab)
    oracle = Oracle(lab)
    oracle.all_denied("E02", f"wait {job} 3601 0".encode(), f"wait {job} 99999 0".encode())
    begun = time.monotonic()
    result = lab.gate(f"wait {job} 1 0".encode())
    assert result.status == 0 and time.monotonic() - begun >= 1.0
    assert b'"state":"running"' in result.stdout.splitlines()[-1] or b"running" in result.stdout
    with subprocess.Popen(lab.gate_argv(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env={**GATE_ENVIRONMENT, "SSH_ORIGINAL_COMMAND": f"wait {job} 3600 0"}) as waiting:
        assert waiting.stdout is not None and b"running" in waiting.stdout.readline()
        lab.gate(f"cancel {job}".encode())
        assert b"cancelled" in waiting.stdout.readline()


def test_g117_cancel_stops_what_the_job_started(lab: Site) -> None:
    """A program that ignores SIGTERM and hides a child in another session is gone after `cancel`.

    User install: found by process tree and environment marker. One that also clears its environment can stay.
    """
    job = running(lab, "stubborn")
    assert len(job_processes(job)) >= 2
    assert lab.gate(f"cancel {job}".encode(), timeout=90).status == 0
    assert lab.wait(job).reply.outcome == "cancelled"
    eventually(lambda: not job_processes(job))


def test_g118_cancel_at_the_end_has_one_winner(lab: Site) -> None:
    """`cancel` at the moment of the normal end gives one outcome that stays; nobody else's process is signalled."""
    bystander = subprocess.Popen(["/bin/sleep", "300"])
    rng = random.Random(118)
    for _ in range(8):
        job = lab.submit("sleeper", arguments={"seconds": "0.2"})
        time.sleep(rng.uniform(0.1, 0.45))
        assert lab.gate(f"cancel {job}".encode()).status == 0
        outcome = lab.wait(job).reply.outcome
        assert outcome in ("succeeded", "cancelled")
        assert lab.gate(f"cancel {job}".encode()).reply.outcome == outcome
        ends = [record["outcome"] for record in ledger(lab) if record.get("job") == job and record["event"] == "end"]
        assert ends == [outcome]
    assert bystander.poll() is None
    bystander.send_signal(signal.SIGKILL)
    bystander.wait()


def test_g119_cancel_is_legal_at_every_stage(lab: Site) -> None:
    """`cancel` before the start, twice, after the end and after `close` has defined, repeatable answers."""
    client = Rsync(lab, lab.root / "client3")
    created, job = client.opened(program="other"), running(lab)
    for name in (created, job):
        first = lab.gate(f"cancel {name}".encode())
        assert lab.wait(name).reply.outcome == "cancelled" and first.status == 0
        for _ in range(2):
            reply = lab.gate(f"cancel {name}".encode()).reply
            assert (reply.state, reply.outcome) == ("ended", "cancelled")
        assert lab.gate(f"start {name}".encode()).reply.outcome == "cancelled"
        lab.gate(f"close {name}".encode())
        assert lab.gate(f"cancel {name}".encode()).reply.state == "closed"
    ended = lab.submit("other")
    lab.wait(ended)
    assert lab.gate(f"cancel {ended}".encode()).reply.outcome == "succeeded"
    assert starts(lab, created) == 0


@pytest.mark.parametrize("keep_days", [30, 0])
def test_g121_after_close_nothing_is_made_or_fetched(tmp_path: Path, keep_days: int) -> None:
    """After `close` the id is taken for ever: E07 for `open`, `put`, `start`, `get`, and no log.

    Control: before it all of them work; while the site keeps the record, `wait U 0 0` and another `close` do so too.
    """
    site = make_site(tmp_path / "site-host", {"keep_days": keep_days})
    client, oracle = Rsync(site, tmp_path / "client"), Oracle(site)
    job = site.submit("copy", {"a": b"text"})
    assert b"args" in site.wait(job).sections["log"]
    running_job = site.submit("sleep", arguments={"seconds": "600"})
    oracle_before = site.gate(f"close {running_job}".encode())
    assert oracle_before.stderr == b"misrc: denied (E06)\n"
    assert client.pull(job)[1]["out.dat"] == b"text"
    assert site.gate(f"close {job}".encode()).status == 0
    site.gate(f"cancel {running_job}".encode())
    site.wait(running_job)
    oracle.denied(f"open {job}".encode(), "E07", site.open_request(job, "copy", {"a": b"text"}))
    for words in ("put {} --server --daemon .", "get {} --server --daemon .", "start {}"):
        oracle.denied(words.format(job).encode(), "E07")
    if keep_days:
        reply = site.gate(f"wait {job} 0 0".encode())
        assert reply.reply.outcome == "succeeded" and "log" not in reply.sections and not reply.sections
        assert site.gate(f"close {job}".encode()).reply.state == "closed"
    else:
        oracle.denied(f"wait {job} 0 0".encode(), "E07")
        oracle.denied(f"close {job}".encode(), "E07")
        assert not site.job_file(job, "").exists()


def test_g121_a_job_deleted_under_a_wait_is_gone(tmp_path: Path) -> None:
    """Where the site keeps nothing, a `wait` that is under way when the job is closed ends with a defined answer."""
    site = make_site(tmp_path / "site-host", {"keep_days": 0})
    job = site.submit("sleep", arguments={"seconds": "600"})
    with ThreadPoolExecutor(8) as pool:
        waits = [pool.submit(site.gate, f"wait {job} 60 0".encode()) for _ in range(8)]
        eventually(lambda: sum(record["event"] == "wait" for record in ledger(site)) == 8)
        site.gate(f"cancel {job}".encode())
        site.gate(f"close {job}".encode())
        for wait in waits:
            result = wait.result()
            assert result.status == 0 or result.stderr in (b"misrc: denied (E07)\n", b"misrc: denied (E03)\n"), result


@pytest.mark.parametrize("offset", [0, 1, 699_990, 700_005, 10**9, 2**63 - 1, 10**18 - 1])
def test_g122_the_log_comes_in_bounded_unchanged_pieces(lab: Site, offset: int) -> None:
    """From any offset at most 256 KiB come, byte for byte, within bounded memory; beyond the end there is nothing."""
    job = noisy_job(lab)
    whole = lab.job_file(job, "log/remote_program_exec.log").read_bytes()
    result = bounded_gate(lab, f"wait {job} 0 {offset}".encode())
    if offset >= 10**18:
        assert result.status == 64
        return
    assert result.status == 0, result.stderr
    piece = result.sections.get("log", b"")
    assert piece == whole[offset:offset + (256 << 10)]
    assert result.reply.offset == offset + len(piece)


def noisy_job(site: Site) -> str:
    """The one job of this module whose log is long and no text."""
    for line in site.people("jobs", "--json").stdout.splitlines():
        if json.loads(line)["program"] == "noisy":
            return str(json.loads(line)["job"])
    job = site.submit("noisy")
    site.wait(job)
    return job


@pytest.mark.parametrize(("logs", "wanted"), [("none", 0), ("tail", 64 << 10), ("full", 256 << 10)])
def test_g122_no_more_of_the_log_leaves_than_the_policy_lets(tmp_path: Path, logs: str, wanted: int) -> None:
    """`logs` bounds what `wait` tells, from whatever offset, and what lies in `return/`."""
    root = tmp_path / "site-host"
    (root / "programs").mkdir(parents=True)
    path = make_program(root / "programs/talk", "head -c 600000 /dev/zero | tr '\\0' 'x'; echo; echo secret-end\n")
    site = make_site(root, {"programs": {"talk": {"path": str(path), "returns": [], "logs": logs, "network": "allow"}}})
    job = site.submit("talk")
    result = site.wait(job)
    assert len(result.sections.get("log", b"")) == wanted
    assert (b"secret-end" in b"".join(result.sections.values())) == (logs != "none")
    total = sum(len(site.gate(f"wait {job} 0 {place}".encode()).sections.get("log", b"")) for place in (0, 1, 2 << 20))
    assert total <= 3 * wanted
    left = Rsync(site, tmp_path / "client").pull(job)[1]["remote_program_exec.log"]
    assert len(left) <= {"none": 100, "tail": 70_000, "full": 700_000}[logs]


def test_g123_many_results_are_recorded_and_fetched_in_bounded_memory(tmp_path: Path) -> None:
    """`get` of 3 000 files, and of names as long as they may be, is recorded file by file within bounded memory."""
    root = tmp_path / "site-host"
    (root / "programs").mkdir(parents=True)
    body = 'i=0; while [ $i -lt 2800 ]; do : > "f$i"; i=$((i+1)); done\n' + (
        'd=$(printf "%0240d" 0)/$(printf "%0240d" 0)/$(printf "%0240d" 0); mkdir -p $d\n'
        'i=0; while [ $i -lt 200 ]; do : > "$d/$(printf "%0240d" $i)"; i=$((i+1)); done\n')
    rule = {"path": str(make_program(root / "programs/many", body)), "returns": ["**"], "network": "allow"}
    site = make_site(root, {"programs": {"many": rule}})
    job = site.submit("many")
    assert site.wait(job).reply.outcome == "succeeded"
    done, found = Rsync(site, tmp_path / "client").pull(job)
    assert done.returncode == 0 and len([name for name in found if "/" not in name and name[0] == "f"]) == 2800
    listed = {file["name"] for record in ledger(site) if record["event"] == "leave" for file in record["files"]}
    assert len(listed) == 3001 and bounded_gate(site, f"wait {job} 0 0".encode()).status == 0


def test_g125_the_ledger_has_both_clocks(lab: Site) -> None:
    """Each record has the wall clock, and the boot with its monotonic time, which never goes back.

    Setting this machine's clock needs root; that durations do not come from it is the code's word (`CLOCK_BOOTTIME`).
    """
    lab.gate(b"hello")
    records = ledger(lab)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["utc"]) for record in records)
    assert [record["uptime"] for record in records] == sorted(record["uptime"] for record in records)
    assert len({record["boot"] for record in records}) == 1
