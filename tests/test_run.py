"""`misrc run` as its users meet it: the whole way, and one clear line with the right exit code for every bad input."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import MISRC, Mint, Site, make_mint, sha256


def one_line(text: str) -> str:
    """The error line: the last one, and the only one that is not a dated progress line."""
    lines = [line for line in text.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]
    assert len(lines) == 1, text
    assert lines[0].startswith("misrc: "), text
    return lines[0]


def test_a_job_goes_the_whole_way(mint: Mint, site: Site) -> None:
    """Inputs arrive, the program runs once with its argument, results and log come back verified, the job is closed."""
    path = mint.file("input.dat", b"hello\n")
    done = mint.command(
        "run",
        site.name,
        "copy",
        "--in",
        f"input.dat={path}",
        "--arg",
        "words=a b;$(id)",
        "--results",
        "out",
        "--out",
        f"out.dat={mint.root}/elsewhere/copy.dat",
    )
    assert done.returncode == 0, done.stderr
    assert (mint.root / "out/out.dat").read_bytes() == b"hello\n"
    assert (mint.root / "elsewhere/copy.dat").read_bytes() == b"hello\n"
    assert (mint.root / "out/remote_program_exec.log").read_text(encoding="utf-8") == "args: a b;$(id)\n"
    (record,) = mint.jobs()
    assert (record["state"], record["outcome"]) == ("closed", "succeeded")
    assert len(mint.starts()) == 1
    left = [file for record in site.ledger() if record["event"] == "leave" for file in record["files"]]
    assert {(file["name"], file["sha256"]) for file in left} >= {("out.dat", sha256(b"hello\n"))}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
@pytest.mark.parametrize("size", [5, 3_000_000])
def test_who_may_read_results_is_the_callers_word(mint: Mint, tmp_path: Path, umask: int, mode: int, size: int) -> None:
    """Small and large results, and their copies, have the rights that the caller's umask gives to a new file."""
    data = os.urandom(size)
    line = f'umask {umask:o}; exec "$@" run test-site copy --in a.bin={mint.file("a.bin", data)} --new'
    words = ["--results", str(tmp_path / "r"), "--out", f"out.dat={tmp_path / 'copy'}"]
    argv = ["/bin/sh", "-c", f"{line} {' '.join(words)}", "sh", MISRC]
    subprocess.run(argv, check=True, env=mint.env(), cwd=mint.root, capture_output=True)
    for path in (tmp_path / "copy", tmp_path / "r/out.dat", tmp_path / "r/remote_program_exec.log"):
        assert path.stat().st_mode & 0o777 == mode, path
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o777 & ~umask


def test_small_results_leave_once(mint: Mint, site: Site) -> None:
    """Results that came with the answer to `open` are taken from there: they do not leave the site a second time."""
    path = mint.file("input.dat", b"hello\n")
    assert mint.command("run", site.name, "copy", "--in", f"input.dat={path}", "--results", "out").returncode == 0
    assert (mint.root / "out/out.dat").read_bytes() == b"hello\n"
    assert len([record for record in site.ledger() if record["event"] == "leave"]) == 1


def test_a_named_result_that_does_not_come_is_said(mint: Mint, site: Site) -> None:
    """A call whose --out names an optional result that does not come ends well, and a line says what is not there."""
    mint.declaration["programs"]["copy"]["outputs"]["other.dat"] = "optional"
    mint.declare()
    path = mint.file("input.dat", b"hello\n")
    call = ("run", site.name, "copy", "--in", f"input.dat={path}", "--results", "out")
    done = mint.command(*call, "--out", "out.dat=here.dat", "--out", "other.dat=gone.dat")
    assert done.returncode == 0 and (mint.root / "here.dat").is_file() and not (mint.root / "gone.dat").exists()
    assert [line for line in done.stderr.splitlines() if "'other.dat'" in line and "gone.dat" in line]
    assert "here.dat" not in done.stderr


def test_the_same_call_computes_once_and_new_computes_again(mint: Mint, site: Site) -> None:
    """The same call finds its job; other content, another argument or --new is another job."""
    path = mint.file("a", b"1")
    call = ("run", site.name, "copy", "--in", f"a={path}", "--results", "out")
    assert mint.command(*call).returncode == 0
    again = mint.command(*call, "--out", f"out.dat={mint.root}/later.dat")
    assert again.returncode == 0 and "already done" in again.stderr
    assert (mint.root / "later.dat").read_bytes() == b"1", "a new --out is honoured"
    assert len(mint.starts()) == 1
    assert mint.command(*call, "--new").returncode == 0
    assert len(set(mint.starts())) == 2
    mint.file("a", b"2")
    assert mint.command(*call).returncode == 0
    assert len(set(mint.starts())) == 3
    (mint.root / "out/out.dat").unlink()
    assert mint.command(*call).returncode == 0, "results that are gone are made again"
    assert (mint.root / "out/out.dat").read_bytes() == b"2"


def test_a_job_id_of_the_caller_resumes_and_belongs_to_its_call(mint: Mint, site: Site) -> None:
    """--job makes a job with that id; the same call with it is done; another call with it is refused."""
    job = "7f3c1f5e-2a4b-4c8d-9e0f-112233445566"
    assert mint.command("run", site.name, "noop", "--job", job, "--results", "out").returncode == 0
    assert "already done" in mint.command("run", site.name, "noop", "--job", job, "--results", "out").stderr
    other = mint.command("run", site.name, "copy", "--job", job, "--results", "out")
    assert other.returncode == 2 and job in one_line(other.stderr)
    for bad in (job.upper(), "x", "00000000-0000-0000-0000-000000000000", job + "\n"):
        assert mint.command("run", site.name, "noop", "--job", bad).returncode == 2


def test_a_failing_program_says_so(mint: Mint, site: Site) -> None:
    """Exit 1, one line with the program's exit status, and its log is here."""
    done = mint.command("run", site.name, "fail", "--results", "out")
    assert done.returncode == 1
    assert "exit status 3" in one_line(done.stderr)
    assert (mint.root / "out/remote_program_exec.log").read_text(encoding="utf-8") == "bad\n"
    assert mint.command("run", site.name, "fail", "--results", "out").returncode == 1, "a failed call may be made again"
    assert len(set(mint.starts())) == 2


def test_many_large_and_renamed_inputs_go_by_rsync(mint: Mint, site: Site, tmp_path: Path) -> None:
    """More than fits along with `open`: a renamed file, a link, an empty file, a Japanese name, from a list."""
    big = mint.file("source.bin", os.urandom(3 << 20))
    os.symlink(big, tmp_path / "link.bin")
    listing = tmp_path / "list"
    small = [mint.file(f"s{n}", str(n).encode()) for n in range(150)]
    listing.write_text(
        "".join(f"{Path(p).name}={p}\n" for p in small) + f"link.bin={tmp_path}/link.bin\n", encoding="utf-8"
    )
    done = mint.command(
        "run",
        site.name,
        "copy",
        "--in",
        f"大きい.bin={big}",
        "--in",
        f"empty={mint.file('e', b'')}",
        "--in-list",
        str(listing),
        "--results",
        "out",
    )
    assert done.returncode == 0, done.stderr
    names = sorted([Path(p).name for p in small] + ["empty", "link.bin", "大きい.bin"], key=lambda n: n.encode())
    content = {Path(p).name: Path(p).read_bytes() for p in small}
    content |= {"empty": b"", "link.bin": Path(big).read_bytes(), "大きい.bin": Path(big).read_bytes()}
    done_in_order = subprocess.run(
        ["sh", "-c", "printf '%s\\n' \"$@\" | sort", "x", *names],
        capture_output=True,
        text=True,
        check=True,
        env={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    ).stdout.splitlines()
    got = (mint.root / "out/out.dat").read_bytes()
    assert len(got) == sum(map(len, content.values()))
    assert sha256(bytes(sorted(got))) == sha256(bytes(sorted(b"".join(content[n] for n in done_in_order))))


BAD = [
    (("run", "nowhere", "noop"), 2, "nowhere"),
    (("run", "SITE", "nothing"), 2, "nothing"),
    (("run", "SITE", "noop", "--in", "a=/does/not/exist"), 2, "/does/not/exist"),
    (("run", "SITE", "noop", "--in", "a=/etc"), 2, "/etc"),
    (("run", "SITE", "noop", "--in", "a=UNREADABLE"), 2, "UNREADABLE"),
    (("run", "SITE", "noop", "--in", "a"), 2, "NAME=VALUE"),
    (("run", "SITE", "noop", "--in", "a=GOOD", "--in", "a=GOOD"), 2, "twice"),
    (("run", "SITE", "noop", "--in=-x=GOOD"), 2, "-x"),
    (("run", "SITE", "noop", "--in", "../x=GOOD"), 2, "../x"),
    (("run", "SITE", "fail", "--in", "a=GOOD"), 2, "declared"),
    (("run", "SITE", "noop", "--arg", "x=1"), 2, "'x'"),
    (("run", "SITE", "sleep", "--arg", "seconds=1;id"), 2, "seconds"),
    (("run", "SITE", "noop", "--out", "other.dat=/tmp/x"), 2, "other.dat"),
    (("run", "SITE", "noop", "--results", "/proc/nothing/here"), 2, "/proc"),
    (("run", "SITE", "noop", "--results", "GOOD"), 2, "folder"),
    (("run", "SITE", "noop", "--inventory", "/does/not/exist"), 2, "inventory"),
    (("run", "SITE", "forbidden"), 3, "admin@site.example"),
    (("run", "SITE", "strict", "--arg", "level=9"), 3, "admin@site.example"),
    (("status", "7f3c1f5e-2a4b-4c8d-9e0f-112233445566"), 2, "7f3c1f5e"),
    (("cancel", "../x"), 2, "../x"),
]


def fill(word: str, values: dict[str, str]) -> str:
    """A word of a test case with its placeholders replaced."""
    for name, value in values.items():
        word = value if word == name else word.replace(f"={name}", f"={value}")
    return word


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A site whose policy allows less than MInt's interface says."""
    from conftest import make_site

    root = tmp_path_factory.mktemp("bad-input")
    site = make_site(root / "site-host")
    strict = {**site.policy["programs"]["noop"], "arguments": {"level": {"choices": ["1", "2"]}}}
    site.policy["programs"]["strict"] = strict
    site.install()
    site.start_sshd()
    mint = make_mint(root / "mint", site)
    mint.declaration["programs"]["forbidden"] = {}
    mint.declaration["programs"]["strict"] = {"arguments": {"level": {"pattern": "[0-9]"}}}
    mint.declare()
    good = mint.file("good", b"good")
    unreadable = mint.file("unreadable", b"x")
    os.chmod(unreadable, 0)
    yield site, mint, {"SITE": site.name, "GOOD": good, "UNREADABLE": unreadable}
    site.stop_sshd()


@pytest.mark.parametrize(
    ("words", "status", "hint"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else None
)
def test_bad_input_is_one_line_and_leaves_nothing(
    world: tuple[Site, Mint, dict[str, str]], words: tuple[str, ...], status: int, hint: str
) -> None:
    """One line that names the thing, the right exit code, nothing half-made on either side, no process left."""
    site, mint, values = world
    filled = []
    for word in words:
        filled.append(fill(word, values))
    before = sorted(site.work_root.rglob("*"))
    done = mint.command(*filled)
    assert done.returncode == status, done.stderr
    assert values.get(hint, hint) in one_line(done.stderr)
    assert sorted(site.work_root.rglob("*")) == before
    assert not list(mint.root.glob(".misrc-*")) and not list(Path("/tmp").glob(f"misrc-*{os.getpid()}"))
    assert mint.starts() == []


def test_the_positive_control_of_the_bad_inputs(world: tuple[Site, Mint, dict[str, str]]) -> None:
    """The same site takes the same calls without the mistake."""
    site, mint, values = world
    assert (
        mint.command(
            "run", site.name, "noop", "--in", f"a={values['GOOD']}", "--results", "control", "--dry-run"
        ).returncode
        == 0
    )
    assert (
        mint.command("run", site.name, "strict", "--arg", "level=2", "--results", "control", "--dry-run").returncode
        == 0
    )


def test_an_expired_agreement_takes_no_new_job(mint: Mint, site: Site) -> None:
    """After valid_until: exit 3, and whom to ask."""
    late = make_mint(mint.root / "late", site, valid_until="2020-01-31")
    done = late.command("run", site.name, "noop")
    assert done.returncode == 3 and "2020-01-31" in one_line(done.stderr) and "ops@mint.example" in done.stderr


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"unknown_key": 1}, "unknown_key"),
        ({"host_keys": []}, "host_keys"),
        ({"host_keys": ["ssh-rsa AAAA"]}, "host_keys"),
        ({"port": 70000}, "port"),
        ({"user": "root"}, "user"),
        ({"user": "-oProxyCommand=x"}, "user"),
        ({"address": "a b"}, "address"),
        ({"address": "-x"}, "address"),
        ({"id": "Bad Id"}, "id"),
        ({"method": "ftp"}, "method"),
        ({"give_up_after": "soon"}, "give_up_after"),
        ({"programs": {"p": {"inputs": {"../x": "required"}}}}, "inputs"),
    ],
)
def test_a_wrong_declaration_names_file_key_and_reason(
    mint: Mint, site: Site, change: dict[str, Any], place: str
) -> None:
    """Unknown keys, unpinned hosts, values that would need quoting: refused with the file and the key."""
    wrong = make_mint(mint.root / "wrong", site, **change)
    done = wrong.command("run", site.name, "noop")
    line = one_line(done.stderr)
    assert done.returncode == 2 and place in line and f"{site.name}.yml" in line


def test_two_files_for_one_site_are_refused(mint: Mint, site: Site) -> None:
    """A site id may stand in one file only."""
    folder = mint.root / "inventory/host_vars"
    (folder / "other.yml").write_bytes((folder / f"{site.name}.yml").read_bytes())
    done = mint.command("run", site.name, "noop")
    assert (done.returncode == 2 and "other.yml" in one_line(done.stderr)) or f"{site.name}.yml" in done.stderr


def test_everything_speaks_json(mint: Mint, site: Site) -> None:
    """`--json` gives one object per line on standard output and nothing else there."""
    dry = json.loads(mint.command("run", site.name, "noop", "--dry-run", "--json").stdout)
    assert dry["accepted"] is True
    record = json.loads(mint.command("run", site.name, "noop", "--results", "out", "--json").stdout)
    assert record["outcome"] == "succeeded" and record["delivered"] == ["out.dat", "remote_program_exec.log"]
    for command in (
        ("jobs",),
        ("status", record["job"]),
        ("logs", record["job"]),
        ("cancel", record["job"]),
        ("fetch", record["job"]),
        ("tend",),
    ):
        done = mint.command(*command, "--json")
        assert done.returncode == 0, (command, done.stderr)
        for line in done.stdout.splitlines():
            assert isinstance(json.loads(line), dict)


def test_messages_come_in_japanese(mint: Mint, site: Site) -> None:
    """With a Japanese locale the same error is Japanese."""
    mint.environment["LANG"] = "ja_JP.UTF-8"
    done = mint.command("run", site.name, "nothing")
    assert done.returncode == 2 and "プログラム" in done.stderr


def test_logs_follow_until_the_end(mint: Mint, site: Site) -> None:
    """`logs -f` shows the program's output while it runs and ends with the job."""
    running = mint.spawn("run", site.name, "sleep", "--arg", "seconds=7", "--results", "out")
    while not mint.starts():
        assert running.poll() is None
    (job,) = set(mint.starts())
    followed = mint.command("logs", "-f", job)
    assert followed.returncode == 0 and followed.stdout == "started\n"
    _, err = running.communicate(timeout=60)
    assert running.returncode == 0, err


def test_a_terminal_gets_a_bar(mint: Mint, site: Site) -> None:
    """On a terminal state and time are drawn; nothing of it reaches standard output."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [MISRC, "run", site.name, "sleep", "--arg", "seconds=2", "--results", "out"],
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**mint.env(), "TERM": "xterm"},
        cwd=mint.root,
    )
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:
        pass
    os.close(master)
    out = process.communicate()[0]
    assert process.returncode == 0
    assert b"running" in shown and b"\x1b[" in shown
    assert b"\x1b[" not in out


def test_tend_has_nothing_to_do_where_all_is_done(mint: Mint) -> None:
    """An idle `tend` says so and changes nothing."""
    done = mint.command("tend")
    assert done.returncode == 0 and done.stdout == "nothing to tend\n"
