"""Earlier releases with this one: an agent and a gate of each with our server and `misrc run`, and our agent with a
server of each.

`tests/releases/` holds what each release installs, as it was; its README says how one is added.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import builds
import pytest
from apiserver import Api
from chain import Chain, chain
from conftest import CLEAN, Mint, Site, eventually, job_processes, make_mint, make_site, sha256
from test_webapi_run import end_of

import misrc

FOLDER = Path(__file__).resolve().parent / "releases"
SITES = sorted(FOLDER.glob("misrc-site-*.pyz"))
SERVERS = sorted(FOLDER.glob("misrc-*.whl"))


def install_release(root: Path, release: Path) -> None:
    """The site that is made at `root` gets this release's file, as MInt would have sent it."""
    root.mkdir(parents=True)
    shutil.copyfile(release, root / builds.RELEASE)


def check_installed(site: Site, release: Path) -> None:
    """What runs at the site is the release: its sources, byte for byte."""
    with zipfile.ZipFile(release) as frozen:
        names = [name for name in frozen.namelist() if name.startswith("misrc/")]
        assert names and all((site.code / name).read_bytes() == frozen.read(name) for name in names)


def play(mint: Mint, interrupt: Callable[[], None]) -> None:
    """A job with a file, one that goes on after `interrupt` in its middle, and one that is cancelled."""
    data = os.urandom(3 << 20)
    path = mint.file("a.bin", data)
    done = mint.command("run", "test-site", "copy", "--in", f"a.bin={path}", "--arg", "words=hi", "--results", "o")
    assert done.returncode == 0, done.stderr
    assert (mint.root / "o/out.dat").read_bytes() == data
    assert b"args: hi" in (mint.root / "o/remote_program_exec.log").read_bytes()

    words = ("run", "test-site", "sleep", "--arg", "seconds=15", "--results", "resumed")
    process = mint.spawn(*words)
    job = eventually(lambda: running(mint), 60, "the start")
    os.killpg(process.pid, signal.SIGKILL)
    end_of(process)
    interrupt()
    done = mint.command(*words)
    assert done.returncode == 0, done.stderr
    assert (mint.root / "resumed/out.dat").read_bytes() == b"finished\n"
    assert mint.starts().count(job) == 1

    process = mint.spawn("run", "test-site", "sleep", "--arg", "seconds=600", "--results", "cancelled")
    job = eventually(lambda: running(mint), 60, "the start")
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == 6
    eventually(lambda: not job_processes(job), 60, "the end of every process")


def running(mint: Mint) -> str:
    """The job whose program has begun, if there is one."""
    return next((job["job"] for job in mint.jobs() if job["state"] == "running" and job["job"] in mint.starts()), "")


@pytest.mark.parametrize("release", SITES, ids=lambda path: path.stem)
def test_an_agent_of_an_earlier_release_works_with_this_server(release: Path, tmp_path: Path) -> None:
    """A job runs, goes on after agent and `misrc run` were killed, and can be cancelled."""
    install_release(tmp_path / "lab/site-host", release)
    with chain(tmp_path / "lab") as whole:
        check_installed(whole.site, release)
        play(whole.mint, restart_agent(whole))


@pytest.mark.parametrize("release", SITES, ids=lambda path: path.stem)
def test_a_gate_of_an_earlier_release_works_with_this_run(release: Path, tmp_path: Path) -> None:
    """The same over SSH: a job runs, goes on after `misrc run` was killed and every connection cut, is cancelled."""
    install_release(tmp_path / "site-host", release)
    site = make_site(tmp_path / "site-host")
    check_installed(site, release)
    site.start_sshd()

    def cut() -> None:
        site.stop_sshd()
        site.start_sshd()

    try:
        play(make_mint(tmp_path / "mint", site), cut)
    finally:
        site.stop_sshd()


@pytest.fixture(params=SERVERS, ids=lambda path: path.name.split("-py3")[0])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[Api]]:
    """A server of an earlier release, with the dependencies that this one has."""
    place = tmp_path / "release"
    with zipfile.ZipFile(request.param) as wheel:
        wheel.extractall(place)

    class Earlier(Api):
        command = (sys.executable, "-c", "import sys; from misrc.cli import main; sys.exit(main())")
        environment: ClassVar = {**CLEAN, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}

    yield Earlier


def test_this_agent_works_with_a_server_of_an_earlier_release(server: type[Api], tmp_path: Path) -> None:
    """The reverse, for a site that was brought up to date first."""
    with chain(tmp_path / "lab", server=server) as whole:
        # It is that release's code that answers.
        assert whole.api.process is not None
        environment = Path(f"/proc/{whole.api.process.pid}/environ").read_bytes()
        assert f"PYTHONPATH={tmp_path}/release".encode() in environment
        where = "import misrc; print(misrc.__file__)"
        found = subprocess.run([sys.executable, "-c", where], env=server.environment, capture_output=True, check=True)
        assert found.stdout.decode().startswith(f"{tmp_path}/release/")
        play(whole.mint, restart_agent(whole))


def restart_agent(whole: Chain) -> Callable[[], None]:
    """SIGKILL, and the next one."""

    def restart() -> None:
        whole.stop_agent()
        whole.start_agent()

    return restart


def test_every_release_is_kept_as_it_was() -> None:
    """The page names each file with its SHA-256, both kinds of each release are there, and this version's are."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", page, re.MULTILINE))
    files = {path.name: sha256(path.read_bytes()) for path in [*SITES, *SERVERS]}
    assert named == files
    versions = {path.stem.removeprefix("misrc-site-") for path in SITES}
    assert versions == {path.name.split("-")[1] for path in SERVERS}
    assert misrc.__version__ in versions
