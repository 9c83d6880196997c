"""Two API hosts on one PostgreSQL and one spool behind a proxy, agents on three Debians: whatever dies, jobs go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra
from observing import eventually, good, request, score, start_run

PREFIX = os.environ.get("MISRC_HOSTS", "misrc")
FRONT = testinfra.get_host(f"podman://{PREFIX}-front")
ONE, TWO = (testinfra.get_host(f"podman://{PREFIX}-{name}") for name in ("one", "two"))
MADE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "made"
V2 = "/mi-distcomp-api/v2"
URL = f"https://{PREFIX}-front:50443{V2}"
MINT_TOKEN = (MADE / "mint.token").read_text().strip()
SIZE = 192 << 20

# Kills the service with SIGKILL while it has a file of the job open, and prints how much of the file was there. Of the
# hosts that run it together only the first one strikes. Words: job, side, size of the whole file, "write" or "read".
STRIKE = """
import os, subprocess, sys, time
job, side, size, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
start, flag = f"/srv/shared/spool/{job[:2]}/{job}/{side}-", f"/srv/shared/struck-{job}-{side}-{how}"

def find_service():
    return int(subprocess.check_output(["systemctl", "show", "-P", "MainPID", "misrc-api.service"]))

def find_transfer():
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = os.readlink(f"/proc/{pid}/fd/{name}")
        if path.startswith(start):
            here = os.stat(path).st_size
            with open(f"/proc/{pid}/fdinfo/{name}") as info:
                mode = int(info.read().split("flags:")[1].split()[0], 8) & os.O_ACCMODE
            if how == "read" and mode == os.O_RDONLY and here == size:
                return path
            if how == "write" and mode != os.O_RDONLY and (1 << 20) < here < size - (16 << 20):
                return path

pid, end = find_service(), time.monotonic() + 900
print("ready", flush=True)
while time.monotonic() < end and not os.path.exists(flag):
    try:
        path = find_transfer()
        if path:
            os.mkdir(flag)
            os.kill(pid, 9)
            while os.path.exists(f"/proc/{pid}/exe"):
                time.sleep(0.01)
            print("struck", os.stat(path).st_size)
            break
    except FileExistsError:
        break
    except OSError:
        if not os.path.exists(f"/proc/{pid}"):
            time.sleep(0.1)
            pid = find_service()
    time.sleep(0.002)
"""


@dataclass
class Site:
    """A site's host, and how its people look into it."""

    name: str
    root: bool

    @property
    def host(self) -> Any:
        return testinfra.get_host(f"podman://{PREFIX}-{self.name}")

    @property
    def agent(self) -> str:
        return "misrc-agent.service" if self.root else "alice-agent.service"

    def people(self, words: str) -> str:
        """What a command for the site's people prints."""
        if self.root:
            return good(self.host, f"/usr/bin/python3 /usr/libexec/misrc/misrc-site.pyz {words}")
        pyz = "/home/alice/.local/share/misrc/misrc-site.pyz"
        return good(self.host, f"HOME=/home/alice /usr/bin/python3 {pyz} {words}", "alice")

    def starts(self, job: str) -> int:
        """How often the job's program was started, by the ledger, whose chain must hold."""
        records = [json.loads(line) for line in self.people(f"ledger show --json --job {job}").splitlines()]
        return [record["event"] for record in records].count("run")


SITES = [Site("bullseye", False), Site("bookworm", True), Site("trixie", True)]


class Run:
    """One `misrc run` on MInt's node. Its program ends when `let_go` is called."""

    def __init__(self, site: Site, program: str, *words: str, held: bool = True, job: str = "") -> None:
        self.site, self.job, self.folder = site, job or str(uuid.uuid4()), f"/tmp/{uuid.uuid4()}"
        good(site.host, "touch /run/hold" if held else "rm -f /run/hold")
        self.process = start_run(f"{PREFIX}-front", self.folder, site.name, program, "--job", self.job, *words)

    def await_start(self) -> None:
        """Its program runs at the site."""
        eventually(lambda: self.site.starts(self.job) or self.process.poll() is not None, "the program runs", 600)
        assert self.process.poll() is None, self.end()

    def let_go(self) -> None:
        """The program may end."""
        good(self.site.host, "rm -f /run/hold")

    def end(self) -> tuple[int, str]:
        """Its exit status, and what it said to people."""
        _, said = self.process.communicate(timeout=900)
        return self.process.returncode, said

    def succeed(self) -> None:
        """It ends well, and its program was started once."""
        self.let_go()
        status, said = self.end()
        assert status == 0, said
        assert self.site.starts(self.job) == 1


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """Makes runs; none is left behind, here or at the site, whatever the test came to."""
    made: list[Run] = []

    def make(*words: Any, **more: Any) -> Run:
        made.append(Run(*words, **more))
        return made[-1]

    yield make
    for run in made:
        run.let_go()
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()
        good(FRONT, f"rm -rf {run.folder}")


def health(host: Any) -> str:
    """What one of the two servers says of itself, asked on its own host."""
    return request(host.backend.name, f"http://127.0.0.1:8082{V2}/health", "", f"{PREFIX}-front")


def ask(host: Any, token: str) -> str:
    """What one of the two servers says to a call with this token."""
    return request(host.backend.name, f"http://127.0.0.1:8082{V2}/jobs", token, f"{PREFIX}-front")


def await_both() -> None:
    """Both servers answer."""
    eventually(lambda: [health(host) for host in (ONE, TWO)] == ["200", "200"], "both servers answer")


def kill(host: Any) -> None:
    """SIGKILL; the service manager starts it again."""
    good(host, "systemctl kill --kill-whom=main --signal=KILL misrc-api.service")


class Ambush:
    """Waits on both hosts for a transfer, and kills the one that carries it."""

    def __init__(self, job: str, side: str, how: str) -> None:
        words = ["python3", "-c", STRIKE, job, side, str(SIZE + (1000 if side == "out" else 0)), how]
        self.waiting = [
            subprocess.Popen(
                ["podman", "exec", host.backend.name, *words], stdout=subprocess.PIPE, stderr=sys.stderr, text=True
            )
            for host in (ONE, TWO)
        ]
        for process in self.waiting:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"

    def strike(self) -> int:
        """Exactly one was struck; how many bytes of the file were there then."""
        said = [process.communicate(timeout=900)[0].split() for process in self.waiting]
        struck = [words for words in said if words]
        assert len(struck) == 1 and struck[0][0] == "struck", said
        await_both()
        return int(struck[0][1])


@pytest.fixture(autouse=True)
def served() -> None:
    """Each test begins with two servers that answer."""
    await_both()


# -- as the roles leave them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "unit", "most"),
    [
        (ONE, "misrc-api.service", 1.5),
        (TWO, "misrc-api.service", 1.5),
        (ONE, "misrc-api-backup.service", 1.5),
        (SITES[1].host, "misrc-agent.service", 2.0),
    ],
    ids=["one", "two", "backup", "agent"],
)
def test_services_are_shut_in(host: Any, unit: str, most: float) -> None:
    """systemd finds little to add to a service's confinement; of one without any it thinks otherwise."""
    assert score(host, unit) <= most
    assert score(host, "dbus.service") > 5


def test_the_shared_spool_belongs_to_the_same_account_on_both() -> None:
    """One number, whatever else the hosts have; nobody else reads it, and there is no database beside it."""
    for host in (ONE, TWO):
        assert good(host, "stat -c '%a %U:%G %u' /srv/shared/spool").strip() == "700 misrc-api:misrc-api 6450"
        assert good(host, "ls -A /var/lib/misrc-api").strip() == ""
        assert "/srv/shared" in good(host, "systemctl show -P RequiresMountsFor misrc-api.service")


def test_the_password_of_the_database_is_root_s_alone() -> None:
    """The account cannot read its file, and it stands in no command line, environment or journal; a canary is found."""
    secret = "not-a-secret"
    look = "{ journalctl --no-pager --namespace '*' --output export; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; }"
    for host in (ONE, TWO):
        assert good(host, "stat -c '%a %U' /etc/misrc-api/pgpass").strip() == "600 root"
        assert secret in good(host, "cat /etc/misrc-api/pgpass")
        good(host, "logger canary-of-the-test && journalctl --sync")
        for words, found in (("canary-of-the-test", True), (secret, False)):
            pattern = f"[{words[0]}]{words[1:]}"
            assert (host.run(f"{look} 2>/dev/null | grep -aq '{pattern}'").rc == 0) is found


def test_the_log_names_the_caller_behind_the_proxy() -> None:
    """A refused call of a site stands in the log with the site's address, not the proxy's."""
    site = SITES[1]
    address = good(site.host, "hostname -I").split()[0]
    for _ in range(4):
        assert request(f"{PREFIX}-bookworm", f"{URL}/jobs", "x" * 64, ca="/etc/misrc/mint-ca.pem") == "401"

    def seen() -> list[dict[str, Any]]:
        lines = "".join(good(host, "journalctl --namespace misrc-api -o cat") for host in (ONE, TWO)).splitlines()
        calls = [json.loads(line) for line in lines if line.startswith("{")]
        return [call for call in calls if call.get("status") == 401 and call.get("client") == address]

    assert len(eventually(seen, "the call is in the log")) >= 4


# -- jobs, and what dies meanwhile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_a_job_runs_on_each_debian(site: Site, start: Callable[..., Run]) -> None:
    """`misrc run` on MInt's node, the proxy, a server, the site's agent, and back."""
    run = start(site, "noop", held=False)
    run.succeed()
    assert good(FRONT, f"cat {run.folder}/out.dat") == "done\n"


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_hosts_may_die_in_every_phase(site: Site, start: Callable[..., Run]) -> None:
    """SIGKILL of a host while inputs come, while the agent fetches them, while agent and `misrc run` wait for news and
    the program runs, and while results come: the job ends, started once, with the same bytes."""
    given = f"/tmp/{uuid.uuid4()}.dat"
    good(FRONT, f"head -c {SIZE} /dev/urandom >{given} && chmod 0644 {given}")
    wanted = good(FRONT, f"{{ tail -c 1000 {given}; cat {given}; }} | sha256sum").split()[0]
    try:
        job = str(uuid.uuid4())
        coming, fetching = Ambush(job, "in", "write"), Ambush(job, "in", "read")
        run = start(site, "turn", "--in", f"in.dat={given}", job=job)
        assert coming.strike() < SIZE
        assert fetching.strike() == SIZE
        run.await_start()
        for host in (ONE, TWO):
            kill(host)
            await_both()
        results = Ambush(job, "out", "write")
        run.let_go()
        assert results.strike() < SIZE + 1000
        run.succeed()
        assert good(FRONT, f"sha256sum {run.folder}/back.dat").split()[0] == wanted
    finally:
        good(FRONT, f"rm -f {given}")
        good(ONE, "rm -rf /srv/shared/struck-*")


@pytest.mark.parametrize("host", [ONE, TWO], ids=["one", "two"])
def test_one_host_is_enough(host: Any, start: Callable[..., Run]) -> None:
    """While one is stopped for all of a job's life the other one does it; it came while the first was still there."""
    run = start(SITES[2], "hold")
    run.await_start()
    good(host, "systemctl stop misrc-api.service")
    try:
        run.succeed()
        start(SITES[2], "noop", held=False).succeed()
    finally:
        good(host, "systemctl start misrc-api.service")


def test_the_database_may_die(start: Callable[..., Run]) -> None:
    """SIGKILL of PostgreSQL while a program runs, which ends meanwhile: both servers say that they cannot work, and go
    on as soon as it is back; the job ends well, started once. Nobody restarts anything but the database."""
    site = SITES[1]
    run = start(site, "hold")
    run.await_start()
    before = [good(host, "systemctl show -P MainPID misrc-api.service") for host in (ONE, TWO)]
    unit = good(FRONT, 'pg_lsclusters -h | awk \'{print "postgresql@" $1 "-" $2 ".service"}\'').strip()
    good(FRONT, f"systemctl kill --signal=KILL {unit}; systemctl stop {unit}")
    try:
        eventually(lambda: [health(host) for host in (ONE, TWO)] == ["503", "503"], "both say it")
        assert request(f"{PREFIX}-front", f"{URL}/health", "") == "503"
        run.let_go()
        units = "systemctl list-units --plain --no-legend 'misrc-strict@*'"
        eventually(lambda: run.job not in good(site.host, units), "the program's end")
        assert run.process.poll() is None
    finally:
        good(FRONT, f"systemctl start {unit}")
    await_both()
    run.succeed()
    assert [good(host, "systemctl show -P MainPID misrc-api.service") for host in (ONE, TWO)] == before


def test_h03_a_revoked_token_is_refused_on_both_hosts_at_once() -> None:
    """Made on one host it counts on both; revoked on the other one it counts on neither, without a restart."""
    name = f"passing-{uuid.uuid4()}"
    token = good(ONE, f"/usr/local/sbin/misrc-api token add {name} --user mint --scope workflow").strip()
    assert [ask(host, token) for host in (ONE, TWO)] == ["200", "200"]
    good(TWO, f"/usr/local/sbin/misrc-api token revoke {name}")
    eventually(lambda: [ask(host, token) for host in (ONE, TWO)] == ["401", "401"], "the token is refused", 30)
    assert [ask(host, MINT_TOKEN) for host in (ONE, TWO)] == ["200", "200"]


def test_a_backup_brings_the_jobs_back(start: Callable[..., Run]) -> None:
    """Backed up while a program runs; database and spool lost; restored: the same job ends well, started once."""
    restore = "/usr/local/sbin/misrc-api store restore"
    account = "cd / && setpriv --reuid postgres --regid postgres --init-groups"
    run = start(SITES[1], "hold")
    run.await_start()
    good(ONE, "systemctl start misrc-api-backup.service")
    newest = good(ONE, "ls -d /srv/shared/backups/*Z | tail -1").strip()
    refused = ONE.run(f"{restore} {newest}")
    assert refused.rc != 0 and "holds a job store" in refused.stderr
    for host in (ONE, TWO):
        good(host, "systemctl stop misrc-api.service")
    try:
        for words in ("dropdb misrc", "createdb --owner=misrc --encoding=UTF8 --template=template0 misrc"):
            good(FRONT, f"{account} {words}")
        good(ONE, "find /srv/shared/spool -mindepth 1 -delete")
        restored = good(ONE, f"{restore} {newest}")
        assert restored.startswith("restored as of "), restored
    finally:
        for host in (ONE, TWO):
            good(host, "systemctl start misrc-api.service")
    await_both()
    run.succeed()
