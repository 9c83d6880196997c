"""Resumable transfers, and a disk that is full. Ids are those of `docs/attacks.md`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apiserver import V2, Api, Reply, b64, digest, manifest, running, spec, submission
from conftest import eventually

DATA = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    limits = {"uploads": 12, "quota": "40MiB", "job_bytes": "30MiB", "body_seconds": 20}
    with running(tmp_path_factory.mktemp("api") / "s", limits=limits) as server:
        yield server


def begin(api: Api, size: int = len(DATA), files: int = 1) -> tuple[str, str]:
    """A job that announces so much, and the path of its input."""
    job = str(uuid.uuid4())
    assert api.call("PUT", f"{V2}/jobs/{job}", {"spec": spec(job, files, size)}).status == 201
    return job, f"{V2}/jobs/{job}/inputs/a.dat"


def patch(api: Api, path: str, offset: int, data: bytes, **headers: str) -> Reply:
    sent = {"Upload-Offset": str(offset), "Content-Type": "application/partial-upload", **headers}
    return api.call("PATCH", path, data, headers=sent)


def offset(api: Api, path: str) -> int:
    return int(api.call("HEAD", path).headers["upload-offset"])


def drop(api: Api, job: str) -> None:
    api.call("POST", f"{V2}/jobs/{job}/cancel", {})
    assert api.call("POST", f"{V2}/jobs/{job}/close", {}).status == 200
    eventually(lambda: not (api.root / "spool" / job[:2] / job).exists(), what="the deletion")


def test_h64_the_digest_decides(api: Api) -> None:
    """A missing or unknown digest is refused at once, a wrong one with the last byte; then all starts from zero."""
    job, path = begin(api)
    for value in (None, "md5=:AAAA:", "sha-256=AAAA", "sha-256=:AAAA:", "sha-512=:" + b64(b"x" * 64) + ":"):
        headers = {"Upload-Length": str(len(DATA)), **({} if value is None else {"Repr-Digest": value})}
        assert api.call("PUT", path, DATA, headers=headers).status == 400
    assert api.call("HEAD", path).status == 404
    headers = {"Upload-Length": str(len(DATA)), "Repr-Digest": digest(DATA)}
    wrong = api.call("PUT", path, DATA[:-1] + bytes([DATA[-1] ^ 1]), headers=headers)
    assert (wrong.status, wrong.code) == (422, "refused") and offset(api, path) == 0
    assert api.call("POST", f"{V2}/jobs/{job}/release", {"manifest": manifest({"a.dat": DATA})}).status == 409
    assert api.upload(path, DATA).status == 201
    assert api.call("POST", f"{V2}/jobs/{job}/release", {"manifest": manifest({"a.dat": DATA})}).status == 200


def test_h66_lengths(api: Api) -> None:
    """A length that changes, bytes beyond it, more than announced or than the server takes: refused."""
    job, path = begin(api)
    headers = {"Upload-Length": str(len(DATA)), "Repr-Digest": digest(DATA)}
    assert api.call("PUT", path, DATA[:1000], headers=headers).status == 200
    assert api.call("PUT", path, b"", headers={**headers, "Upload-Length": "1000"}).status == 409
    assert patch(api, path, 1000, DATA[1000:], **{"Upload-Length": "5"}).status == 400
    beyond = patch(api, path, 1000, DATA[1000:] + b"x")
    assert (beyond.status, offset(api, path)) == (413, 1000)
    for value in ("-1", "1e3", "x", "", "9" * 30, str(1 << 60)):
        assert api.call("PUT", path + "x", b"", headers={**headers, "Upload-Length": value}).status in (400, 413), value
    assert api.upload(path.replace("a.dat", "b.dat"), b"more").status == 413
    large = str(uuid.uuid4())
    assert api.call("PUT", f"{V2}/jobs/{large}", {"spec": spec(large, 1, 31 << 20)}).status == 413
    assert patch(api, path, 1000, DATA[1000:]).status == 201
    drop(api, job)


def test_h68_head_ends_a_call_that_still_writes(api: Api) -> None:
    """What HEAD tells is where the client can go on, although another call of it still held the upload."""
    job, path = begin(api)
    half = len(DATA) // 2
    with api.stream() as stream:
        lines = (
            f"PUT {path} HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {api.tokens['workflow']}",
            f"Upload-Length: {len(DATA)}",
            f"Repr-Digest: {digest(DATA)}",
            f"Content-Length: {len(DATA)}",
        )
        stream.sendall("\r\n".join([*lines, "", ""]).encode() + DATA[:half])
        eventually(lambda: api.job(job)["inputs"] and api.job(job)["inputs"][0]["offset"], what="the first block")
        here = offset(api, path)
        assert 0 < here <= half
        assert patch(api, path, here, DATA[here:]).status == 201
    claimable = api.call("POST", f"{V2}/jobs/{job}/release", {"manifest": manifest({"a.dat": DATA})})
    assert claimable.json["released"] is True
    drop(api, job)


def test_h70_unfinished_uploads_are_counted(api: Api) -> None:
    """Beyond the declared number a new one is told to come later; what is beyond the quota too, with its own word."""
    job, path = begin(api, 20 << 20, 20)
    statuses = []
    for number in range(14):
        headers = {"Upload-Length": "1", "Repr-Digest": digest(b"x")}
        answer = api.call("PUT", f"{path}{number}", b"", headers=headers)
        statuses.append(answer.status)
    assert statuses == [200] * 12 + [429] * 2 and int(answer.headers["retry-after"]) > 0
    drop(api, job)
    first, there = begin(api, 25 << 20)
    assert (
        api.call("PUT", there, b"x", headers={"Upload-Length": str(25 << 20), "Repr-Digest": digest(b"")}).status == 200
    )
    second, here = begin(api, 25 << 20)
    over = api.call("PUT", here, b"x", headers={"Upload-Length": str(25 << 20), "Repr-Digest": digest(b"")})
    assert (over.status, over.code) == (507, "full") and int(over.headers["retry-after"]) > 0
    drop(api, first)
    assert (
        api.call("PUT", here, b"x", headers={"Upload-Length": str(25 << 20), "Repr-Digest": digest(b"")}).status == 200
    )
    drop(api, second)


def test_h71_nothing_is_added_to_what_is_whole_or_gone(api: Api) -> None:
    """PATCH after the last byte, at a wrong offset, after the release, after the close: 409, 416, 410."""
    job, path = begin(api)
    assert patch(api, path, 0, b"x").status == 404
    assert api.upload(path, DATA[:10], **{"Upload-Length": str(len(DATA)), "Repr-Digest": digest(DATA)}).status == 200
    wrong = patch(api, path, 5, b"x")
    assert (wrong.status, wrong.code, wrong.headers["upload-offset"]) == (416, "offset", "10")
    assert patch(api, path, 10, DATA[10:]).status == 201
    assert patch(api, path, len(DATA), b"x").status == 409
    assert api.call("PATCH", path, b"x", headers={"Upload-Offset": "0"}).status == 415
    api.call("POST", f"{V2}/jobs/{job}/release", {"manifest": manifest({"a.dat": DATA})})
    assert api.upload(path.replace("a.dat", "b.dat"), b"x").status == 409
    drop(api, job)
    assert patch(api, path, 0, b"x").status == 410 and api.upload(path, DATA).status == 410


def test_h72_a_revoked_token_completes_nothing(api: Api) -> None:
    """The right to write is asked again with the last byte."""
    api.add_token("passing", "--user", "mint", "--scope", "workflow")
    job, path = begin(api)
    lines = (
        f"PUT {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {api.tokens['passing']}",
        f"Upload-Length: {len(DATA)}",
        f"Repr-Digest: {digest(DATA)}",
        f"Content-Length: {len(DATA)}",
    )
    with api.stream() as stream:
        stream.sendall("\r\n".join([*lines, "", ""]).encode() + DATA[:-1])
        eventually(lambda: api.job(job)["inputs"], what="the upload")
        api.revoke("passing")
        eventually(lambda: api.call("GET", V2 + "/jobs", token="passing").status == 401, what="the revocation")
        stream.sendall(DATA[-1:])
        assert stream.recv(1000).startswith(b"HTTP/1.1 401")
    assert api.job(job)["inputs"][0]["offset"] == len(DATA)
    assert api.call("POST", f"{V2}/jobs/{job}/release", {"manifest": manifest({"a.dat": DATA})}).status == 409
    assert patch(api, path, len(DATA), b"").status == 201
    drop(api, job)


def fetchable(api: Api) -> tuple[str, str]:
    """A job that has ended with one large result, and the result's path."""
    job = api.submit()
    claim = next(c for c in api.poll(str(uuid.uuid4()), room=100)["claims"] if c["job"] == job)
    fence = {"Misrc-Fence": str(claim["fence"])}
    assert api.upload(f"{V2}/claims/{job}/results/out.dat", DATA, "agent", **fence).status == 201
    assert api.end(claim, {"out.dat": DATA}, small=False).json["missing"] == []
    return job, f"{V2}/jobs/{job}/results/out.dat"


def test_h76_ranges(api: Api) -> None:
    """First, last, open: 206. Beyond, reversed, several, other units, ten thousand: 416, quickly. None: the whole."""
    job, path = fetchable(api)
    size = len(DATA)
    for text, start, stop in (
        ("0-0", 0, 1),
        ("5-", 5, size),
        ("-7", size - 7, size),
        ("10-19", 10, 20),
        (f"{size - 1}-{size * 9}", size - 1, size),
    ):
        answer = api.call("GET", path, headers={"Range": f"bytes={text}"})
        assert (answer.status, answer.body) == (206, DATA[start:stop]), text
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
    for text in (
        f"bytes={size}-",
        "bytes=5-4",
        "bytes=0-0,5-9",
        "lines=0-1",
        "bytes=-",
        "bytes=a-b",
        "bytes=0-0," * 700 + "1-2",
        "bytes=" + "9" * 30 + "-",
        "bytes=-0",
    ):
        started = time.monotonic()
        assert api.call("GET", path, headers={"Range": text}).status == 416, text[:40]
        assert time.monotonic() - started < 10
    assert api.call("GET", path).body == DATA
    drop(api, job)


def test_h78_h79_what_a_download_says_of_itself(api: Api) -> None:
    """Digest and ETag are the file's; a range of another file's ETag gives the whole; nobody sniffs or shows it."""
    job, path = fetchable(api)
    answer = api.call("GET", path)
    assert answer.headers["repr-digest"] == digest(DATA)
    assert answer.headers["etag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == "attachment"
    same = api.call("GET", path, headers={"Range": "bytes=1-", "If-Range": answer.headers["etag"]})
    other = api.call("GET", path, headers={"Range": "bytes=1-", "If-Range": '"other"'})
    assert (same.status, same.body, other.status, other.body) == (206, DATA[1:], 200, DATA)
    drop(api, job)


def test_h32_no_name_breaks_into_a_header(api: Api) -> None:
    """Names and ids with CR or LF are refused where they come in; what comes out has one constant disposition and no
    `Location`, whatever the name is."""
    job, _ = begin(api)
    for evil in ("a%0d%0aX-Evil:%201", "%0a", "a%0db", "a.dat%0d%0a%0d%0aHTTP/1.1%20200"):
        for target in (f"{V2}/jobs/{job}/inputs/{evil}", f"{V2}/jobs/{job}{evil}", f"{V2}/jobs/{job}/results/{evil}"):
            for method in ("PUT", "GET"):
                answer = api.call(method, target, b"", headers={"Upload-Length": "0", "Repr-Digest": digest(b"")})
                assert 400 <= answer.status < 500 and "x-evil" not in answer.headers, (method, target)
    drop(api, job)
    for name, status in (("a\r\nX-Evil: 1.dat", 400), ("計算 結果.dat", 201)):
        made = str(uuid.uuid4())
        answer = api.call("PUT", f"{V2}/jobs/{made}", submission(made, {name: b"x"}, release=False))
        assert answer.status == status and b"Evil" not in answer.body, answer.body
    job, agent = api.submit(), str(uuid.uuid4())
    claim = next(c for c in api.poll(agent, room=100)["claims"] if c["job"] == job)
    api.report(claim, "running")
    quoted = api.end(claim, {"out.dat": b"1", 'q"; filename=x.bin': b"2"})
    assert quoted.status in (400, 422) and b"filename" not in quoted.body
    name = "x; filename=e 結果.bin"
    assert api.end(claim, {"out.dat": b"1", name: b"2"}).json["missing"] == []
    answer = api.call("GET", f"{V2}/jobs/{job}/results/{urllib.parse.quote(name)}")
    assert (answer.status, answer.body) == (200, b"2")
    assert answer.headers["content-disposition"] == "attachment" and "location" not in answer.headers
    drop(api, job)


def test_a_full_disk_pauses_and_goes_on(tmp_path: Path) -> None:
    """A spool without room: 507 with Retry-After, nothing is lost, and the same upload goes on when there is room."""
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with running(tmp_path / "s", limits={"reserve": "1MiB"}) as api:
        _, path = begin(api)
        headers = {"Upload-Length": str(len(DATA)), "Repr-Digest": digest(DATA)}
        assert api.call("PUT", path, DATA[:1000], headers=headers).status == 200
        api.config["limits"] = {"reserve": free * 2}
        api.write_config()
        assert api.stop() == 0
        api.start()
        answer = patch(api, path, 1000, DATA[1000:])
        assert (answer.status, answer.code) == (507, "full") and int(answer.headers["retry-after"]) > 0
        assert offset(api, path) == 1000
        api.config["limits"] = {}
        api.write_config()
        api.kill()
        api.start()
        assert patch(api, path, 1000, DATA[1000:]).status == 201


def test_h74_a_killed_server_loses_no_byte_that_it_counted(tmp_path: Path) -> None:
    """SIGKILL while bytes come in and after each was flushed: the offset is what is on disk, and the whole is right."""
    with running(tmp_path / "s") as api:
        data = os.urandom(9_000_000)
        for point in ("api.upload.fed 3", "api.upload.flushed", "api.whole.written", "api.whole.committed"):
            job, path = begin(api, len(data))
            api.strike(point)
            with contextlib.suppress(OSError):
                api.upload(path, data)
            assert api.process is not None and api.process.wait(10) == -9, point
            api.start()
            answer = api.call("HEAD", path)
            here = int(answer.headers["upload-offset"])
            assert 0 <= here <= len(data)
            if here < len(data):
                assert patch(api, path, here, data[here:]).status == 201
            else:
                assert api.upload(
                    path, b"", **{"Upload-Length": str(len(data)), "Repr-Digest": digest(data)}
                ).status in (200, 201)
            released = api.call("POST", f"{V2}/jobs/{job}/release", {"manifest": manifest({"a.dat": data})})
            assert released.status == 200, (point, released.body)
            spooled = next((api.root / "spool" / job[:2] / job).iterdir())
            assert spooled.read_bytes() == data


def test_two_senders_of_one_upload_spoil_nothing(api: Api) -> None:
    """Whoever comes later goes on, and the file is right in the end."""
    job, path = begin(api)
    threads = [threading.Thread(target=lambda: _quietly(lambda: api.upload(path, DATA))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    here = offset(api, path)
    if here < len(DATA):
        assert patch(api, path, here, DATA[here:]).status == 201
    assert api.upload(path, DATA).status == 200
    drop(api, job)


def _quietly(work: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        work()
