"""Our poller under the predecessor's name, and the agent with `protocol: legacy`, at a double of its server."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import AgentHost
from api_double import Double
from conftest import CLEAN, ROOT, Site, eventually, free_port, make_program, make_site
from faultpoints import points
from predecessor import wf_client
from predecessor.calls import STDERR_NAME, STDOUT_NAME
from predecessor.server import Server

TOKEN = "t" * 40 + "canary" + "t" * 18
SITE_ID = "Nims-Dev_1"
COMMAND = "/home/rme/misrc_remote_workflow/scripts/run.sh"


@dataclasses.dataclass
class Old:
    """A site of ours, the predecessor's server, and its workflow client."""

    site: Site
    server: Server
    folder: Path
    process: subprocess.Popen[str] | None = None

    def words(self, *more: str, token: str = TOKEN) -> list[str]:
        return [SITE_ID, self.server.base_url, token, f"port:{self.server.port}", "retry:3,0.05", *more]

    def start(self, *more: str, faults: bool = False, **env: str) -> subprocess.Popen[str]:
        environment = {**CLEAN, "MISRC_PREFIX": str(self.site.prefix), "MISRC_POLL": "1", **env}
        if faults:
            environment["MISRC_FAULTS"] = str(self.site.root / "faults")
        with (self.folder / "remote.log").open("ab") as log:
            words = ["/usr/bin/python3", str(ROOT / "scripts/mi-system-remote.py"), *self.words(*more)]
            self.process = subprocess.Popen(words, stdout=log, stderr=log, text=True, env=environment)
        return self.process

    def said(self) -> str:
        return (self.folder / "remote.log").read_text(encoding="utf-8")

    def workflow(
        self, inputs: str = "a.dat", results: str = "out.txt", parameters: str = "one two"
    ) -> wf_client.WorkflowClient:
        words = [self.server.base_url, SITE_ID, TOKEN, COMMAND, inputs, results, parameters]
        return wf_client.WorkflowClient(words, 0.05, self.server.port)

    def compute(self, **options: str) -> int:
        """One job from the workflow's side to its end: its exit status."""
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(self.workflow(**options).run()), daemon=True)
        thread.start()
        eventually(lambda: not thread.is_alive(), 60, "the workflow's end")
        return found[0]

    def starts(self) -> list[str]:
        path = self.site.root / "starts"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Old]:
    site = make_site(tmp_path / "site-host")
    body = f'echo "$MISRC_JOB_ID" >> {site.root}/starts\ncat a.dat > out.txt; echo "words: $*"; [ "$1" != bad ]\n'
    path = make_program(site.root / "programs/old", body)
    word = {"pattern": "[a-z]{1,9}", "default": "x"}
    arguments = {"first": word, "second": word}
    rule = {"path": str(path), "command": COMMAND, "arguments": arguments, "logs": "full", "network": "allow"}
    site.policy["programs"]["old"] = {**rule, "returns": ["*.txt"]}
    site.install()
    folder = tmp_path / "wf"
    folder.mkdir()
    (tmp_path / "site-host/faults").mkdir()
    monkeypatch.chdir(folder)
    (folder / "a.dat").write_bytes(b"input bytes \xff\n")
    ini = folder / "sites.ini"
    ini.write_text(
        "[Server]\nipaddress = 127.0.0.1\nportnumber = 8082\nloglevel = 3\n"
        f"[RemoteSites]\nremote_site_ids = {SITE_ID}\n[{SITE_ID}]\ncommands = {COMMAND}\n"
    )
    with Server(ini, {TOKEN}) as server:
        made = Old(site, server, folder)
        yield made
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()


def test_a_job_of_the_predecessors_workflow_runs(old: Old) -> None:
    """The drop-in takes a job from the predecessor's server, and the workflow's client gets results and output."""
    old.start()
    assert old.compute() == 0
    assert (old.folder / "out.txt").read_bytes() == b"input bytes \xff\n"
    assert (old.folder / STDOUT_NAME).read_bytes() == b"words: one two\n"
    assert (old.folder / STDERR_NAME).read_bytes() == b""
    assert len(old.starts()) == 1
    calls = [seen.name for seen in old.server.store.calls if seen.name.startswith(("calc-", "send", "end"))]
    steps = ["calc-params", "calc-params-complete", "calc-start", "calc-end", "send-results", "end-send"]
    assert [name for name in calls if name in steps] == steps
    eventually(lambda: [r["event"] for r in old.site.ledger() if r.get("job")][-1] == "close")
    events = [record["event"] for record in old.site.ledger() if record.get("job")]
    assert events == ["open", "run", "end", "leave", "close"]


def test_what_it_prints_and_what_it_does_not(old: Old) -> None:
    """Site id and base URL as the predecessor prints them, and never the token."""
    process = old.start("debug", "calc_base:/nonexistent")
    assert old.compute() == 0
    process.terminate()
    assert process.wait(20) == 0
    assert old.said().splitlines()[:2] == [
        f"site id = {SITE_ID}",
        f"base url = {old.server.base_url}:{old.server.port}",
    ]
    assert "canary" not in old.said()
    found = [path for path in old.site.root.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]
    assert found == []


@pytest.mark.parametrize("parameters", ["bad", "one two three", "one  two", "one; two", "$(id)", "ONE"])
def test_p06_what_does_not_fit_ends_abnormally_at_the_workflow(old: Old, parameters: str) -> None:
    """A failing program, too many words, words that no pattern allows: the workflow ends with 1, and no shell ran."""
    old.start()
    assert old.compute(parameters=parameters) == 1
    assert len(old.starts()) == (1 if parameters == "bad" else 0)
    if parameters != "bad":
        code = "E11"
        assert f"refused by the site ({code})".encode() in (old.folder / STDERR_NAME).read_bytes()
        assert [r["reason"] for r in old.site.ledger() if r["event"] == "refuse"] == [code]
    assert old.compute() == 0


def test_a_command_that_the_policy_does_not_name_is_refused(old: Old) -> None:
    """The alias must be the site's own, word for word; the server's list alone runs nothing."""
    old.site.policy["programs"]["old"]["command"] = COMMAND + " "
    old.site.install()
    old.start()
    assert old.compute() == 1
    assert b"E10" in (old.folder / STDERR_NAME).read_bytes() and old.starts() == []


def test_a_result_that_may_not_leave_is_said_to_be_missing(old: Old) -> None:
    """What the policy withholds never leaves; a run of which nothing may leave counts as abnormal."""
    old.site.policy["programs"]["old"]["withhold"] = ["out.txt"]
    old.site.install()
    old.start()
    assert old.compute() == 1
    assert not (old.folder / "out.txt").exists() or (old.folder / "out.txt").read_bytes() == b""
    assert all(
        b"input bytes" not in str(seen.body).encode() for seen in old.server.store.calls if seen.name == "send-results"
    )


@pytest.mark.parametrize("call", ["calc-params-complete", "calc-start", "calc-end", "send-results", "end-send"])
@pytest.mark.parametrize("trouble", ["lose", "500"])
def test_p26_a_lost_answer_does_not_hang_the_job(old: Old, call: str, trouble: str) -> None:
    """The predecessor refuses a repeated call; ours takes that for the word that the first one was done."""
    old.server.store.trouble[call] = [trouble]
    old.start()
    assert old.compute() == 0
    assert (old.folder / "out.txt").read_bytes() == b"input bytes \xff\n"
    assert len(old.starts()) == 1


@pytest.mark.parametrize("call", ["calc-params", "calc-params-complete", "calc-start", "calc-end", "send-results"])
def test_p63_a_job_that_the_server_forgot_ends_here_too(old: Old, call: str) -> None:
    """Deleted by its workflow, or lost in a restart: nothing of it waits on at the site, and the poller goes on."""
    limits = old.site.policy["limits"]
    old.site.policy["limits"] = {**limits, "jobs": 1, "waiting": 1}
    old.site.install()
    old.server.store.trouble[call] = ["forget", "forget"]
    process = old.start()
    assert [old.compute() for _ in range(3)] == [1, 1, 0] and process.poll() is None
    found = old.site.work_root.glob
    eventually(
        lambda: {json.loads(path.read_text())["state"] for path in found("*/job.json")} == {"closed"},
        what="the end of all jobs",
    )


def test_p64_answers_that_are_not_the_predecessors_are_waited_out(old: Old) -> None:
    """A gateway that is down or knows no token: told once, asked again at the next poll, and no job is given up."""
    old.server.store.trouble = {"calc-request": ["503"] * 3 + ["401"] * 3, "calc-end": ["401", "401"]}
    process = old.start("retry:2,0.05")
    assert old.compute() == 0 and process.poll() is None
    said = old.said()
    assert said.count("calc-request: the server answers with status 503") == 1
    assert said.count("calc-request: the server does not take the token") == 1
    assert len(old.starts()) == 1


def test_p65_output_that_is_no_text_is_not_called_one(old: Old) -> None:
    """The predecessor's client decodes what is called UTF-8, and ends where it is not."""
    body = "printf '\\202\\240\\n'; cat a.dat >out.txt\n"
    make_program(old.site.root / "programs/old", body)
    old.start()
    assert old.compute() == 0
    assert (old.folder / STDOUT_NAME).read_bytes() == b"\x82\xa0\n"
    sent = next(seen.body for seen in old.server.store.calls if seen.name == "send-results")
    assert sent["result_files"][STDOUT_NAME]["mimetype2"] == "charset=binary"


@pytest.mark.parametrize("point", points("legacy-agent"))
def test_p42_a_kill_at_each_step_of_an_old_job(old: Old, point: str) -> None:
    """SIGKILL at this point, once: the next poller goes on with the job, and its program starts once."""
    (old.site.root / "faults/kill").write_text(point)
    old.start(faults=True)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(old.workflow().run()), daemon=True)
    thread.start()

    def done() -> bool:
        assert old.process is not None
        if old.process.poll() is not None:
            old.start(faults=True)
        return not thread.is_alive()

    eventually(done, 60, "the workflow's end")
    assert (old.site.root / "faults/kill.struck").exists() or point == "legacy.done"
    assert len(old.starts()) <= 1
    # The predecessor gives a job's inputs out once: what was lost with them cannot be asked for again.
    early = point == "record.legacy.json.written"
    assert found == [1 if early else 0] and len(old.starts()) == (0 if early else 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_auth"], "no_auth would let anybody"),
        (["retry:x"], "not an option"),
        (["verify:off"], "not an option"),
    ],
)
def test_arguments_that_cannot_be_kept_are_refused_with_the_reason(old: Old, words: list[str], said: str) -> None:
    """Plain no_auth is refused and says what to do instead; nothing is asked of any server."""
    assert old.start(*words).wait(20) == 2
    assert said in old.said() and old.server.store.calls == []


def test_it_ends_with_an_error_when_the_retries_are_used_up(old: Old) -> None:
    """As the predecessor's poller: exit status 1, with the reason."""
    process = old.start(f"port:{free_port()}")
    assert process.wait(30) == 1
    assert "calc-request" in old.said() and old.said().count("trying again") == 3


def test_login_mode_takes_the_token_from_the_sites_own_package(old: Old, tmp_path: Path) -> None:
    """`login` asks the package in AUTHENTICATION_OPERATOR; a failed login ends the command."""
    package = tmp_path / "operator/openam_operator"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "openam_operator.py").write_text(f"def miLogin(hostname):\n    return ('user', {TOKEN!r})\n")
    words = ["/usr/bin/python3", str(ROOT / "scripts/mi-system-remote.py"), *old.words(token="login")]
    environment = {**CLEAN, "MISRC_PREFIX": str(old.site.prefix), "MISRC_POLL": "1"}
    environment["AUTHENTICATION_OPERATOR"] = str(tmp_path / "operator")
    old.process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert old.compute() == 0
    old.process.terminate()
    assert "canary" not in old.process.communicate()[0]
    (package / "openam_operator.py").write_text("def miLogin(hostname):\n    return (None, None)\n")
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "login failed" in done.stderr


def test_the_agent_itself_asks_a_predecessors_server_for_ever(old: Old) -> None:
    """`protocol: legacy` runs the same jobs, goes on after a refusal, and `--check` says that the server answers."""
    host = AgentHost(old.site, Double())
    url = f"http://127.0.0.1:{old.server.port}"
    secret = old.site.root / "old.token"
    secret.write_text(TOKEN)
    secret.chmod(0o600)
    host.configure(url=url, token=str(secret), protocol="legacy", known_as=SITE_ID, poll=1)
    done = host.check()
    assert done.returncode == 0 and "predecessor's way" in done.stdout, done
    host.start()
    try:
        assert old.compute(parameters="$(id)") == 1
        assert old.compute() == 0
        assert host.process is not None and host.process.poll() is None
    finally:
        host.stop()


def test_p62_what_a_killed_agent_left_does_not_stop_the_next(old: Old) -> None:
    """Folders of agents that died while inputs arrived are removed, also where a process id comes again."""
    left = [old.site.work_root / f".spool-{pid}" for pid in (999_999_999, 0)]
    for folder in left:
        folder.mkdir()
        (folder / "1").write_bytes(b"half an input")
    # Every id that the agent may get: as in a container, where the next agent has the same one.
    newest = int((Path("/proc/sys/kernel/ns_last_pid")).read_text())
    likely = [old.site.work_root / f".spool-{pid}" for pid in range(newest + 1, newest + 3000)]
    for folder in likely:
        folder.mkdir()
    old.start()
    assert old.compute() == 0
    assert not any(folder.exists() for folder in left)
