"""v2 of the API: a job's whole way between a workflow and an agent, against the real server."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import OTHER_SITE, SITE, V2, Api, Reply, b64, digest, manifest, running, spec, submission
from conftest import eventually


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("api") / "s") as server:
        yield server


@pytest.fixture
def agent() -> str:
    return str(uuid.uuid4())


def test_a_small_job_goes_all_the_way(api: Api, agent: str) -> None:
    """Registered and released in one call, claimed, reported, ended; documents and results come back as they were."""
    job = api.submit({"a.dat": b"hello", "b.dat": b""}, arguments={"mesh": "fine"})
    assert api.job(job)["state"] == "staged"
    claim = api.claim(agent)
    assert claim["job"] == job and claim["small"] == {"a.dat": b64(b"hello"), "b.dat": ""}
    assert claim["manifest"] == manifest({"a.dat": b"hello", "b.dat": b""})
    for state in ("queued", "running"):
        assert api.report(claim, state).json == {"cancel": False, "close": False, "missing": []}
        assert api.job(job)["state"] == state
    results = {"out.dat": b"42", "計算.txt": "結果".encode(), "sub/x.txt": b""}
    assert api.end(claim, results).json["missing"] == []
    seen = api.job(job)
    assert (seen["state"], seen["outcome"]) == ("ended", "succeeded")
    assert {r["name"]: r["size"] for r in seen["results"]} == {"out.dat": 2, "計算.txt": 6, "sub/x.txt": 0}
    assert seen["small"] == {name: b64(data) for name, data in results.items()}
    for path, name in (("out.dat",) * 2, ("%E8%A8%88%E7%AE%97.txt", "計算.txt"), ("sub%2Fx.txt", "sub/x.txt")):
        assert api.call("GET", f"{V2}/jobs/{job}/results/{path}").body == results[name]
    assert api.call("GET", f"{V2}/jobs/{job}/results/sub/x.txt").status == 200
    documents = api.call("GET", f"{V2}/jobs/{job}/documents").json
    assert documents == {"manifest": manifest(results), "receipt": "{}\n", "signature": "sig"}
    closed = api.call("POST", f"{V2}/jobs/{job}/close", {})
    assert closed.json["state"] == "closed"
    work = api.poll(agent, room=0, holding=[{"job": job, "fence": claim["fence"]}])
    assert work["close"] == [job]
    assert api.call("GET", f"{V2}/jobs/{job}/documents").status == 410
    assert api.job(job)["state"] == "closed"


def test_large_files_go_in_pieces_both_ways(api: Api, agent: str) -> None:
    """Inputs and results of several MiB, in pieces from the offset that HEAD tells; the digest decides."""
    job, data = str(uuid.uuid4()), bytes(range(256)) * 20_000
    text = spec(job, 1, len(data))
    assert api.call("PUT", f"{V2}/jobs/{job}", {"spec": text}).status == 201
    path = f"{V2}/jobs/{job}/inputs/a.dat"
    first = api.call("PUT", path, data[:1000], headers={"Upload-Length": str(len(data)), "Repr-Digest": digest(data)})
    assert (first.status, first.headers["upload-offset"]) == (200, "1000")
    assert api.call("HEAD", path).headers["upload-offset"] == "1000"
    assert api.job(job)["inputs"] == [{"name": "a.dat", "size": len(data), "offset": 1000}]
    for start, stop in ((1000, 3_000_000), (3_000_000, len(data))):
        answer = api.call(
            "PATCH", path, data[start:stop],
            headers={"Upload-Offset": str(start), "Content-Type": "application/partial-upload"},
        )  # fmt: skip
        assert answer.headers["upload-offset"] == str(stop)
    assert answer.status == 201
    assert api.upload(path, data).status == 200
    released = api.call("POST", f"{V2}/jobs/{job}/release", {"manifest": manifest({"a.dat": data})})
    assert released.json["state"] == "staged"
    claim = api.claim(agent)
    there = f"{V2}/claims/{job}/inputs/a.dat"
    fence = {"Misrc-Fence": str(claim["fence"])}
    assert hashlib.sha256(api.call("GET", there, None, "agent", fence).body).digest() == hashlib.sha256(data).digest()
    rest = api.call("GET", there, None, "agent", {**fence, "Range": "bytes=4000000-"})
    assert (rest.status, rest.body) == (206, data[4_000_000:])
    result = data[::-1]
    missing = api.end(claim, {"out.dat": result}, small=False).json["missing"]
    assert missing == ["out.dat"] and api.job(job)["state"] != "ended"
    back = f"{V2}/claims/{job}/results/out.dat"
    assert api.upload(back, result, "agent", **fence).status == 201
    assert api.end(claim, {"out.dat": result}, small=False).json["missing"] == []
    assert api.call("GET", f"{V2}/jobs/{job}/results/out.dat").body == result


def test_an_answer_comes_with_the_change(api: Api, agent: str) -> None:
    """A poll that waits brings a job at its release, a waiting question each new version; both well within 1 s."""
    found: list[tuple[float, Any]] = []

    def wait() -> None:
        work = api.poll(agent, wait=20)
        found.append((time.monotonic(), work))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)  # the poll is under way; the measure begins with the submission
    released = time.monotonic()
    job = api.submit()
    thread.join()
    when, work = found[0]
    assert work["claims"][0]["job"] == job and when - released < 1
    version = api.job(job)["version"]
    thread = threading.Thread(target=lambda: found.append((0, api.job(job, version=version, wait=20))))
    thread.start()
    assert api.report(work["claims"][0], "running", progress={"done": 1, "total": 4, "unit": "steps"}).status == 200
    thread.join(5)
    seen = found[1][1]
    assert seen["state"] == "running" and seen["progress"]["total"] == 4 and seen["version"] > version
    assert api.end(work["claims"][0], {}, outcome="failed").status == 200


def test_the_log_grows_without_doubles(api: Api, agent: str) -> None:
    """Log bytes are kept once whatever is repeated; a gap is refused with the right offset."""
    job = api.submit()
    claim = api.claim(agent)
    fence = {"Misrc-Fence": str(claim["fence"])}

    def post(offset: int, data: bytes) -> Reply:
        return api.call("POST", f"{V2}/claims/{job}/log?offset={offset}", data, "agent", fence)

    assert post(0, b"one\n").json == {"offset": 4}
    assert post(0, b"one\ntwo\n").json == {"offset": 8}
    assert post(0, b"one\n").json == {"offset": 8}
    gap = post(100, b"x")
    assert (gap.status, gap.headers["upload-offset"]) == (416, "8")
    log = api.call("GET", f"{V2}/jobs/{job}/log?offset=4")
    assert (log.body, log.headers["upload-offset"]) == (b"two\n", "8")
    assert api.job(job)["log_bytes"] == 8
    api.end(claim, {}, outcome="failed")


def test_every_call_may_be_repeated(api: Api, agent: str) -> None:
    """The same registration, release, end, close and cancel again: the same answer, and nothing twice."""
    job = str(uuid.uuid4())
    sent = submission(job, {"a.dat": b"x"})
    assert [api.call("PUT", f"{V2}/jobs/{job}", sent).status for _ in range(3)] == [201, 200, 200]
    release = {"manifest": manifest({"a.dat": b"x"})}
    assert [api.call("POST", f"{V2}/jobs/{job}/release", release).status for _ in range(2)] == [200, 200]
    claim = api.claim(agent)
    for _ in range(2):
        assert api.report(claim, "running").status == 200
    assert api.report(claim, "queued").status == 200
    assert api.job(job)["state"] == "running"
    for _ in range(2):
        assert api.end(claim, {"out.dat": b"r"}).json["missing"] == []
    assert api.report(claim, "running").status == 200
    assert api.job(job)["state"] == "ended"
    for _ in range(2):
        assert api.call("POST", f"{V2}/jobs/{job}/close", {}).status == 200
    assert api.call("PUT", f"{V2}/jobs/{job}", sent).code == "gone"


def test_a_cancel_reaches_whoever_has_the_job(api: Api, agent: str) -> None:
    """Before a claim it ends at once; afterwards the agent hears of it, at once and in each answer, and ends it."""
    free = api.submit()
    assert api.call("POST", f"{V2}/jobs/{free}/cancel", {}).json["outcome"] == "cancelled"
    job = api.submit()
    claim = api.claim(agent)
    assert claim["job"] == job
    api.report(claim, "running")
    assert api.call("POST", f"{V2}/jobs/{job}/cancel", {}).json["state"] == "running"
    held = [{"job": job, "fence": claim["fence"]}]
    started = time.monotonic()
    assert api.poll(agent, wait=20, room=0, holding=held)["cancel"] == [job]
    assert time.monotonic() - started < 15
    assert api.poll(agent, wait=1, room=0, holding=held)["cancel"] == [job]
    assert api.report(claim, "running").json["cancel"] is True
    ended = {"fence": claim["fence"], "outcome": "cancelled", "reason": "as asked"}
    assert api.call("POST", f"{V2}/claims/{job}/end", ended, "agent").status == 200
    assert api.job(job)["outcome"] == "cancelled"


def test_the_list_is_the_users_own(api: Api) -> None:
    """Oldest first, behind the one named, no more than asked for, and nobody else's."""
    jobs = [api.submit(release=False) for _ in range(3)]
    listed = [j["job"] for j in api.call("GET", f"{V2}/jobs?after={jobs[0]}&limit=1").json["jobs"]]
    assert listed == [jobs[1]]
    assert api.call("GET", f"{V2}/jobs", None, "other-workflow").json == {"jobs": []}


def test_undeclared_results_do_not_leave_the_server(api: Api, agent: str) -> None:
    """A name that the declaration lacks is never missing, never listed, refused as an upload; the job still ends."""
    job = api.submit()
    claim = api.claim(agent)
    fence = {"Misrc-Fence": str(claim["fence"])}
    assert api.upload(f"{V2}/claims/{job}/results/secret.key", b"k", "agent", **fence).code == "refused"
    assert api.end(claim, {"out.dat": b"1", "secret.key": b"k"}).json["missing"] == []
    assert [r["name"] for r in api.job(job)["results"]] == ["out.dat"]
    assert api.call("GET", f"{V2}/jobs/{job}/results/secret.key").status == 404


def test_the_declaration_is_asked(api: Api) -> None:
    """An undeclared site, program or argument is refused; the declared ones beside them are taken."""
    arguments = ({"arguments": {"mesh": "huge"}}, {"arguments": {"x": "1"}})
    for changes in ({"site": "nowhere"}, {"program": "other"}, *arguments):
        job = str(uuid.uuid4())
        assert api.call("PUT", f"{V2}/jobs/{job}", submission(job, {}, **changes)).code == "refused", changes
    job = str(uuid.uuid4())
    assert api.call("PUT", f"{V2}/jobs/{job}", submission(job, {}, site=OTHER_SITE)).status == 201


def test_a_declaration_that_changes_is_seen(api: Api) -> None:
    """A new site counts within seconds, without a restart; a wrong file leaves what was known in force."""
    from apiserver import site

    job = str(uuid.uuid4())
    assert api.call("PUT", f"{V2}/jobs/{job}", submission(job, {}, site="univ-new")).code == "refused"
    api.declare(site("univ-new"))

    def register() -> Reply:
        return api.call("PUT", f"{V2}/jobs/{job}", submission(job, {}, site="univ-new"))

    eventually(lambda: register().status in (200, 201), what="the new site")
    broken = api.root / "inventory/host_vars/univ-new.yml"
    broken.write_text("misrc_site: {id: univ-new}\n")
    eventually(lambda: "stays in force" in (api.root / "serve.log").read_text() or register() is None, what="the fault")
    assert api.submit(site=SITE)
    broken.unlink()


def test_silence_is_shown_and_ends_nothing(tmp_path: Path) -> None:
    """A claim that was confirmed stays with its agent when the lease runs out; the job is shown as silent."""
    with running(tmp_path / "s", times={"lease": 1}) as api:
        job = api.submit()
        agent = str(uuid.uuid4())
        claim = api.claim(agent)
        api.report(claim, "queued")
        eventually(lambda: "silent_since" in api.job(job), what="the silence")
        assert api.poll(str(uuid.uuid4()))["claims"] == []
        assert api.report(claim, "running").status == 200
        assert "silent_since" not in api.job(job)
