"""Claims, leases and fences, and a server that is killed: no job is lost, and none is held twice.

Run on SQLite and, where Debian's PostgreSQL is installed, on PostgreSQL too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import SITE, V2, Api, b64, manifest, running, spec, submission
from conftest import eventually
from databases import MISSING, TOOLS, cluster, fresh
from faultpoints import points


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    if not TOOLS:
        pytest.skip(MISSING)
    with cluster() as made:
        yield made.url()


@pytest.fixture(scope="module")
def server(database: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("api") / "s", database, times={"lease": 3}) as server:
        yield server


@pytest.fixture
def api(server: Api) -> Api:
    """The server, with no job of another test in its queue."""
    if server.process is not None and server.process.poll() is not None:
        server.start()
    for claim in server.poll(str(uuid.uuid4()), room=1000)["claims"]:
        server.end(claim, {}, outcome="failed")
    return server


def agents(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


def at_once(*work: Callable[[], Any]) -> list[Any]:
    """Do all of it, released together; what each gave."""
    barrier, found = threading.Barrier(len(work)), [None] * len(work)

    def do(number: int) -> None:
        barrier.wait()
        found[number] = work[number]()

    threads = [threading.Thread(target=do, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.full)])
def test_h52_fifty_agents_claim_one_job(api: Api, rounds: int) -> None:
    """All at the same moment: one gets it, with one fence; the others get nothing, and no failure."""
    for _ in range(rounds):
        job = api.submit()
        found = at_once(*[lambda agent=agent: api.poll(agent) for agent in agents(50)])
        claims = [claim for work in found for claim in work["claims"]]
        assert [claim["job"] for claim in claims] == [job] and claims[0]["fence"] == 1
        assert api.end(claims[0], {}, outcome="failed").status == 200


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.full)])
def test_h52_fifty_agents_at_two_servers_claim_one_job(
    api: Api, database: str | None, tmp_path: Path, rounds: int
) -> None:
    """The same where two processes serve one store: they do not know of each other, and the store decides."""
    with beside(api, database, tmp_path) as second:
        doors = (api, second)
        for _ in range(rounds):
            job = api.submit()
            found = at_once(*[lambda n=n, a=a: doors[n % 2].poll(a) for n, a in enumerate(agents(50))])
            claims = [claim for work in found for claim in work["claims"]]
            assert [(claim["job"], claim["fence"]) for claim in claims] == [(job, 1)]
            assert second.end(claims[0], {}, outcome="failed").status == 200
            assert api.job(job)["outcome"] == "failed"


@contextlib.contextmanager
def beside(api: Api, database: str | None, root: Path) -> Iterator[Api]:
    """One more server process on the same store."""
    second = Api(root / "second", database or api.config["database"], times={"lease": 3})
    second.config["spool"] = api.config["spool"]
    second.write_config()
    second.tokens = api.tokens
    second.start()
    try:
        yield second
    finally:
        second.kill()


def test_h52_agents_that_wait_get_one_job_each(api: Api) -> None:
    """Twenty agents wait, twenty jobs come: each job goes to one agent, and nobody gets two."""
    waiting: list[Any] = []
    threads = [threading.Thread(target=lambda a=a: waiting.append(api.poll(a, wait=20))) for a in agents(20)]
    for thread in threads:
        thread.start()
    jobs = at_once(*[api.submit] * 20)
    for thread in threads:
        thread.join(60)
    claims = [work["claims"] for work in waiting]
    assert sorted(claim["job"] for (claim,) in claims) == sorted(jobs)
    for (claim,) in claims:
        api.end(claim, {}, outcome="failed")


def test_h53_a_lost_answer_loses_no_job(api: Api) -> None:
    """The same agent asks again and gets the same claim; another one gets nothing."""
    job = api.submit()
    agent, other = agents(2)
    with api.stream() as stream:  # the answer is never read
        body = f'{{"agent":"{agent}","room":1}}'.encode()
        lines = (
            f"POST {V2}/sites/{SITE}/poll HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {api.tokens['agent']}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        )
        stream.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        eventually(lambda: _rows(api, f"SELECT agent FROM jobs WHERE job = '{job}'") == [(agent,)], what="the claim")
        assert api.poll(other)["claims"] == []
    first, again = api.claim(agent), api.claim(agent)
    assert first == again and first["job"] == job and first["fence"] == 1
    assert api.poll(agent, holding=[{"job": job, "fence": 1}])["claims"] == []
    api.end(first, {}, outcome="failed")


def test_h54_a_stale_agent_changes_nothing(api: Api) -> None:
    """A lease runs out before a report: the next agent gets a higher fence, and the old one is refused everywhere."""
    job = api.submit({"a.dat": b"x"})
    old, new = agents(2)
    stale = api.claim(old)
    claim = eventually(lambda: api.poll(new)["claims"], what="the lease's end")[0]
    assert claim["job"] == job and claim["fence"] == stale["fence"] + 1
    fence = {"Misrc-Fence": str(stale["fence"])}
    before = api.job(job)
    answers = [
        api.report(stale, "running"),
        api.end(stale, {"out.dat": b"stale"}),
        api.call("POST", f"{V2}/claims/{job}/log?offset=0", b"stale", "agent", fence),
        api.upload(f"{V2}/claims/{job}/results/out.dat", b"stale", "agent", **fence),
        api.call("GET", f"{V2}/claims/{job}/inputs/a.dat", None, "agent", fence),
    ]
    assert [answer.status for answer in answers] == [412] * 5
    assert all(answer.code == "fenced" for answer in answers)
    assert api.job(job) == before
    assert api.poll(old, room=0, holding=[{"job": job, "fence": stale["fence"]}])["lost"] == [job]
    assert api.end(claim, {"out.dat": b"right"}).status == 200
    assert api.call("GET", f"{V2}/jobs/{job}/results/out.dat").body == b"right"


def test_h55_leases_run_by_the_servers_clock(api: Api) -> None:
    """An agent whose clock is a day off keeps its job by polling, and its times are not the server's."""
    job = api.submit()
    agent = agents(1)[0]
    claim = api.claim(agent)
    held = [{"job": job, "fence": claim["fence"]}]
    end = time.monotonic() + 5
    while time.monotonic() < end:
        assert api.report(claim, "running", since=time.time() - 86400).status == 200
        assert api.poll(agent, wait=1, room=0, holding=held)["lost"] == []
    seen = api.job(job)
    assert abs(seen["since"] - time.time()) < 60 and "silent_since" not in seen
    api.end(claim, {}, outcome="failed")


def test_h57_a_cancel_at_the_moment_of_a_claim(api: Api) -> None:
    """Whoever is first, the job ends as cancelled, and an agent that has it is told."""
    for _ in range(5):
        job = api.submit()
        agent = agents(1)[0]
        cancelled, work = at_once(
            functools.partial(api.call, "POST", f"{V2}/jobs/{job}/cancel", {}),
            functools.partial(api.poll, agent),
        )
        assert cancelled.status == 200
        for claim in work["claims"]:
            orders = api.report(claim, "queued")
            if orders.json["cancel"]:
                ended = {"fence": claim["fence"], "outcome": "cancelled"}
                assert api.call("POST", f"{V2}/claims/{job}/end", ended, "agent").status == 200
        assert api.job(job)["outcome"] == "cancelled"


def test_h51_an_order_that_cannot_be_is_refused(api: Api) -> None:
    """Close before the end, a report before a claim, results before the end, a release that has no inputs: 409, 412."""
    job = str(uuid.uuid4())
    assert api.call("PUT", f"{V2}/jobs/{job}", {"spec": spec(job, 1, 5)}).status == 201
    assert api.call("POST", f"{V2}/jobs/{job}/close", {}).status == 409
    assert api.call("POST", f"{V2}/jobs/{job}/release", {"manifest": manifest({"a.dat": b"12345"})}).status == 409
    assert api.call("POST", f"{V2}/jobs/{job}/release", {"manifest": manifest({"a.dat": b"1234"})}).status == 422
    assert api.report({"job": job, "fence": 0}, "running").status == 412
    assert api.call("GET", f"{V2}/jobs/{job}/documents").status == 409
    assert api.call("GET", f"{V2}/jobs/{job}/results/out.dat").status == 409
    assert api.job(job)["state"] == "created"
    for state in ("created", "staged", "ended", "closed"):
        free = api.submit()
        claim = next(c for c in api.poll(agents(1)[0], room=50)["claims"] if c["job"] == free)
        assert api.report(claim, state).status == 400
        api.end(claim, {}, outcome="failed")


def test_two_servers_on_one_store(api: Api, database: str | None, tmp_path: Path) -> None:
    """What one process changes, a poll that waits at the other sees within a second; revocation too."""
    with beside(api, database, tmp_path) as second:
        found: list[Any] = []
        agent = agents(1)[0]
        thread = threading.Thread(target=lambda: found.append((second.poll(agent, wait=30), time.monotonic())))
        thread.start()
        ask = "/mi-distcomp-api/calc-request?site_id=UnivB_Lab"
        assert second.call("GET", ask, token="agent").json["errors"][0]["code"] == 404
        time.sleep(1)  # the poll is under way; the measure begins with the submission
        started = time.monotonic()
        job = api.submit()
        thread.join(30)
        work, when = found[0]
        assert work["claims"][0]["job"] == job and when - started < 1.5
        version = second.job(job)["version"]
        thread = threading.Thread(
            target=lambda: found.append((second.job(job, version=version, wait=30), time.monotonic()))
        )
        thread.start()
        claim = work["claims"][0]
        assert api.report(claim, "running").status == 200
        thread.join(30)
        assert found[1][0]["state"] == "running"
        api.end(claim, {}, outcome="failed")
        later = api.submit()
        request = lambda: second.call("GET", ask, token="agent").json["errors"][0].get("accept_id") == later  # noqa: E731
        eventually(request, 1.5, "the other process's commit")
        api.call("POST", f"{V2}/jobs/{later}/cancel", {})


@pytest.mark.parametrize("point", points("api"))
def test_h58_a_killed_server_loses_nothing(api: Api, point: str) -> None:
    """SIGKILL before and after each commit: the calls are repeated, and the job has been done once, whole."""
    job, agent = str(uuid.uuid4()), agents(1)[0]
    body = submission(job, {"a.dat": b"in"})
    api.strike(point)

    def insist(call: Callable[[], Any]) -> Any:
        """As a client does: the same call again when there was no answer."""
        for _ in range(3):
            try:
                return call()
            except OSError:
                assert api.process is not None and api.process.wait(10) == -9
                api.start()
        raise AssertionError("the server does not stay up")

    assert insist(lambda: api.call("PUT", f"{V2}/jobs/{job}", body)).status in (200, 201)
    claim = insist(lambda: next(c for c in api.poll(agent)["claims"] if c["job"] == job))
    assert claim["fence"] == 1 and claim["small"] == {"a.dat": b64(b"in")}
    assert insist(lambda: api.report(claim, "running")).status == 200
    assert insist(lambda: api.end(claim, {"out.dat": b"out"})).json["missing"] == []
    assert insist(lambda: api.call("GET", f"{V2}/jobs/{job}/results/out.dat")).body == b"out"
    assert insist(lambda: api.call("POST", f"{V2}/jobs/{job}/close", {})).json["state"] == "closed"
    # The purge of an earlier test's job may have been struck instead.
    if ".purge." in point and not (api.faults / "kill.struck").exists():
        assert api.process is not None and api.process.wait(20) == -9
        api.start()
    assert (api.faults / "kill.struck").exists()
    (api.faults / "kill.struck").unlink()
    seen = insist(lambda: api.job(job))
    assert (seen["state"], seen["outcome"]) == ("closed", "succeeded")


@pytest.mark.parametrize("point", points("api-cancel"))
def test_h58_a_killed_server_cancels_once(api: Api, point: str) -> None:
    """SIGKILL before and after the commit of a cancel: said again, the job is cancelled, and no site ever sees it."""
    job = api.submit()
    api.strike(point)
    with pytest.raises(OSError):
        api.call("POST", f"{V2}/jobs/{job}/cancel", {})
    assert api.process is not None and api.process.wait(10) == -9
    (api.faults / "kill.struck").unlink()
    api.start()
    assert api.call("POST", f"{V2}/jobs/{job}/cancel", {}).json["outcome"] == "cancelled"
    assert api.poll(agents(1)[0])["claims"] == []


@pytest.mark.parametrize("point", points("api-housekeeping"))
def test_h58_a_killed_server_keeps_house(database: str | None, tmp_path: Path, point: str) -> None:
    """SIGKILL while time alone decides: the next server expires and deletes what was due, once, and nothing else."""
    if database is not None:
        pytest.skip("the statements are the same; test_h58_an_id_stays_gone runs them there")
    with running(tmp_path / "s", times={"untaken": 1}, keep_days=1) as api:
        job, late = api.submit(), api.submit()
        for each in (job, late):
            assert eventually(lambda each=each: _ended(api, each), what="the expiry")["outcome"] == "expired"
        assert api.call("POST", f"{V2}/jobs/{job}/close", {}).status == 200
        eventually(lambda: _rows(api, f"SELECT purged FROM jobs WHERE job = '{job}'") == [(1,)], what="the purge")
        _rows(api, f"UPDATE jobs SET since = since - 90000 WHERE job = '{job}'")
        _rows(api, f"UPDATE jobs SET state = 'staged', outcome = NULL, ending = NULL WHERE job = '{late}'")
        api.kill()
        api.strike(point)
        with contextlib.suppress(AssertionError, OSError):
            api.start()
            api.poll(agents(1)[0], room=0)
        assert api.process is not None and api.process.wait(30) == -9
        assert (api.faults / "kill.struck").exists()
        api.start()
        eventually(lambda: _rows(api, "SELECT job FROM gone") == [(job,)], what="the deletion")
        assert eventually(lambda: _ended(api, late), what="the expiry")["outcome"] == "expired"
        assert api.call("GET", f"{V2}/jobs/{job}").code == "gone"


def test_a_stop_answers_who_waits(api: Api) -> None:
    """SIGTERM: polls come back empty at once, the process ends well, and after the next start all is there."""
    job = api.submit(release=False)
    version = api.job(job)["version"]
    found: list[Any] = []
    agent = agents(1)[0]
    threads = [
        threading.Thread(target=lambda: found.append(api.poll(agent, wait=50, room=0))),
        threading.Thread(target=lambda: found.append(api.job(job, version=version, wait=50))),
    ]
    for thread in threads:
        thread.start()
    time.sleep(1)  # both are under way
    started = time.monotonic()
    assert api.stop() == 0
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - started < 40 and len(found) == 2
    api.start()
    assert api.job(job)["version"] == version


def test_what_nobody_releases_or_takes_expires(database: str | None, tmp_path: Path) -> None:
    """After the declared times, with a final state that says why; a silent site's job only after its patience."""
    if database is not None:
        pytest.skip("the rule is the same SQL; PostgreSQL runs it in the other tests")
    from apiserver import site

    with running(tmp_path / "s", times={"unreleased": 1, "untaken": 1, "lease": 1}) as api:
        api.declare(site(SITE, give_up_after="4s"))
        forgotten, untaken = api.submit(release=False), api.submit()
        for job, words in ((forgotten, "never released"), (untaken, "no site took it")):
            seen = eventually(lambda job=job: _ended(api, job), what="the expiry")
            assert seen["outcome"] == "expired" and words in seen["reason"]
        silent = api.submit()
        claim = api.claim(agents(1)[0])
        api.report(claim, "running")
        started = time.monotonic()
        seen = eventually(lambda: _ended(api, silent), what="the patience's end")
        assert seen["outcome"] == "lost" and time.monotonic() - started > 3
        assert api.report(claim, "running").json == {"cancel": True, "close": False, "missing": []}


def test_h58_an_id_stays_gone_when_its_record_is_deleted(database: str | None, tmp_path: Path) -> None:
    """After `keep_days` a closed job's record goes; its id is refused ever after, and no agent is offered it again."""
    with running(tmp_path / "s", database and fresh(database), keep_days=1) as api:
        job, young, agent = str(uuid.uuid4()), api.submit(), agents(1)[0]
        body = submission(job, {"a.dat": b"in"})
        assert api.call("PUT", f"{V2}/jobs/{job}", body).status == 201
        for claim in api.poll(agent, room=10)["claims"]:
            assert api.end(claim, {}, outcome="failed").status == 200
            assert api.call("POST", f"{V2}/jobs/{claim['job']}/close", {}).status == 200
        eventually(lambda: _rows(api, f"SELECT purged FROM jobs WHERE job = '{job}'") == [(1,)], what="the purge")
        assert api.call("PUT", f"{V2}/jobs/{job}", body).code == "gone"
        _rows(api, f"UPDATE jobs SET since = since - 90000 WHERE job = '{job}'")
        api.kill()
        api.start()
        eventually(lambda: _rows(api, f"SELECT job FROM jobs WHERE job = '{job}'") == [], what="the deletion")
        assert _rows(api, f"SELECT owner FROM gone WHERE job = '{job}'") == [("mint",)]
        for method, path, said in (
            ("PUT", "", body),
            ("GET", "", None),
            ("POST", "/close", {}),
            ("POST", "/cancel", {}),
        ):
            assert api.call(method, f"{V2}/jobs/{job}{path}", said).code == "gone"
        assert api.call("PUT", f"{V2}/jobs/{job}", body, "other-workflow").code == "forbidden"
        assert api.call("GET", f"{V2}/jobs/{job}", None, "other-workflow").code == "unknown"
        held = [{"job": job, "fence": 1}]
        assert api.poll(agent, holding=held) == {"claims": [], "cancel": [], "close": [], "lost": [job]}
        assert api.job(young)["state"] == "closed"
        again = api.submit()
        assert [claim["job"] for claim in api.poll(agent)["claims"]] == [again]


def _rows(api: Api, statement: str) -> list[Any]:
    """What an operator's own statement gives, beside the server that runs."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(api.config["database"].replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.begin() as connection:
            found = connection.execute(sqlalchemy.text(statement))
            return [tuple(row) for row in found] if found.returns_rows else []
    finally:
        engine.dispose()


def _ended(api: Api, job: str) -> Any:
    seen = api.job(job)
    return seen if seen["state"] == "ended" else None


def test_the_schema_is_what_its_steps_make(tmp_path: Path) -> None:
    """The steps from an empty database give exactly the declared tables; a later release's database is refused."""
    import sqlalchemy

    from misrc.api import schema
    from misrc.api.database import Database
    from misrc.api.notifier import Notifier
    from misrc.job.errors import BadRequest

    url = f"sqlite:///{tmp_path}/x.db"
    database = Database(url, Notifier())
    database.prepare()
    database.prepare()
    engine = sqlalchemy.create_engine(url)
    found = sqlalchemy.inspect(engine)
    for table in schema.METADATA.tables.values():
        columns = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
        assert list(columns) == [column.name for column in table.columns]
        declared = {column.name: column.nullable for column in table.columns if not column.primary_key}
        assert {name: columns[name] for name in declared} == declared
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("INSERT INTO schema_version VALUES (999)"))
    engine.dispose()
    with pytest.raises(BadRequest, match="later release"):
        database.prepare()
    database.close()
    assert os.path.exists(tmp_path / "x.db")
