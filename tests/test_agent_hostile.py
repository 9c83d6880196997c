"""The agent against a hostile server: nothing outside the policy runs, is written or leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import AgentHost, agent_host, tree
from api_double import TOKEN, DoubleJob, drop, raw, say, work
from conftest import eventually, job_processes, make_program

SPARE = ("/site/state", "/.gone", "/.slots", "agent.log", "/.waits")
BAD_NAMES = [
    "../x",
    "/abs",
    "..",
    ".",
    "",
    "a\0b",
    "x" * 300,
    "a/b",
    "-rf",
    ".bashrc",
    "con",
    "aux.txt",
    "a\nb",
    "a;b|c",
    "remote_program_exec.log",
    "\u202ea",
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentHost]:
    with agent_host(tmp_path_factory.mktemp("lab") / "site-host") as made:
        made.start()
        yield made


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    with agent_host(tmp_path / "site-host") as made:
        yield made


def claim(host: AgentHost, manifest: bytes, program: str = "noop", **changes: Any) -> str:
    """A job as a hostile server makes it: the manifest's bytes are what the test says."""
    job = str(uuid.uuid4())
    lines = [json.loads(line) for line in manifest.splitlines()]
    spec = {
        "job": job,
        "site": host.double.site,
        "program": program,
        "arguments": {},
        "files": len(lines),
        "bytes": sum(line["size"] for line in lines),
        "manifest": hashlib.sha256(manifest).hexdigest(),
        "version": 1,
        **changes,
    }
    host.double.release(DoubleJob(job, json.dumps(spec), manifest.decode("utf-8", "surrogatepass"), {}, small=False))
    return job


def line(name: str, data: bytes = b"x") -> bytes:
    text = json.dumps(name, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b'{"name":%s,"sha256":"%s","size":%d}\n' % (text, hashlib.sha256(data).hexdigest().encode(), len(data))


def refused(host: AgentHost, job: str, *codes: str) -> None:
    """The server learns a code; at the site there is no folder, no start, and one record of the refusal."""
    ended = eventually(lambda: host.double.jobs[job] if host.double.jobs[job].ends else None)
    assert ended.ends[-1]["outcome"] == "refused" and ended.ends[-1]["reason"] in codes, ended.ends
    assert not (host.site.work_root / job).exists()
    assert job not in host.starts()
    mine = [record for record in host.site.ledger() if record.get("job") == job]
    assert [(record["event"], record["decision"]) for record in mine] == [("refuse", "deny")]


def works(host: AgentHost) -> None:
    """Positive control: the next legal job runs."""
    job = host.double.submit("copy", {"a.txt": b"fine"})
    assert eventually(lambda: host.double.ended(job)).files()["out.dat"] == b"fine"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_p01_a_name_that_is_no_plain_name_is_refused_before_a_byte_is_written(lab: AgentHost, name: str) -> None:
    """The whole job is refused, nothing is asked for, and nothing appears at the site but the record."""
    before, asked = tree(lab.site.root, SPARE), len(lab.double.seen)
    refused(lab, claim(lab, line(name)), "E14", "E12")
    assert tree(lab.site.root, SPARE) == before
    assert not any("/inputs/" in path for _, path, _ in lab.double.seen[asked:])
    if name in (BAD_NAMES[0], BAD_NAMES[-1]):
        works(lab)


def test_p01_a_small_input_cannot_bring_another_name(lab: AgentHost) -> None:
    """Bytes that come along under a name that the manifest does not have are refused."""
    job = lab.double.submit("noop", {"a.txt": b"x"}, job=str(uuid.uuid4()))
    eventually(lambda: lab.double.ended(job))
    for small in ({"../evil": b"x"}, {"b.txt": b"x"}, {"a.txt": b"y"}):
        manifest = line("a.txt")
        made = DoubleJob(str(uuid.uuid4()), "", manifest.decode(), {**small})
        spec = json.loads(lab.double.jobs[job].spec)
        made.spec = json.dumps({**spec, "job": made.job, "manifest": hashlib.sha256(manifest).hexdigest()})
        lab.double.release(made)
        refused(lab, made.job, "E04", "E14")


@pytest.mark.parametrize("names", [("a", "a"), ("A", "a"), ("が", "か\u3099")])
def test_p02_names_that_fall_together_are_refused(lab: AgentHost, names: tuple[str, str]) -> None:
    """Two names that are one on some file system are refused; two that differ are not."""
    refused(lab, claim(lab, b"".join(line(name) for name in sorted(names))), "E14")


@pytest.mark.parametrize("extra", ["; id", "\nid", "$(id)", " > /tmp/x", "`id`", " x"])
def test_p06_what_hangs_on_a_program_or_an_argument_never_reaches_a_shell(lab: AgentHost, extra: str) -> None:
    """A program's name with something behind it is no program; in an argument it is refused by pattern, or one word."""
    refused(lab, claim(lab, b"", program="noop" + extra), "E04")
    job = lab.double.submit("sleep", arguments={"seconds": "1" + extra})
    refused(lab, job, "E11")


def test_p06_an_argument_that_the_pattern_allows_is_one_word(lab: AgentHost) -> None:
    """Where the site's own pattern allows such characters the program sees them as they are, in one word."""
    text = "a; id > b `id` $(id) | 'x\""
    job = lab.double.submit("copy", arguments={"words": text})
    assert f"args: {text}\n".encode() in bytes(eventually(lambda: lab.double.ended(job)).log)


def test_p06_a_program_that_the_policy_does_not_name_is_refused(lab: AgentHost) -> None:
    """The server selects a program; it cannot bring one."""
    refused(lab, lab.double.submit("rm"), "E10")
    refused(lab, lab.double.submit("noop", site="other-site"), "E15")
    refused(lab, lab.double.submit("noop", arguments={"undeclared": "x"}), "E11")


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"LD_PRELOAD": "/x"}},
        {"command": "/bin/sh"},
        {"path": "/bin/sh"},
        {"returns": ["**"]},
        {"policy": {}},
        {"version": 2},
    ],
)
def test_p20_a_spec_that_brings_more_than_it_may_is_refused(lab: AgentHost, change: dict[str, Any]) -> None:
    """Commands, rules or environment in a spec are unknown keys: the job is refused."""
    refused(lab, lab.double.submit("noop", **change), "E04")


@pytest.mark.parametrize("key", ["config", "policy", "update", "commands", "url", "token"])
def test_p20_an_answer_that_brings_configuration_changes_nothing(lab: AgentHost, key: str) -> None:
    """There is no way in for configuration or code: an answer with unknown keys is dropped as a whole."""
    before = tree(lab.site.prefix / "config"), tree(lab.site.prefix / "share")
    job = lab.double.submit("noop")
    eventually(lambda: lab.double.ended(job))
    polls = len(lab.double.polls)
    lab.double.extra_work.append({**json.loads(work()), key: {"url": "https://evil.example", "programs": {}}})
    lab.double.wish(job)
    eventually(lambda: len(lab.double.polls) > polls and not lab.double.extra_work)
    assert (tree(lab.site.prefix / "config"), tree(lab.site.prefix / "share")) == before
    works(lab)


def test_p09_missing_names_choose_only_among_what_may_leave(host: AgentHost) -> None:
    """A server that asks for other files gets what the manifest lists, and nothing that lies beside it."""
    secret = host.site.root / "secret.txt"
    secret.write_text("do not tell")
    body = f"echo ok > out.dat; ln -s {secret} link.dat; ln {secret} hard.dat; mkfifo pipe.dat; mkdir dir.dat\n"
    body += "echo k > a.key\n"
    path = make_program(host.site.root / "programs/greedy", body + "head -c 2000000 /dev/zero > big.dat\n")
    rule = {"path": str(path), "returns": ["*.dat"], "withhold": ["*.key"], "logs": "none", "network": "allow"}
    host.site.policy["programs"]["greedy"] = rule
    host.site.install()
    asked = [
        "/etc/shadow",
        "../job.json",
        "../../config/site_key",
        "link.dat",
        "hard.dat",
        "pipe.dat",
        "a.key",
        "job.json",
    ]
    body_of = json.dumps({"cancel": False, "close": False, "missing": [*asked, "out.dat", "big.dat"]}).encode()
    host.double.rule("/end", say(200, body_of), times=1)
    host.start()
    job = host.double.submit("greedy")
    ended = eventually(lambda: host.double.ended(job))
    assert set(ended.results) == {"out.dat", "big.dat", "remote_program_exec.log"}
    assert ended.files()["remote_program_exec.log"] == b"withheld by the site\n" and not ended.log
    puts = {path.rpartition("/")[2] for method, path, _ in host.double.seen if method == "PUT"}
    assert puts == {"out.dat", "big.dat"} | (puts & {"remote_program_exec.log"})


def test_p10_a_result_with_shell_signs_in_its_name_meets_no_shell(host: AgentHost) -> None:
    """`x;id` and its like never reach a shell; a name that cannot travel stays at the site."""
    path = make_program(host.site.root / "programs/odd", "echo 1 > 'x;id'; echo 2 > '$(id)'; echo 3 > 計算.txt\n")
    host.site.policy["programs"]["odd"] = {"path": str(path), "returns": ["**"], "logs": "none", "network": "allow"}
    host.site.install()
    host.start()
    job = host.double.submit("odd")
    ended = eventually(lambda: host.double.ended(job))
    assert ended.files()["x;id"] == b"1\n" and ended.files()["計算.txt"] == b"3\n"


def test_p11_a_job_that_announces_too_much_is_refused(host: AgentHost) -> None:
    """More bytes or files than the policy allows are refused before anything is fetched."""
    host.site.policy["limits"] = {**host.site.policy["limits"], "job_bytes": 1000, "files": 3}
    host.site.install()
    host.start()
    refused(host, host.double.submit("noop", {"a": b"x" * 1001}, small=False), "E20")
    refused(host, host.double.submit("noop", {name: b"" for name in "abcd"}, small=False), "E14", "E21")
    works(host)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 99999999999\r\n\r\n" + b"y" * 4096,
        b"HTTP/1.1 206 OK\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n\r\nyyyyy",
        b"HTTP/1.1 206 OK\r\nContent-Length: 10\r\n\r\n" + b"y" * 10,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nyyyyy\r\n" * 500,
        b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\nyyyy",
    ],
)
def test_p11_an_input_of_the_wrong_length_is_never_used(host: AgentHost, answer: bytes) -> None:
    """Too long, too short, another part, endless chunks: given up, and asked again for what is still missing."""
    host.double.rule("GET .*/inputs/", raw(answer), times=2)
    host.start()
    job = host.double.submit("copy", {"a.txt": b"0123456789"}, small=False)
    ended = eventually(lambda: host.double.ended(job), 60)
    assert ended.outcome in ("succeeded", "refused")
    assert ended.files().get("out.dat", b"0123456789") == b"0123456789"
    largest = max(path.stat().st_size for path in (host.site.work_root / job / "in").iterdir())
    assert largest <= 10


def test_p11_an_input_with_another_content_is_refused(host: AgentHost) -> None:
    """The right length with other bytes: fetched once more, then the job is refused and does not wait for ever."""
    header = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n"
    rule = host.double.rule("GET .*/inputs/", raw(header + b"y" * 10), times=100)
    host.start()
    job = host.double.submit("copy", {"a.txt": b"0123456789"}, small=False)
    ended = eventually(lambda: host.double.ended(job), 60)
    assert (ended.outcome, ended.reason, rule.hits) == ("refused", "E14", 2)
    assert host.starts() == [] and host.state(job) == "ended"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n" + b"X-Many: a\r\n" * 10_000 + b"\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00garbage",
        b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + b'{"claims":[1]',
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b'{"a":NaN,,}',
    ],
)
def test_p11_a_malformed_answer_to_a_poll_is_survived(host: AgentHost, answer: bytes) -> None:
    """Whatever comes instead of an answer, memory stays bounded and the next answer is taken."""
    host.double.rule("/poll", raw(answer), times=2)
    host.start()
    works(host)
    assert host.rss() < 100 << 20


@pytest.mark.parametrize(
    "where", ["https://evil.example/", "http://127.0.0.1:1/", "file:///etc/passwd", "/mi-distcomp-api/v2/x"]
)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_p13_a_redirect_is_not_followed(lab: AgentHost, where: str, status: int) -> None:
    """No call follows a redirect, wherever it leads; the token is seen by the declared server only."""
    seen = len(lab.double.seen)
    rule = lab.double.rule("/report", say(status, b"", Location=where), times=1)
    works(lab)
    assert rule.hits == 1
    assert not any("/v2/x" in path for _, path, _ in lab.double.seen[seen:])


@pytest.mark.parametrize("status", [204, 300, 400, 401, 403, 404, 405, 409, 418, 429, 500, 503, 507, 599])
def test_p15_any_status_is_survived(lab: AgentHost, status: int) -> None:
    """An odd answer to a report costs a pause, nothing else."""
    rule = lab.double.rule("/report", say(status, b"{}"), times=1)
    works(lab)
    assert rule.hits == 1


@pytest.mark.parametrize("text", ["1000000000", "-5", "Thu, 01 Jan 1970 00:00:00 GMT", "never", "9" * 5000])
def test_p15_retry_after_is_bounded(text: str) -> None:
    """What the server asks to wait is between nothing and five minutes, or not heard."""
    from misrc.site.agent.api_client import MAX_RETRY_AFTER, _retry_after

    found = _retry_after(text)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER
    assert _retry_after("7") == 7.0


def test_p15_a_server_that_always_has_nothing_does_not_make_it_spin(host: AgentHost) -> None:
    """Answers at once with orders for jobs that nobody knows: the server is asked ever less often."""
    unknown = [str(uuid.uuid4())]
    rule = host.double.rule("/poll", say(200, work(cancel=unknown, close=unknown, lost=unknown)), times=10**6)
    host.start()
    eventually(lambda: rule.hits > 3)
    hits, begun = rule.hits, time.monotonic()
    eventually(lambda: time.monotonic() - begun > 3)
    assert rule.hits - hits < 60
    host.double.rules.clear()
    works(host)


def test_p04_a_job_folder_that_somebody_planted_is_not_used(host: AgentHost) -> None:
    """A link where the job's folder would be leads nowhere: nothing is written through it."""
    target = host.site.root / "elsewhere"
    target.mkdir()
    job = str(uuid.uuid4())
    (host.site.work_root / job).symlink_to(target)
    host.start()
    host.double.submit("noop", {"a": b"x"}, job=job)
    eventually(lambda: len(host.double.polls) >= 2)
    works(host)
    assert list(target.iterdir()) == [] and job not in host.starts()


def test_p32_what_a_program_leaves_behind_is_ended(host: AgentHost) -> None:
    """A helper that detached itself and holds the output open neither delays the end nor outlives it."""
    body = "setsid sleep 300 & trap '' TERM; echo done > out.dat\n"
    path = make_program(host.site.root / "programs/daemon", body)
    host.site.policy["programs"]["daemon"] = {"path": str(path), "returns": ["**"], "logs": "full", "network": "allow"}
    host.site.install()
    host.start()
    job = host.double.submit("daemon")
    assert eventually(lambda: host.double.ended(job)).outcome == "succeeded"
    assert not job_processes(job)


def test_p34_p35_output_of_any_kind_is_capped_and_kept_as_bytes(host: AgentHost) -> None:
    """Binary output without line ends is cut at the cap and arrives byte for byte; the agent does not grow."""
    path = make_program(
        host.site.root / "programs/loud", "head -c 30000000 /dev/zero | tr '\\0' '\\377'; echo ok > out.dat\n"
    )
    host.site.policy["programs"]["loud"] = {"path": str(path), "returns": ["**"], "logs": "full", "network": "allow"}
    host.site.policy["limits"] = {**host.site.policy["limits"], "log_bytes": 500_000}
    host.site.install()
    host.start()
    job = host.double.submit("loud")
    ended = eventually(lambda: host.double.ended(job), 60)
    assert ended.files()["remote_program_exec.log"].startswith(b"\xff" * 500_000)
    assert bytes(ended.log) == ended.files()["remote_program_exec.log"]
    assert host.rss() < 60 << 20


def test_p45_the_token_is_nowhere_but_on_the_wire(host: AgentHost) -> None:
    """After work, refusals and failures the canary is in no log, record, error, process list or program environment."""
    path = make_program(host.site.root / "programs/env", "env; cat /proc/$PPID/cmdline | tr '\\0' ' '; sleep 1\n")
    host.site.policy["programs"]["env"] = {"path": str(path), "returns": ["**"], "logs": "full", "network": "allow"}
    host.site.install()
    host.double.rule("/report", say(401, b'{"error":{"code":"unauthenticated","message":"canary"}}'), times=1)
    host.double.rule("/end", drop, times=1)
    host.start()
    job = host.double.submit("env")
    eventually(lambda: job_processes(job) or host.double.ended(job))
    lists = [Path(f"/proc/{pid}/cmdline") for pid in os.listdir("/proc") if pid.isdigit()]
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in lists if path.exists())
    ended = eventually(lambda: host.double.ended(job))
    refused(host, host.double.submit("rm"), "E10")
    host.stop(kill=False)
    found = [
        path
        for path in host.site.root.rglob("*")
        if path.is_file() and path.name != "token" and TOKEN.encode() in path.read_bytes()
    ]
    assert found == []
    assert TOKEN.encode() not in bytes(ended.log) and TOKEN.encode() not in json.dumps(ended.ends).encode()
    assert all(headers.get("Authorization") == f"Bearer {TOKEN}" for _, _, headers in host.double.seen)


def test_p46_what_the_server_says_reaches_no_log(host: AgentHost) -> None:
    """A server's messages, with escapes and line breaks, are never printed; the same trouble is told once."""
    evil = json.dumps({"error": {"code": "busy", "message": "\x1b[31mEVIL\nforged line"}}).encode()
    host.double.rule("/poll", say(429, evil), times=4)
    host.start()
    works(host)
    assert "EVIL" not in host.said() and "\x1b" not in host.said()
    assert host.said().count("it says busy") == 1


def test_base64_that_is_not_canonical_is_refused(lab: AgentHost) -> None:
    """Small inputs in any spelling but the one canonical are refused."""
    data = b"ab"
    for text in (base64.b64encode(data).decode().rstrip("="), "YWK=", " YWI=", "YWI=\n"):
        job = lab.double.submit("noop", {"a": data})
        eventually(lambda: lab.double.ended(job))  # noqa: B023
        made = lab.double.jobs[job]
        name = str(uuid.uuid4())
        body = {
            "job": name,
            "fence": 10**6,
            "lease": 60.0,
            "spec": made.spec.replace(job, name),
            "manifest": made.manifest,
            "small": {"a": text},
        }
        lab.double.jobs[name] = DoubleJob(
            name, "", "", {}, fence=10**6, agent=lab.double.polls[-1]["agent"], reported=True
        )
        lab.double.extra_work.append(json.loads(work(claims=[body])))
        lab.double.wish(name)
        refused(lab, name, "E04")
