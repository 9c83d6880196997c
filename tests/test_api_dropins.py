"""Our programs under the predecessor's names on our server: its workflow client, and the server by its ini file."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import SITE, Api, running, site
from conftest import CLEAN, MISRC, eventually, free_port
from predecessor import remote_client, wf_client
from predecessor import scene as predecessors
from predecessor.calls import STDERR_NAME, STDOUT_NAME, Caller

from misrc.api.legacy.dicomapi import find_ini, state_folder
from misrc.job.errors import BadRequest, MisrcError
from misrc.job.interface import Retry
from misrc.mint.legacy import client as legacy_client
from misrc.mint.legacy.workflow import Timing, Workflow, parse_words
from misrc.wire.legacy_progress import Status

SCRIPT = Path(__file__).parent.parent / "scripts/mi_dicomapi.py"
QUICK = Timing(0.05, 30.0, Retry(3, 0.05))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program lies that the server's declaration names."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def api(home: Path) -> Iterator[Api]:
    """Our server, with one declared site."""
    declared = {
        "command": str(predecessors.program(home)),
        "arguments": {"n": {"pattern": "[0-9]+", "default": "1"}},
        "inputs": {"*.dat": "optional"},
        "outputs": {"out.txt": "required", "other.txt": "optional"},
    }
    with running(home / "s", hosts=[]) as server:
        server.declare(site(SITE, legacy_ids=["UnivB_Lab"], programs={"noop": declared}))
        server.kill()
        server.start()
        yield server


@pytest.fixture
def folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workflow's working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISRC_LANG", "en")
    monkeypatch.setenv("SSL_CERT_FILE", str(home / "s/tls/ca.pem"))
    predecessors.program(home)
    return tmp_path


@pytest.fixture
def at_site(api: Api, folder: Path) -> Iterator[remote_client.RemoteClient]:
    """The predecessor's client at the site, for one job."""
    words = ["UnivB_Lab", "https://localhost", api.tokens["agent"], f"port:{api.port}", f"calc_base:{folder}/jobs"]
    timing = remote_client.Timing(0.05, 0.0, 1)
    client = remote_client.RemoteClient([*words, "retry:2,0.05", f"no_auth:{api.root}/tls/ca.pem"], timing)
    thread = threading.Thread(target=client.run)
    thread.start()
    yield client
    client.timing.jobs = 0
    thread.join(20)


def workflow(api: Api, folder: Path, said: list[str], inputs: str = "a.dat", parameters: str = "12") -> Workflow:
    base = f"https://localhost:{api.port}"
    words = [base, "UnivB_Lab", api.tokens["workflow"], str(api.root.parent / "run.sh"), inputs, "out.txt", parameters]
    run = Workflow(parse_words(words, {}), QUICK, folder, said.append)
    end = time.monotonic() + 60

    def sleep(seconds: float) -> None:
        assert time.monotonic() < end, said
        time.sleep(seconds)

    run._sleep = sleep
    return run


def test_our_workflow_client_on_our_server(api: Api, folder: Path, at_site: object) -> None:
    """Files of any bytes go there and back, and the program's output comes; the token is never said."""
    (folder / "in").mkdir()
    (folder / "in/a.dat").write_bytes(bytes(range(256)) * 4000)
    said: list[str] = []
    assert workflow(api, folder, said, "in/a.dat").run() is Status.COMPLETED
    assert (folder / "out.txt").read_bytes() == bytes(range(256)) * 4000
    assert ((folder / STDOUT_NAME).read_text(), (folder / STDERR_NAME).read_text()) == ("12\n", "bad\n")
    assert api.tokens["workflow"] not in "".join(said)


def test_an_abnormal_end_on_our_server(api: Api, home: Path, folder: Path, at_site: object) -> None:
    """The status is abnormal, and what there is comes back."""
    predecessors.program(home, "echo half >out.txt; exit 3")
    assert workflow(api, folder, [], "").run() is Status.ABNORMAL
    assert (folder / "out.txt").read_text() == "half\n"


@pytest.mark.parametrize("lost", ["add-calcinfo", "allow-wait-calc", "calc-progress", "calc-status", "get-calc-result"])
def test_no_lost_answer_loses_the_job_on_our_server(
    api: Api, home: Path, folder: Path, at_site: object, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The answer of each call is lost twice after the server did it: results come all the same, computed once."""
    predecessors.program(home, f"echo x >>{folder}/ran; cp {folder}/ran out.txt")
    whole, left = legacy_client._read, [2]

    def read(response: http.client.HTTPResponse, call: str, *more: Any) -> Any:
        document = whole(response, call, *more)
        if call == lost and left[0]:
            left[0] -= 1
            raise legacy_client._Transient("lost by the test")
        return document

    monkeypatch.setattr(legacy_client, "_read", read)
    assert workflow(api, folder, [], "").run() is Status.COMPLETED
    assert left == [0] and (folder / "out.txt").read_text() == "x\n"


@pytest.mark.parametrize("parameters", ["12; id", "x", "1 2", "1  "])
def test_arguments_that_are_not_declared_are_refused_by_our_server(api: Api, folder: Path, parameters: str) -> None:
    """Words beyond the declaration: an error at the registration, and nothing waits."""
    with pytest.raises(MisrcError, match="add-calcinfo"):
        workflow(api, folder, [], "", parameters).run()


# -- the server by its ini file ---------------------------------------------------------------------------------------


class DropIn:
    """`mi_dicomapi.py` as a process, started in the folder where its ini file lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.ini(folder / "run.sh")
        self.config = folder / "state/server.yml"
        self.process: subprocess.Popen[bytes] | None = None

    def ini(self, *commands: object) -> None:
        path = predecessors.write_ini(self.folder, *commands)
        path.write_text(path.read_text().replace("8082", str(self.port)))

    def start(self) -> None:
        environment = {**CLEAN, "MISRC_API_STATE": str(self.folder / "state"), "PATH": f"{Path(MISRC).parent}:/usr/bin"}
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(["/usr/bin/python3", SCRIPT], env=environment, stderr=log, cwd=self.folder)
        eventually(self._listens, what="the server")

    def _listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)

    def token(self, scope: str) -> str:
        words = ["token", "add", "--config", str(self.config), scope, "--user", "mint", "--scope", scope]
        words += ["--site", predecessors.SITE] if scope == "agent" else []
        done = subprocess.run([MISRC, *words], env=CLEAN, capture_output=True, text=True, check=True)
        return done.stdout.strip()


@pytest.fixture
def dropin(folder: Path) -> Iterator[DropIn]:
    predecessors.program(folder)
    server = DropIn(folder)
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.stop(signal.SIGKILL)


def test_the_ini_file_alone_makes_a_server(dropin: DropIn, folder: Path) -> None:
    """Both clients of the predecessor, unchanged, on `mi_dicomapi.py` as it stood: one job goes through."""
    (folder / "a.dat").write_text("in")
    words = [predecessors.SITE, "http://127.0.0.1", dropin.token("agent"), f"port:{dropin.port}"]
    words += [f"calc_base:{folder}/jobs", "retry:2,0.05"]
    client = remote_client.RemoteClient(words, remote_client.Timing(0.05, 0.0, 1))
    thread = threading.Thread(target=client.run)
    thread.start()
    words = ["http://127.0.0.1", predecessors.SITE, dropin.token("workflow"), str(folder / "run.sh")]
    status = wf_client.WorkflowClient([*words, "a.dat", "out.txt", "1 2"], 0.05, dropin.port).run()
    thread.join(20)
    assert status == 0 and (folder / "out.txt").read_text() == "in"
    assert (folder / STDOUT_NAME).read_text() == "1 2\n"


def test_a_job_survives_the_servers_death(dropin: DropIn, folder: Path) -> None:
    """SIGKILL, and started again: the job is still there. The predecessor's server lost all of them."""
    caller = Caller("http://127.0.0.1", dropin.token("workflow"), dropin.port)
    info = {
        "command": str(folder / "run.sh"), "remote-site": predecessors.SITE, "parameters": "", "parameter_files": {},
        "result_files": {"out.txt": {"content": "", "mimetype1": "", "mimetype2": ""}},
    }  # fmt: skip
    query = {"accept_id": caller.call("POST", "add-calcinfo", None, {"calc-info": info})[1]["errors"][0]["accept_id"]}
    dropin.stop(signal.SIGKILL)
    dropin.start()
    status, answer = caller.call("GET", "calc-progress", query, None)
    assert (status, answer["errors"][0]["message"]) == (200, "status:not start")


def test_a_changed_ini_file_is_seen_while_it_runs(dropin: DropIn, folder: Path) -> None:
    """A new command is taken, and an old one no more, without a restart; a wrong file leaves things as they were."""
    caller = Caller("http://127.0.0.1", dropin.token("workflow"), dropin.port)
    info = {
        "remote-site": predecessors.SITE, "parameters": "", "parameter_files": {},
        "result_files": {"out.txt": {"content": "", "mimetype1": "", "mimetype2": ""}},
    }  # fmt: skip

    def taken(command: object) -> bool:
        body = {"calc-info": {**info, "command": str(command)}}
        return caller.call("POST", "add-calcinfo", None, body)[0] == 200

    assert taken(folder / "run.sh") and not taken("/new/run")
    dropin.ini("/new/run")
    eventually(lambda: taken("/new/run"), what="the new command")
    assert not taken(folder / "run.sh")
    (folder / "mi_distributed_computing_assist.ini").write_text("[DEFAULT]\ncommands = /bin/sh\n[RemoteSites]\n")
    eventually(lambda: "stays in force" in (folder / "log").read_text() or taken("x"), what="the wrong file is seen")
    assert taken("/new/run") and not taken("/bin/sh")


def test_where_the_ini_file_and_the_jobs_lie(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The named file, that of the current folder, or that beside the script; else an error that names the places."""
    script = folder / "x/mi_dicomapi.py"
    script.parent.mkdir()
    with pytest.raises(BadRequest, match="mi_distributed_computing_assist"):
        find_ini([], script)
    beside = script.parent / "mi_distributed_computing_assist.ini"
    beside.write_text("")
    assert find_ini([], script) == beside
    here = folder / beside.name
    here.write_text("")
    assert find_ini([], script) == here and find_ini([str(beside)], script) == beside
    with pytest.raises(BadRequest):
        find_ini(["a", "b"], script)
    monkeypatch.setenv("MISRC_API_STATE", str(folder / "jobs"))
    assert state_folder() == folder / "jobs" and os.path.isabs(state_folder())


def test_a_wrong_ini_file_starts_nothing(folder: Path) -> None:
    """One line that names the file, exit status 2, and no state is made."""
    (folder / "bad.ini").write_text("[RemoteSites]\n")
    environment = {**CLEAN, "MISRC_API_STATE": str(folder / "state"), "PATH": f"{Path(MISRC).parent}:/usr/bin"}
    done = subprocess.run(
        ["/usr/bin/python3", SCRIPT, "bad.ini"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "bad.ini" in done.stderr
    assert not (folder / "state").exists()
