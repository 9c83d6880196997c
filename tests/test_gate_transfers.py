"""Section B of docs/attacks.md, second half: the form of the request, paths, names, sizes, states and versions."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from conftest import Site, eventually, make_program
from oracle import Oracle, ledger, tree
from transfers import RawClient, Rsync, raw

FILES = {"a.dat": b"alpha\n", "b.dat": b"beta" * 1000}


@pytest.fixture(scope="module")
def rsync(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Rsync:
    return Rsync(shared_site, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def oracle(shared_site: Site) -> Oracle:
    return Oracle(shared_site)


def quiet(rsync: Rsync, done: subprocess.CompletedProcess[bytes]) -> None:
    """Nothing that the site said names one of its paths."""
    said = done.stdout + done.stderr
    assert str(rsync.site.work_root).encode() not in said and str(rsync.site.prefix).encode() not in said, said


def controls(rsync: Rsync, job: str, verb: str = "put") -> None:
    """`-rt`: one push into `in`, or one pull from `return`."""
    if verb == "put":
        assert rsync.push(job, FILES).returncode == 0
        assert rsync.received(job) == FILES
    else:
        done, found = rsync.pull(job)
        assert done.returncode == 0 and found["out.dat"] == b"done\n"


def denied(oracle: Oracle, *commands: str) -> None:
    """On the command line none of them is in the grammar."""
    oracle.all_denied("E02", *(command.encode() for command in commands))


def test_g51_variations_of_the_legal_form_are_refused(oracle: Oracle, rsync: Rsync) -> None:
    """`put` and `get` take exactly three more words, in one order."""
    job = rsync.opened(FILES)
    denied(
        oracle,
        *(
            f"put {job} {words}"
            for words in (
                "--server --daemon . --config=/x",
                "--daemon --server .",
                "--server --daemon",
                "--server --daemon . .",
                "",
                "--server --daemon /",
                "--server --daemon ./",
                "--server .",
                "--server --daemon -- .",
                "--server -v --daemon .",
            )
        ),
    )
    denied(oracle, f"put --server --daemon . {job}", f"get {job}", f"get {job} --server --sender .")
    controls(rsync, job)


def trickle(client: RawClient, text: bytes, seconds: float) -> None:
    """Send a byte at a time until the other side closes, but no longer than `seconds`."""
    end = time.monotonic() + seconds
    for byte in text * 1000:
        if client.process.poll() is not None or time.monotonic() > end:
            return
        client.send(bytes([byte]))
        time.sleep(0.5)


def test_g53_a_stalled_handshake_is_closed(rsync: Rsync) -> None:
    """Silence after the greeting, a missing module, and arguments one byte at a time end at the handshake's deadline.

    The deadline is 30 s, and all three wait at once. Afterwards the slot is free again. While such a client stalls, a
    new connection for the same job takes its place. Early input and password files are refused or without effect.
    """
    jobs = [rsync.opened(FILES) for _ in range(4)]
    clients = [RawClient(rsync.site, f"put {job} --server --daemon .") for job in jobs]
    clients[1].greet()
    clients[2].ask("in", [])
    clients[3].greet()
    assert rsync.push(jobs[1], FILES).returncode == 0  # takes over from the stalled one
    trickle(clients[3], b"in\n--server\0", 100)
    for client in (clients[0], clients[2], clients[3]):
        status, _, err = client.end(timeout=100)
        assert status != 0 and b"Traceback" not in err
    clients[1].end()
    for job in jobs:
        controls(rsync, job)
    secret = rsync.place / "early"
    secret.write_text("x" * 100)
    done = rsync.push(jobs[0], FILES, "-rt", f"--early-input={secret}", f"--password-file={secret}")
    assert b"Traceback" not in done.stderr and rsync.received(jobs[0]) == FILES


@pytest.mark.parametrize("descriptors", [40, 1024])
def test_g143_more_large_files_than_descriptors(rsync: Rsync, descriptors: int) -> None:
    """Large files are hashed while they arrive, and more of them than the process may have open are no trouble.

    What was not followed, or only in part, is hashed at the start.
    """
    files = {f"f{number}": bytes([number]) * (9 << 20) for number in range(20)}
    job = rsync.opened(files)
    text = rsync.rsh.read_text()
    rsync.rsh.write_text(text.replace("exec ", f"exec prlimit --nofile={descriptors} "))
    done = rsync.push(job, files, "-rt", "--partial", "--inplace")
    rsync.rsh.write_text(text)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done
    assert rsync.start(job, files) == 0
    assert rsync.site.wait(job).reply.outcome == "succeeded"


def test_g54_paths_stay_below_the_module(oracle: Oracle, rsync: Rsync, tmp_path: Path) -> None:
    """The command takes no path, and no path in the protocol leads above the module's root or makes a folder."""
    job, other = rsync.opened(FILES), rsync.opened(FILES)
    for path in (
        "/etc/",
        f"//{job}/in",
        f"./{job}/in",
        f"{job}//in",
        f"{job}/./in",
        f"{job}/in/.",
        f"{job}/in/../../{other}/in",
        "~",
        "~root",
        "$HOME",
        ".",
    ):
        denied(oracle, f"put {path} --server --daemon .")
    before = {path: value for path, value in tree(rsync.site).items() if f"/{job}" not in path}
    for path in (
        "in/../../etc/",
        "in/..",
        "in/../..",
        f"in/../../{other}/in/",
        "in//",
        "in/./",
        f"in/{tmp_path}/",
        "in/~/",
        "in/sub/",
        "in/a/b/c/",
        "in/*",
        "in/%2e%2e/",
        "in/`id`",
    ):
        done = rsync.push(job, FILES, module=path)
        quiet(rsync, done)
        assert set(rsync.received(job)) <= set(FILES), path
    for path in ("return/..", "return/../in/", "return/../../", "return//etc/passwd", "return/*"):
        done, found = rsync.pull(rsync.ended({"a": b"a"}), module=path)
        assert set(found) <= {"out.dat", "remote_program_exec.log"}, path
        quiet(rsync, done)
    now = tree(rsync.site)
    assert {path: now.get(path) for path in before if path.startswith(str(rsync.site.job_file(other, "")))} == {
        path: value for path, value in before.items() if path.startswith(str(rsync.site.job_file(other, "")))
    }
    assert not any(tmp_path.iterdir())
    controls(rsync, job)


def test_g56_more_paths_or_none_stay_in_the_module(oracle: Oracle, rsync: Rsync) -> None:
    """Two paths, no path, or one that looks like an option: refused as a command, harmless in the protocol."""
    job = rsync.ended()
    denied(oracle, f"get {job} --server --daemon . .", f"get {job} {job} --server --daemon .", f"get {job} -e sh .")
    before = tree(rsync.site)
    words = ["--server", "--sender", "-te.iLsfxCIvu", "."]
    for paths in (
        ["return/", "return/../../"],
        [],
        ["-e sh"],
        ["-e", "sh"],
        ["/etc/passwd", "/etc/group"],
        [".."],
        ["~"],
    ):
        with raw(rsync.site, f"get {job} --server --daemon .") as client:
            assert client.ask("return", [*words, *paths]) == b"@RSYNCD: OK\n"
            client.send(b"\0" * 64)
            _, out, err = client.end()
        assert b"root:x:0" not in out and b"Traceback" not in err, paths
    mine = str(rsync.site.job_file(job, ""))
    now = tree(rsync.site)
    assert {k: v for k, v in now.items() if not k.startswith(mine)} == {
        k: v for k, v in before.items() if not k.startswith(mine)
    }
    controls(rsync, job, "get")


ODD = [
    "a\nb",
    "\x1b[2Jx",
    "-rf",
    "..x",
    ".ssh",
    ".bashrc",
    "CON",
    "a:b",
    "blank ",
    "dot.",
    " x",
    "~",
    "*",
    "cafe\u0301",
    "\u202egpj.exe",
    "a\\b",
    "nul.txt",
    "remote_program_exec.log",
]


@pytest.mark.parametrize("name", [*ODD, b"\xff\xfe"], ids=lambda name: repr(name)[:20])
def test_g58_odd_names_are_refused_by_start(rsync: Rsync, name: str | bytes) -> None:
    """A name that rsync lets through is created in `in/` at most, and `start` refuses it; others are not touched."""
    wanted = os.fsdecode(name)
    job = rsync.opened({"a.dat": b"a"})
    outside = {path for path in tree(rsync.site) if f"/{job}/" not in path}
    source = rsync.source({})
    Path(source, wanted).write_bytes(b"a")
    done = rsync.run(f"put {job}", "-rt", "--", source, "site::in/")
    quiet(rsync, done)
    assert {path for path in tree(rsync.site) if f"/{job}/" not in path} == outside
    before = list(rsync.received(job))
    assert before in ([wanted], []), before
    with pytest.raises(UnicodeEncodeError) if b"\xff" in os.fsencode(wanted) else pytest.MonkeyPatch.context():
        assert rsync.start(job, {wanted: b"a"}) == 77
    assert rsync.start(job, {"a.dat": b"a"}) == 77
    assert b"created" in rsync.site.gate(f"wait {job} 0 0".encode()).stdout
    good = rsync.opened(FILES)
    controls(rsync, good)
    assert rsync.start(good, FILES) == 0
    rsync.site.wait(good)


def test_g58_strange_names_that_are_legal_are_only_names(rsync: Rsync) -> None:
    """Control: 255 bytes, a shell's characters and Japanese are carried word for word, and nothing of them is run."""
    files = {"n" * 255: b"1", "$(id)": b"2", "`id`": b"3", "a;id": b"4", "計算標準出力.txt": b"5", "x y&z": b"6"}
    job = rsync.opened(files)
    assert rsync.push(job, files, "-rt", "--partial", "--inplace").returncode == 0
    assert rsync.start(job, files) == 0 and rsync.received(job) == files
    rsync.site.wait(job)


def test_g58_names_too_long_or_equal_are_refused(rsync: Rsync) -> None:
    """256 bytes cannot exist; two names that one file system folds together are refused by `start`."""
    job = rsync.opened(size=10, count=2)
    with raw(rsync.site, f"put {job} --server --daemon .") as client:
        client.ask("in", ["--server", "-te.iLsfxCIvu", ".", "in/" + "n" * 256])
        assert client.end()[0] != 0
    for pair in (["caf\u00e9", "cafe\u0301"], ["A.dat", "a.dat"]):
        job = rsync.opened(dict.fromkeys(pair, b"x"))
        assert rsync.push(job, dict.fromkeys(pair, b"x")).returncode == 0
        assert rsync.start(job, dict.fromkeys(pair, b"x")) == 77


def test_g59_more_files_than_announced_end_the_transfer(rsync: Rsync) -> None:
    """More files, or nested ones, than the spec announced are removed with a visible error; other jobs go on.

    Shown with 3 000 files and 500 levels; the announced number decides, so that a million fares no better.
    """
    job, other = rsync.opened(FILES), rsync.opened(FILES)
    many = {f"f{number}": b"" for number in range(3000)}
    done = rsync.push(job, many)
    assert done.returncode != 0 and b"misrc: denied (E20)" in done.stderr
    assert rsync.received(job) == {}
    deep = {"/".join(["d"] * 500) + "/f": b"x", "a.dat": b"alpha\n"}
    done = rsync.push(job, deep)
    assert done.returncode != 0 and b"refused to receive" in done.stderr
    assert not any("d/d" in name for name in rsync.received(job))
    hidden = rsync.opened(count=1, size=10**9)
    rsync.push(hidden, {f"sub/f{number}": b"x" * 1000 for number in range(100)})
    assert len(list(rsync.site.job_file(hidden, "in").rglob("*"))) <= 1, "nested files escape the count"
    controls(rsync, other)
    rsync.push(job, FILES)
    controls(rsync, job)


def test_g60_a_file_beyond_the_quota_is_an_error(rsync: Rsync) -> None:
    """A sparse giant and bytes beyond the announced sum give a visible error and are not kept.

    User install: a per-file limit and a watch on the sum stand in for a quota.
    """
    job = rsync.opened(FILES)
    source = rsync.source({})
    with open(f"{source}giant", "wb") as file:
        file.truncate(1 << 40)
    done = rsync.run(f"put {job}", "-rt", "--", source, "site::in/", timeout=120)
    assert done.returncode != 0
    used = subprocess.check_output(["du", "-sk", str(rsync.site.job_file(job, "in"))]).split()[0]
    assert int(used) < 4096
    for _ in range(3):  # many small transfers add up to no more than one
        assert rsync.push(job, {f"{uuid.uuid4()}": b"x" * 100_000}).returncode != 0
    assert sum(map(len, rsync.received(job).values())) == 0
    controls(rsync, job)


def test_g61_inputs_are_fixed_by_the_start(rsync: Rsync, oracle: Oracle) -> None:
    """`put` while the job runs, after its end and after a cancel is refused by state; before the start it repeats."""
    job = rsync.opened(FILES)
    controls(rsync, job)
    controls(rsync, job)
    assert rsync.start(job, FILES) == 0
    rsync.site.wait(job)
    running = rsync.site.submit("sleep", arguments={"seconds": "600"})
    eventually(lambda: rsync.site.job_file(running, "started").exists())
    eventually(lambda: rsync.site.job_file(running, "log/stdout").exists())
    cancelled = rsync.opened(FILES)
    rsync.site.gate(f"cancel {cancelled}".encode())
    for name in (job, running, cancelled):
        oracle.denied(f"put {name} --server --daemon .".encode(), "E06")
    assert rsync.push(job, {"a.dat": b"other"}).returncode != 0
    assert rsync.received(job) == FILES
    rsync.site.gate(f"cancel {running}".encode())


def test_g65_a_hostile_stream_costs_only_itself(rsync: Rsync) -> None:
    """Mutated frames end the site's rsync within its limits: no core, no traceback, and the slot is free again."""
    rng = random.Random(65)
    job, ended = rsync.opened(FILES), rsync.ended()
    for number in range(24):
        verb, module, name = (("put", "in", job), ("get", "return", ended))[number % 2]
        sender = ["--sender"] if verb == "get" else []
        noise = rng.randbytes(4000) if number % 3 else b"\xff" * 4000 if number % 4 else b"\0\0\0\x07" + b"\x7f" * 8000
        with raw(rsync.site, f"{verb} {name} --server --daemon .") as client:
            client.ask(module, ["--server", *sender, "-tre.iLsfxCIvu", ".", f"{module}/"])
            client.send(noise)
            status, _, err = client.end()
        assert b"Traceback" not in err and (status != 0 or verb == "get")
    folders = (rsync.site.job_file(job, ""), rsync.site.job_file(ended, ""))
    assert not [path for folder in folders for path in folder.rglob("core*")]
    assert all(stat.S_ISREG(path.lstat().st_mode) for path in rsync.site.job_file(job, "in").rglob("*"))
    controls(rsync, ended, "get")
    rsync.push(job, FILES)
    controls(rsync, job)


def test_a_wrong_file_among_many_is_found(rsync: Rsync) -> None:
    """Many files are checked by two processes; one other byte in either's share, and the start is refused."""
    files = {f"file-{number:04}": b"x" for number in range(1000)}
    job = rsync.opened(files)
    assert rsync.push(job, files).returncode == 0
    for wrong in ("file-0000", "file-0999"):
        assert rsync.start(job, {**files, wrong: b"y"}) == 77
    assert rsync.start(job, files) == 0


@pytest.mark.parametrize(
    "banner", ["rsync  version 3.4.1  protocol version 32", "rsync  version 2.6.9", "openrsync", ""]
)
def test_g66_an_old_rsync_is_never_used(site: Site, tmp_path: Path, banner: str) -> None:
    """Below the floor, or without a version, `put` and `get` are refused (E32) and recorded; `wait` still works.

    The stand-in for an old rsync is put where the installed gate looks for it. Its hash is not recorded, so a changed
    rsync of a good version is not noticed: weaker than the catalogue's second half.
    """
    called = tmp_path / "called"
    fake = make_program(tmp_path / "rsync", f'echo "{banner}"\n[ "$1" = --version ] || touch {called}\n')
    source = site.code / "misrc/site/rsync.py"
    text = source.read_text()
    job = site.submit("noop")
    site.wait(job)
    oracle = Oracle(site, f"wait {job} 0 0".encode())
    opened = Rsync(site, tmp_path / "client").opened(FILES)
    source.write_text(text.replace('"/usr/bin/rsync"', f'"{fake}"'))
    for compiled in source.parent.glob("__pycache__/rsync.*.pyc"):
        compiled.unlink()  # the installation's own: it is never held against its source
    # Now, so that no refusal leaves a trace. `wait` would not do it: it loads nothing that moves files.
    subprocess.run(["/usr/bin/python3", "-m", "py_compile", str(source)], check=True)
    oracle.denied(f"put {opened} --server --daemon .".encode(), "E32", before=["put"])
    oracle.denied(f"get {job} --server --daemon .".encode(), "E32", before=["leave", "get"])
    oracle.denied(b"hello", "E32", before=["hello"])
    assert not called.exists()
    source.write_text(text)
    assert Rsync(site, tmp_path / "client").push(opened, FILES).returncode == 0
    assert [record["reason"] for record in ledger(site) if record["event"] == "refuse"] == ["E32"] * 3
