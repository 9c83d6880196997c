"""Our workflow client under the predecessor's name, against the predecessor's server and its client at the site."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import eventually
from predecessor import remote_client
from predecessor.calls import STDERR_NAME, STDOUT_NAME
from predecessor.scene import SITE, TOKEN, program, write_ini
from predecessor.server import Server
from wf_scene import SCRIPT, Run, calls, clean, environment, words
from wf_scene import authority as authority
from wf_scene import folder as folder
from wf_scene import server as server

from misrc.job.errors import MisrcError, Refused, Unreachable
from misrc.mint.messages.catalog import say
from misrc.wire.legacy_progress import Status


@pytest.fixture
def site(server: Server, folder: Path) -> Iterator[remote_client.RemoteClient]:
    """The predecessor's client at the site, which serves one job."""
    options = [f"port:{server.port}", f"calc_base:{folder}/jobs", "retry:2,0.01", "no_auth"]
    client = remote_client.RemoteClient(
        [SITE, server.base_url, TOKEN, *options], remote_client.Timing(0.02, 0.0, 1, True)
    )
    thread = threading.Thread(target=client.run)
    thread.start()
    yield client
    client.timing.jobs = 0
    thread.join(20)


def test_a_job_through_the_predecessors_server_and_site(server: Server, folder: Path, site: object) -> None:
    """Inputs with folders in their names, Japanese results, bytes of every value, parameters: all arrive."""
    (folder / "in").mkdir()
    (folder / "in/a.dat").write_bytes(bytes(range(256)) * 1000)
    assert Run(server.port, folder, "in/a.dat:gone", "out.txt:never.txt", "x y")() is Status.COMPLETED
    assert (folder / "out.txt").read_bytes() == bytes(range(256)) * 1000
    assert (folder / STDOUT_NAME).read_text() == "x y\n"
    assert (folder / STDERR_NAME).read_text() == "bad\n"
    assert not (folder / "never.txt").exists() and clean(folder)
    assert server.store.jobs == {} and "cancel-wait-calc" not in calls(server)
    body = next(seen.body for seen in server.store.calls if seen.name == "add-calcinfo")["calc-info"]
    assert body["parameter_files"]["gone"] == ["", "", ""]
    assert body["parameter_files"]["in/a.dat"][1:] == ["application/octet-stream;", "charset=binary"]
    assert list(body["result_files"]) == ["out.txt", "never.txt", STDOUT_NAME, STDERR_NAME]


def test_an_abnormal_end_still_brings_what_there_is(server: Server, folder: Path, site: object) -> None:
    """The program failed: the status says so, and its output is here."""
    program(folder, "echo half >out.txt; echo why >&2; exit 3")
    assert Run(server.port, folder)() is Status.ABNORMAL
    assert (folder / "out.txt").read_text() == "half\n" and (folder / STDERR_NAME).read_text() == "why\n"


@pytest.mark.parametrize("call", ["add-calcinfo", "allow-wait-calc", "calc-status", "calc-progress"])
@pytest.mark.parametrize("trouble", ["lose", "500", "503"])
def test_a_lost_answer_does_not_lose_the_job(
    server: Server, folder: Path, site: object, call: str, trouble: str
) -> None:
    """Each call is repeated, and the job is computed once."""
    (folder / "a.dat").write_text("x")
    server.store.trouble[call] = [trouble, trouble]
    assert Run(server.port, folder, "a.dat")() is Status.COMPLETED
    assert calls(server).count("calc-start") == 1
    assert (folder / "out.txt").read_text() == "x"


def test_results_whose_answer_was_lost_are_gone(server: Server, folder: Path, site: object) -> None:
    """The predecessor's server forgets a job with its answer: we say that it refused, and leave no half result."""
    server.store.trouble["get-calc-result"] = ["lose"]
    with pytest.raises(Refused, match="0300"):
        Run(server.port, folder)()
    assert not (folder / "out.txt").exists() and clean(folder)


@pytest.mark.parametrize("call", ["add-calcinfo", "allow-wait-calc", "calc-progress"])
def test_retries_end(server: Server, folder: Path, call: str) -> None:
    """After the declared number it gives up, and deletes its job if there is one."""
    server.store.trouble[call] = ["503"] * 3
    with pytest.raises(Unreachable):
        Run(server.port, folder)()
    assert calls(server).count(call) == 3
    assert server.store.jobs == {}


def test_a_server_that_is_not_there(folder: Path, server: Server) -> None:
    """Nobody listens: an error after the retries."""
    port = server.port
    server.__exit__()
    with pytest.raises(Unreachable):
        Run(port, folder)()
    server.__enter__()


def test_a_refused_registration(server: Server, folder: Path) -> None:
    """The command is not in the file: HTTP 202 with an error is no success."""
    write_ini(folder, "/other")
    with pytest.raises(Refused, match="may not be used"):
        Run(server.port, folder)()
    assert calls(server) == ["add-calcinfo"]


@pytest.mark.parametrize("trouble", ["400", "plain", "302"])
def test_an_answer_that_is_an_error_ends_the_run(server: Server, folder: Path, trouble: str) -> None:
    """A refusal, a status without a colon, a redirection: one clear error, and the job is force-deleted."""
    server.store.trouble["calc-progress"] = [trouble]
    with pytest.raises(MisrcError):
        Run(server.port, folder)()
    assert server.store.jobs == {} and server.store.calls[-1].body["delete"] == "force"


def test_a_server_that_was_restarted_has_lost_the_job(server: Server, folder: Path) -> None:
    """The id is unknown: an error, not an endless wait."""
    run = Run(server.port, folder)
    sleeps: Iterator[Callable[[], None]] = iter([server.store.jobs.clear, lambda: None])
    run.workflow._sleep = lambda seconds: next(sleeps)()
    with pytest.raises(Refused, match="0300"):
        run()


def test_a_site_that_falls_silent_after_an_abnormal_end(server: Server, folder: Path) -> None:
    """Some clients stop there, and the predecessor's server waits for ever: we do not."""
    run = Run(server.port, folder)

    def end_badly(seconds: float) -> None:
        for job in server.store.jobs.values():
            job.progress, job.status = "calc end", "abnormal"

    run.workflow._sleep = end_badly
    with pytest.raises(MisrcError, match="abnormal end"):
        run()
    assert server.store.jobs == {}


@pytest.mark.parametrize("status, text", [(0, ": >out.txt"), (1, "exit 1")])
def test_the_script_and_its_exit_status(server: Server, folder: Path, site: object, status: int, text: str) -> None:
    """As a command, with the system's Python that knows no misrc: it finds the one that does. No word has the token."""
    program(folder, text)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["/usr/bin/python3", SCRIPT, *words(server.port, folder)],
        env=environment(PATH=path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert "progress: got return" in done.stdout and TOKEN not in done.stdout + done.stderr


def test_the_script_with_wrong_words_says_how(folder: Path) -> None:
    """One line and exit status 1, no traceback."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "x"], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", say("wf.usage") + "\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_deletes_the_job(server: Server, folder: Path, number: signal.Signals) -> None:
    """However a workflow stops its module: the job is gone from the server and the exit status is 1."""
    client = subprocess.Popen(
        [sys.executable, SCRIPT, *words(server.port, folder)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(lambda: "calc-progress" in calls(server))
    client.send_signal(number)
    said = "".join(client.communicate(timeout=20))
    assert client.returncode == 1 and "Traceback" not in said and TOKEN not in said
    assert server.store.jobs == {} and server.store.calls[-1].body["delete"] == "force"
