"""Our workflow client under the predecessor's name, against the predecessor's server and its client at the site."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually
from predecessor import remote_client
from predecessor.calls import STDERR_NAME, STDOUT_NAME
from predecessor.scene import SITE, TOKEN, certificate, program, write_ini
from predecessor.server import Server

from misrc.job.errors import BadRequest, MisrcError, Refused, Unreachable
from misrc.job.interface import Retry
from misrc.mint.messages import say
from misrc.mint.wf import Timing, Workflow, parse_timing, parse_words
from misrc.mint.wf_files import describe
from misrc.wire.legacy_progress import Status

SCRIPT = Path(__file__).parent.parent / "scripts/mi-system-wf.py"
QUICK = Timing(0.02, 0.5, Retry(2, 0.02))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that only those trust who are told to."""
    return certificate(tmp_path_factory.mktemp("tls"), "ca")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Path) -> Path:
    """The workflow's working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    monkeypatch.setenv("MISRC_LANG", "en")
    return tmp_path


@pytest.fixture
def server(folder: Path, authority: Path) -> Iterator[Server]:
    with Server(write_ini(folder, program(folder)), {TOKEN}, authority) as running:
        yield running


def words(port: int, folder: Path, inputs: str = "", results: str = "out.txt", *more: str) -> list[str]:
    return [f"https://127.0.0.1:{port}", SITE, TOKEN, str(folder / "run.sh"), inputs, results, *more]


class Run:
    """One run of the client in this process, and what it said."""

    def __init__(self, port: int, folder: Path, *more: str, timing: Timing = QUICK) -> None:
        self.said: list[str] = []
        order = parse_words(words(port, folder, *more), {})
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


def calls(server: Server) -> list[str]:
    return [seen.name for seen in server.store.calls]


def clean(folder: Path) -> bool:
    """Nothing of ours is left in the folder but results."""
    return not [path for path in folder.iterdir() if path.name.startswith(".")]


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
    sleeps = iter([server.store.jobs.clear, lambda: None])
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


def test_h81_a_certificate_that_nobody_trusts(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing is sent, the token least of all; the same server is believed with the right authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path_factory.mktemp("x"), "other")))
    with pytest.raises(MisrcError, match="certificate"):
        Run(server.port, folder)()
    assert server.store.calls == []


@pytest.mark.parametrize(
    "place, word",
    [(0, "http://127.0.0.1"), (0, "https://"), (0, "https://u:p@h"), (0, "https://h/x"), (0, "https://h?x"),
     (0, "https://h:x"), (0, "127.0.0.1"), (0, "https://例え"), (1, "a b"), (1, ""), (2, ""), (2, "a b"), (2, "a\r\nb"),
     (2, "トークン"), (2, "x" * 513), (2, "env:NOT_SET"), (2, "file:/nonexistent")],
)  # fmt: skip
def test_words_that_are_refused(folder: Path, place: int, word: str) -> None:
    """Each wrong word is a bad request before anything is sent; the same words without it are fine."""
    given = words(1, folder)
    assert parse_words(given, {}).results == ("out.txt", STDOUT_NAME, STDERR_NAME)
    given[place] = word
    with pytest.raises(BadRequest):
        parse_words(given, {})
    for count in (0, 5, 8):
        with pytest.raises(BadRequest):
            parse_words([*words(1, folder), "", ""][:count], {})


def test_the_port_is_50443_unless_another_is_named(folder: Path) -> None:
    """As ever: `https://HOST` means port 50443."""
    for url, port in (("https://h", 50443), ("https://h/", 50443), ("https://h:443", 443)):
        assert parse_words([url, *words(1, folder)[1:]], {}).address.port == port


def test_the_token_may_stay_off_the_command_line(folder: Path) -> None:
    """From the environment, or from a file."""
    (folder / "token").write_text("abc\n")
    given = words(1, folder)
    for word in ("env:HERE", f"file:{folder}/token"):
        given[2] = word
        assert parse_words(given, {"HERE": "abc"}).token == "abc"


@pytest.mark.parametrize("name, value", [("RETRY", "x"), ("RETRY", "5"), ("INTERVAL", "-1"), ("GRACE", "inf")])
def test_settings_that_are_refused(name: str, value: str) -> None:
    """What is no number is refused; the default is the predecessor's."""
    with pytest.raises(BadRequest):
        parse_timing({f"MISRC_WF_{name}": value})
    assert parse_timing({}) == Timing(10.0, 600.0, Retry(5, 60.0))


@pytest.mark.parametrize(
    "inputs, results",
    [("dir", "o"), ("big", "o"), ("..", "o"), ("x/..", "o"), ("a:b/a", "o"), ("a", "../o"), ("a", "/o"), ("a", "o:O")],
)
def test_files_that_cannot_be_sent_or_received(server: Server, folder: Path, inputs: str, results: str) -> None:
    """A folder, 1.5 GiB and more, names that are no names, names that fall together: nothing is registered."""
    (folder / "dir").mkdir()
    (folder / "b").mkdir()
    for name in ("a", "b/a"):
        (folder / name).touch()
    with open(folder / "big", "wb") as stream:
        stream.truncate(3 << 29)
    with pytest.raises(BadRequest):
        Run(server.port, folder, inputs, results)()
    assert server.store.calls == []


def finished(server: Server, results: Any) -> Any:
    """A sleep in which the site's side finishes the job at once, with these results."""

    def finish(seconds: float) -> None:
        for job in server.store.jobs.values():
            job.progress, job.status, job.info["result_files"] = "got return", "completed", results

    return finish


def entry(content: str, first: str = "text/plain;", second: str = "charset=us-ascii") -> dict[str, str]:
    return {"content": content, "mimetype1": first, "mimetype2": second}


def test_only_what_was_asked_for_is_written(server: Server, folder: Path) -> None:
    """Other names, and names that would lead out, are left aside; a missing one is told with its reason, escaped."""
    results = {
        "out.txt": entry("b2s="), "../evil": entry("eA=="), "/tmp/evil": entry("eA=="), "run.sh": entry("eA=="),
        STDOUT_NAME: entry("", "Error", "gone\n\x1b[31m"),
    }  # fmt: skip
    run = Run(server.port, folder)
    run.workflow._sleep = finished(server, results)
    before = (folder / "run.sh").read_bytes()
    assert run() is Status.COMPLETED
    assert (folder / "out.txt").read_bytes() == b"ok" and (folder / "run.sh").read_bytes() == before
    assert not (folder.parent / "evil").exists() and not (folder / STDOUT_NAME).exists() and clean(folder)
    assert sum("not asked for" in line for line in run.said) == 3
    assert not any("\x1b" in line or "\n" in line for line in run.said)


def test_a_result_that_is_not_base64_touches_nothing(server: Server, folder: Path) -> None:
    """One bad result among good ones: an error, and the old file stays as it was."""
    (folder / "out.txt").write_text("old")
    run = Run(server.port, folder)
    run.workflow._sleep = finished(server, {"out.txt": entry("b2s="), STDOUT_NAME: entry("b2s")})
    with pytest.raises(MisrcError):
        run()
    assert (folder / "out.txt").read_text() == "old" and clean(folder)


@pytest.mark.parametrize("data, words", [
    (b"", ("inode/x-empty;", "charset=binary")), (b"a\n", ("text/plain;", "charset=us-ascii")),
    ("計".encode(), ("text/plain;", "charset=utf-8")), (b"\xff\xfe", ("application/octet-stream;", "charset=binary")),
    (("計" * 30000).encode()[: 64 << 10], ("text/plain;", "charset=utf-8")),
])  # fmt: skip
def test_the_two_words_of_file(data: bytes, words: tuple[str, str]) -> None:
    """Empty, ASCII, UTF-8 (cut in a character, too) and other bytes are told apart."""
    assert describe(data) == words


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "MISRC_WF_INTERVAL": "0.02", "MISRC_WF_RETRY": "2,0.02", **more}


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


class Drain(BaseHTTPRequestHandler):
    """A server that takes a body of any size, and answers with results of any size."""

    size = 0
    received = 0

    def log_message(self, *_: Any) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        if name == "get-calc-result":
            self.results()
            return
        message = {"calc-progress": "status:got return", "calc-status": "status:completed"}.get(name, "ok")
        self.say({"errors": [{"code": 200, "message": message, "accept_id": "0b6e3b0c-5c1d-4e4c-9a4e-6b1de5bb4d5a"}]})

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            block = self.rfile.read(min(left, 1 << 20))
            if not block:
                return
            left -= len(block)
        type(self).received += int(self.headers["Content-Length"])
        self.do_GET()

    def say(self, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def results(self) -> None:
        mark = "MARK"
        value = {"errors": [{"code": 200, "message": "", "result-info": {"result_files": {"out.txt": entry(mark)}}}]}
        head, tail = json.dumps(value).encode().split(mark.encode())
        block = base64.b64encode(b"abc" * (1 << 18))
        self.send_response(200)
        self.send_header("Content-Length", str(len(head) + self.size * len(block) + len(tail)))
        self.end_headers()
        self.wfile.write(head)
        for _ in range(self.size):
            self.wfile.write(block)
        self.wfile.write(tail)


MEASURED = """
import resource, sys
from misrc.mint import wf
status = wf.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def memory_of(port: int, folder: Path, size: int) -> int:
    """The peak memory (KiB) of a client with an input and a result of `size` × 768 KiB."""
    with open(folder / "a.dat", "wb") as stream:
        stream.truncate(size * 3 << 18)
    Drain.size, Drain.received = size, 0
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words(port, folder, "a.dat")],
        env=environment(), capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert Drain.received > size << 20 and (folder / "out.txt").stat().st_size == size * 3 << 18
    (folder / "out.txt").unlink()
    return int(done.stderr.split()[-1])


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], authority: Path) -> Iterator[int]:
    """A server with this handler, over TLS; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_h42_memory_does_not_grow_with_the_files(folder: Path, authority: Path) -> None:
    """An input and a result of 192 MiB each take as much memory as ones of 1.5 MiB, but for 8 MiB."""
    with serving(Drain, authority) as port:
        small, large = (memory_of(port, folder, size) for size in (2, 256))
    assert large - small < 8 << 10, (small, large)


@pytest.mark.full
def test_h42_the_largest_files_of_the_old_form(folder: Path, authority: Path) -> None:
    """An input and a result of 2047 MiB of base64 each, within 64 MiB of memory in all."""
    with serving(Drain, authority) as port:
        assert memory_of(port, folder, 2047) < 64 << 10


class Impatient(Drain):
    """Refuses a body before it has come, and hangs up when the answer has been taken."""

    def do_POST(self) -> None:
        self.rfile.read(1 << 20)
        content = json.dumps({"errors": [{"code": 413, "message": "too large for us"}]}).encode()
        self.send_response(413)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.connection.shutdown(socket.SHUT_WR)
        while self.rfile.read1(1 << 20):
            pass


class Cutting(Drain):
    """Sends half of a result, and then no more."""

    cuts = 0

    def results(self) -> None:
        type(self).cuts += 1
        if self.cuts > 2:
            super().results()
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.wfile.write(
            b'{"errors":[{"code":200,"message":"","result-info":{"result_files":{"out.txt":{"content":"QUJD'
        )


def test_a_refusal_in_the_middle_of_a_body_is_heard(folder: Path, authority: Path) -> None:
    """The server answers 413 while the body is still on its way: its words arrive, and nothing is repeated."""
    with open(folder / "a.dat", "wb") as stream:
        stream.truncate(64 << 20)
    with serving(Impatient, authority) as port, pytest.raises(Refused, match="too large for us"):
        Run(port, folder, "a.dat")()


def test_half_a_result_is_asked_for_again(folder: Path, authority: Path) -> None:
    """An answer that is cut twice is asked for a third time, and only the whole one gets the result's name."""
    Drain.size, Cutting.cuts = 2, 0
    with serving(Cutting, authority) as port:
        assert Run(port, folder)() is Status.COMPLETED
    assert Cutting.cuts == 3 and (folder / "out.txt").read_bytes() == b"abc" * (1 << 19) and clean(folder)
