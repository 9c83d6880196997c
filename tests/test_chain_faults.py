"""Nothing is lost on the whole way: server, database, agent and supervisor are killed at each of their named points,

and the job still ends as one job: its program was started once, and its results are identical byte by byte, or the call
ended with a clear error and the same call made again finished the job. All of it is real; who dies is started again.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from apiserver import SITE, Api, running, site
from chain import Chain, chain
from conftest import CLEAN, ROOT, eventually, free_port, make_program, make_site
from databases import MISSING, TOOLS, Postgres
from databases import cluster as running_cluster
from faultpoints import points
from resilience import add_program, check_site, declare, finish
from test_resilience_faults import Faults

from misrc.job.interface import Retry
from misrc.mint.legacy.workflow import Timing, Workflow, parse_words
from misrc.wire.legacy_progress import Status

DATA = random.Random(11).randbytes(3 << 20)


class Watch:
    """Starts again whatever of the way is dead, as systemd would."""

    def __init__(self, made: Chain, database: Postgres | None = None) -> None:
        self.made = made
        self.database = database
        self.restarts = 0
        self.error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *words: object) -> None:
        self._over.set()
        self._thread.join(120)
        assert self.error is None, self.error

    def _look(self) -> None:
        try:
            while not self._over.wait(0.05):
                self._revive()
        except BaseException as error:
            self.error = error

    def _revive(self) -> None:
        made = self.made
        if self.database is not None and not self.database.lives():
            self.restarts += 1
            self.database.start()
        if made.api.process is not None and made.api.process.poll() is not None:
            self.restarts += 1
            made.api.start()
        if made.agent is not None and made.agent.poll() is not None:
            self.restarts += 1
            made.start_agent()


def run_struck(made: Chain, name: str, database: Postgres | None = None, program: str = "large") -> int:
    """One job from `misrc run` to its close, with everything revived; how often something was started again."""
    source = made.mint.file("in.dat", DATA)
    results = name.replace(" ", "-")
    with Watch(made, database) as watch:
        # Only what still runs when its log is looked at has one that goes ahead of the results.
        program = "talks" if "api.log." in name else program
        finish(made.mint, "test-site", program, "--in", f"in.dat={source}", "--results", results)
        job = str(next(job["job"] for job in made.mint.jobs() if job["results"].endswith("/" + results)))
        eventually(lambda: _state(made.api, job) == "closed", 60, "the close")
        state = made.site.job_file(job, "job.json")
        eventually(lambda: '"closed"' in state.read_text(encoding="utf-8"), 60, "the close at the site")
        # What is struck after the end, such as a purge, is struck now.
        eventually(lambda: watch.restarts or "api." not in name, 30, "the fault")
    assert (made.mint.root / results / "out.dat").read_bytes() == DATA, name
    assert sorted(path.name for path in (made.mint.root / results).iterdir()) == ["out.dat", "remote_program_exec.log"]
    check_site(made.site, job)
    return watch.restarts


def _state(api: Api, job: str) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(api.call("GET", f"/mi-distcomp-api/v2/jobs/{job}", token="chain-mint").json["state"])
    return None


def prepare(made: Chain) -> None:
    add_program(made.site, "large", "cat *.dat > .all; mv .all out.dat\n")
    add_program(made.site, "talks", "echo begun; sleep 5; cat *.dat > .all; mv .all out.dat\n")
    declare(made.mint, "large")
    declare(made.mint, "talks")
    made.declare()
    made.configure()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with chain(tmp_path_factory.mktemp("struck") / "lab", faults=True) as made:
        prepare(made)
        yield made


@pytest.mark.parametrize("point", points("chain"))
def test_h58_a_kill_of_the_server_at_each_point(whole: Chain, point: str) -> None:
    """SIGKILL of the API server at this point, in a job with large files: one start, identical results."""
    faults = Faults(whole.api.faults)
    if ".seen." in point:  # the first poll after a start is noted at once, the next ones later
        whole.api.kill()
        faults.arm(point)
        with contextlib.suppress(AssertionError):
            whole.api.start()
    else:
        faults.arm(point)
    assert run_struck(whole, point) >= 1
    assert faults.struck()


@pytest.mark.full
@pytest.mark.parametrize("point", sorted({*points("agent-large"), *points("agent-small"), *points("supervisor")}))
def test_p42_a_kill_at_the_site_of_the_whole_way(whole: Chain, point: str) -> None:
    """SIGKILL of agent, transfer worker, supervisor or monitor with the real server: one start, identical results."""
    assert whole.site.faults is not None
    faults = Faults(whole.site.faults)
    faults.arm(point)
    run_struck(whole, point)
    # The server gives nothing small out of a large job.
    assert faults.struck() or point == "ledger.leave.written"


# -- the database --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    if not TOOLS:
        pytest.skip(MISSING)
    with running_cluster() as made:
        yield made


@pytest.fixture(scope="module")
def stored(cluster: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """The whole way on PostgreSQL."""
    with chain(tmp_path_factory.mktemp("stored") / "lab", server=lambda root: Api(root, cluster.url())) as made:
        prepare(made)
        yield made


def arm_database(made: Chain, cluster: Postgres, point: str) -> Faults:
    """When the server passes the point, the database's first process is killed; its others die with it."""
    made.api.kill()
    made.api.more["MISRC_FAULTS_PARENT"] = str(cluster.pid)
    faults = Faults(made.api.faults)
    faults.arm(point, "kill-parent")
    made.api.start()
    return faults


@pytest.mark.parametrize("point", points("chain"))
def test_h58_a_kill_of_the_database_at_each_point(stored: Chain, cluster: Postgres, point: str) -> None:
    """SIGKILL of PostgreSQL while the server is at this point: it goes on when the database is back."""
    faults = arm_database(stored, cluster, point)
    first = cluster.pid
    run_struck(stored, f"db {point}", cluster)
    assert faults.struck("kill-parent") and cluster.pid != first


@pytest.mark.full
@pytest.mark.parametrize("number", range(10))
def test_h58_a_database_that_stops_at_any_moment(stored: Chain, cluster: Postgres, number: int) -> None:
    """An immediate stop, as a power cut: at seeded moments of a job, three times each."""
    seeded = random.Random(number)
    over = threading.Event()

    def strike() -> None:
        for _ in range(3):
            if not over.wait(seeded.uniform(0.1, 2.0)) and cluster.lives():
                cluster.kill()

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    try:
        # The program that takes its time: the first strike comes before the end on a quick machine too.
        assert run_struck(stored, f"stop-{number}", cluster, "talks") >= 1
    finally:
        over.set()
        thread.join(60)
        if not cluster.lives():
            cluster.start()


# -- the predecessor's calls ---------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Api, Path, Path]]:
    """A server and a site of ours that speak the predecessor's protocol; its script counts its starts."""
    made = make_site(tmp_path / "site-host")
    body = f'echo "$MISRC_JOB_ID" >> {made.root}/starts\ncat a.dat > out.txt\n'
    path = make_program(made.root / "programs/old", body)
    rule = {"path": str(path), "command": str(path), "returns": ["*.txt"], "logs": "full", "network": "allow"}
    made.policy["programs"] = {"old": rule}
    made.install()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "s/tls/ca.pem"))
    declared = {"command": str(path), "inputs": {"*": "optional"}, "outputs": {"out.txt": "required"}}
    times = {"fetched": 1}
    with running(tmp_path / "s", hosts=[], listen=[f"127.0.0.1:{free_port()}"], times=times) as api:
        api.declare(site(SITE, legacy_ids=["UnivB_Lab"], programs={"old": declared}))
        api.kill()
        api.start()
        words = ["UnivB_Lab", "https://localhost", api.tokens["agent"], f"port:{api.port}", "retry:60,0.3"]
        environment = {**CLEAN, "MISRC_PREFIX": str(made.prefix), "MISRC_POLL": "1"}
        with (tmp_path / "remote.log").open("ab") as log:
            process = subprocess.Popen(
                ["/usr/bin/python3", ROOT / "scripts/mi-system-remote.py", *words, f"no_auth:{api.root}/tls/ca.pem"],
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            yield api, path, made.root / "starts"
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("point", points("api-old"))
def test_h58_a_killed_server_serves_old_clients_on(old: tuple[Api, Path, Path], tmp_path: Path, point: str) -> None:
    """SIGKILL between the predecessor's calls: its workflow and its poller try again, and the job was computed once."""
    api, path, starts = old
    (tmp_path / "a.dat").write_bytes(DATA)
    api.strike(point)
    words = [f"https://localhost:{api.port}", "UnivB_Lab", api.tokens["workflow"], str(path), "a.dat", "out.txt", ""]
    ended: list[Status] = []
    run = Workflow(parse_words(words, {}), Timing(0.05, 60.0, Retry(60, 0.3)), tmp_path, lambda text: None)
    thread = threading.Thread(target=lambda: ended.append(run.run()), daemon=True)
    thread.start()

    def over() -> bool:
        assert api.process is not None
        if api.process.poll() is not None:
            api.start()
        return not thread.is_alive() and (api.faults / "kill.struck").exists()

    eventually(over, 90, "the end and the fault")
    assert ended == [Status.COMPLETED]
    assert (tmp_path / "out.txt").read_bytes() == DATA
    assert len(starts.read_text().split()) == 1
