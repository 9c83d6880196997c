"""MInt's side against a site that lies (docs/attacks.md, M), and against its own surroundings."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import MISRC, Mint, Site, eventually, make_mint
from hostile import lying
from resilience import add_program, declare, site_record

ESCAPES = "\\u001b]0;owned\\u0007\\u001b[2J\\nmisrc: all is well\\r\\u202egnorw\\u2028"


def calm(text: str) -> bool:
    """Whether a terminal would only show it."""
    return all(c.isprintable() for line in text.split("\n") for c in line)


def test_m20_what_a_site_says_cannot_drive_a_terminal(site: Site, tmp_path: Path) -> None:
    """Escapes, line breaks and overrides in a reason or in progress come out as plain characters of their one line."""
    body = f"""
if verb == "open":
    say(state="running", since=time.time())
elif verb == "wait":
    say(event="progress", state="running", since=1.0,
        progress={{"done": 1, "total": 2, "unit": "{ESCAPES}", "text": "{ESCAPES}"}})
    say(state="ended", outcome="lost", reason="gone {ESCAPES}", since=1.0)
else:
    say(state="closed", outcome="lost")
"""
    mint = lying(site, tmp_path / "mint", body)
    done = mint.command("run", site.name, "noop", "--results", "r")
    assert done.returncode == 5, done.stderr
    assert calm(done.stderr), done.stderr
    assert "gone" in done.stderr and "owned" in done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("misrc: ")]
    assert len(ours) == 1 and "gone" in ours[0]
    listed = mint.command("status", mint.jobs()[-1]["job"])
    assert calm(listed.stdout + listed.stderr)


@pytest.mark.parametrize("reason", ["E{contact:>999999999999}", "E{0}", "Error {x}", "E01", "E99"])
def test_m21_a_reason_is_never_a_template(site: Site, tmp_path: Path, reason: str) -> None:
    """A refusal's reason that looks like one of our templates, or like a code, is shown and not filled in."""
    body = f"""
if verb == "open":
    say(state="ended", outcome="refused", reason="{reason}", since=1.0)
else:
    say(state="ended" if verb == "wait" else "closed", outcome="refused", reason="{reason}", since=1.0)
"""
    mint = lying(site, tmp_path / "mint", body)
    done = mint.command("run", site.name, "noop", "--results", "r")
    assert done.returncode == 3, done.stderr
    assert len(done.stderr) < 2000
    assert reason == "E01" or reason in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        '{"v":1,"state":"running","since":1e999}',
        '{"v":1,"state":"running","since":-1e999}',
        '{"v":1,"state":"running","progress":{"done":1e999,"total":1}}',
        '{"v":1,"state":"running","since":NaN}',
        "Welcome to the machine of the example site",
        "",
        '{"v":1,"state":"ended","sections":[{"name":"manifest","size":99999999999}]}',
        '{"v":1,"state":"ended","sections":[{"name":"file:../../x","size":1}]}',
        '{"v":1,"state":"ended","sections":[{"name":"log","size":1},{"name":"log","size":1}]}',
    ],
)
def test_m06_m22_a_reply_that_is_none_is_said_and_kept_nowhere(site: Site, tmp_path: Path, line: str) -> None:
    """Text before the protocol, numbers without bound, sections of any size: one line, nothing kept."""
    mint = lying(site, tmp_path / "mint", f"raw({line!r} + '\\n')\n")
    done = mint.command("run", site.name, "noop", "--results", "r")
    assert done.returncode in (4, 7), done.stderr
    assert done.stderr.count("\nmisrc: ") == 1 and calm(done.stderr) and "Traceback" not in done.stderr
    assert not (mint.root / "r").exists() and not (mint.root / "x").exists()


def test_m23_progress_without_end_is_cut(site: Site, tmp_path: Path) -> None:
    """A site that sends lines of progress as fast as it can is left, and has not flooded the log."""
    body = """
if verb == "open":
    say(state="running", since=1.0)
else:
    number = 0
    while True:
        number += 1
        progress = {"done": number, "total": 9, "unit": "x", "text": str(number)}
        say(event="progress", state="running", since=1.0, progress=progress)
"""
    mint = lying(site, tmp_path / "mint", body)
    process = mint.spawn("run", site.name, "noop", "--results", "r")
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 7, errors[-500:]
    assert len(errors) < 8 << 20


def test_m24_results_beyond_the_sites_own_list_are_cut_off(site: Site, tmp_path: Path) -> None:
    """A site that sends a hundred times what its manifest says does not fill this machine's disk."""
    add_program(site, "big", "sleep 2; head -c 3000000 /dev/zero > out.dat\n")
    site.start_sshd()
    mint = make_mint(tmp_path / "mint", site, retry={"count": 2, "interval": 0.1})
    declare(mint, "big")
    words = ("run", site.name, "big", "--results", "r")
    process = mint.spawn(*words)
    eventually(mint.starts, what="the start")
    job = mint.starts()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    eventually(lambda: site_record(site, job)["state"] == "ended", 60, "the end")
    huge = site.job_file(job, "return") / "huge.bin"
    with huge.open("wb") as file:
        file.truncate(3 << 30)
    done = mint.command(*words, timeout=300)
    assert done.returncode == 7, done.stderr
    assert "more than its own list" in done.stderr
    arrived = sum(path.stat().st_blocks * 512 for path in mint.root.rglob("*") if path.is_file())
    assert arrived < 2 << 30
    huge.unlink()
    assert mint.command(*words).returncode == 0  # control: the honest result still arrives
    assert (mint.root / "r/out.dat").stat().st_size == 3000000
    assert mint.starts() == [job]


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_m25_streams_that_are_closed_or_full_end_no_job(mint: Mint, site: Site, closed: str) -> None:
    """Whoever starts `misrc run` without standard streams, or with full ones, gets the job done all the same."""
    line = f'exec "$0" run {site.name} noop --results r {closed}'
    done = subprocess.run(["/bin/sh", "-c", line, MISRC], env=mint.env(), cwd=mint.root, timeout=120, check=False)
    assert (mint.root / "r/out.dat").read_text() == "done\n"
    assert done.returncode == 0 or ">/dev/full" in closed.split()[0]
    assert [record["outcome"] for record in mint.jobs()] == ["succeeded"]
    assert len(mint.starts()) == 1


def test_m25_a_reader_that_goes_away_ends_no_job(mint: Mint, site: Site) -> None:
    """`misrc run … 2>&1 | head -1`: the pipe breaks, the job goes on to its end, and its status is told."""
    line = f'{{ "$0" run {site.name} sleep --arg seconds=2 --results r; echo $? > status; }} 2>&1 | head -1 > first'
    subprocess.run(["/bin/sh", "-c", line, MISRC], env=mint.env(), cwd=mint.root, timeout=120, check=False)
    assert (mint.root / "status").read_text() == "0\n", (mint.root / "first").read_text()
    assert (mint.root / "r/out.dat").exists()
    failing = f'{{ "$0" run {site.name} fail --results f; echo $? > status; }} 2>&1 | true'
    subprocess.run(["/bin/sh", "-c", failing, MISRC], env=mint.env(), cwd=mint.root, timeout=120, check=False)
    assert (mint.root / "status").read_text() == "1\n"


def test_m26_a_results_folder_that_is_a_link_to_nowhere_is_refused_at_once(mint: Mint, site: Site) -> None:
    """It could never be made, which must not show only when a long computation has ended; a good link is fine."""
    (mint.root / "nowhere").symlink_to(mint.root / "missing/there")
    done = mint.command("run", site.name, "noop", "--results", "nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert not mint.starts() and not mint.jobs()
    (mint.root / "real").mkdir()
    (mint.root / "link").symlink_to(mint.root / "real")
    assert mint.command("run", site.name, "noop", "--results", "link").returncode == 0
    assert (mint.root / "real/out.dat").exists() and (mint.root / "link").is_symlink()


def test_m27_a_list_of_inputs_is_read_whole_or_not_at_all(mint: Mint, site: Site) -> None:
    """A list beyond the bound is refused instead of cut, and a name with a rare line break stays one name."""
    long = mint.root / "long.txt"
    path = mint.file("a.dat", b"x")
    with long.open("w", encoding="utf-8") as file:
        file.write(f"a.dat={path}\n")
        file.write("\n" * (64 << 20))
    done = mint.command("run", site.name, "noop", "--in-list", str(long), "--results", "r")
    assert done.returncode == 2 and "longer than" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    odd = mint.file("odd\u2028name\x1c.dat", b"odd")
    listed = mint.root / "list.txt"
    listed.write_text(f"a.dat={path}\nb.dat={odd}\n", encoding="utf-8")
    done = mint.command("run", site.name, "copy", "--in-list", str(listed), "--results", "r")
    assert done.returncode == 0, done.stderr
    assert (mint.root / "r/out.dat").read_bytes() == b"xodd"


def surroundings(mint: Mint, case: str) -> tuple[dict[str, str], list[str]]:
    """Environment and further words of a call that cannot work here."""
    broken = mint.root / "broken"
    hosts = broken / "host_vars"
    hosts.mkdir(parents=True)
    words: list[str] = []
    if case == "nested":
        (hosts / "s.yml").write_text("misrc_site: " + "[" * 20000 + "]" * 20000)
    elif case == "pipe":
        os.mkfifo(hosts / "s.yml")
    elif case == "tag":
        (hosts / "s.yml").write_text("misrc_site: !!python/object/apply:os.getpid []")
    elif case == "dangling":
        (hosts / "s.yml").symlink_to(mint.root / "nowhere")
    if case in ("nested", "pipe", "tag", "dangling"):
        return {}, ["--inventory", str(broken)]
    if case == "state":
        broken.chmod(0o500)
        return {"MISRC_STATE": str(broken / "state")}, words
    return {}, ["--in", f"a.dat={mint.root}/no\nsuch\x1b[2J\udcff"]


@pytest.mark.parametrize("case", ["nested", "pipe", "tag", "dangling", "state", "name"])
def test_m28_surroundings_that_cannot_be_are_one_line(mint: Mint, site: Site, case: str) -> None:
    """An inventory that is too deep, a pipe or a dead link, a state folder that cannot be made, odd bytes in a path."""
    environment, words = surroundings(mint, case)
    before = dict(mint.environment)
    mint.environment.update(environment)
    done = mint.command("run", site.name, "noop", "--results", "r", *words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("misrc: ") and done.stderr.count("\n") == 1 and calm(done.stderr), done.stderr
    mint.environment = before
    assert mint.command("run", site.name, "noop", "--results", "r").returncode == 0  # control
