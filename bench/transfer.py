"""Files into the API server: its memory with four in flight, and its speed against the plainest way of the same host.

The plainest way is `curl -T` into nginx (WebDAV PUT), then fsync and sha256 of the file on the same disk: what v2 does
before it counts a file. The predecessor's form, base64 in JSON, goes against a Flask server that reads the JSON whole.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from apiserver import V2, Api, running, spec
from conftest import connects, eventually, free_port
from stage import Nginx, Row, median, paired, row

MIB = 1 << 20
BLOCK = os.urandom(MIB)
LARGE = int(os.environ.get("MISRC_BENCH_MIB", "1536"))
PAIRED = 512
LEGACY = 384


def measure(pairs: int | None) -> list[Row]:
    """Every case."""
    if shutil.which("nginx") is None or shutil.which("curl") is None:
        sys.exit("bench/run transfer needs Debian's packages nginx-light and curl")
    base = Path(__file__).resolve().parents[1] / ".cache"
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as name:
        root = Path(name)
        file, digest = make_file(root / "file", PAIRED)
        with running(root / "s", tls=None, limits={"quota": "2TiB"}) as api, Drop(root / "nginx") as nginx:
            ratios = paired(
                lambda: nginx.put(file), lambda: upload(api, file, digest), pairs or 3, "curl+fsync+sha256 / v2"
            )
            old = legacy_ratios(api, root, pairs or 3)
            api.kill()
            api.start()
            large, large_digest = make_file(root / "large", LARGE)
            threads = [threading.Thread(target=upload, args=(api, large, large_digest)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            peak = peak_memory(api)
    return [
        row("v2-ratio", median(ratios), "", "higher"),
        row("legacy-ratio", median(old), "", "higher"),
        row("peak-rss-mib", peak, "MiB", "lower"),
    ]


def make_file(path: Path, mebibytes: int) -> tuple[Path, str]:
    """A file of random blocks, and its digest as the header has it."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(BLOCK)
            digest.update(BLOCK)
    return path, f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"


def peak_memory(api: Api) -> float:
    """The most that was ever resident, in MiB."""
    assert api.process is not None
    lines = Path(f"/proc/{api.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def curl(file: Path, url: str, *headers: str, method: str = "PUT") -> float:
    """Seconds that `curl -T` takes."""
    words = [word for header in headers for word in ("-H", header)]
    started = time.perf_counter()
    done = subprocess.run(
        ["curl", "-sf", "-X", method, "-o", "/dev/null", "-H", "Expect:", *words, "-T", str(file), url], check=False
    )
    if done.returncode:
        raise RuntimeError(f"curl ended with {done.returncode}")
    return time.perf_counter() - started


def upload(api: Api, file: Path, digest: str) -> float:
    """Seconds of one upload by v2: the answer comes when the file is on disk and its digest is right."""
    job, size = str(uuid.uuid4()), file.stat().st_size
    if api.call("PUT", f"{V2}/jobs/{job}", {"spec": spec(job, 1, size)}).status != 201:
        raise RuntimeError("the job was not taken")
    token = f"Authorization: Bearer {api.tokens['workflow']}"
    url = f"http://127.0.0.1:{api.port}{V2}/jobs/{job}/inputs/a.dat"
    seconds = curl(file, url, token, f"Upload-Length: {size}", f"Repr-Digest: {digest}")
    for call in ("cancel", "close"):
        api.call("POST", f"{V2}/jobs/{job}/{call}", {})
    return seconds


def legacy_ratios(api: Api, root: Path, pairs: int) -> list[float]:
    """Flask's time over ours, for one registration with a large file in the predecessor's form."""
    body = root / "registration"
    info = {
        "command": "/opt/noop.sh",
        "remote-site": "UnivB_Lab",
        "parameters": "",
        "parameter_files": {"a.dat": ["CONTENT", "application/octet-stream;", "charset=binary"]},
        "result_files": {"out.dat": {"content": "", "mimetype1": "", "mimetype2": ""}},
    }
    head, tail = json.dumps({"calc-info": info}).encode().split(b"CONTENT")
    text = base64.b64encode(os.urandom(3 * MIB))
    with body.open("wb") as file:
        file.write(head)
        for _ in range(LEGACY // 3):
            file.write(text)
        file.write(tail)
    folder = root / "flask"
    folder.mkdir()
    port = free_port()
    script = Path(__file__).with_name("flask_server.py")
    process = subprocess.Popen([sys.executable, str(script), str(port), str(folder)], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: connects(port), what="Flask")
        return paired(
            lambda: register(body, port, "none"),
            lambda: register(body, api.port, api.tokens["workflow"]),
            pairs,
            "Flask / the predecessor's form here",
        )
    finally:
        process.kill()
        process.wait()


def register(body: Path, port: int, token: str) -> float:
    """Seconds of one registration."""
    url = f"http://127.0.0.1:{port}/mi-distcomp-api/add-calcinfo"
    return curl(body, url, "Content-Type: application/json", f"Authorization: Bearer {token}", method="POST")


class Drop(Nginx):
    """nginx that takes PUT."""

    def __init__(self, root: Path) -> None:
        self.port = free_port()
        (root / "files").mkdir(parents=True)
        super().__init__(
            root,
            "events {}",
            f"client_max_body_size 0;\n"
            f"server {{ listen 127.0.0.1:{self.port}; location / {{ root {root}/files; dav_methods PUT; }} }}",
        )

    def put(self, file: Path) -> float:
        """Seconds of an upload, then fsync and sha256."""
        seconds = curl(file, f"http://127.0.0.1:{self.port}/x")
        started = time.perf_counter()
        with (self.root / "files/x").open("rb") as stream:
            os.fsync(stream.fileno())
            hashlib.file_digest(stream, "sha256")
        (self.root / "files/x").unlink()
        return seconds + time.perf_counter() - started
