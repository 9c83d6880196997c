"""The predecessor's clients and server, as doubles: each quirk is there, and a job goes from one client to the other.

What is shown here is only that the doubles are what `misrc` must live with. Their use against ours is in other files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually
from predecessor import remote_client, wf_client
from predecessor.calls import STDERR_NAME, STDOUT_NAME, Caller
from predecessor.scene import SITE, TOKEN, certificate, program, write_ini
from predecessor.server import HALF_AN_HOUR, ORDER, STEPS, Server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workflow's working folder: clients read and write relative names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(write_ini(folder, program(folder)), {TOKEN}) as running:
        yield running


@pytest.fixture
def caller(server: Server) -> Caller:
    return Caller(server.base_url, TOKEN, server.port)


def wf(server: Server, folder: Path, inputs: str = "a.dat", results: str = "out.txt", parameters: str = "1 2") -> Any:
    words = [server.base_url, SITE, TOKEN, str(folder / "run.sh"), inputs, results, parameters]
    return wf_client.WorkflowClient(words, 0.02, server.port)


def remote(server: Server, folder: Path, jobs: int = 1, send: bool = True, *more: str) -> remote_client.RemoteClient:
    words = [SITE, server.base_url, TOKEN, f"port:{server.port}", f"calc_base:{folder}/jobs", "retry:2,0.01", *more]
    return remote_client.RemoteClient(words, remote_client.Timing(0.02, 0.0, jobs, send))


def both(server: Server, folder: Path, workflow: Any, **options: Any) -> tuple[int, int]:
    """Run both clients to their ends: the exit statuses of workflow and site."""
    statuses: list[int] = []
    site = remote(server, folder, **options)
    thread = threading.Thread(target=lambda: statuses.append(site.run()))
    thread.start()
    status = workflow.run()
    thread.join(20)
    return status, statuses[0]


def info(folder: Path, **changes: Any) -> dict[str, Any]:
    found = {
        "command": str(folder / "run.sh"), "remote-site": SITE, "parameters": "",
        "parameter_files": {"d/a.dat": ["aGk=", "text/plain;", "charset=us-ascii"]}, "result_files": {},
    }  # fmt: skip
    return {"calc-info": {**found, **changes}}


def registered(caller: Caller, folder: Path, released: bool = True) -> str:
    accept_id = str(caller.call("POST", "add-calcinfo", None, info(folder))[1]["errors"][0]["accept_id"])
    if released:
        caller.call("POST", "allow-wait-calc", None, {"accept_id": accept_id})
    return accept_id


def names(server: Server) -> list[str]:
    return [seen.name for seen in server.store.calls]


def test_a_job_goes_from_client_to_client(server: Server, folder: Path) -> None:
    """Both clients and the server, as they are: the program ran at the site, and its output came back."""
    (folder / "in").mkdir()
    (folder / "in/a.dat").write_bytes(b"\x00in\xff")
    assert both(server, folder, wf(server, folder, "in/a.dat")) == (0, 0)
    assert (folder / "out.txt").read_bytes() == b"\x00in\xff"
    assert (folder / STDOUT_NAME).read_text() == "1 2\n"
    assert (folder / STDERR_NAME).read_text() == "bad\n"
    assert server.store.jobs == {}


def test_the_program_runs_in_the_jobs_directory_with_calc_dir(server: Server, folder: Path) -> None:
    """The current directory is `/<calc_base>/<accept_id>`, and so is CALC_DIR; parameters pass through a shell."""
    program(folder, 'pwd >out.txt; echo "$CALC_DIR" >>out.txt; echo "$#"')
    assert both(server, folder, wf(server, folder, "", parameters="a 'b c' $((1+1))"))[0] == 0
    where = (folder / "out.txt").read_text().split()
    assert where[0] == where[1] == str(folder / "jobs" / where[0].rpartition("/")[2])
    assert (folder / STDOUT_NAME).read_text() == "3\n"


def test_only_the_last_part_of_an_inputs_name_counts_at_the_site(server: Server, folder: Path) -> None:
    """It is registered with its folders, and lies flat in the job's directory."""
    (folder / "x/y").mkdir(parents=True)
    (folder / "x/y/a.dat").write_text("deep")
    assert both(server, folder, wf(server, folder, "x/y/a.dat"))[0] == 0
    body = next(seen.body for seen in server.store.calls if seen.name == "add-calcinfo")
    assert body["calc-info"]["parameter_files"] == {"x/y/a.dat": ["ZGVlcA==", "text/plain;", "charset=us-ascii"]}
    assert (folder / "out.txt").read_text() == "deep"


def test_a_missing_input_is_three_empty_strings(server: Server, folder: Path) -> None:
    """The workflow's client sends it so, and the site's side sees an empty file."""
    assert both(server, folder, wf(server, folder, "a.dat"))[0] == 0
    body = next(seen.body for seen in server.store.calls if seen.name == "add-calcinfo")
    assert body["calc-info"]["parameter_files"] == {"a.dat": ["", "", ""]}
    assert (folder / "out.txt").read_bytes() == b""


def test_stdout_and_stderr_are_always_asked_for(server: Server, folder: Path) -> None:
    """Two more results than were named, with empty texts in the registration."""
    both(server, folder, wf(server, folder, ""))
    body = next(seen.body for seen in server.store.calls if seen.name == "add-calcinfo")
    empty = {"content": "", "mimetype1": "", "mimetype2": ""}
    assert body["calc-info"]["result_files"] == {"out.txt": empty, STDOUT_NAME: empty, STDERR_NAME: empty}


def test_gets_of_the_workflow_carry_a_body(server: Server, folder: Path) -> None:
    """A JSON body with GET, and the same id in the query; the token in the header."""
    both(server, folder, wf(server, folder, ""))
    for seen in server.store.calls:
        assert seen.token == TOKEN
        if seen.name in ("calc-status", "calc-progress", "get-calc-result"):
            assert seen.method == "GET" and seen.body == seen.query


def test_the_first_answer_to_calc_request_is_thrown_away(server: Server, folder: Path, caller: Caller) -> None:
    """The site asks twice for each look, and the job is not lost by it."""
    accept_id = registered(caller, folder)
    server.store.calls.clear()
    assert remote(server, folder).run() == 0
    assert names(server)[:3] == ["calc-request", "calc-request", "calc-params"]
    assert server.store.jobs[accept_id].progress == "got return"


def test_an_http_error_of_calc_request_is_only_printed(
    server: Server, folder: Path, caller: Caller, capsys: Any
) -> None:
    """The site's client polls again, however often."""
    registered(caller, folder)
    server.store.trouble["calc-request"] = ["", "500", "", "400"]
    assert remote(server, folder).run() == 0
    assert capsys.readouterr().out.count("calc-request: HTTP") == 2


@pytest.mark.parametrize("status", ["202", "400", "500", "503"])
def test_the_workflow_stops_on_any_other_http_status(server: Server, folder: Path, status: str) -> None:
    """Only 200 and 201 go on; after any other one the job is force-deleted and the client exits with 1."""
    server.store.trouble["calc-status"] = ["", status]
    assert wf(server, folder, "").run() == 1
    assert server.store.calls[-1].name == "cancel-wait-calc"
    assert server.store.calls[-1].body["delete"] == "force"
    assert server.store.jobs == {}


def test_a_status_without_a_colon_crashes_the_workflow(server: Server, folder: Path) -> None:
    """It splits `status:x` at the colon and takes the second part."""
    server.store.trouble["calc-progress"] = ["plain"]
    with pytest.raises(IndexError):
        wf(server, folder, "").run()


@pytest.mark.parametrize(
    "text, status", [("echo x >out.txt; exit 3", 1), ("exit 0", 1), ("exit 3", 1), (": >out.txt", 0)]
)
def test_abnormal_is_a_bad_exit_or_nothing_made(server: Server, folder: Path, text: str, status: int) -> None:
    """A bad exit status, or none of the outputs in spite of a good one; the workflow's client then exits with 1."""
    program(folder, text)
    assert both(server, folder, wf(server, folder, ""))[0] == status
    end = next(seen.body for seen in server.store.calls if seen.name == "calc-end")
    assert end["result"] == ("abnormal" if status else "calc end")


def test_a_missing_output_says_error_in_mimetype1(server: Server, folder: Path) -> None:
    """One of two outputs is missing: not abnormal, and the word travels in the result's own entry."""
    program(folder, "echo 1 >out.txt")
    assert both(server, folder, wf(server, folder, "", "out.txt:gone.txt"))[0] == 0
    sent = next(seen.body for seen in server.store.calls if seen.name == "send-results")
    assert sent["result_files"]["gone.txt"] == {
        "content": "", "mimetype1": "Error", "mimetype2": "gone.txt was not made",
    }  # fmt: skip
    assert not (folder / "gone.txt").exists()


def test_a_site_that_stops_after_an_abnormal_end_leaves_the_workflow_waiting(
    server: Server, folder: Path, caller: Caller
) -> None:
    """The predecessor's server stays at `calc end`; nothing brings the job on."""
    program(folder, "exit 1")
    accept_id = registered(caller, folder)
    assert remote(server, folder, send=False).run() == 0
    job = server.store.jobs[accept_id]
    assert (job.progress, job.status) == ("calc end", "abnormal")


def test_lost_answer_is_repeated_and_refused(server: Server, folder: Path, caller: Caller) -> None:
    """The site's client repeats the call, the server's state has moved on, and the job hangs."""
    accept_id = registered(caller, folder)
    server.store.trouble["calc-start"] = ["lose"]
    assert remote(server, folder).run() == 1
    assert names(server)[-2:] == ["calc-start", "calc-start"]
    assert server.store.jobs[accept_id].progress == "running"


def test_retries_hold_for_each_call_and_end_with_an_error(server: Server, folder: Path, caller: Caller) -> None:
    """`retry:2,…` means three calls in vain, then exit status 1; a call that came through counts anew."""
    registered(caller, folder)
    server.store.trouble["calc-request"] = ["lose", "", "lose", "lose", "lose"]
    assert remote(server, folder).run() == 1
    assert names(server)[2:] == ["calc-request"] * 5


def test_the_site_prints_its_token_and_the_port(server: Server, folder: Path, capsys: Any) -> None:
    """`:50443` is appended, `port:N` changes it, and the token is printed."""
    words = [SITE, "https://nims.example", TOKEN]
    for more, port in (([], 50443), (["port:443"], 443)):
        remote_client.RemoteClient([*words, *more], remote_client.Timing())
        printed = capsys.readouterr().out
        assert f"site id = {SITE}\nbase url = https://nims.example:{port}\n" in printed and TOKEN in printed
    assert wf_client.WorkflowClient([words[1], SITE, TOKEN, "c", "", ""]).caller.address == "https://nims.example:50443"


def test_each_step_moves_on_and_its_repetition_is_refused(folder: Path, server: Server, caller: Caller) -> None:
    """Every call of the site, in order, twice: the first is taken, the second is HTTP 400."""
    accept_id = registered(caller, folder)
    values = {"accept_id": accept_id, "site_id": SITE}
    for name, (_, leads) in STEPS.items():
        get = name == "calc-params"
        body = None if get else {**values, "result": "calc end", "result_files": {}}
        for status in (200, 400):
            assert caller.call("GET" if get else "POST", name, values if get else None, body)[0] == status
        progress = caller.call("GET", "calc-progress", {"accept_id": accept_id}, None)[1]["errors"][0]["message"]
        assert progress == f"status:{leads}"
    assert [leads for _, leads in STEPS.values()] == ORDER[1:]


def test_calc_request_has_no_side_effect_and_gives_the_oldest(folder: Path, server: Server, caller: Caller) -> None:
    """Asked three times it names the same job; without one the HTTP status is 200 and the code is not."""
    first, _ = registered(caller, folder), registered(caller, folder)
    for _ in range(3):
        assert caller.call("GET", "calc-request", {"site_id": SITE}, None)[1]["errors"][0]["accept_id"] == first
    status, answer = caller.call("GET", "calc-request", {"site_id": "other"}, None)
    assert status == 200 and answer["errors"][0]["code"] != 200


@pytest.mark.parametrize(
    "changes", [{"remote-site": "unknown"}, {"command": "run.sh"}, {"command": "x.sh"}, {"command": "/bin/sh"}, None]
)
def test_errors_of_add_calcinfo_come_with_202(folder: Path, caller: Caller, changes: dict[str, str] | None) -> None:
    """No calc-info, an unknown site, a command that is not word for word in the file."""
    body = {} if changes is None else info(folder, **changes)
    status, answer = caller.call("POST", "add-calcinfo", None, body)
    assert status == 202 and answer["errors"][0]["code"] in (400, "400")
    assert caller.call("POST", "add-calcinfo", None, info(folder))[0] == 200


def test_the_ini_file_is_read_at_each_registration(folder: Path, server: Server, caller: Caller) -> None:
    """A command that was added while the server runs is taken."""
    body = info(folder, command="/new/run")
    assert caller.call("POST", "add-calcinfo", None, body)[0] == 202
    write_ini(folder, "/old", "/new/run")
    assert caller.call("POST", "add-calcinfo", None, body)[0] == 200


def test_a_restart_loses_all_jobs(folder: Path, server: Server, caller: Caller) -> None:
    """What was registered before is unknown after; so is what nobody took for half an hour."""
    accept_id = registered(caller, folder)
    query = {"accept_id": accept_id}
    assert caller.call("GET", "calc-status", query, None)[1]["errors"][0]["message"] == "status:none"
    server.__exit__()
    server.__enter__()
    assert caller.call("GET", "calc-status", query, None)[0] == 400
    again = registered(caller, folder)
    server.store.jobs[again].registered -= HALF_AN_HOUR + 1
    assert caller.call("GET", "calc-status", {"accept_id": again}, None)[0] == 400


def test_when_a_job_may_be_cancelled(folder: Path, server: Server, caller: Caller) -> None:
    """Before the start, after `got return`, when abnormal; with force at any time."""
    for progress, status, force, http in (
        ("not start", "none", False, 200), ("complete send", "none", False, 200), ("running", "none", False, 400),
        ("calc end", "completed", False, 400), ("calc end", "abnormal", False, 200),
        ("got return", "completed", False, 200), ("running", "none", True, 200),
    ):  # fmt: skip
        accept_id = registered(caller, folder)
        job = server.store.jobs[accept_id]
        job.progress, job.status = progress, status
        body = {"accept_id": accept_id, **({"delete": "force"} if force else {})}
        assert caller.call("POST", "cancel-wait-calc", None, body)[0] == http
        assert (accept_id in server.store.jobs) == (http != 200)


def test_results_only_at_got_return_and_only_once(folder: Path, server: Server, caller: Caller) -> None:
    """Before: HTTP 200 with another code. After: the job is forgotten."""
    accept_id = registered(caller, folder)
    query = {"accept_id": accept_id}
    status, answer = caller.call("GET", "get-calc-result", query, None)
    assert status == 200 and answer["errors"][0]["code"] == 400
    server.store.jobs[accept_id].progress = "got return"
    assert caller.call("GET", "get-calc-result", query, None)[1]["errors"][0]["code"] == 200
    assert caller.call("GET", "get-calc-result", query, None)[0] == 400


def test_other_calls(folder: Path, server: Server, caller: Caller) -> None:
    """All jobs as one object; a wrong token; an unreleased job cannot be taken; reload-ini has no base path."""
    accept_id = registered(caller, folder, released=False)
    assert list(caller.call("GET", "get-calcinfo", None, None)[1]) == [accept_id]
    assert Caller(server.base_url, "x" * 64, server.port).call("GET", "get-calcinfo", None, None)[0] == 401
    query = {"accept_id": accept_id, "site_id": SITE}
    assert caller.call("GET", "calc-params", query, None)[0] == 400
    assert caller.call("POST", "reload-ini", None, {})[0] == 404
    with urllib.request.urlopen(f"{caller.address}/reload-ini", b"{}", timeout=20) as answer:
        assert answer.status == 200


def test_a_workflow_that_is_destroyed_early_force_deletes_its_job(folder: Path, server: Server) -> None:
    """SIGTERM to the client as a process: its job is gone from the server, and its exit status is 1."""
    words = [server.base_url, SITE, TOKEN, str(folder / "run.sh"), "", "out.txt"]
    environment = {**os.environ, "PREDECESSOR_INTERVAL": "0.05", "PREDECESSOR_PORT": str(server.port)}
    client = subprocess.Popen([sys.executable, wf_client.__file__, *words], env=environment)
    eventually(lambda: "calc-progress" in names(server))
    assert len(server.store.jobs) == 1
    client.send_signal(signal.SIGTERM)
    assert client.wait(20) == 1
    assert server.store.jobs == {} and server.store.calls[-1].body["delete"] == "force"


@pytest.mark.parametrize("option, works", [("no_auth", True), ("no_auth:{ca}", True), ("no_auth:{other}", False)])
def test_tls_is_checked_only_with_a_ca_file(folder: Path, option: str, works: bool) -> None:
    """`no_auth` believes any certificate; `no_auth:FILE` believes only what FILE signed."""
    made = {name: certificate(folder, name) for name in ("ca", "other")}
    with Server(write_ini(folder, program(folder)), {TOKEN}, made["ca"]) as server:
        registered(Caller(server.base_url, TOKEN, server.port), folder)
        word = option.format(**made)
        assert remote(server, folder, 1, True, word).run() == (0 if works else 1)
