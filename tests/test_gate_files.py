"""Section C of docs/attacks.md: races and links in the file system, as far as a user install can hold them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CLEAN, Site, eventually, make_program, make_site, sha256
from oracle import Oracle, check_answer, ledger
from transfers import RawClient, Rsync

from misrc.job.manifest import parse_manifest
from misrc.wire.rsync import render_config

FILES = {"a.dat": b"alpha", "b.dat": b"beta"}
SWAP_SHELL = """import os, subprocess, sys, threading
place, outside, *argv = {words!r}
env = dict(os.environ, SSH_ORIGINAL_COMMAND=" ".join(sys.argv[2:]), SSH_CONNECTION="127.0.0.1 1 127.0.0.1 2")
server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
greeting = server.stdout.readline()  # rsync was executed and has read its configuration
os.rename(place, place + ".checked")
os.symlink(outside, place)

def pump(source, target):
    while data := os.read(source, 65536):
        os.write(target, data)
    os.close(target)

os.write(1, greeting)
threading.Thread(target=pump, args=(0, server.stdin.fileno()), daemon=True).start()
pump(server.stdout.fileno(), 1)
sys.exit(server.wait())
"""


def site_with(root: Path, scripts: dict[str, str], **rules: Any) -> Site:
    """A site whose programs are these scripts; `{secret}` in one names a file outside every job."""
    (root / "programs").mkdir(parents=True)
    secret = root / "secret"
    secret.write_text("top secret")
    programs = {}
    for name, body in scripts.items():
        path = make_program(root / "programs" / name, body.replace("{secret}", str(secret)))
        programs[name] = {"path": str(path), "returns": ["*.dat"], "logs": "full", "network": "allow", **rules}
    return make_site(root, {"programs": programs})


def fetched(site: Site, job: str, place: Path) -> dict[str, bytes]:
    """What `wait` and `get` both give for an ended job; they must agree, and agree with the manifest."""
    sections = site.wait(job).sections
    small = {name[5:]: data for name, data in sections.items() if name.startswith("file:")}
    done, found = Rsync(site, place).pull(job)
    assert done.returncode == 0, done
    found = {name: data for name, data in found.items() if data or name in small}
    manifest = parse_manifest(sections["manifest"], lambda name: None, 1000)
    assert {entry.name: entry.sha256 for entry in manifest} == {name: sha256(data) for name, data in found.items()}
    assert small == found
    return found


def swapping_shell(place: Path, swapped: Path, outside: Path, argv: list[str]) -> Path:
    """A remote shell that swaps `swapped` for a link to `outside` once the server has greeted."""
    script = place / f"swap-{swapped.name}.py"
    script.write_text(SWAP_SHELL.format(words=[str(swapped), str(outside), *argv]))
    return make_program(place / f"swap-{swapped.name}", f'exec {sys.executable} {script} "$@"\n')


def test_g68_a_folder_swapped_after_the_check_is_not_followed(shared_site: Site, tmp_path: Path) -> None:
    """`in/` is swapped for a link after rsync was started: the files go to the folder that was checked.

    Premise: a daemon whose configuration names the folder by its path writes outside.
    """
    outside = tmp_path / "outside"
    outside.mkdir()
    client = Rsync(shared_site, tmp_path / "client")
    job = client.opened(FILES)
    client.rsh = swapping_shell(tmp_path, shared_site.job_file(job, "in"), outside, shared_site.gate_argv())
    done = client.push(job, FILES)
    assert done.returncode == 0 and not list(outside.iterdir()), done
    assert {path.name for path in shared_site.job_file(job, "in.checked").iterdir()} == set(FILES)

    naive = tmp_path / "naive"
    naive.mkdir()
    config = tmp_path / "naive.conf"
    config.write_text(render_config("in", str(naive), f"{tmp_path}/lock", f"{tmp_path}/log"))
    client.rsh = swapping_shell(
        tmp_path, naive, outside, ["/usr/bin/rsync", "--server", "--daemon", f"--config={config}", "."]
    )
    client.push(job, FILES)
    assert {path.name for path in outside.iterdir()} == set(FILES), "the premise: the naive daemon is led astray"


def test_g67_a_folder_swapped_in_a_loop_is_never_followed(shared_site: Site, tmp_path: Path) -> None:
    """While `in/` is swapped for a link in a tight loop, no transfer writes outside.

    User install: this holds for the gate's own opens; a program of the account needs no race to reach its files.
    """
    outside = tmp_path / "outside"
    outside.mkdir()
    client = Rsync(shared_site, tmp_path / "client")
    job = client.opened(FILES)
    place = shared_site.job_file(job, "in")
    with swapped_in_a_loop(place, outside):
        for _ in range(10):
            client.push(job, FILES)
    assert not list(outside.iterdir())
    assert client.push(job, FILES).returncode == 0 and client.received(job) == FILES


@contextlib.contextmanager
def swapped_in_a_loop(place: Path, outside: Path) -> Iterator[None]:
    """A thread that makes `place` a link and a folder by turns; in the end it is the folder."""
    stop, aside = threading.Event(), place.with_name(place.name + ".aside")

    def loop() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                os.rename(place, aside)
                os.symlink(outside, place)
            with contextlib.suppress(OSError):
                os.unlink(place)
                os.rename(aside, place)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(OSError):
            if aside.exists():
                place.unlink(missing_ok=True)
                aside.rename(place)


def test_g71_a_hard_link_among_the_results_stays(tmp_path: Path) -> None:
    """A regular file with more than one link is not returned, from `work/` or planted in `return/`.

    User install: protected hard links and copies are the account's own business. Control: an ordinary file.
    """
    body = """ln {secret} linked.dat; ln {secret} ../return/planted.dat; echo good > good.dat; ln good.dat second.dat
echo x > x.dat\n"""
    site = site_with(tmp_path / "site-host", {"links": body})
    found = fetched(site, site.submit("links"), tmp_path / "client")
    assert set(found) == {"x.dat", "remote_program_exec.log"} and found["x.dat"] == b"x\n"
    withheld = [record["names"] for record in ledger(site) if record["event"] == "withhold"]
    assert withheld == [["good.dat", "linked.dat", "second.dat"]]
    assert (site.root / "secret").read_text() == "top secret"


def test_g72_special_files_among_the_results_stay(tmp_path: Path) -> None:
    """FIFO, socket and links, in `work/` and planted in `return/`, are left out with a record; nothing blocks."""
    body = """mkfifo pipe.dat; mkfifo ../return/planted.dat; ln -s {secret} link.dat; ln -s / root.dat
ln -s {secret} ../return/link2.dat
/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket.dat")'
echo good > good.dat\n"""
    site = site_with(tmp_path / "site-host", {"special": body})
    found = fetched(site, site.submit("special"), tmp_path / "client")
    assert set(found) == {"good.dat", "remote_program_exec.log"}
    withheld = [record["names"] for record in ledger(site) if record["event"] == "withhold"]
    assert withheld == [["link.dat", "pipe.dat", "root.dat", "socket.dat"]]


def test_g72_special_files_among_the_inputs_are_refused(shared_site: Site, tmp_path: Path) -> None:
    """A FIFO or a link in `in/`, however it came there, is no input (E14), and the check does not block."""
    client = Rsync(shared_site, tmp_path / "client")
    secret = tmp_path / "a.dat"
    secret.write_bytes(b"alpha")
    for how in ("pipe", "link", "hard link", "socket", "folder"):
        job = client.opened({"a.dat": b"alpha"})
        place = shared_site.job_file(job, "in/a.dat")
        if how == "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                os.chdir(place.parent)
                listener.bind("a.dat")
        elif how == "pipe":
            os.mkfifo(place)
        elif how == "link":
            place.symlink_to(secret)
        elif how == "hard link":
            os.link(secret, place)
        else:
            place.mkdir()
        assert client.start(job, {"a.dat": b"alpha"}) == 77, how
        assert ledger(shared_site)[-1]["reason"] == "E14"


def test_g74_what_is_sent_is_what_was_hashed(tmp_path: Path) -> None:
    """A result that a left-behind process keeps appending to has one size and hash: in manifest, receipt and transfer.

    The process is ended before the results are measured; one that also hides from that is beyond a user install, and
    MInt's comparison with the manifest then shows the difference.
    """
    body = """(trap '' TERM; while :; do echo more >> grows.dat; done) & sleep 0.2
setsid sh -c 'while :; do echo m >> g2.dat; done' & sleep 0.2\n"""
    site = site_with(tmp_path / "site-host", {"grow": body})
    job = site.submit("grow")
    site.wait(job)
    sections = site.wait(job).sections
    entries = {entry.name: entry for entry in parse_manifest(sections["manifest"], lambda name: None, 10)}
    found = Rsync(site, tmp_path / "client").pull(job)[1]
    assert set(entries) == set(found) == {"grows.dat", "g2.dat", "remote_program_exec.log"}
    for name, entry in entries.items():
        assert (len(found[name]), sha256(found[name])) == (entry.size, entry.sha256)
    recorded = [file for record in ledger(site) if record["event"] == "leave" for file in record["files"]]
    assert {(file["name"], file["sha256"]) for file in recorded} == {(e.name, e.sha256) for e in entries.values()}


def test_g75_deleting_a_job_reaches_nothing_outside_it(tmp_path: Path) -> None:
    """Links in a job, and a folder swapped for a link while the job is deleted, lead the deletion nowhere."""
    site = make_site(tmp_path / "site-host", {"keep_days": 0})
    outside = tmp_path / "outside"
    for number in range(300):
        path = outside / f"d{number % 10}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("keep")
    for turn in range(6):
        job = site.submit("noop")
        site.wait(job)
        work = site.job_file(job, "work")
        for number in range(200):
            (work / "inner" / f"d{number}").mkdir(parents=True)
        (work / "link").symlink_to(outside)
        (work / "inner/link").symlink_to(outside)
        with swapped_in_a_loop(work / "inner" if turn % 2 else work, outside):
            site.gate(f"close {job}".encode())
            time.sleep(0.05)
        assert len(list(outside.rglob("f*"))) == 300
    job = site.submit("noop")
    site.wait(job)
    site.job_file(job, "work/link").symlink_to(outside)
    assert site.gate(f"close {job}".encode()).status == 0
    assert not site.job_file(job, "").exists() and len(list(outside.rglob("f*"))) == 300


@pytest.mark.parametrize("how", ["link", "missing", "group-writable", "world-writable", "file", "another account's"])
def test_g77_a_work_root_that_is_not_ours_serves_nobody(tmp_path: Path, how: str) -> None:
    """A work root that is a link, missing, no folder, writable by others or another account's: E30; then it works."""
    site = make_site(tmp_path / "site-host")
    root, aside = site.work_root, site.work_root.with_name("aside")
    job = site.submit("noop")
    site.wait(job)
    mode = root.stat().st_mode
    if "writable" in how:
        root.chmod({"group": 0o770, "world": 0o702}[how[:5]])
    elif how == "another account's":
        config = site.prefix / "config/policy.json"
        config.write_text(config.read_text().replace(str(root), "/var"))
    else:
        root.rename(aside)
        if how == "link":
            root.symlink_to(aside)
        elif how == "file":
            root.write_text("")
    for command in (b"hello", f"wait {job} 0 0".encode()):
        check_answer(site.gate(command), "E30")
    check_answer(site.gate(f"open {job}".encode(), site.open_request(job)), "E30")
    if aside.exists():
        root.unlink(missing_ok=True)
        aside.rename(root)
    root.chmod(mode)
    site.install()
    Oracle(site, f"wait {job} 0 0".encode()).works()


@pytest.mark.parametrize("names", [("A.dat", "a.dat"), ("x.dat", "X.dat/b.dat"), ("caf\u00e9.dat", "cafe\u0301.dat")])
def test_g78_results_whose_names_collide_do_not_travel(tmp_path: Path, names: tuple[str, str]) -> None:
    """Two results that another file system would fold together end the job as failed, with a reason: no silent loss.

    A name that is not in NFC never leaves at all, so that its neighbour can.
    """
    body = "".join(f"mkdir -p \"$(dirname '{name}')\"; echo {number} > '{name}'\n" for number, name in enumerate(names))
    site = site_with(tmp_path / "site-host", {"twins": body}, returns=["**"])
    reply = site.wait(site.submit("twins")).reply
    assert reply.state == "ended"
    if names[1] == "cafe\u0301.dat":
        assert reply.outcome == "succeeded" and ledger(site)[-1]
    else:
        assert reply.outcome == "failed" and reply.reason is not None and "name" in reply.reason
    assert site.wait(site.submit("twins")).reply.state == "ended"


def test_g79_a_program_that_writes_to_its_inputs_changes_no_record(tmp_path: Path) -> None:
    """User install: a program can change `in/`, which is not used again: it works on a copy.

    The receipt names what came.

    The inputs are checked when the start is accepted and again while they are copied; not once more at the end.
    """
    body = "cat a.dat > seen.dat; echo changed > ../in/a.dat; echo changed > a.dat; rm ../in/b.dat\n"
    site = site_with(tmp_path / "site-host", {"writer": body})
    job = site.submit("writer", FILES)
    found = fetched(site, job, tmp_path / "client")
    assert found["seen.dat"] == b"alpha" and found["a.dat"] == b"changed\n"
    inputs = site.job_file(job, "inputs.jsonl").read_bytes()
    assert f'"inputs":"{sha256(inputs)}"'.encode() in site.wait(job).sections["receipt"]
    assert sha256(b"alpha").encode() in inputs


def test_g79_inputs_changed_between_check_and_start_are_not_used(tmp_path: Path) -> None:
    """An input that was changed after it was checked, while its job waits in the queue, ends the job as failed."""
    root = tmp_path / "site-host"
    site = make_site(root, {"limits": {"jobs": 1, "waiting": 5}})
    first = site.submit("sleep", arguments={"seconds": "600"})
    eventually(lambda: site.job_file(first, "started").exists())
    job = site.submit("copy", FILES)
    site.job_file(job, "in/a.dat").write_bytes(b"other")
    site.gate(f"cancel {first}".encode())
    reply = site.wait(job).reply
    assert reply.outcome == "failed" and (root / "starts").read_text().split() == [first]


@pytest.mark.parametrize("how", ["ln -s", "ln"])
@pytest.mark.parametrize("name", ["remote_program_exec.log", "progress"])
def test_g80_a_log_replaced_by_a_link_is_not_read(tmp_path: Path, how: str, name: str) -> None:
    """A program that puts a link in the place of its log or progress file shows no other file through `wait`.

    User install: the log is a plain file with one name or nothing; a program can still write what it likes to it.
    Control: the same program without the link.
    """
    swap = f"rm -f ../log/{name}; {how} {{secret}} ../log/{name}"
    site = site_with(tmp_path / "site-host", {"swap": f"echo said\n{swap}\nsleep 0.3\n", "plain": "echo said\n"})
    (site.root / "secret").write_text("1 2 secret top secret\n")
    for _ in range(2):
        job = site.submit("swap")
        answer = site.gate(f"wait {job} 60 0".encode()).stdout + site.gate(f"wait {job} 0 0".encode()).stdout
        assert b"top secret" not in answer and b'"state":"ended"' in answer
        assert "secret" not in b"".join(fetched(site, job, tmp_path / "client").values()).decode()
    assert b"said" in site.wait(site.submit("plain")).sections["log"]


def test_g140_what_a_program_plants_in_return_does_not_leave(tmp_path: Path) -> None:
    """Files, folders and links put straight into `return/`, at any depth, leave only if the policy names them."""
    plant = """echo planted > ../return/planted.key; mkdir -p ../return/folder/empty; echo x > ../return/folder/x.key
cd "$HOME"; for i in $(seq 70); do mkdir d; cd d; done; echo deep > deep.dat; cd "$HOME"; echo good > good.dat
mkdir locked; echo x > locked/x.dat; chmod 0 locked; echo x > unreadable.dat; chmod 0 unreadable.dat
ln -s {secret} ../return/link.dat\n"""
    deep = "cd ../return; for i in $(seq 70); do mkdir d; cd d; done; echo deep > deep.dat; echo deep > deep.key\n"
    site = site_with(tmp_path / "site-host", {"plant": plant, "deep": deep})
    for program, outcome, names in (("plant", "succeeded", {"good.dat"}), ("deep", "failed", set())):
        job = site.submit(program)
        assert site.wait(job).reply.outcome == outcome
        done, found = Rsync(site, tmp_path / "client").pull(job)
        assert done.returncode == 0 and set(found) == names | {"remote_program_exec.log"}, found
    withheld = [name[:20] for record in ledger(site) if record["event"] == "withhold" for name in record["names"]]
    assert withheld == ["d/d/d/d/d/d/d/d/d/d/", "locked", "unreadable.dat"]
    for folder in site.work_root.glob("*/work/locked"):
        folder.chmod(0o700)


@pytest.mark.parametrize(
    "what", ["folder for a file", "return is a link", "return is gone", "log is gone", "work is a link"]
)
def test_g141_a_program_that_spoils_its_own_folder_still_ends(tmp_path: Path, what: str) -> None:
    """Whatever a program does to its job's folders, the job ends with an outcome and nothing outside is touched."""
    spoil = {
        "folder for a file": "mkdir -p ../return/out.dat/x; mkdir ../return/remote_program_exec.log",
        "return is a link": "mkdir {secret}.d; mv ../return ../return2; ln -s {secret}.d ../return",
        "return is gone": "rmdir ../return",
        "log is gone": "rm -r ../log",
        "work is a link": "mkdir {secret}.d; mv ../work ../work2; ln -s {secret}.d ../work",
    }[what]
    site = site_with(
        tmp_path / "site-host", {"spoil": f"echo data > out.dat\n{spoil}\n", "good": "echo data > out.dat\n"}
    )
    job = site.submit("spoil")
    reply = site.wait(job, 20).reply
    assert reply.state == "ended" and reply.outcome in ("succeeded", "failed"), reply
    outside = site.root / "secret.d"
    assert not outside.exists() or not list(outside.iterdir())
    assert site.gate(f"close {job}".encode()).status == 0
    assert site.wait(site.submit("good")).reply.outcome == "succeeded"


def test_g68_the_site_s_rsync_gets_descriptors_and_no_environment(shared_site: Site, tmp_path: Path) -> None:
    """The rsync that serves has the fixed environment, byte for byte, and its folder open rather than named."""
    client = Rsync(shared_site, tmp_path / "client")
    job = client.opened(FILES)
    raw = RawClient(shared_site, f"put {job} --server --daemon .")
    raw.greet()
    children = subprocess.check_output(["ps", "-o", "pid=,comm=", "--ppid", str(raw.process.pid)], env=CLEAN, text=True)
    pid = next(line.split()[0] for line in children.splitlines() if "rsync" in line)
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert sorted(environment) == sorted([b"PATH=/usr/bin:/bin", b"HOME=/nonexistent", b"LANG=C", b""])
    raw.end()
