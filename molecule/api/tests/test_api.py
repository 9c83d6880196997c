"""MInt's API server and a site that asks it for work, as the roles leave them: jobs, restarts, reboots, tokens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra
from observing import eventually, good, request, score, start_run

PREFIX = os.environ.get("MISRC_HOSTS", "misrc")
API = testinfra.get_host(f"podman://{PREFIX}-api")
SITE = testinfra.get_host(f"podman://{PREFIX}-asking")
MADE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "made"
URL = f"https://{PREFIX}-api:50443/mi-distcomp-api/v2"
PYZ = "/usr/bin/python3 /usr/libexec/misrc/misrc-site.pyz"


class Run:
    """One `misrc run` on MInt's node, beside the test. Programs that are held end when `let_go` is called."""

    def __init__(self, program: str) -> None:
        good(SITE, "touch /run/hold")
        self.process = start_run(f"{PREFIX}-api", "/tmp/results", "asking", program, "--new")

    def await_start(self) -> str:
        """The job's id, once its program runs at the site."""
        eventually(lambda: running_job() or self.process.poll() is not None, "the program runs")
        assert self.process.poll() is None, self.end()
        return running_job()

    def let_go(self) -> None:
        """The program may end."""
        good(SITE, "rm -f /run/hold")

    def end(self) -> tuple[int, str]:
        """Its exit status, and what it said to people."""
        _, said = self.process.communicate(timeout=180)
        return self.process.returncode, said


@pytest.fixture
def start() -> Iterator[Callable[[str], Run]]:
    """Makes runs; none is left behind, here or at the site, whatever the test came to."""
    made: list[Run] = []

    def make(program: str) -> Run:
        made.append(Run(program))
        return made[-1]

    yield make
    for run in made:
        run.let_go()
        try:
            run.end()
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.communicate()


def running_job() -> str:
    """The job whose unit runs at the site, or nothing."""
    listed = SITE.run("systemctl list-units --plain --no-legend --state=running 'misrc-strict@*'").stdout
    found = re.search(r"misrc-strict@([0-9a-f-]{36})\.service", listed)
    return found[1] if found else ""


def ledger(job: str) -> list[str]:
    """The events of one job in the site's ledger, whose chain must hold."""
    records = [json.loads(line) for line in good(SITE, f"{PYZ} ledger show --json").splitlines()]
    return [str(record["event"]) for record in records if record.get("job") == job]


def ask(token: str) -> str:
    """What the server says to a call with this token."""
    return request(f"{PREFIX}-api", f"{URL}/jobs", token)


@pytest.fixture(autouse=True)
def served() -> None:
    """Each test begins with a server that answers."""
    eventually(lambda: ask("x" * 64) == "401", "the server answers")


@pytest.mark.parametrize(
    ("host", "unit", "most"),
    [
        (API, "misrc-api.service", 1.5),
        (API, "misrc-api-backup.service", 1.5),
        (SITE, "misrc-agent.service", 2.0),
    ],
    ids=["api", "backup", "agent"],
)
def test_services_are_shut_in(host: Any, unit: str, most: float) -> None:
    """systemd finds little to add to a service's confinement; of one without any it thinks otherwise."""
    assert score(host, unit) <= most
    assert score(host, "dbus.service") > 5


@pytest.mark.parametrize(
    ("host", "path", "wanted"),
    [
        (API, "/etc/misrc-api/server.yml", "640 root:misrc-api"),
        (API, "/etc/misrc-api/key.pem", "640 root:misrc-api"),
        (API, "/etc/misrc-api/inventory/host_vars/asking.yml", "640 root:misrc-api"),
        (API, "/var/lib/misrc-api", "700 misrc-api:misrc-api"),
        (API, "/var/lib/misrc-api/store.db", "600 misrc-api:misrc-api"),
        (API, "/var/lib/misrc-api/spool", "700 misrc-api:misrc-api"),
        (API, "/etc/misrc/keys/asking.token", "400 misrc:misrc"),
        (SITE, "/etc/misrc/agent.token", "600 root:root"),
        (SITE, "/etc/misrc/agent.json", "640 root:misrc"),
        (SITE, "/var/lib/misrc/agent", "700 misrc:misrc"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("/") else "",
)
def test_files_have_their_owners_and_modes(host: Any, path: str, wanted: str) -> None:
    """What decides is root's; what is secret is closed."""
    assert good(host, f"stat -c '%a %U:%G' {path}").strip() == wanted


def test_nobody_logs_in_to_a_site_that_asks() -> None:
    """The site's sshd is as it was: no drop-in, no key file; and the server's account has no password and no shell."""
    assert SITE.run("ls -A /etc/ssh/misrc /etc/ssh/sshd_config.d/10-misrc.conf").stdout == ""
    assert good(API, "getent passwd misrc-api").strip().endswith(":/nonexistent:/usr/sbin/nologin")
    assert good(API, "getent shadow misrc-api").split(":")[1] == "*"


def test_a_whole_job_goes_through(start: Callable[[str], Run]) -> None:
    """`misrc run` on MInt's node, the real server, the real agent, a unit of its own: the results are there."""
    status, said = start("noop").end()
    assert status == 0, said
    assert good(API, "cat /tmp/results/out.dat") == "done\n"


def test_a_restart_of_the_server_loses_nothing(start: Callable[[str], Run]) -> None:
    """A program ends while the service is stopped: after its start the same job ends well, started once."""
    run = start("hold")
    job = run.await_start()
    good(API, "systemctl stop misrc-api.service")
    assert ask("x" * 64) != "401"
    run.let_go()
    eventually(lambda: not running_job(), "the program ends")
    good(API, "systemctl start misrc-api.service")
    status, said = run.end()
    assert status == 0, said
    assert good(API, "cat /tmp/results/out.dat") == "done\n"
    assert ledger(job).count("run") == 1


def test_a_killed_server_loses_nothing(start: Callable[[str], Run]) -> None:
    """The same with SIGKILL: systemd starts the service again, and the job goes on."""
    run = start("hold")
    job = run.await_start()
    good(API, "systemctl kill --signal=KILL misrc-api.service")
    run.let_go()
    status, said = run.end()
    assert status == 0, said
    assert ledger(job).count("run") == 1


def test_a_restarted_agent_adopts_its_job(start: Callable[[str], Run]) -> None:
    """The program goes on while its agent is away, and the next agent brings its results."""
    run = start("hold")
    job = run.await_start()
    good(SITE, "systemctl restart misrc-agent.service")
    assert running_job() == job
    run.let_go()
    status, said = run.end()
    assert status == 0, said
    assert ledger(job).count("run") == 1


def reboot_site() -> None:
    """Reboot the site's host."""
    subprocess.run(["podman", "restart", "-t", "5", f"{PREFIX}-asking"], check=True, capture_output=True, timeout=120)
    states = ("running", "degraded")
    eventually(lambda: SITE.run("systemctl is-system-running").stdout.strip() in states, "the host's start")


def test_a_reboot_is_told_as_it_is(start: Callable[[str], Run]) -> None:
    """A program that a reboot ended is lost, and MInt hears it without anybody's help; it is not started again."""
    run = start("hold")
    job = run.await_start()
    reboot_site()
    status, said = run.end()
    assert status == 5, said
    assert ledger(job).count("run") == 1


def test_a_reboot_starts_again_what_may_be(start: Callable[[str], Run]) -> None:
    """A program that the policy calls restartable is started again after a reboot, and ends well."""
    run = start("again")
    job = run.await_start()
    reboot_site()
    status, said = run.end()
    assert status == 0, said
    assert good(API, "cat /tmp/results/out.dat") == "done\n"
    assert ledger(job).count("run") == 2


def test_a_revoked_token_is_refused_at_once() -> None:
    """A new token works; after its revocation it does not, within a second and without a restart."""
    name = f"passing-{time.time_ns()}"
    token = good(API, f"/usr/local/sbin/misrc-api token add {name} --user mint --scope workflow").strip()
    assert re.fullmatch("[A-Za-z0-9]{64}", token)
    assert ask(token) != "401"
    good(API, f"/usr/local/sbin/misrc-api token revoke {name}")
    eventually(lambda: ask(token) == "401", "the token is refused", 5)


def test_a_revoked_agent_gets_no_work(start: Callable[[str], Run]) -> None:
    """With another token than the one that counts the agent gets nothing; with its own again the job is done."""
    good(SITE, "cp -p /etc/misrc/agent.token /root/kept && tr a-zA-Z b-zaB-ZA </root/kept >/etc/misrc/agent.token")
    try:
        good(SITE, "systemctl restart misrc-agent.service")
        run = start("noop")
        eventually(lambda: "unauthenticated" in good(SITE, "journalctl -u misrc-agent --no-pager"), "the agent says it")
        assert run.process.poll() is None
    finally:
        good(SITE, "mv /root/kept /etc/misrc/agent.token && systemctl restart misrc-agent.service")
    status, said = run.end()
    assert status == 0, said


def test_the_token_is_nowhere_to_be_seen() -> None:
    """No token stands in a journal, a unit, an environment or a command line of either host; a canary is found."""
    look = (
        "{ journalctl --no-pager --namespace '*' --output export; systemctl show '*' 2>/dev/null; ps axww -o args;"
        " cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; } 2>/dev/null | grep -ac "
    )
    for host in (API, SITE):
        good(host, "logger canary-of-the-test && journalctl --sync")
        assert int(host.run(look + "canary-of-the-test").stdout) > 0
        for name in ("mint", "agent"):
            token = (MADE / f"{name}.token").read_text().strip()
            # Not on a command line: what looks for it would find itself.
            seen = subprocess.run(
                ["podman", "exec", "-i", host.backend.name, "sh", "-c", look + "-F -f /dev/stdin"],
                input=token,
                capture_output=True,
                text=True,
                check=False,
            )
            assert seen.stdout.strip() == "0", name


def test_programs_and_other_accounts_cannot_read_the_token() -> None:
    """Neither the jobs' account nor the gate's can open the file; root can."""
    for user in ("misrc-job", "misrc"):
        assert SITE.run(f"setpriv --reuid {user} --regid {user} --init-groups cat /etc/misrc/agent.token").rc != 0
    good(SITE, "cat /etc/misrc/agent.token")


def test_a_backup_brings_the_jobs_back(start: Callable[[str], Run]) -> None:
    """Backed up while a program runs, everything moved away, restored: the same job ends well, started once."""
    store = "/usr/local/sbin/misrc-api store restore"
    run = start("hold")
    job = run.await_start()
    good(API, "systemctl start misrc-api-backup.service")
    newest = good(API, "ls -d /var/backups/misrc-api/*Z | tail -1").strip()
    refused = API.run(f"{store} {newest}")
    assert refused.rc != 0 and "is there" in refused.stderr
    good(API, "systemctl stop misrc-api.service && cd /var/lib/misrc-api && rm -rf store.db* spool/*")
    restored = good(API, f"{store} {newest}")
    assert restored.startswith("restored as of "), restored
    good(API, "systemctl start misrc-api.service")
    run.let_go()
    status, said = run.end()
    assert status == 0, said
    assert ledger(job).count("run") == 1
