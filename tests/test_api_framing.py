"""The form of requests: framing, heads, methods, paths, JSON, names. Ids are those of `docs/attacks.md`."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from apiserver import V2, Api, b64, digest, running, spec, submission
from conftest import eventually


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    limits = {"header_seconds": 2, "body_seconds": 2}
    with running(tmp_path_factory.mktemp("api") / "s", limits=limits) as server:
        yield server


JSON = "Content-Type: application/json"


def head(api: Api, method: str, path: str, *lines: str) -> bytes:
    token = api.tokens["workflow"]
    first = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}")
    return "\r\n".join([*first, *lines, "", ""]).encode()


def status(answer: bytes) -> int:
    """Of the first answer; 0 where there is none."""
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0


def alive(api: Api) -> None:
    """The next legal call works."""
    assert api.call("GET", V2 + "/jobs").status == 200
    assert not [line for line in api.log() if "trace" in line]


def test_h15_ambiguous_lengths(api: Api) -> None:
    """Both framings, two lengths, odd spellings: refused, the connection closed. The plain length works."""
    job = api.submit(release=False)
    path = f"{V2}/jobs/{job}/cancel"
    media = "Content-Type: application/json"
    for lines in (
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
        ("Content-Length: 2", "Content-Length: 2"),
        ("Content-Length: 2", "Content-Length: 3"),
        *((f"Content-Length: {value}",) for value in ("+2", "2,2", "-2", "18446744073709551616", "0x2", "2 2", "")),
    ):
        answer = api.raw(head(api, "POST", path, media, *lines) + b"{}", 3)
        assert status(answer) == 400, (lines, answer[:80])
        assert answer.count(b"HTTP/1.1") == 1
    assert api.job(job)["cancel"] is False
    assert status(api.raw(head(api, "POST", path, media, "Content-Length: 2", "Connection: close") + b"{}")) == 200
    alive(api)


def test_h16_h17_chunks_and_codings(api: Api) -> None:
    """A wrong end of a chunk, unknown transfer codings, folded headers: refused. A right chunk is taken."""
    path, media = f"{V2}/jobs/{api.submit(release=False)}/cancel", JSON
    chunked = head(api, "POST", path, media, "Transfer-Encoding: chunked", "Connection: close")
    for body in (b"2\r\n{}XX0\r\n\r\n", b"zz\r\n{}\r\n0\r\n\r\n", b"2;" + b"x" * (1 << 20) + b"\r\n{}\r\n0\r\n\r\n"):
        assert status(api.raw(chunked + body, 3)) in (400, 408, 413), body[:20]
    for coding in ("gzip, chunked", "xchunked", "chunked, identity", "gzip"):
        answer = api.raw(head(api, "POST", path, media, f"Transfer-Encoding: {coding}") + b"2\r\n{}\r\n0\r\n\r\n", 3)
        assert status(answer) in (400, 415, 501, 408), (coding, answer[:60])
    folded = head(api, "POST", path, media + "\r\n  folded", "Content-Length: 2")
    assert status(api.raw(folded, 3)) == 400
    assert status(api.raw(chunked + b"2\r\n{}\r\n0\r\n\r\n")) == 200
    alive(api)


def test_h18_a_body_that_stops(api: Api) -> None:
    """1 GB announced, 10 bytes sent: 408, and the offset is what came; a trickle below the declared rate too."""
    job = str(uuid.uuid4())
    api.call("PUT", f"{V2}/jobs/{job}", {"spec": spec(job, 1, 1 << 30)})
    lines = (f"Upload-Length: {1 << 30}", f"Repr-Digest: {digest(b'')}", f"Content-Length: {1 << 30}")
    answer = api.raw(head(api, "PUT", f"{V2}/jobs/{job}/inputs/a.dat", *lines) + b"0123456789", 10)
    assert status(answer) == 408 and b"upload-offset: 10" in answer.lower()
    assert api.call("HEAD", f"{V2}/jobs/{job}/inputs/a.dat").headers["upload-offset"] == "10"
    with api.stream() as stream:
        stream.sendall(head(api, "POST", f"{V2}/jobs/{job}/cancel", JSON, "Content-Length: 100"))
        started = time.monotonic()
        found = b""
        with contextlib.suppress(OSError):
            while not found and time.monotonic() - started < 10:
                stream.sendall(b" ")
                stream.settimeout(0.3)
                with contextlib.suppress(TimeoutError):
                    found = stream.recv(1000)
    assert status(found) == 408
    alive(api)


def test_h19_h20_bodies_that_are_longer_or_cut(api: Api) -> None:
    """What follows a message that was refused is never a request; a cut body changes nothing."""
    job = api.submit(release=False)
    hidden = head(api, "POST", f"{V2}/jobs/{job}/cancel", JSON, "Content-Length: 2") + b"{}"
    length = f"Content-Length: {len(hidden) + 10}"
    wrong = head(api, "POST", f"{V2}/jobs/{job}/close", "Content-Type: text/plain", length)
    answer = api.raw(wrong + b"0123456789" + hidden, 3)
    assert status(answer) == 415 and answer.count(b"HTTP/1.1") == 1
    with api.stream() as stream:
        stream.sendall(head(api, "POST", f"{V2}/jobs/{job}/cancel", JSON, "Content-Length: 10") + b"{}")
    assert api.job(job)["cancel"] is False
    up = str(uuid.uuid4())
    api.call("PUT", f"{V2}/jobs/{up}", {"spec": spec(up, 1, 10)})
    path = f"{V2}/jobs/{up}/inputs/a.dat"
    with api.stream() as stream:
        lines = ("Upload-Length: 10", f"Repr-Digest: {digest(b'0123456789')}", "Content-Length: 10")
        stream.sendall(head(api, "PUT", path, *lines) + b"01234")
    offset = eventually(lambda: api.call("HEAD", path).headers.get("upload-offset"), what="the upload")
    assert offset in ("0", "5")
    rest = {"Upload-Offset": offset, "Content-Type": "application/partial-upload"}
    assert api.call("PATCH", path, b"0123456789"[int(offset) :], headers=rest).status == 201
    alive(api)


def test_h21_long_heads(api: Api) -> None:
    """A header of 1 MB, 10 000 headers, a URL of 1 MB, control and high bytes: refused. 60 headers pass."""
    many = [f"X-{i}: 1" for i in range(10_000)]
    for lines, path in (
        ((f"X: {'y' * (1 << 20)}",), "/x"),
        (tuple(many), "/x"),
        ((), "/" + "x" * (1 << 20)),
        ((f"{'n' * 100_000}: 1",), "/x"),
        (tuple(many[:80]), "/x"),
    ):
        assert status(api.raw(head(api, "GET", path, *lines), 3)) in (400, 414, 431, 0)
    for raw in (b"X: a\0b\r\n", b"X\0: a\r\n", b"X: a\rb\r\n", b"X\xff: 1\r\n", b"X Y: 1\r\n"):
        request = head(api, "GET", V2 + "/jobs")[:-2] + raw + b"\r\n"
        assert status(api.raw(request, 3)) == 400, raw
    assert status(api.raw(head(api, "GET", V2 + "/jobs", *many[:55], "Connection: close"), 3)) == 200
    alive(api)


def test_h22_slow_heads_do_not_last(api: Api) -> None:
    """Two hundred connections that trickle a head: all closed at the declared time, and others are served meanwhile."""
    streams = [socket.create_connection(("127.0.0.1", api.port), 10) for _ in range(150)]
    tls = [api.stream() for _ in range(50)]
    for stream in tls:
        stream.sendall(b"GET / HTTP/1.1\r\nHost: lo")
    started = time.monotonic()
    assert api.call("GET", V2 + "/jobs").status == 200
    assert time.monotonic() - started < 20
    for stream in tls:
        stream.settimeout(10)
        with contextlib.suppress(OSError):
            assert stream.recv(100) == b""
        stream.close()
    assert time.monotonic() - started < 30
    for each in streams:
        each.close()
    alive(api)


def test_h22_one_connection_too_many_is_told_so(tmp_path: Path) -> None:
    """Beyond the declared number each is answered 503 in the declared form; with one less they are served again."""
    with running(tmp_path / "s", limits={"connections": 4}) as api:
        streams = [api.stream() for _ in range(4)]
        answer = api.call("GET", V2 + "/jobs")
        assert (answer.status, answer.code, answer.headers["connection"]) == (503, "paused", "close")
        assert int(answer.headers["retry-after"]) > 0
        streams.pop().close()
        eventually(lambda: api.call("GET", V2 + "/jobs").status == 200, what="room for one more")
        for stream in streams:
            stream.close()


def test_what_is_no_request_is_refused_in_the_declared_form(api: Api) -> None:
    """What the parser refuses has the body of every other refusal; so does a head that is too long, with its status."""
    for line, expected in (
        ("GET " + "/" * 5000 + " HTTP/1.1", (414, "too-large")),
        ("GET / HTTP/1.1\r\nX: " + "y" * 20_000, (431, "too-large")),
        ("GET / HTTP/1.1\r\nX Y: 1", (400, "malformed")),
        ("what is this", (400, "malformed")),
    ):
        top, _, body = api.raw(f"{line}\r\nHost: localhost\r\n\r\n".encode(), 3).partition(b"\r\n\r\n")
        assert (status(top), json.loads(body)["error"]["code"]) == expected
        assert b"content-type: application/json" in top and b"connection: close" in top
    alive(api)


def test_h23_h24_other_protocols_and_methods(api: Api) -> None:
    """HTTP/0.9 and 1.0, a preface of HTTP/2, upgrades, strange methods: refused or handled, never a failure."""
    token = api.tokens["workflow"]
    old = api.raw(f"GET {V2}/jobs HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode(), 3)
    assert status(old) == 200
    assert status(api.raw(b"GET /\r\n\r\n", 3)) in (0, 400)
    assert status(api.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 3)) in (0, 400)
    for upgrade in ("h2c", "websocket"):
        answer = api.raw(head(api, "GET", V2 + "/jobs", f"Upgrade: {upgrade}", "Connection: Upgrade, close"), 3)
        assert status(answer) in (200, 400, 426), answer[:60]
    for method in ("TRACE", "OPTIONS", "DELETE", "HEAD", "POST"):
        reply = api.call(method, V2 + "/jobs")
        assert (reply.status, reply.headers["allow"]) == (405, "GET"), method
        if method == "HEAD":
            assert reply.body == b""
    for line in ("BREW", "get"):
        assert status(api.raw(head(api, line, V2 + "/jobs", "Connection: close"), 3)) in (400, 405), line
    assert status(api.raw(head(api, "CONNECT", "localhost:1", "Connection: close"), 3)) in (400, 404, 405)
    alive(api)


def test_h25_methods_are_not_overridden(api: Api) -> None:
    """No header and no parameter changes what the method is."""
    job = api.submit(release=False)
    override = {"X-HTTP-Method-Override": "POST", "X-Method-Override": "POST"}
    assert api.call("GET", f"{V2}/jobs/{job}/cancel", headers=override).status == 405
    assert api.call("GET", f"{V2}/jobs/{job}?_method=DELETE").status == 400
    assert api.job(job)["state"] == "created"


def test_h26_only_the_exact_path_is_a_call(api: Api) -> None:
    """Double slashes, dots, encoded slashes, NUL, backslashes, a final slash: 404 or 400, never another call."""
    job = api.submit(release=False)
    for path in (
        "/mi-distcomp-api//v2/jobs",
        "/mi-distcomp-api/./v2/jobs",
        "/x/../mi-distcomp-api/v2/jobs",
        V2 + "/jobs/",
        "/mi-distcomp-api/v2%2fjobs",
        V2 + "/%6aobs",
        V2 + f"/jobs/{job}%00",
        V2 + f"/jobs/{job};x",
        V2 + f"/jobs/{job}/",
        V2 + f"/jobs/%2e%2e/jobs/{job}",
        V2 + f"\\jobs\\{job}",
        V2 + f"/jobs/{job}%0a",
        V2 + "/jobs/%c0%ae",
        V2 + "/jobs/%zz",
        "/mi-distcomp-api/calc-status/",
        "/mi-distcomp-api/V2/jobs",
    ):
        answer = api.raw(head(api, "GET", path, "Connection: close"), 3)
        assert status(answer) in (400, 404, 405), (path, answer[:60])
    assert status(api.raw(head(api, "GET", f"{V2}/jobs/{job}", "Connection: close"), 3)) == 200


def test_h27_queries(api: Api) -> None:
    """A name twice, an unknown one, ten thousand, broken encodings, no numbers: 400. The right one passes."""
    job = api.submit(release=False)
    for query in (
        "wait=0&wait=0",
        "wait[]=0",
        "unknown=1",
        "&".join(f"a{i}=1" for i in range(10_000))[:3000],
        "wait=%zz",
        "wait=%ff",
        "wait=+1",
        "wait=-1",
        "wait=1.0",
        "wait=０",
        "wait=61",
        "wait=",
        "version=x",
    ):
        answer = api.raw(head(api, "GET", f"{V2}/jobs/{job}?{query}", "Connection: close"), 3)
        assert status(answer) == 400, query[:50]
    assert api.call("GET", f"{V2}/jobs/{job}?wait=0&version=0").status == 200
    assert api.call("POST", f"{V2}/jobs/{job}/cancel?x=1", {}).status == 400


def test_h28_h29_h61_only_plain_json_is_a_body(api: Api) -> None:
    """Other media types, other charsets, compressed, XML, YAML, pickles, forms: 415."""
    path = f"{V2}/jobs/{api.submit(release=False)}/cancel"
    for media in (
        None,
        "text/json",
        "application/json; charset=utf-16",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/x-yaml",
        "application/x-python-serialize",
        "application/x-www-form-urlencoded",
        "application/jsonx",
    ):
        headers: dict[str, str] = {} if media is None else {"Content-Type": media}
        assert api.call("POST", path, b"{}", headers=headers).status == 415, media
    bomb = gzip.compress(b"0" * (1 << 20))
    for coding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "identity"):
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        assert api.call("POST", path, bomb, headers=headers).status == 415, coding
    assert api.call("POST", path, b"{}", headers={"Content-Type": "application/json; charset=UTF-8"}).status == 200
    alive(api)


def test_h34_h35_h36_h38_only_strict_json(api: Api) -> None:
    """Repeated keys, NaN, odd numbers, depth, unknown and wrong fields, lone surrogates, a BOM: 400, quickly."""
    job = str(uuid.uuid4())
    path, good = f"{V2}/jobs/{job}", json.dumps(submission(job, {}))
    said = json.dumps(spec(job))
    wrong = [
        "",
        "{",
        "[]",
        "null",
        "1",
        '"x"',
        "{}",
        good[:-1],
        good + "x",
        "\ufeff" + good,
        good[:-1] + ',"release":true}',
        *(good[:-1] + f',"extra":{value}}}' for value in ("1", "NaN", "Infinity", "1e400", "1" * 5000, "[" * 100_000)),
        *(f'{{"spec":{said},"release":{value}}}' for value in ("1", "1.0", '"true"', "null", "[]", "{}")),
        f'{{"spec":{said},"__proto__":{{}}}}',
        f'{{"spec":{said},"__class__":1}}',
        '{"spec":1}',
        '{"spec":"\\ud800"}',
        f'{{"spec":{said},"inputs":[{{"name":"a","size":true,"sha256":"","content":""}}]}}',
        f'{{"spec":{said},"inputs":[{{"name":"a","size":-0,"sha256":"{"0" * 64}","content":""}}]}}',
        f'{{"spec":{said},"signature":"\\udfff"}}',
        f'{{"spec":{said},"release":false,"inputs":{json.dumps({})}}}',
    ]
    for text in wrong:
        started = time.monotonic()
        answer = api.call(
            "PUT", path, text.encode("utf-8", "surrogatepass"), headers={"Content-Type": "application/json"}
        )
        assert answer.status in (400, 422), (text[:80], answer.status)
        assert time.monotonic() - started < 20
    assert api.call("GET", path).status == 404
    keys = "{" + ",".join(f'"k{i}":1' for i in range(300_000)) + "}"
    assert api.call("PUT", path, keys.encode(), headers={"Content-Type": "application/json"}).status in (400, 413)
    long = b'{"spec":"' + b"x" * (100 << 20) + b'"}'
    refused = 0
    with contextlib.suppress(OSError):
        refused = api.call("PUT", path, long, headers={"Content-Type": "application/json"}).status
    assert refused in (0, 413)
    assert api.call("PUT", path, good.encode(), headers={"Content-Type": "application/json"}).status == 201
    alive(api)


def test_h39_only_canonical_base64(api: Api) -> None:
    """White space, garbage, the URL alphabet, wrong padding, stray bits: 400. The canonical text passes."""
    data = b"\xfb\xff\xfe\x01"
    for text in (
        "+//+AQ",
        "+//+AQ=",
        "+//+AQ===",
        " +//+AQ==",
        "+//+\nAQ==",
        "-__-AQ==",
        "+//+AQ==+//+AQ==",
        "+//+AR==",
        "data:;base64,+//+AQ==",
        "!!+//+AQ==",
        "+//+AQ==!!",
        "＋//+AQ==",
    ):
        job = str(uuid.uuid4())
        body = submission(job, {"a.dat": data})
        body["inputs"][0]["content"] = text
        assert api.call("PUT", f"{V2}/jobs/{job}", body).status == 400, text
    assert b64(data) == "+//+AQ=="
    api.submit({"a.dat": data})


def test_h47_one_rule_for_names(api: Api) -> None:
    """NFD, directions, zero width, controls, folders, dots, reserved: 400; NFC Japanese passes on every way in."""
    bad = [
        "か\u3099.dat",
        "a\u202e.dat",
        "a\u200b.dat",
        "a\n.dat",
        "../a.dat",
        "a/b.dat",
        "..",
        ".",
        "",
        "-rf",
        "CON.dat",
        "a\0.dat",
        "x" * 256,
        ".bashrc",
        "a:b",
        "a\\b",
    ]
    for name in bad:
        job = str(uuid.uuid4())
        assert api.call("PUT", f"{V2}/jobs/{job}", submission(job, {name: b""})).status == 400, name
    job = str(uuid.uuid4())
    api.call("PUT", f"{V2}/jobs/{job}", {"spec": spec(job, 3, 10)})
    from urllib.parse import quote

    for name in bad:
        if name:
            assert api.upload(f"{V2}/jobs/{job}/inputs/{quote(name, safe='')}", b"x").status in (400, 404), name
    assert api.upload(f"{V2}/jobs/{job}/inputs/%E5%85%A5%E5%8A%9B.dat", b"x").status == 201
    assert api.upload(f"{V2}/jobs/{job}/inputs/A.dat", b"x").status == 201
    assert api.upload(f"{V2}/jobs/{job}/inputs/a.dat", b"x").code == "conflict"
    twins = submission(str(uuid.uuid4()), {"A.dat": b"", "a.dat": b""})
    assert api.call("PUT", f"{V2}/jobs/{json.loads(twins['spec'])['job']}", twins).status == 400
    assert api.submit({"計算標準出力.dat": b"x"})


def test_h48_only_canonical_ids(api: Api) -> None:
    """Other spellings of a job's id, and texts that mean something elsewhere: 404, and nothing is interpreted."""
    job = api.submit(release=False)
    from urllib.parse import quote

    for other in (
        job.upper(),
        "{" + job + "}",
        "urn:uuid:" + job,
        job.replace("-", ""),
        job + "\n",
        " " + job,
        job.translate(str.maketrans("0123456789", "０１２３４５６７８９")),
        "' OR 1=1 --",
        "*)(uid=*",
        "%s{0}",
        "00000000-0000-0000-0000-000000000000",
        "../" + job,
    ):
        assert api.call("GET", f"{V2}/jobs/{quote(other, safe='')}").status == 404, other
        assert api.call("PUT", f"{V2}/jobs/{quote(other, safe='')}", submission(job, {})).status in (400, 404), other
    assert api.job(job)["job"] == job


def test_h49_an_id_is_taken_for_ever(api: Api) -> None:
    """Another job under an id that exists: 409; under one that was closed: 410."""
    job = api.submit(release=False)
    assert api.call("PUT", f"{V2}/jobs/{job}", submission(job, {"a.dat": b"x"})).status == 409
    api.call("POST", f"{V2}/jobs/{job}/cancel", {})
    api.call("POST", f"{V2}/jobs/{job}/close", {})
    same = {"spec": spec(job), "inputs": [], "release": False}
    assert api.call("PUT", f"{V2}/jobs/{job}", same).status == 410


def test_h62_the_log_is_one_json_object_a_line(api: Api) -> None:
    """Whatever is in a path, a header or a name: each line parses, and none is what was sent."""
    forged = "x%0d%0a%7b%22level%22:%22forged%22%7d"
    for path in (f"{V2}/jobs/{forged}", f"/{forged}", f"{V2}/jobs/{uuid.uuid4()}/results/{forged}"):
        api.call("GET", path, headers={"User-Agent": '{"level":"forged"}'})
    lines = api.log()
    assert lines and all(line["level"] in ("info", "warning", "error") for line in lines)
    assert "forged" not in (api.root / "serve.log").read_text()
    assert any(line.get("status") == 404 and line.get("user") == "mint" for line in lines)
