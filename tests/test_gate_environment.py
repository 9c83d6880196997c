"""Section E of docs/attacks.md: environment and start, and a trace of what a refusal executes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from pathlib import Path

import pytest
from conftest import CLEAN, Site, make_program
from oracle import Oracle
from transfers import RawClient, Rsync

HOSTILE = {
    "PYTHONPATH": "EVIL",
    "PYTHONHOME": "EVIL",
    "PYTHONSTARTUP": "EVIL/usercustomize.py",
    "PYTHONUSERBASE": "EVIL",
    "PYTHONINSPECT": "1",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "utf-16",
    "PYTHONDEBUG": "9",
    "PYTHONVERBOSE": "9",
    "BASH_ENV": "EVIL/run.sh",
    "ENV": "EVIL/run.sh",
    "IFS": "/",
    "PATH": "EVIL",
    "HOME": "EVIL",
    "TMPDIR": "EVIL",
    "RSYNC_RSH": "EVIL/run.sh",
    "RSYNC_ICONV": "UTF-8,LATIN1",
    "RSYNC_PROTECT_ARGS": "1",
    "RSYNC_MAX_ALLOC": "1",
    "RSYNC_PARTIAL_DIR": "/tmp",
    "RSYNC_CHECKSUM_LIST": "none",
    "RSYNC_OLD_ARGS": "1",
    "CVSIGNORE": "*",
    "TZ": "EVIL/zone",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_PERTURB_": "77",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
    "LOCPATH": "EVIL",
    "LC_ALL": "evil",
    "LC_X": "x",
    "LANG": "../../x",
    "LD_LIBRARY_PATH": "EVIL",
    "SHELL": "EVIL/run.sh",
    "USER": "root",
    "SSH_AUTH_SOCK": "EVIL/agent",
    "DISPLAY": ":0",
    "XDG_CONFIG_HOME": "EVIL",
    "XDG_STATE_HOME": "EVIL",
    "LOGNAME": "root",
}


def evil_folder(place: Path) -> tuple[Path, Path]:
    """A folder full of things that leave a mark when somebody trusts the environment; the folder and the mark."""
    evil, mark = place / "evil", place / "mark"
    evil.mkdir()
    for name in ("sitecustomize", "usercustomize", "json", "hashlib", "misrc", "os"):
        (evil / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
    for name in ("rsync", "ssh-keygen", "sh", "python3", "run.sh"):
        make_program(evil / name, f"touch {mark}\n")
    return evil, mark


def hostile(evil: Path) -> dict[bytes, bytes]:
    return {name.encode(): value.replace("EVIL", str(evil)).encode() for name, value in HOSTILE.items()}


def test_g99_the_environment_changes_nothing(site: Site, tmp_path: Path) -> None:
    """None of the variables reaches the site's rsync or program, runs anything, or changes an answer.

    Premise: an ordinary Python is led astray by the same variables.
    """
    evil, mark = evil_folder(tmp_path)
    variables = hostile(evil)
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            ["/usr/bin/python3", "-c", "pass"], env={b"PYTHONPATH": os.fsencode(evil)}, timeout=20, check=False
        )
    assert mark.exists()
    mark.unlink()
    plain, odd = site.gate(b"hello").reply.hello, site.gate(b"hello", environment=variables).reply.hello
    assert plain is not None and odd is not None and (plain.programs, plain.rsync) == (odd.programs, odd.rsync)
    job = str(uuid.uuid4())
    script = site.root / "programs/noop"
    script.write_text("#!/bin/sh\n/usr/bin/env -0 > out.dat\n")
    assert site.gate(f"open {job}".encode(), site.open_request(job), environment=variables).status == 0
    seen = dict(item.split(b"=", 1) for item in site.wait(job).sections["file:out.dat"].split(b"\0") if item)
    assert not [
        name
        for name, value in seen.items()
        if bytes(evil) in value or name in set(variables) - {b"PATH", b"HOME", b"TMPDIR", b"LANG"}
    ]
    Oracle(site).denied(b"id", "E02", environment=variables)
    assert site.gate(f"close {job}".encode(), environment=variables).status == 0
    assert not mark.exists()


def test_g99_transfers_see_none_of_it(site: Site, tmp_path: Path) -> None:
    """The rsync that serves a `put` has the fixed list alone, whatever the gate was given."""
    evil, mark = evil_folder(tmp_path)
    job = Rsync(site, tmp_path / "client").opened({"a": b"a"})
    saved = dict(os.environ)
    client = None
    try:
        os.environ.update({name.decode(): value.decode() for name, value in hostile(evil).items()})
        client = RawClient(site, f"put {job} --server --daemon .")
    finally:
        os.environ.clear()
        os.environ.update(saved)
    assert client.greet().startswith(b"@RSYNCD: ")
    client.end()
    files = {"a": b"a"}
    polluted = Rsync(site, tmp_path / "client")
    exports = "\n".join(
        f"export {name}='{value}'"
        for name, value in ((name.decode(), value.decode()) for name, value in hostile(evil).items())
        if name not in ("PATH", "IFS")
    )
    text = polluted.rsh.read_text()
    polluted.rsh.write_text(text.replace("shift\n", f"shift\n{exports}\n", 1))
    assert polluted.push(job, files).returncode == 0 and polluted.received(job) == files
    assert not mark.exists()


def test_g145_the_gate_runs_nothing_but_itself_for_a_refusal(site: Site, tmp_path: Path) -> None:
    """A trace of `execve` over refusals of each kind shows the interpreter alone (O3); `hello` shows rsync too."""

    def executed(command: str, stdin: bytes = b"") -> list[str]:
        trace = tmp_path / "trace"
        argv = ["/usr/bin/strace", "-f", "-qq", "-e", "trace=execve,execveat", "-o", str(trace), *site.gate_argv()]
        env = {**CLEAN, "SSH_ORIGINAL_COMMAND": command, "SSH_CONNECTION": "127.0.0.1 1 127.0.0.1 2"}
        subprocess.run(argv, input=stdin, capture_output=True, env=env, timeout=60, check=False)
        return [line.split('"')[1] for line in trace.read_text().splitlines() if "execve" in line]

    if not os.access("/usr/bin/strace", os.X_OK):
        pytest.skip("strace is not installed")
    assert executed("hello") == ["/usr/bin/python3", "/usr/bin/rsync"]
    unknown = str(uuid.uuid4())
    for command in (
        "",
        "id",
        "hello; id",
        "$(id)",
        f"put {unknown} --server --daemon .",
        f"start {unknown}",
        "sh -c id",
    ):
        assert executed(command) == ["/usr/bin/python3"], command
    assert executed(f"open {unknown}", b"{}\n") == ["/usr/bin/python3"]
    assert executed(f"open {unknown}", site.open_request(unknown, "nothing")) == ["/usr/bin/python3"]
