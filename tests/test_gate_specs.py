"""Section F of docs/attacks.md: job specs, programs and arguments, at the real gate."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CLEAN, Site, make_program, make_site, sha256
from labs import open_lab
from oracle import Oracle, ledger
from transfers import Rsync

from misrc.job.manifest import Entry, digest_manifest, make_manifest


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from open_lab(tmp_path_factory.mktemp("lab") / "site-host")


GATE_ENVIRONMENT = {**CLEAN, "SSH_CONNECTION": "127.0.0.1 1 127.0.0.1 2"}


def starts(site: Site, job: str) -> int:
    path = site.root / "starts"
    return path.read_text().split().count(job) if path.exists() else 0


def spec(lab: Site, job: str, **changes: Any) -> dict[str, Any]:
    """An `open` request as plain JSON values, to be spoilt."""
    empty = digest_manifest(())
    plain = {
        "job": job,
        "site": lab.name,
        "program": "show",
        "arguments": {},
        "files": 0,
        "bytes": 0,
        "manifest": empty,
        "version": 1,
    }
    return {"spec": {**plain, **changes}, "start": True, "inline": []}


def open_denied(oracle: Oracle, code: str, request: bytes, job: str | None = None) -> None:
    """`open` with this standard input is refused, and no job comes into being. Each test ends with a legal one."""
    name = job or str(uuid.uuid4())
    oracle.denied(f"open {name}".encode(), code, request, follow=False)


def spec_denied(oracle: Oracle, code: str, **changes: Any) -> None:
    job = str(uuid.uuid4())
    open_denied(oracle, code, json.dumps(spec(oracle.site, job, **changes)).encode() + b"\n", job)


def show(site: Site, **arguments: str) -> tuple[bytes, dict[bytes, bytes]]:
    """argv and environment as they reach the program."""
    job = site.submit("show", arguments=arguments)
    sections = site.wait(job).sections
    env = dict(item.split(b"=", 1) for item in sections["file:env"].split(b"\0") if item)
    return sections["file:argv"], env


def test_g106_only_listed_programs_are_taken(lab: Site) -> None:
    """A program is a name of the policy, matched whole; paths, other case and look-alikes are refused."""
    oracle = Oracle(lab)
    for program in ("nothing", "sho", "showx", "sh"):
        spec_denied(oracle, "E10", program=program)
    for program in (
        "/bin/sh",
        "../show",
        "Show",
        "SHOW",
        "show ",
        " show",
        "show\0",
        "show\n",
        "",
        "\uff53how",
        "show;id",
        ".",
    ):
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
    assert [record["outcome"] for record in ledger(site) if record.get("job") == job and record["event"] == "end"] == [
        "refused"
    ]


def test_g108_arguments_outside_their_rule_are_refused(lab: Site) -> None:
    """A value that its pattern or choices do not allow, an undeclared argument, and too much of it all are refused."""
    oracle = Oracle(lab)
    for value in (
        "-e",
        "--exec=sh",
        ";id",
        "$(id)",
        "1\n",
        "\n",
        "1;id",
        "/etc/passwd",
        "@file",
        "..",
        "1 ",
        "",
        "\uff11",
        "-1",
        "1234567",
        "1\0",
        "\ud800",
    ):
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
    assert show(lab, any="7", cycles="12", mesh="coarse")[0] == b"<7><coarse><12>"


@pytest.mark.parametrize(
    "value",
    [
        "$(id)",
        ";id",
        "`id`",
        "-e",
        "--exec=sh",
        "@file",
        "../..",
        "/etc/passwd",
        "a b  c",
        "*",
        "'\"\\",
        "${HOME}",
        "日本語",
        "",
        "\x7f\x01",
        "\ud800x",
    ],
)
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
    rule = {
        "path": str(make_program(root / "programs/wide", 'echo "$#"\n')),
        "returns": [],
        "logs": "full",
        "network": "allow",
        "arguments": {f"a{number}": {"pattern": ".*"} for number in range(16)},
    }
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
        "",
        "\n",
        "null\n",
        "[]\n",
        "{}\n",
        "x\n",
        text,
        text[:-1] + "\n",
        text + "}\n",
        text + " x\n",
        text.replace('"files": 0', '"files": 0, "files": 0') + "\n",
        text.replace('"start"', '"start": true, "start"') + "\n",
        *(
            text.replace('"files": 0', f'"files": {value}') + "\n"
            for value in (
                "NaN",
                "Infinity",
                "-Infinity",
                "-1",
                "1.0",
                "1e400",
                "true",
                '"0"',
                "null",
                "9" * 5000,
                "0x1",
                "[0]",
            )
        ),
        text.replace('"start": true', '"start": 1') + "\n",
        text.replace('"inline": []', '"inline": {}') + "\n",
        text.replace('"version": 1', '"version": 2') + "\n",
        text.replace('"arguments": {}', '"arguments": null') + "\n",
        "\ufeff" + text + "\n",
        text.replace("show", "sh\udcffow") + "\n",
    ]
    for line in texts:
        open_denied(oracle, "E04", line.encode("utf-8", "surrogatepass"), job)
    for data in (
        text.encode("utf-16") + b"\n",
        text.encode("utf-32") + b"\n",
        b"\xff\xfe\n",
        b"\0" * 70000,
        nested(100_000) + b"\n",
        nested(40) + b"\n",
        b'{"a":"' + b"x" * (1 << 20) + b'"}\n',
        b"\x80" * 66000,
    ):
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
    done = subprocess.run(
        ["/bin/bash", "-c", writer, "-", str(uuid.uuid4()), *lab.gate_argv()],
        capture_output=True,
        env=GATE_ENVIRONMENT,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (77, b"misrc: denied (E04)\n")
    Oracle(lab).works()


def test_g110_no_environment_comes_from_the_spec(lab: Site) -> None:
    """A spec cannot carry variables; the program's environment is exactly the runner's own list."""
    spec_denied(Oracle(lab), "E04", environment={"LD_PRELOAD": "/x"})
    env = show(lab)[1]
    shell = {b"PWD", b"OLDPWD", b"SHLVL", b"_"}  # what sh adds by itself
    assert set(env) - shell == {b"PATH", b"HOME", b"TMPDIR", b"LANG", b"CALC_DIR", b"MISRC_JOB_ID", b"MISRC_PROGRESS"}


def test_g147_undeclared_inputs_do_not_slip_in_by_a_second_open(lab: Site) -> None:
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


def test_g148_a_dry_run_starts_nothing_even_for_a_job_that_exists(lab: Site) -> None:
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
