"""`misrc run` where things are not as they should be (docs/attacks.md, M): one line, the right status, no job lost."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MISRC, Mint, Site, eventually, make_mint, make_site
from hostile import lying
from resilience import site_record

from misrc.mint.run import ASK_SECONDS, GONE_ROUNDS


@pytest.fixture(scope="module")
def mint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mint]:
    """MInt's side for all tests here; each has results of its own."""
    root = tmp_path_factory.mktemp("surroundings")
    site = make_site(root / "site-host")
    site.start_sshd()
    yield make_mint(root / "mint", site)
    site.stop_sshd()


def call(mint: Mint, *words: str, program: str = "noop", **environment: str) -> subprocess.CompletedProcess[str]:
    """`misrc run` with further words and environment."""
    return subprocess.run(
        [MISRC, "run", mint.site.name, program, *words],
        capture_output=True,
        text=True,
        env={**mint.env(), **environment},
        cwd=mint.root,
        timeout=120,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that tells what is wrong."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("misrc")]
    assert len(lines) == 1 and "Traceback" not in done.stderr and "MISRC_DEBUG" not in done.stderr, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LANG", "ja_JP.UTF-8"),
        ("LC_ALL", "xx_YY.FOO"),
        ("LANG", "../../x"),
        ("ANSIBLE_STDOUT_CALLBACK", "none.such.callback"),
        ("ANSIBLE_RUN_TAGS", "never"),
        ("ANSIBLE_CHECK_MODE_MARKERS", "x"),
        ("PYTHONPATH", "/tmp/none"),
        ("MISRC_STATE", "state-of-its-own"),
    ],
)
def test_m30_the_callers_environment_ends_no_job(mint: Mint, name: str, value: str) -> None:
    """Locales that this host does not have, settings of Ansible, a relative state folder: the job is done."""
    done = call(mint, "--results", f"r-{name}{value.replace('/', '_')}", **{name: value})
    assert done.returncode == 0, done.stderr


def test_m30_messages_stay_japanese_where_the_locale_does_not_exist(mint: Mint) -> None:
    """Also those that come out of the play."""
    mint.declaration["programs"]["unknown_there"] = {}
    mint.declare()
    done = call(mint, "--results", "r-ja", program="unknown_there", LANG="ja_JP.UTF-8")
    assert done.returncode == 3 and "プログラム" in said(done), done.stderr


@pytest.mark.parametrize("odd", ["relative", "long", "a b", 'a"b%h'])
def test_m31_any_tmpdir_will_do(mint: Mint, odd: str) -> None:
    """ssh puts a socket there: where its path would be too long or not fit a configuration, another place is taken."""
    place = mint.root / (odd if odd != "long" else "t" * 120)
    place.mkdir()
    done = call(mint, "--results", f"{place}-results", TMPDIR=odd if odd == "relative" else str(place))
    assert done.returncode == 0, done.stderr
    assert list(place.iterdir()) == []


BAD_OUTS = ["folder", "plain/below", "closed/x", "", "/dev/null", "n" * 300]


@pytest.mark.parametrize("target", BAD_OUTS)
def test_m32_a_place_for_a_copy_is_tried_before_anything_runs(mint: Mint, target: str) -> None:
    """An --out that is a folder, a device, below a file, in a closed folder, empty or too long: refused at once."""
    (mint.root / "folder").mkdir(exist_ok=True)
    (mint.root / "plain").write_text("x")
    (mint.root / "closed").mkdir(mode=0o500, exist_ok=True)
    before = mint.starts()
    done = call(mint, "--results", "r-out", "--out", f"out.dat={target}")
    assert done.returncode == 2 and "--out" in said(done), done.stderr
    assert mint.starts() == before and not (mint.root / "r-out").exists()


@pytest.mark.parametrize("results", ["", "n" * 300, "/tmp" + "/n" * 3000])
def test_m32_a_results_folder_that_cannot_be_named_is_refused_at_once(mint: Mint, results: str) -> None:
    """No name (an unset variable of a script), or one that is too long: nothing runs."""
    before = mint.starts()
    done = call(mint, "--results", results)
    assert done.returncode == 2 and "results folder" in said(done), done.stderr
    assert mint.starts() == before


def test_m33_a_copy_that_failed_late_keeps_no_results_back(mint: Mint) -> None:
    """The place for a copy breaks while the program runs: the same call with another --out brings everything."""
    place = mint.root / "breaks"
    place.mkdir()
    words = ("run", mint.site.name, "sleep", "--arg", "seconds=15", "--results", "r-late")
    before = len(mint.starts())
    process = mint.spawn(*words, "--out", f"out.dat={place}/copy")
    eventually(lambda: len(mint.starts()) > before, what="the start")
    place.chmod(0o500)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and str(place) in errors, errors
    done = mint.command(*words, "--out", f"out.dat={mint.root}/copy")
    assert done.returncode == 0, done.stderr
    assert (mint.root / "copy").read_text() == "finished\n" == (mint.root / "r-late/out.dat").read_text()
    assert len(mint.starts()) == before + 1


def test_m34_an_input_that_cannot_be_read_is_named(mint: Mint) -> None:
    """A file that opens and gives an error at the first read, as on a broken disk."""
    done = call(mint, "--results", "r-mem", "--in", "a.dat=/proc/self/mem")
    assert done.returncode == 2 and "/proc/self/mem" in said(done)


@pytest.mark.parametrize("moment", ["begin", "check"])
def test_m35_an_interrupt_is_no_traceback(mint: Mint, moment: str) -> None:
    """SIGINT before there is a job: nothing was begun, and Python's account of where it was is nobody's business."""
    before = len(mint.jobs())
    slow = mint.root / "slow"
    if not slow.exists():
        os.mkfifo(slow)
    words = ("status", "x") if moment == "begin" else ("run", mint.site.name, "noop", "--in-list", str(slow))
    process = mint.spawn(*words)
    if moment == "check":
        with slow.open("wb"):  # opened by `misrc run` as well: it reads its list now
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 6 and errors.startswith("misrc: stopped"), errors
    else:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors or "misrc/cli.py" not in errors, errors
    assert len(mint.jobs()) == before


@pytest.mark.parametrize("number", ["HUP", "INT"])
def test_m35_a_signal_that_the_caller_ignores_stops_no_job(mint: Mint, number: str) -> None:
    """`nohup misrc run …` outlives its terminal, and a job in a script's background an interrupt of the script."""
    line = f"trap '' {number}; exec \"$0\" run {mint.site.name} sleep --arg seconds=2 --results r-{number}"
    before = len(mint.starts())
    process = subprocess.Popen(["/bin/sh", "-c", line, MISRC], env=mint.env(), cwd=mint.root, stderr=subprocess.PIPE)
    eventually(lambda: len(mint.starts()) > before, what="the start")
    process.send_signal(getattr(signal, f"SIG{number}"))
    assert process.communicate(timeout=120) and process.returncode == 0
    assert (mint.root / f"r-{number}/out.dat").read_text() == "finished\n"


@pytest.fixture
def own(site: Site, tmp_path: Path) -> Mint:
    """MInt's side of a test that spoils its records."""
    site.start_sshd()
    return make_mint(tmp_path / "mint", site)


@pytest.mark.parametrize("how", ["cut", "closed"])
def test_m36_one_spoilt_record_is_said_and_keeps_nobody_from_the_others(own: Mint, site: Site, how: str) -> None:
    """A half-written record, or one that another account closed: `jobs` and `tend` go on with the rest and tell of it.

    With its folder moved away the same call finds the job at the site again.
    """
    words = ("run", site.name, "sleep", "--arg", "seconds=12", "--results", "r")
    killed: list[str] = []
    for results in ("r", "s"):
        process = own.spawn(*words[:-1], results)
        killed.append(eventually(lambda: own.starts()[len(killed) :], what="the start")[0])
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    spoilt, other = killed
    folder = own.state / "jobs" / spoilt
    if how == "cut":
        (folder / "job.json").write_bytes((folder / "job.json").read_bytes()[:40])
    else:
        folder.chmod(0)
    eventually(lambda: all(site_record(site, job)["state"] == "ended" for job in killed), what="the ends")
    for command in ("jobs", "tend"):
        done = own.command(command)
        assert done.returncode == 7 and other in done.stdout and str(folder) in said(done), done.stderr
    assert (own.root / "s/out.dat").exists()
    refused = own.command(*words)
    assert refused.returncode == 7 and "move its folder away" in said(refused), refused.stderr
    folder.chmod(0o700)
    folder.rename(own.root / "away")
    assert own.command(*words).returncode == 0 and (own.root / "r/out.dat").exists()
    assert sorted(own.starts()) == sorted(killed)


@pytest.mark.parametrize("how", ["mode", "closed", "garbage"])
def test_m37_a_key_that_ssh_cannot_use_is_our_own_matter(own: Mint, site: Site, how: str) -> None:
    """Readable by others, unreadable, or no key: MInt's operations are told, and not the site."""
    key = site.job_key.read_bytes()
    if how == "garbage":
        site.job_key.write_bytes(b"garbage\n")
    site.job_key.chmod({"mode": 0o644, "closed": 0, "garbage": 0o600}[how])
    os.utime(site.job_key)
    own.declaration["retry"] = {"count": 40, "interval": 0.3}
    own.declare()
    done = own.command("run", site.name, "noop", "--results", "r")
    assert done.returncode == 4 and str(site.job_key) in said(done) and "site.example" not in said(done), done.stderr
    site.job_key.chmod(0o600)
    site.job_key.write_bytes(key)
    assert own.command("run", site.name, "noop", "--results", "r").returncode == 0


def test_m38_words_of_any_length_and_kind_are_one_short_line(mint: Mint) -> None:
    """A word of 100 kB, escapes in a word that nobody knows: told in one line that still says what to do."""
    long = call(mint, "--in", f"a.dat=/{'x' * 100000}")
    assert long.returncode == 2 and len(said(long)) < 2000 and said(long).endswith("(input 'a.dat')")
    for words in (["no-such-word\x1b[2J\nmisrc: all is well"], ["--in"], ["--jobb", "x"]):
        done = call(mint, *words)
        assert done.returncode == 2 and "\x1b" not in done.stderr and "--help" in said(done)
        assert done.stderr.count("\n") == 1


def test_m38_a_folder_that_is_gone_is_said(mint: Mint) -> None:
    """A shell may stand in a folder that was removed."""
    line = f'mkdir gone; cd gone; rmdir ../gone; exec "$0" run {mint.site.name} noop --results {mint.root}/r-gone'
    done = subprocess.run(
        ["/bin/sh", "-c", line, MISRC], env=mint.env(), cwd=mint.root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "current folder" in said(done)


def die_at(mint: Mint, point: str, *words: str) -> None:
    """A run that ends at a fault point."""
    faults = mint.root / "faults"
    faults.mkdir()
    (faults / "kill").write_text(point)
    mint.environment["MISRC_FAULTS"] = str(faults)
    assert mint.command("run", mint.site.name, *words).returncode != 0
    del mint.environment["MISRC_FAULTS"]
    assert (faults / "kill.struck").exists()


def test_m39_tend_finds_a_job_whose_start_its_killed_run_never_heard_of(own: Mint, site: Site) -> None:
    """SIGKILL before the answer to the start is noted: the program runs, and `tend` brings its results.

    A job that the site refused is not asked for again and again; one that never reached it is left as it is.
    """
    own.declaration["programs"]["unknown_there"] = {}
    own.declare()
    assert own.command("run", site.name, "unknown_there", "--results", "u").returncode == 3
    assert " created   refused " in own.command("jobs").stdout
    die_at(own, "record.manifest.jsonl.before", "sleep", "--arg", "seconds=1", "--results", "r")
    (job,) = own.starts()
    eventually(lambda: site_record(site, job)["state"] == "ended", what="the end")
    assert {record["state"] for record in own.jobs()} == {"created"}, "premise: nobody here knows of the start"
    known = len(site.ledger())
    done = own.command("tend")
    assert done.returncode == 0 and job in done.stdout, done.stderr
    assert (own.root / "r/out.dat").read_text() == "finished\n" and own.starts() == [job]
    assert all(record.get("job") == job for record in site.ledger()[known:])


def test_m39_tend_tells_of_a_job_whose_site_cannot_be_asked(own: Mint, site: Site) -> None:
    """The site away, or its declaration gone: a line, a status that a timer shows; with both, the job is fetched."""
    die_at(own, "start.leave", "sleep", "--arg", "seconds=1", "--results", "r")
    (job,) = own.starts()
    eventually(lambda: site_record(site, job)["state"] == "ended", what="the end")
    (own.root / f"inventory/host_vars/{site.name}.yml").unlink()
    gone = own.command("tend")
    assert gone.returncode == 2 and job in gone.stdout and site.name in gone.stdout, gone
    assert gone.stdout.count("\n") == 1 and "Traceback" not in gone.stderr
    own.declare()
    site.stop_sshd()
    away = own.command("tend")
    assert away.returncode == 4 and job in away.stdout and away.stdout.count("\n") == 1, away
    site.start_sshd()
    assert own.command("tend").returncode == 0 and (own.root / "r/out.dat").read_text() == "finished\n"


@pytest.mark.parametrize("state", ["created", "staged"])
def test_m40_a_site_that_never_starts_what_it_took_is_left(site: Site, tmp_path: Path, state: str) -> None:
    """It answers every start with a state before it: said once, instead of one play after the other for ever."""
    mint = lying(site, tmp_path / "mint", f"say(state={state!r}, since=1.0)\n")
    done = mint.command("run", site.name, "noop", "--results", "r")
    assert done.returncode == 7 and state in said(done) and "admin@site.example" in said(done)


@pytest.mark.parametrize("code", ["E99", "E02", "bundle.missing", "E" * 100000, "\\u001b[2J"])
def test_m40_a_refusal_that_nobody_knows_still_says_whom_to_ask(site: Site, tmp_path: Path, code: str) -> None:
    """A code of a later version, or of none: one line."""
    mint = lying(site, tmp_path / "mint", f'say(refused="{code}")\n')
    done = mint.command("run", site.name, "noop", "--results", "r")
    assert done.returncode == 3 and "admin@site.example" in said(done) and len(said(done)) < 1000


def test_m40_a_site_that_closed_every_id_gets_no_endless_row_of_them(site: Site, tmp_path: Path) -> None:
    """Each id of a call is answered as gone: a few are tried, then it is said."""
    mint = lying(site, tmp_path / "mint", 'say(refused="E07")\n')
    done = mint.command("run", site.name, "noop", "--results", "r", timeout=300)
    assert done.returncode == 3 and said(done)
    assert 1 < len(mint.jobs()) <= GONE_ROUNDS


def test_m40_a_site_that_answers_at_once_is_not_asked_without_end(site: Site, tmp_path: Path) -> None:
    """`wait` comes back at once and nothing has changed: the next question takes its time."""
    body = """
with open(os.path.dirname(os.path.abspath(sys.argv[0])) + "/asked", "a") as file:
    file.write(verb + "\\n")
with open(file.name) as file:
    rounds = file.read().count("wait")
say(state="ended" if rounds > 6 else "running", outcome="lost" if rounds > 6 else None, since=1.0)
"""
    mint = lying(site, tmp_path / "mint", body)
    before = time.monotonic()
    assert mint.command("run", site.name, "noop", "--results", "r").returncode == 5
    assert time.monotonic() - before > 4 * ASK_SECONDS


def test_m41_an_id_that_two_calls_take_at_one_moment_belongs_to_one(own: Mint, site: Site) -> None:
    """Both find no record and wait for the job's lock: the second does not take the first one's results for its own."""
    job = str(uuid.uuid4())
    folder = own.state / "jobs" / job
    folder.mkdir(parents=True)
    with (folder / "driver.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inode = f":{os.fstat(lock.fileno()).st_ino} "
        calls = [own.spawn("run", site.name, name, "--job", job, "--results", name) for name in ("noop", "copy")]
        waiting = re.compile(rf"-> FLOCK .*{inode}")
        eventually(lambda: len(waiting.findall(Path("/proc/locks").read_text())) == 2, what="two that wait")
    ended = sorted((process.communicate(timeout=120)[1], process.returncode) for process in calls)
    assert sorted(status for _, status in ended) == [0, 2], ended
    assert [errors for errors, status in ended if status == 2 and "another call" in errors]
    assert own.starts() == [job]


def test_m42_a_program_that_left_the_declaration_is_named(own: Mint, site: Site) -> None:
    """Taken out while its job runs: `fetch` says so instead of a broken playbook; put back, the results come."""
    process = own.spawn("run", site.name, "sleep", "--arg", "seconds=12", "--results", "r")
    (job,) = eventually(own.starts, what="the start")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    program = own.declaration["programs"].pop("sleep")
    own.declare()
    done = own.command("fetch", job)
    assert done.returncode == 2 and "'sleep'" in said(done), done.stderr
    own.declaration["programs"]["sleep"] = program
    own.declare()
    assert own.command("fetch", job).returncode == 0 and (own.root / "r/out.dat").exists()
    assert own.starts() == [job]
