"""What the tests of our workflow client share: its folder, the predecessor's server, one run and its words."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from predecessor.scene import SITE, TOKEN, certificate, program, write_ini
from predecessor.server import Server

from misrc.job.interface import Retry
from misrc.mint.legacy.workflow import Timing, Workflow, parse_words
from misrc.wire.legacy_progress import Status

SCRIPT = Path(__file__).parent.parent / "scripts/mi-system-wf.py"
QUICK = Timing(0.02, 0.5, Retry(2, 0.02))


def enter(folder: Path, authority: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder the workflow's working folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    monkeypatch.setenv("MISRC_LANG", "en")
    return folder


def serve(folder: Path, authority: Path) -> Server:
    """The predecessor's server, for one site with one program."""
    return Server(write_ini(folder, program(folder)), {TOKEN}, authority)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that only those trust who are told to."""
    return certificate(tmp_path_factory.mktemp("tls"), "ca")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Path) -> Path:
    """The workflow's working folder."""
    return enter(tmp_path, authority, monkeypatch)


@pytest.fixture
def server(folder: Path, authority: Path) -> Iterator[Server]:
    """The predecessor's server."""
    with serve(folder, authority) as running:
        yield running


def words(port: int, folder: Path, inputs: str = "", results: str = "out.txt", *more: str) -> list[str]:
    return [f"https://127.0.0.1:{port}", SITE, TOKEN, str(folder / "run.sh"), inputs, results, *more]


class Run:
    """One run of the client in this process, and what it said."""

    def __init__(self, port: int, folder: Path, *more: str, timing: Timing = QUICK, base: str = "") -> None:
        self.said: list[str] = []
        given = words(port, folder, *more)
        order = parse_words([base or given[0], *given[1:]], {})
        self.workflow = Workflow(order, timing, folder, self.said.append)
        self.workflow._sleep = self._sleep
        self._end = time.monotonic() + 60

    def _sleep(self, seconds: float) -> None:
        """No test waits for ever."""
        assert time.monotonic() < self._end
        time.sleep(seconds)

    def __call__(self) -> Status:
        try:
            return self.workflow.run()
        finally:
            assert TOKEN not in "".join(self.said)


def calls(server: Server) -> list[str]:
    return [seen.name for seen in server.store.calls]


def clean(folder: Path) -> bool:
    """Nothing of ours is left in the folder but results."""
    return not [path for path in folder.iterdir() if path.name.startswith(".")]


def entry(content: str, first: str = "text/plain;", second: str = "charset=us-ascii") -> dict[str, str]:
    """A file as the predecessor's server hands it out."""
    return {"content": content, "mimetype1": first, "mimetype2": second}


def environment(**more: str) -> dict[str, str]:
    """The environment of the client as a command: it does not wait long."""
    return {**os.environ, "MISRC_WF_INTERVAL": "0.02", "MISRC_WF_RETRY": "2,0.02", **more}
