"""Who asks the API, and for what: tokens, tenancy, scopes, TLS, the gateway. Ids are those of `docs/attacks.md`."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sqlite3
import ssl
import statistics
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import OTHER_SITE, SITE, V2, Api, digest, running, submission
from conftest import CLEAN, MISRC, eventually

from misrc.api.proxies import find_client


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("api") / "s", hosts=["localhost"]) as server:
        yield server


def request(api: Api, *lines: str, method: str = "GET", path: str = V2 + "/jobs", body: bytes = b"") -> bytes:
    """A request of exactly these header lines; the answer's first line."""
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "Connection: close", "", ""])
    return api.raw(head.encode() + body, 5).split(b"\r\n")[0]


def bearer(api: Api, name: str = "workflow") -> str:
    return "Authorization: Bearer " + api.tokens[name]


def test_h01_only_one_well_formed_authorization_counts(api: Api) -> None:
    """None, empty, Basic, blanks, in the query, the cookie or the body: 401 and a challenge; two of them: 400."""
    token, host = api.tokens["workflow"], "Host: localhost"
    values = ("", "Bearer", "Bearer  ", f"Basic {token}", f"Bearer  {token}", token)
    for line in ("X: y", f"Cookie: token={token}", *(f"Authorization: {value}" for value in values)):
        assert b" 401 " in request(api, host, line), line
    answer = api.call("GET", f"{V2}/jobs?token={token}", token=None)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert b" 400 " in request(api, host, bearer(api), bearer(api))
    assert b" 200 " in request(api, host, bearer(api))


def test_h02_tokens_of_strange_bytes(api: Api) -> None:
    """Non-ASCII, NUL, 64 kB: refused, never a failure of ours."""
    for value in ("ü" * 64, "x" * 63 + "\x80", "Ａ" * 64):
        assert b" 401 " in request(api, "Host: localhost", f"Authorization: Bearer {value}"), value
    for value in ("x\0y", "x" * 65536):
        first = request(api, "Host: localhost", f"Authorization: Bearer {value}")
        assert b" 400 " in first or b" 431 " in first, first
    assert api.call("GET", V2 + "/jobs").status == 200


def test_h03_every_token_that_does_not_count_gets_the_same_answer(api: Api) -> None:
    """Unknown, expired and revoked: the same bytes. Revocation reaches calls that wait and uploads within a second."""
    api.add_token("short", "--user", "mint", "--scope", "workflow", "--expires", "1s")
    api.add_token("leaver", "--user", "mint", "--scope", "workflow")
    job = api.submit(release=False)
    version = api.job(job)["version"]
    assert api.call("GET", V2 + "/jobs", token="leaver").status == 200
    ended: list[tuple[float, int]] = []

    def wait() -> None:
        status = api.call("GET", f"{V2}/jobs/{job}?version={version}&wait=30", token="leaver").status
        ended.append((time.monotonic(), status))

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: api.call("GET", V2 + "/jobs", token="short").status == 401, what="the expiry")
    api.revoke("leaver")
    revoked = time.monotonic()
    eventually(lambda: api.call("GET", V2 + "/jobs", token="leaver").status == 401, what="the revocation")
    api.call("POST", f"{V2}/jobs/{job}/cancel", {})
    thread.join(30)
    assert ended[0][1] == 401 and ended[0][0] - revoked < 20
    answers = {api.call("GET", V2 + "/jobs", token=t).body for t in ("short", "leaver", "n" * 64)}
    assert len(answers) == 1


def every_call(api: Api, job: str) -> Iterator[tuple[str, str, object, dict[str, str]]]:
    """Each call that names a job, of the workflow's and of the site's side."""
    fence = {"Misrc-Fence": "1"}
    up = {"Upload-Length": "1", "Repr-Digest": digest(b"x")}
    part = {"Upload-Offset": "0", "Content-Type": "application/partial-upload"}
    base = f"{V2}/jobs/{job}"
    yield "GET", base, None, {}
    yield "GET", base + "?wait=1", None, {}
    yield "GET", base + "/documents", None, {}
    yield "GET", base + "/log", None, {}
    yield "GET", base + "/results/out.dat", None, {}
    yield "POST", base + "/release", {"manifest": ""}, {}
    yield "POST", base + "/cancel", {}, {}
    yield "POST", base + "/close", {}, {}
    yield "PUT", base + "/inputs/a.dat", b"x", up
    yield "HEAD", base + "/inputs/a.dat", None, {}
    yield "PATCH", base + "/inputs/a.dat", b"x", part
    claim = f"{V2}/claims/{job}"
    yield "POST", claim + "/report", {"fence": 1, "state": "running", "since": 0}, {}
    yield "POST", claim + "/end", {"fence": 1, "outcome": "lost"}, {}
    yield "POST", claim + "/log", b"x", fence
    yield "GET", claim + "/inputs/a.dat", None, fence
    yield "PUT", claim + "/results/out.dat", b"x", {**up, **fence}
    yield "HEAD", claim + "/results/out.dat", None, fence
    yield "PATCH", claim + "/results/out.dat", b"x", {**part, **fence}


def test_h04_somebody_elses_job_is_a_job_that_does_not_exist(api: Api) -> None:
    """Each call of each side on another user's job: the very answer that a missing job gets. The owner's own works."""
    job = api.submit({"a.dat": b"x"})
    api.claim(str(uuid.uuid4()))
    for theirs, nothing in zip(every_call(api, job), every_call(api, str(uuid.uuid4())), strict=True):
        method, path, body, headers = theirs
        token = "other-agent" if "/claims/" in path else "other-workflow"
        one, two = (api.call(method, p, body, token, headers) for p in (path, nothing[1]))
        assert (one.status, two.status) == (404, 404), path
        assert one.body == two.body
        assert {**one.headers, "date": ""} == {**two.headers, "date": ""}
    assert api.job(job)["state"] == "staged"
    assert api.call("GET", f"{V2}/claims/{job}/inputs/a.dat", None, "agent", {"Misrc-Fence": "1"}).body == b"x"


def test_h05_an_agent_asks_for_its_own_site_alone(api: Api) -> None:
    """Another site is refused whether it exists or not, with the same words."""
    poll = {"agent": str(uuid.uuid4())}
    real, fiction = (api.call("POST", f"{V2}/sites/{s}/poll", poll, "agent") for s in (OTHER_SITE, "univ-nowhere"))
    assert (real.status, real.body) == (fiction.status, fiction.body) and real.status == 403
    assert api.call("POST", f"{V2}/sites/{SITE}/poll", poll, "agent").status == 200


def test_h05_the_user_who_registers_and_the_one_whose_agent_takes_are_the_same(api: Api) -> None:
    """A site whose declaration names a user takes no other user's job, and an agent of another user sees none."""
    job = str(uuid.uuid4())
    assert api.call("PUT", f"{V2}/jobs/{job}", submission(job, {}), "other-workflow").code == "forbidden"
    api.add_token("stray-agent", "--user", "stray", "--scope", "agent", "--site", SITE)
    mine = api.submit()
    assert api.poll(str(uuid.uuid4()), token="stray-agent", room=10)["claims"] == []
    found = api.poll(str(uuid.uuid4()), room=1000)["claims"]
    assert mine in [claim["job"] for claim in found]


def test_h06_each_scope_has_its_own_calls(api: Api) -> None:
    """An agent on the workflow's calls, a workflow on the agent's, an operator on both: 403."""
    job = api.submit()
    for method, path, body, headers in every_call(api, job):
        wrong = "workflow" if "/claims/" in path else "agent"
        for token in (wrong, "operator"):
            assert api.call(method, path, body, token, headers).status == 403, (path, token)
    assert api.call("POST", f"{V2}/sites/{SITE}/poll", {"agent": str(uuid.uuid4())}, "workflow").status == 403


def test_h07_time_says_nothing_about_a_token(api: Api) -> None:
    """Tokens with a right and with a wrong beginning are told from one another by nothing in the time they take."""
    import asyncio

    from misrc.api.database import Database
    from misrc.api.notifier import Notifier
    from misrc.api.tokens import TokenBook

    async def measure() -> tuple[float, float]:
        database = Database(api.config["database"], Notifier())
        book, good = TokenBook(database, time.time), api.tokens["workflow"]
        near, far = (good[:63] + ("a" if good[63] != "a" else "b")).encode(), b"0" * 64
        found: dict[bytes, list[int]] = {near: [], far: []}
        assert await book.find(good.encode()) is not None
        for turn in range(10_000):
            for secret in (near, far) if turn % 2 else (far, near):
                start = time.perf_counter_ns()
                assert await book.find(secret) is None
                found[secret].append(time.perf_counter_ns() - start)
        database.close()
        return statistics.median(found[near]), statistics.median(found[far])

    near, far = asyncio.run(measure())
    assert abs(near - far) < 0.1 * max(near, far), (near, far)


def test_h09_a_replay_changes_nothing_and_another_body_is_refused(api: Api) -> None:
    """The same call again is answered as before; the same id with another spec is a conflict."""
    job = str(uuid.uuid4())
    body = submission(job, {"a.dat": b"x"})
    first = api.call("PUT", f"{V2}/jobs/{job}", body)
    again = api.call("PUT", f"{V2}/jobs/{job}", body)
    assert (first.status, again.status) == (201, 200) and first.json == again.json
    assert api.call("PUT", f"{V2}/jobs/{job}", submission(job, {"a.dat": b"yy"})).code == "conflict"
    assert api.job(job)["version"] == first.json["version"]


def test_h10_a_token_is_nowhere_but_with_its_owner(api: Api) -> None:
    """No token in the log, in any answer, in the process list or in the store, whatever was done with it."""
    token = api.add_token("canary", "--user", "mint", "--scope", "workflow")
    tails = ("", f"?token={token}", f"/{token}", f"/x/inputs/{token}")
    for path in (f"/{token}", *(f"{V2}/jobs{tail}" for tail in tails)):
        for method in ("GET", "PUT", "BREW"):
            assert token.encode() not in api.call(method, path, {"spec": token}, "canary").body
    broken = f"GET / HTTP/1.1\r\nAuthorization: Bearer {token}\r\nbad header\r\n\r\n".encode()
    assert token.encode() not in api.raw(broken, 2)
    listed = api.misrc("token", "list", "--config", str(api.root / "server.yml"), "--json")
    assert "canary" in listed and token not in listed
    places = [path for path in api.root.rglob("*") if path.is_file()]
    assert api.root / "api.db" in places
    assert [path for path in places if token.encode() in path.read_bytes()] == []
    commands = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert token not in commands and "serve --config" in commands


def test_h11_a_client_certificate_counts_for_nothing(api: Api) -> None:
    """None is asked for; whoever has one, even of the server's own CA, needs a token like everybody, and only that
    counts."""
    folder = api.root / "tls"
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    before, api.context = api.context, context
    try:
        assert api.call("GET", V2 + "/jobs", token=None).status == 401
        assert api.call("GET", V2 + "/jobs", token=None, headers={"X-SSL-Client-Verify": "SUCCESS"}).status == 401
        assert api.call("GET", V2 + "/jobs").status == 200
        poll = {"agent": str(uuid.uuid4())}
        assert api.call("POST", f"{V2}/sites/{OTHER_SITE}/poll", poll, "agent").status == 403
    finally:
        api.context = before


def test_h13_the_host_has_to_be_ours(api: Api) -> None:
    """A foreign, a missing, a second Host: 400. Forwarding headers change nothing. With a port ours still counts."""
    ok = bearer(api)
    assert b" 400 " in request(api, "Host: evil.example", ok)
    assert b" 400 " in request(api, ok)
    assert b" 400 " in request(api, "Host: localhost", "Host: localhost", ok)
    assert b" 200 " in request(api, "Host: localhost:50443", ok)
    assert b" 401 " in request(api, "Host: localhost", "X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1")
    absolute = request(api, "Host: localhost", ok, path=f"https://evil.example{V2}/jobs")
    assert b" 200 " in absolute or b" 40" in absolute


def test_h14_nothing_is_granted_to_a_browser(api: Api) -> None:
    """A preflight gets no CORS grant; a form's text/plain is no JSON."""
    origin = {"Origin": "https://evil.example"}
    answer = api.call("OPTIONS", f"{V2}/jobs", headers={**origin, "Access-Control-Request-Method": "PUT"})
    assert answer.status == 405 and not [name for name in answer.headers if name.startswith("access-control")]
    job = api.submit(release=False)
    form = api.call("POST", f"{V2}/jobs/{job}/cancel", b"{}", headers={"Content-Type": "text/plain", **origin})
    assert form.status == 415
    assert api.call("POST", f"{V2}/jobs/{job}/cancel", {}).status == 200


def test_h30_answers_are_not_compressed(api: Api) -> None:
    """Whatever a client says that it takes."""
    answer = api.call("GET", V2 + "/jobs", headers={"Accept-Encoding": "gzip, br, zstd"})
    assert answer.status == 200 and "content-encoding" not in answer.headers


def test_h82_there_is_nothing_to_look_at(api: Api) -> None:
    """Without a token every path but the health's is 401, with one 404; no documents, metrics or files are served."""
    for path in ("/", "/docs", "/openapi.json", V2 + "/openapi.json", "/metrics", "/debug", "/.git/config"):
        assert api.call("GET", path, token=None).status == 401, path
        assert api.call("GET", path).status == 404, path
    assert api.call("GET", V2 + "/health", token=None).json["status"] == "ok"


def test_health_says_so_where_the_jobs_cannot_be_read(api: Api) -> None:
    """A server that answers but has lost its store is not healthy; when the store is back, it is again."""

    def rename(old: str, new: str) -> None:
        with contextlib.closing(sqlite3.connect(api.root / "api.db", timeout=10)) as store:
            store.execute(f"ALTER TABLE {old} RENAME TO {new}")
            store.commit()

    rename("jobs", "away")
    try:
        answer = api.call("GET", V2 + "/health", token=None)
        assert (answer.status, answer.code) == (503, "paused")
    finally:
        rename("away", "jobs")
    assert api.call("GET", V2 + "/health", token=None).json["status"] == "ok"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", b"198.51.100.1", "203.0.113.9"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", b"192.0.2.66, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", b"198.51.100.1, nonsense\xff", "10.0.0.1"),
        ("10.0.0.1", b"2001:db8::1", "2001:db8::1"),
    ],
)
def test_the_log_names_the_nearest_address_that_is_no_trusted_proxy(peer: str, forwarded: bytes, client: str) -> None:
    """Only what a trusted proxy wrote counts; what a client wrote itself stands further left and does not."""
    assert find_client(peer, forwarded, [ipaddress.ip_network("10.0.0.0/24")]) == client


def test_h81_only_tls_1_2_and_1_3_with_good_ciphers(api: Api) -> None:
    """Old versions and weak suites are refused, plain HTTP learns nothing, and a client refuses a wrong certificate."""

    def handshake(context: ssl.SSLContext, name: str = "localhost") -> str:
        with socket.create_connection(("127.0.0.1", api.port), 5) as plain:
            with context.wrap_socket(plain, server_hostname=name) as done:
                return str(done.version())

    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=str(api.root / "tls/ca.pem"))
        context.minimum_version = context.maximum_version = version
        assert handshake(context) == version.name.replace("_", ".")
    old = ssl.create_default_context(cafile=str(api.root / "tls/ca.pem"))
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(old)
    weak = ssl.create_default_context(cafile=str(api.root / "tls/ca.pem"))
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA:AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(weak)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ssl.create_default_context(cafile=str(api.root / "tls/ca.pem")), "other.example")
    with socket.create_connection(("127.0.0.1", api.port), 5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        plain.settimeout(5)
        assert b"HTTP" not in plain.recv(1000)


def test_a_gateway_names_the_user_from_its_own_address_alone(tmp_path: Path) -> None:
    """The declared header counts from the declared address, and from no other; a token still counts beside it."""
    for source, status in (("127.0.0.1/32", 200), ("192.0.2.1/32", 401)):
        gateway = {"header": "X-MInt-User", "from": [source]}
        with running(tmp_path / str(status), gateway=gateway) as api:
            assert api.call("GET", V2 + "/jobs", token=None, headers={"X-MInt-User": "mint"}).status == status
            assert api.call("GET", V2 + "/jobs", token=None, headers={"X-MInt-User": "a b"}).status == 401
            assert api.call("GET", V2 + "/jobs", token=None).status == 401
            poll = {"agent": str(uuid.uuid4())}
            named = api.call("POST", f"{V2}/sites/{SITE}/poll", poll, None, {"X-MInt-User": "mint"})
            other = api.call("POST", f"{V2}/sites/{SITE}/poll", poll, None, {"X-MInt-User": "other"})
            assert (named.status, other.status) == ((200, 403) if status == 200 else (401, 401))
            assert api.call("GET", V2 + "/jobs").status == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise": 1}, "surprise"),
        ({"listen": ["0.0.0.0:1"], "tls": None}, "plain HTTP"),
        ({"listen": ["localhost:1"]}, "listen"),
        ({"database": "mysql://x/y"}, "database"),
        ({"tls": {"certificate": "/nonexistent", "key": "/nonexistent"}}, "certificate"),
        ({"inventory": None}, "inventory or ini"),
        ({"gateway": {"header": "Authorization", "from": ["127.0.0.1"]}}, "header"),
        ({"times": {"lease": "soon"}}, "lease"),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """One line that names the key; nothing is served. The same declaration without the change is taken (above)."""
    api = Api(tmp_path / "s", **change)
    command = [MISRC, "serve", "--config", str(api.root / "server.yml")]
    done = subprocess.run(command, check=False, env=CLEAN, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_token_that_exists_already_can_be_taken_over(api: Api) -> None:
    """From standard input, never from a command line; another length is refused."""
    config = str(api.root / "server.yml")
    secret = "K" * 32 + os.urandom(16).hex()
    assert api.misrc("token", "add", "--config", config, "kept", "--user", "mint", "--scope", "workflow", "--take",
                     input=secret + "\n") == ""  # fmt: skip
    eventually(lambda: api.call("GET", V2 + "/jobs", token=secret).status == 200, 3, "the token")
    words = [MISRC, "token", "add", "--config", config, "bad", "--user", "mint", "--scope", "workflow", "--take"]
    done = subprocess.run(words, check=False, env=CLEAN, input="short\n", capture_output=True, text=True)
    assert done.returncode == 2
