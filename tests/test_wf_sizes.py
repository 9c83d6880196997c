"""Our workflow client and files of any size: bounded memory, refusals in the middle, answers that are cut."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from wf_scene import Run, clean, entry, environment, words
from wf_scene import authority as authority
from wf_scene import folder as folder

from misrc.job.errors import Refused
from misrc.wire.legacy_progress import Status


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
import sys
from misrc.mint.legacy import workflow
status = workflow.main(sys.argv[1:])
# Not ru_maxrss: that begins with the size of the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1], file=sys.stderr)
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
