"""The predecessor's clients, unchanged, against our server; and each kind of client with the other kind's jobs."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import SITE, V2, Api, b64, manifest, running, site, submission
from conftest import eventually
from predecessor import remote_client, wf_client
from predecessor.calls import STDERR_NAME, STDOUT_NAME, Caller

NAME = "UnivB_Lab"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(folder: Path, text: str = 'cat "$CALC_DIR/a.dat" >out.dat; echo "$*"; echo bad >&2') -> Path:
    path = folder / "run.sh"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def api(folder: Path) -> Iterator[Api]:
    """A server with one declared site, whose program is the script of this folder."""
    declared = {
        "command": str(program(folder)),
        "arguments": {
            "mesh": {"choices": ["coarse", "fine"], "default": "coarse"},
            "n": {"pattern": "[0-9]+", "default": "1"},
        },
        "inputs": {"*.dat": "optional"},
        "outputs": {"out.dat": "required", "other.txt": "optional"},
    }
    with running(folder / "s", hosts=[]) as server:
        server.declare(site(SITE, legacy_ids=[NAME], programs={"noop": declared}))
        server.kill()
        server.start()
        yield server


def caller(api: Api, token: str) -> Caller:
    return Caller("https://localhost", api.tokens.get(token, token), api.port)


def wf(api: Api, folder: Path, inputs: str = "a.dat", results: str = "out.dat", parameters: str = "fine 12") -> Any:
    words = ["https://localhost", NAME, api.tokens["workflow"], str(folder / "run.sh"), inputs, results, parameters]
    return wf_client.WorkflowClient(words, 0.05, api.port)


def remote(api: Api, folder: Path, jobs: int = 1, send: bool = True) -> remote_client.RemoteClient:
    ca = api.root / "tls/ca.pem"
    words = [NAME, "https://localhost", api.tokens["agent"], f"port:{api.port}", f"calc_base:{folder}/jobs"]
    timing = remote_client.Timing(0.05, 0.0, jobs, send)
    return remote_client.RemoteClient([*words, "retry:2,0.05", f"no_auth:{ca}"], timing)


def in_background(work: Any) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return thread, results


def info(folder: Path, **changes: Any) -> dict[str, Any]:
    found = {
        "command": str(folder / "run.sh"), "remote-site": NAME, "parameters": "",
        "parameter_files": {"d/a.dat": ["aGk=", "text/plain;", "charset=us-ascii"]},
        "result_files": {"out.dat": {"content": "", "mimetype1": "", "mimetype2": ""}},
    }  # fmt: skip
    return {"calc-info": {**found, **changes}}


def register(api: Api, folder: Path, **changes: Any) -> str:
    calls = caller(api, "workflow")
    status, answer = calls.call("POST", "add-calcinfo", None, info(folder, **changes))
    assert status == 200 and answer["errors"][0]["code"] == 200, answer
    job = str(answer["errors"][0]["accept_id"])
    assert calls.call("POST", "allow-wait-calc", None, {"accept_id": job})[0] == 200
    return job


def progress(api: Api, job: str) -> str:
    """As the client asks: the status first."""
    caller(api, "workflow").call("GET", "calc-status", {"accept_id": job}, None)
    answer = caller(api, "workflow").call("GET", "calc-progress", {"accept_id": job}, None)[1]
    return str(answer["errors"][0]["message"]).partition(":")[2]


def step(api: Api, name: str, job: str, **more: Any) -> tuple[int, Any]:
    status, answer = caller(api, "agent").call("POST", name, None, {"accept_id": job, "site_id": NAME, **more})
    return status, answer["errors"][0]["code"]


def params(api: Api, job: str) -> Any:
    return caller(api, "agent").call("GET", "calc-params", {"accept_id": job, "site_id": NAME}, None)


# -- both clients of the predecessor ----------------------------------------------------------------------------------


def test_the_predecessors_clients_run_a_job(api: Api, folder: Path) -> None:
    """Both, unchanged, over TLS: files of any bytes go there and back, output arrives, the job is then forgotten."""
    (folder / "in").mkdir()
    (folder / "in/a.dat").write_bytes(bytes(range(256)) * 1000)
    thread, statuses = in_background(remote(api, folder).run)
    assert wf(api, folder, "in/a.dat").run() == 0
    thread.join(20)
    assert statuses == [0]
    assert (folder / "out.dat").read_bytes() == bytes(range(256)) * 1000
    assert (folder / STDOUT_NAME).read_text() == "fine 12\n"
    assert (folder / STDERR_NAME).read_text() == "bad\n"
    assert caller(api, "workflow").call("GET", "get-calcinfo", None, None)[1] == {}


@pytest.mark.parametrize("send", [True, False])
def test_an_abnormal_end_comes_to_got_return(api: Api, folder: Path, send: bool) -> None:
    """Whether the site's client sends results after it or stops: the workflow's client ends with 1."""
    api.config["times"] = {"legacy_abnormal": 1}
    api.write_config()
    api.kill()
    api.start()
    program(folder, "echo no; exit 3")
    (folder / "a.dat").write_text("x")
    thread, _ = in_background(remote(api, folder, send=send).run)
    assert wf(api, folder).run() == 1
    thread.join(20)


def test_a_job_that_ends_between_status_and_progress_is_no_success(api: Api, folder: Path) -> None:
    """`got return` is said only after a status that tells the end: the client believes the status it had before."""
    job = register(api, folder)
    params(api, job)
    calls = caller(api, "workflow")

    def ask(name: str) -> Any:
        return calls.call("GET", name, {"accept_id": job}, None)[1]["errors"][0]["message"]

    assert ask("calc-status") == "status:none"
    for name, more in (
        ("calc-params-complete", {}),
        ("calc-start", {}),
        ("calc-end", {"result": "abnormal"}),
        ("send-results", {"result_files": {}}),
        ("end-send", {"result": "end send"}),
    ):
        assert step(api, name, job, **more) == (200, 200)
    assert ask("calc-progress") == "status:getting return"
    assert ask("calc-status") == "status:abnormal"
    assert ask("calc-progress") == "status:got return"


def test_a_missing_input_and_a_missing_result_are_said(api: Api, folder: Path) -> None:
    """The predecessor's three empty strings pass, and the site's word for a missing file comes back as it was."""
    thread, _ = in_background(remote(api, folder).run)
    program(folder, "echo x >out.dat")
    wf(api, folder, "nothere.dat", "out.dat:other.txt").run()
    thread.join(20)
    assert (folder / "out.dat").exists() and not (folder / "other.txt").exists()


# -- one kind with the other ------------------------------------------------------------------------------------------


def test_an_agent_of_ours_takes_the_predecessors_job(api: Api, folder: Path) -> None:
    """v2 hands out a spec for it, with the words of `parameters` as declared arguments; the old client gets all."""
    (folder / "a.dat").write_text("in")
    thread, statuses = in_background(wf(api, folder, results="out.dat:other.txt").run)
    agent = str(uuid.uuid4())
    claim = eventually(lambda: api.poll(agent)["claims"], what="the job")[0]
    spec = json.loads(claim["spec"])
    assert spec["arguments"] == {"mesh": "fine", "n": "12"} and spec["program"] == "noop" and spec["files"] == 1
    assert claim["small"] == {"a.dat": b64(b"in")}
    fence = {"Misrc-Fence": str(claim["fence"])}
    api.report(claim, "queued")
    assert progress(api, claim["job"]) == "complete send"
    api.report(claim, "running")
    assert progress(api, claim["job"]) == "running"
    api.call("POST", f"{V2}/claims/{claim['job']}/log?offset=0", "出力\n".encode(), "agent", fence)
    assert api.end(claim, {"out.dat": b"result", "undeclared": b"x"}).status == 200
    thread.join(20)
    assert statuses == [0]
    assert (folder / "out.dat").read_bytes() == b"result"
    assert (folder / STDOUT_NAME).read_text() == "出力\n"
    assert not (folder / "undeclared").exists()


def test_the_predecessors_poller_takes_our_job(api: Api, folder: Path) -> None:
    """A job of v2 goes to the old client if its form holds it; results, log and outcome come back in v2's words."""
    job = str(uuid.uuid4())
    body = submission(job, {"a.dat": b"new"}, arguments={"mesh": "fine", "n": "7"})
    assert api.call("PUT", f"{V2}/jobs/{job}", body).status == 201
    assert remote(api, folder).run() == 0
    seen = api.job(job)
    assert (seen["state"], seen["outcome"]) == ("ended", "succeeded")
    assert [r["name"] for r in seen["results"]] == ["out.dat"]
    assert api.call("GET", f"{V2}/jobs/{job}/results/out.dat").body == b"new"
    assert api.call("GET", f"{V2}/jobs/{job}/log").body == b"fine 7\nbad\n"
    assert api.call("GET", f"{V2}/jobs/{job}/documents").json == {"manifest": manifest({"out.dat": b"new"})}


# -- single calls -----------------------------------------------------------------------------------------------------


def test_a_repeated_call_is_answered_as_the_first_time(api: Api, folder: Path) -> None:
    """A client that lost an answer asks again, at every step, and the job comes to its end."""
    job = register(api, folder)
    calls = caller(api, "workflow")
    assert calls.call("POST", "allow-wait-calc", None, {"accept_id": job})[0] == 200
    for _ in range(2):
        request = caller(api, "agent").call("GET", "calc-request", {"site_id": NAME}, {"a": 1})
        assert request[1]["errors"][0]["accept_id"] == job
    first = params(api, job)
    assert first == params(api, job) and first[1] == info(folder)
    assert progress(api, job) == "sending params"
    results = {"out.dat": {"content": "cg==", "mimetype1": "text/plain;", "mimetype2": "charset=us-ascii"}}
    for name, more, after in (
        ("calc-params-complete", {}, "complete send"),
        ("calc-start", {}, "running"),
        ("calc-end", {"result": "calc end"}, "calc end"),
        ("send-results", {"result_files": results}, "getting return"),
        ("end-send", {"result": "end send"}, "got return"),
    ):
        for _ in range(2):
            assert step(api, name, job, **more) == (200, 200), name
        assert progress(api, job) == after
    for _ in range(2):
        got = calls.call("GET", "get-calc-result", {"accept_id": job}, None)[1]["errors"][0]
        assert got["code"] == 200 and got["result-info"]["result_files"] == results
    assert calls.call("GET", "calc-status", {"accept_id": job}, None)[1]["errors"][0]["code"] == 404


def test_h51_calls_out_of_order_are_refused(api: Api, folder: Path) -> None:
    """Results before the start, the end before the start: refused, in the old form, and nothing changes."""
    job = register(api, folder)
    assert params(api, job)[0] == 200
    for name, more in (
        ("calc-start", {}),
        ("calc-end", {"result": "abnormal"}),
        ("send-results", {"result_files": {}}),
        ("end-send", {"result": "end send"}),
    ):
        assert step(api, name, job, **more) == (400, 409), name
        assert progress(api, job) == "sending params"
    assert step(api, "calc-params-complete", job) == (200, 200)


def test_h50_only_declared_commands_word_for_word(api: Api, folder: Path) -> None:
    """A suffix, other blanks, look-alikes, a list: refused with 202, as the gateway needs it. The alias passes."""
    good = str(folder / "run.sh")
    calls = caller(api, "workflow")
    for command in (good + " ", good + ";id", good.replace("r", "г"), "run.sh", "", [good]):
        status, answer = calls.call("POST", "add-calcinfo", None, info(folder, command=command))
        assert status == 202 and answer["errors"][0]["code"] in (400, 403), command
        assert good not in json.dumps(answer)
    wrong = [{"parameters": words} for words in ("fine  1", "fine x", "a b c", " ")]
    for changes in ({"remote-site": "nowhere"}, *wrong):
        status, answer = calls.call("POST", "add-calcinfo", None, info(folder, **changes))
        assert status == 202 and answer["errors"][0]["code"] != 200, changes
    register(api, folder)


def test_h05_the_token_names_the_site(api: Api, folder: Path) -> None:
    """Another site's id in query or body, and another user's job: refused. The token's own site passes."""
    job = register(api, folder)
    other = caller(api, "other-agent")
    assert other.call("GET", "calc-request", {"site_id": NAME}, None)[1]["errors"][0]["code"] == 403
    body = {"accept_id": job, "site_id": NAME}
    assert other.call("POST", "calc-start", None, body)[1]["errors"][0]["code"] == 403
    stranger = caller(api, "other-workflow").call("GET", "calc-status", {"accept_id": job}, None)
    nobody = caller(api, "other-workflow").call("GET", "calc-status", {"accept_id": str(uuid.uuid4())}, None)
    assert stranger == nobody and stranger[1]["errors"][0]["code"] == 404
    assert caller(api, "agent").call("GET", "calc-request", {"site_id": NAME}, None)[1]["errors"][0]["code"] == 200


def test_h56_results_that_nobody_asked_for_are_refused(api: Api, folder: Path) -> None:
    """Such a name refuses the call as a whole; the declared one passes."""
    job = register(api, folder)
    params(api, job)
    for name, more in (("calc-params-complete", {}), ("calc-start", {}), ("calc-end", {"result": "calc end"})):
        step(api, name, job, **more)
    file = {"content": "", "mimetype1": "a", "mimetype2": "b"}
    for name in ("secret.key", "../out.dat", "/etc/passwd", "x/../../y"):
        assert step(api, "send-results", job, result_files={name: file})[1] in (400, 403), name
    assert step(api, "send-results", job, result_files={"out.dat": file}) == (200, 200)
    assert not [path for path in (api.root / "spool").rglob("*") if path.is_file()]


def test_a_forced_cancel_forgets_a_running_job(api: Api, folder: Path) -> None:
    """Without force a running job stays; with it the workflow's side knows it no longer, and the site may finish."""
    job = register(api, folder)
    params(api, job)
    step(api, "calc-params-complete", job)
    step(api, "calc-start", job)
    calls = caller(api, "workflow")
    assert calls.call("POST", "cancel-wait-calc", None, {"accept_id": job})[1]["errors"][0]["code"] == 409
    for _ in range(2):
        forced = calls.call("POST", "cancel-wait-calc", None, {"accept_id": job, "delete": "force"})
        assert forced[1]["errors"][0]["code"] == 200
    assert calls.call("GET", "calc-progress", {"accept_id": job}, None)[1]["errors"][0]["code"] == 404
    assert step(api, "calc-end", job, result="abnormal") == (200, 200)


def test_a_job_that_nobody_takes_expires_for_both_sides_to_see(api: Api, folder: Path) -> None:
    """After the declared time: status abnormal, progress at its end, and the reason in the error output."""
    api.config["times"] = {"legacy": 1}
    api.write_config()
    api.kill()
    api.start()
    job = register(api, folder, result_files={STDERR_NAME: {"content": "", "mimetype1": "", "mimetype2": ""}})
    eventually(lambda: progress(api, job) == "got return", what="the expiry")
    calls = caller(api, "workflow")
    assert calls.call("GET", "calc-status", {"accept_id": job}, None)[1]["errors"][0]["message"] == "status:abnormal"
    assert params(api, job)[1]["errors"][0]["code"] == 409
    got = calls.call("GET", "get-calc-result", {"accept_id": job}, None)[1]["errors"][0]["result-info"]
    assert b"expired" in base64.b64decode(got["result_files"][STDERR_NAME]["content"])


def test_a_claim_without_a_start_returns_to_the_queue(api: Api, folder: Path) -> None:
    """A poller that dies between params and start does not take the job with it."""
    api.config["times"] = {"legacy_claim": 1}
    api.write_config()
    api.kill()
    api.start()
    job = register(api, folder)
    params(api, job)

    def ask() -> Any:
        return caller(api, "agent").call("GET", "calc-request", {"site_id": NAME}, None)[1]["errors"][0]

    assert ask()["code"] == 404
    eventually(lambda: ask().get("accept_id") == job, what="the job's return")


def test_the_ini_file_counts_beside_the_declaration(api: Api, folder: Path) -> None:
    """Its sites and commands are known, a change is seen without a restart, and reload-ini is the operator's."""
    ini = folder / "mi_distributed_computing_assist.ini"
    text = (
        "[Server]\nipaddress = 192.0.2.10\nportnumber = 8082\nloglevel = 3\n"
        "[RemoteSites]\nremote_site_ids = old_Site\n    {0}\n"
        "[old_Site]\ncommands = /a.sh\n   /b.sh\n[{0}]\ncommands = /c.sh\n"
    )
    ini.write_text(text.format("u-tokyo327"))
    api.config["ini"] = str(ini)
    api.write_config()
    api.kill()
    api.start()
    register(api, folder, **{"remote-site": "old_Site", "command": "/b.sh", "parameters": "any thing"})
    register(api, folder, **{"remote-site": "u-tokyo327", "command": "/c.sh"})
    register(api, folder)
    calls = caller(api, "workflow")
    new = info(folder, **{"remote-site": "later", "command": "/c.sh"})
    assert calls.call("POST", "add-calcinfo", None, new)[0] == 202
    ini.write_text(text.format("later"))
    assert calls.call("POST", "reload-ini", None, {})[1]["errors"][0]["code"] == 403
    assert caller(api, "operator").call("POST", "reload-ini", None, {})[1]["errors"][0]["code"] == 200
    assert calls.call("POST", "add-calcinfo", None, new)[0] == 200
    ini.write_text("[RemoteSites]\n")
    assert caller(api, "operator").call("POST", "reload-ini", None, {})[0] == 400
    register(api, folder, **{"remote-site": "later", "command": "/c.sh"})


def test_h28_h24_wrong_kinds_of_call_keep_the_old_form(api: Api, folder: Path) -> None:
    """Another media type, another method, no JSON: refused in the frame that old clients read."""
    for method, name, body, headers, status in (
        ("POST", "add-calcinfo", b"<a/>", {"Content-Type": "text/xml"}, 202),
        ("POST", "allow-wait-calc", b"{", {"Content-Type": "application/json"}, 400),
        ("GET", "allow-wait-calc", None, {}, 405),
        ("POST", "allow-wait-calc", b'{"accept_id":"x","accept_id":"y"}', {"Content-Type": "application/json"}, 400),
    ):
        answer = api.call(method, f"/mi-distcomp-api/{name}", body, headers=headers)
        assert answer.status == status and answer.json["errors"][0]["code"] != 200, (name, answer.status)
    nobody = api.call("GET", "/mi-distcomp-api/calc-status?accept_id=1", token="nonsense")
    assert (nobody.status, nobody.json["errors"][0]["code"]) == (401, 401)
    assert api.call("GET", "/mi-distcomp-api/get-calcinfo").json == {}


@pytest.mark.parametrize("megabytes", [64, pytest.param(1535, marks=pytest.mark.full)])
def test_h42_a_file_of_just_under_2_gib_of_base64_in_bounded_memory(api: Api, folder: Path, megabytes: int) -> None:
    """In to disk and out again, with the server below 128 MiB; a text of 2 GiB or more is refused."""
    block = bytes(range(256)) * 3072  # 768 KiB: its base64 is 1 MiB without padding
    count = megabytes * 4 // 3
    text = base64.b64encode(block)
    head, tail = json.dumps(info(folder)).encode().split(b"aGk=")
    connection = api.connect(600)
    connection.putrequest("POST", "/mi-distcomp-api/add-calcinfo")
    connection.putheader("Authorization", "Bearer " + api.tokens["workflow"])
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(head) + len(tail) + count * len(text)))
    connection.endheaders()
    for piece in (head, *([text] * count), tail):
        connection.send(piece)
    job = json.loads(connection.getresponse().read())["errors"][0]["accept_id"]
    connection.close()
    assert caller(api, "workflow").call("POST", "allow-wait-calc", None, {"accept_id": job})[0] == 200
    connection = api.connect(600)
    headers = {"Authorization": "Bearer " + api.tokens["agent"]}
    connection.request("GET", f"/mi-distcomp-api/calc-params?accept_id={job}&site_id={NAME}", headers=headers)
    answer = connection.getresponse()
    found, size = hashlib.sha256(), 0
    while piece := answer.read(1 << 20):
        found.update(piece)
        size += len(piece)
    connection.close()
    expected, wanted = hashlib.sha256(), hashlib.sha256()
    head, tail = json.dumps(info(folder), separators=(",", ":")).encode().split(b"aGk=")
    for piece in (head, *([text] * count), tail):
        expected.update(piece)
    assert (size, found.digest()) == (len(head) + count * len(text) + len(tail), expected.digest())
    assert api.process is not None
    status = Path(f"/proc/{api.process.pid}/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak < 128 << 10, peak
    spooled = next(path for path in (api.root / "spool").rglob("in-*"))
    for _ in range(count):
        wanted.update(block)
    with spooled.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == wanted.digest()
