"""The predecessor's clients' quirks tried to the letter, and what legal HTTP they may come in."""

from __future__ import annotations

import json
import threading
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import SITE, Api, site
from conftest import eventually
from predecessor.calls import STDERR_NAME, STDOUT_NAME
from test_api_legacy import NAME, caller, in_background, info, params, progress, register, remote, step, wf
from test_api_legacy import api as api
from test_api_legacy import folder as folder

BASE = "/mi-distcomp-api"
EMPTY = {"content": "", "mimetype1": "", "mimetype2": ""}
RESULT = {"content": "cg==", "mimetype1": "text/plain;", "mimetype2": "charset=us-ascii"}
REQUESTS = {
    "User-Agent": "python-requests/2.31.0",
    "Accept-Encoding": "gzip, deflate",
    "Accept": "*/*",
    "Connection": "keep-alive",
}


def send(api: Api, head: list[str], body: bytes = b"", token: str = "workflow", seconds: float = 10) -> bytes:
    """One request, word for word; the connection is closed behind it."""
    lines = [*head, f"Authorization: Bearer {api.tokens[token]}", "Connection: close"]
    return api.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body, seconds)


def answer(data: bytes) -> tuple[int, Any]:
    """Status and document of the last answer in some bytes."""
    head, _, body = data.rpartition(b"\r\n\r\n")
    return int(head.rpartition(b"HTTP/1.")[2].split()[1]), json.loads(body)


def test_h90_legal_http_of_every_kind_registers_a_job(api: Api, folder: Path) -> None:
    """HTTP/1.0, an absolute URI, chunks, Expect, lower-case headers, a charset, `\\u` escapes: all the same job."""
    post, host = f"POST {BASE}/add-calcinfo HTTP/1.1", f"Host: localhost:{api.port}"
    body = json.dumps(info(folder), indent=1).encode()
    size, kind = f"Content-Length: {len(body)}", "Content-Type: application/json"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 9]), body[i : i + 9]) for i in range(0, len(body), 9))
    absolute = f"POST https://localhost:{api.port}{BASE}/add-calcinfo HTTP/1.1"
    for head, sent in (
        ([post, host, size, kind], body),
        ([post, host, size.lower(), kind.lower()], body),
        ([post, host, size, kind + "; charset=UTF-8"], body),
        ([post.replace("1.1", "1.0"), host, size, kind], body),
        ([absolute, host, size, kind], body),
        ([post, host, "Transfer-Encoding: chunked", kind], chunks + b"0\r\n\r\n"),
        ([post, host, size, kind, "Expect: 100-continue"], body),
        ([post, host, size, kind, *(f"{k}: {v}" for k, v in REQUESTS.items() if k != "Connection")], body),
    ):
        status, document = answer(send(api, head, sent))
        assert (status, document["errors"][0]["code"]) == (200, 200), (head, document)


def test_h90_pipelined_polls_are_answered_in_order(api: Api, folder: Path) -> None:
    """Several requests in one packet."""
    job = register(api, folder)
    words = [f"Host: localhost:{api.port}", f"Authorization: Bearer {api.tokens['agent']}", "Accept: */*"]
    one = "\r\n".join([f"GET {BASE}/calc-request?site_id={NAME} HTTP/1.1", *words]).encode() + b"\r\n\r\n"
    found = api.raw(one * 5, 3)
    assert found.count(job.encode()) == 5 and found.count(b"HTTP/1.1 200 OK") == 5


def test_h101_a_body_that_nobody_reads_does_not_cost_the_answer(api: Api, folder: Path) -> None:
    """A GET with a body that comes after its head, as old clients send it: answered, and the connection stays."""
    job, body = register(api, folder), b'{"accept_id": "x"}'
    words = [f"Host: localhost:{api.port}", f"Authorization: Bearer {api.tokens['workflow']}"]
    words += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    head = "\r\n".join([f"GET {BASE}/calc-status?accept_id={job} HTTP/1.1", *words]).encode() + b"\r\n\r\n"
    found = b""
    with api.stream() as stream:
        for count in (1, 2, 3):
            stream.sendall(head)
            assert progress(api, job) == "not start"  # on another connection, while the server knows the head alone
            stream.sendall(body)
            while found.count(b"status:none") < count:
                piece = stream.recv(65536)
                assert piece, "the connection is closed"
                found += piece
    assert found.count(b"HTTP/1.1 200 OK") == 3 and b"connection: close" not in found


@pytest.mark.parametrize(
    "head",
    [
        [f"GET {BASE}/calc-status?accept_id=x HTTP/1.0"],
        [f"GET {BASE}/calc-status?accept_id=x HTTP/1.1", "Host: localhost", "Content-Encoding: gzip"],
        [f"GET {BASE}/calc-status?accept_id=x HTTP/1.1", "Host: localhost", "Range: bytes=0-", "Range: bytes=0-"],
    ],
)
def test_h91_a_refusal_before_the_call_has_the_old_form_too(api: Api, head: list[str]) -> None:
    """No Host, a coded body, a header twice: an old client reads `errors` and nothing else."""
    status, document = answer(send(api, head))
    assert status >= 400 and document["errors"][0]["code"] != 200
    assert document["errors"][0]["message"]


def test_h92_an_empty_list_is_an_empty_name(api: Api, folder: Path) -> None:
    """What `"".split(":")` makes of no inputs and no results is no file, and the job runs through both old clients."""
    (folder / "run.sh").write_text("#!/bin/sh\necho made > out.dat\n")
    client = wf(api, folder, parameters="")
    client.inputs = [""]
    client.results = ["out.dat", "", *client.results[1:]]
    _, served = in_background(lambda: remote(api, folder).run())
    _, ended = in_background(client.run)
    eventually(lambda: ended and served, 60, "both ends")
    assert (ended, served) == ([0], [0])
    assert (folder / "out.dat").read_text() == "made\n"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"parameter_files": {"": ["aGk=", "text/plain;", "charset=us-ascii"]}}, "a file name is empty"),
        ({"parameter_files": {"a/x.dat": ["aGk=", "t", "c"], "b/x.dat": ["aGk=", "t", "c"]}}, "a file name two names"),
        ({"result_files": {"../out.dat": EMPTY}}, "a file name begins with"),
        ({"result_files": {"A.dat": EMPTY, "a.dat": EMPTY}}, "a file name two names differ"),
    ],
)
def test_h93_a_name_that_is_refused_is_told_why(
    api: Api,
    folder: Path,
    changes: dict[str, Any],
    why: str,
) -> None:
    """The message of a refused registration says what is wrong, without repeating the name."""
    status, document = caller(api, "workflow").call("POST", "add-calcinfo", None, info(folder, **changes))
    assert status == 202 and document["errors"][0]["message"].startswith(why), document


def test_h94_two_pollers_with_tokens_of_their_own_do_not_share_a_job(api: Api, folder: Path) -> None:
    """Both see the job; one of them gets it, its repetition is answered, and a renewed token goes on with it."""
    api.add_token("agent-2", "--user", "mint", "--scope", "agent", "--site", SITE)
    job = register(api, folder)
    query = {"accept_id": job, "site_id": NAME}
    found: dict[str, Any] = {}
    gate = threading.Barrier(2)

    def take(token: str) -> None:
        gate.wait()
        found[token] = caller(api, token).call("GET", "calc-params", query, None)[1]

    threads = [threading.Thread(target=take, args=(token,)) for token in ("agent", "agent-2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [token for token, document in found.items() if "calc-info" in document]
    assert len(winners) == 1, found
    loser = "agent" if winners == ["agent-2"] else "agent-2"
    assert found[loser]["errors"][0]["code"] == 409
    assert "calc-info" in caller(api, winners[0]).call("GET", "calc-params", query, None)[1]
    # A token that is renewed while the job runs: the other one tells the rest.
    assert caller(api, loser).call("POST", "calc-params-complete", None, query)[1]["errors"][0]["code"] == 200


def test_h95_jobs_that_the_old_form_cannot_hold_do_not_hide_others(api: Api, folder: Path) -> None:
    """Many jobs of v2 that an old client cannot get stand in front; the one behind them is offered."""

    def rule(**more: Any) -> dict[str, Any]:
        arguments = {"n": {"pattern": "[a-z ]*", "default": "x"}}
        return {"arguments": arguments, "outputs": {"out.dat": "required"}, **more}

    programs = {"plain": rule(), "noop": rule(command=str(folder / "run.sh"))}
    api.declare(site(SITE, legacy_ids=[NAME], programs=programs))
    reloaded = caller(api, "operator").call("POST", "reload-ini", None, {})
    assert reloaded[0] == 200, (reloaded, api.log()[-1])
    for number in range(60):
        # A space in an argument, or a program without a command: neither has an old form.
        changes = {"program": "plain"} if number % 2 else {"program": "noop", "arguments": {"n": "a b"}}
        api.submit(**changes)
    assert caller(api, "agent").call("GET", "calc-request", {"site_id": NAME}, None)[1]["errors"][0]["code"] == 404
    job = register(api, folder)
    entry = caller(api, "agent").call("GET", "calc-request", {"site_id": NAME}, None)[1]["errors"][0]
    assert entry == {"code": 200, "message": "ok", "accept_id": job}


def with_times(api: Api, **times: int) -> None:
    api.config["times"] = times
    api.write_config()
    api.kill()
    api.start()


def slowly(pieces: list[bytes], seconds: float) -> Iterator[bytes]:
    """The pieces, spread over so long."""
    for piece in pieces:
        yield piece
        time.sleep(seconds / len(pieces))


def until(api: Api, job: str, last: str) -> None:
    """The site's calls up to this one, without a file."""
    assert params(api, job)[0] == 200
    more: dict[str, Any] = {"calc-end": {"result": "calc end"}, "send-results": {"result_files": {"out.dat": RESULT}}}
    for name in ("calc-params-complete", "calc-start", "calc-end", "send-results"):
        assert step(api, name, job, **more.get(name, {})) == (200, 200)
        if name == last:
            return


def fetched(api: Api, job: str) -> tuple[str, Any]:
    """Status and results of a job that has come to its end."""
    eventually(lambda: progress(api, job) == "got return", what="the end")
    calls = caller(api, "workflow")
    status = calls.call("GET", "calc-status", {"accept_id": job}, None)[1]["errors"][0]["message"]
    entry = calls.call("GET", "get-calc-result", {"accept_id": job}, None)[1]["errors"][0]
    return status, {name: b64decode(file["content"]) for name, file in entry["result-info"]["result_files"].items()}


def test_h98_files_that_take_longer_than_the_clocks_of_their_job(api: Api, folder: Path) -> None:
    """While inputs or results move, the claim does not run out, and results that come late are not thrown away."""
    with_times(api, legacy_claim=4, legacy_results=4, legacy_abnormal=4)
    data = bytes(range(256)) * 80_000
    job = register(api, folder, parameter_files={"a.dat": [b64encode(data).decode(), "a/b;", "charset=binary"]})
    connection = api.connect()
    head = {"Authorization": "Bearer " + api.tokens["agent"], "Content-Type": "application/json"}
    connection.request("GET", f"{BASE}/calc-params?accept_id={job}&site_id={NAME}", headers=head)
    answer, text = connection.getresponse(), bytearray()
    for _ in slowly([b""] * 200, 9):
        text += answer.read(140_000)
    text += answer.read()
    assert b64decode(json.loads(text)["calc-info"]["parameter_files"]["a.dat"][0]) == data
    target = {"accept_id": job, "site_id": NAME}
    for name, more in (("calc-params-complete", {}), ("calc-start", {}), ("calc-end", {"result": "calc end"})):
        assert step(api, name, job, **more) == (200, 200)
    file = {"content": b64encode(data).decode(), "mimetype1": "a/b;", "mimetype2": "charset=binary"}
    body = json.dumps({**target, "result_files": {"out.dat": file}}).encode()
    size = len(body) // 200 + 1
    sent = slowly([body[i : i + size] for i in range(0, len(body), size)], 9)
    connection.request("POST", f"{BASE}/send-results", sent, {**head, "Content-Length": str(len(body))})
    assert json.loads(connection.getresponse().read())["errors"][0]["code"] == 200
    connection.close()
    assert step(api, "end-send", job, result="end send") == (200, 200)
    assert fetched(api, job) == ("status:completed", {"out.dat": data})


def test_h99_the_last_word_without_results_or_results_without_it(api: Api, folder: Path) -> None:
    """A client whose results were refused says end-send; one that dies before it has sent all: neither job hangs."""
    with_times(api, legacy_results=1)
    job = register(api, folder, result_files={"out.dat": EMPTY, STDERR_NAME: EMPTY})
    until(api, job, "calc-start")
    assert step(api, "end-send", job, result="end send") == (400, 409)
    assert step(api, "calc-end", job, result="calc end") == (200, 200)
    for _ in range(2):
        assert step(api, "end-send", job, result="end send") == (200, 200)
    status, files = fetched(api, job)
    assert status == "status:abnormal" and b"never sent the results" in files[STDERR_NAME]
    job = register(api, folder)
    until(api, job, "send-results")
    assert fetched(api, job) == ("status:completed", {"out.dat": b"r"})


def test_p65_a_log_that_is_no_text_is_not_called_one(api: Api, folder: Path) -> None:
    """What an agent of ours sent as log, with other bytes behind a long beginning that is ASCII."""
    job = register(api, folder, result_files={"out.dat": EMPTY, STDOUT_NAME: EMPTY})
    log = b"step\n" * 20_000 + b"\x82\xa0\n"
    claim = api.claim(str(uuid.uuid4()))
    fence = {"Misrc-Fence": str(claim["fence"])}
    api.report(claim, "running")
    api.call("POST", f"/mi-distcomp-api/v2/claims/{job}/log?offset=0", log, "agent", fence)
    assert api.end(claim, {"out.dat": b"r"}).status == 200
    entry = caller(api, "workflow").call("GET", "get-calc-result", {"accept_id": job}, None)[1]["errors"][0]
    output = entry["result-info"]["result_files"][STDOUT_NAME]
    assert (b64decode(output["content"]), output["mimetype2"]) == (log, "charset=binary")


def test_h102_a_site_that_only_the_ini_file_names_gets_a_token_by_that_name(api: Api, folder: Path) -> None:
    """Old site ids have capital letters; whoever makes the token knows no other. What names no site is refused."""
    ini = folder / "sites.ini"
    ini.write_text("[RemoteSites]\nremote_site_ids = u-tokyo_enokiLab\n[u-tokyo_enokiLab]\ncommands = /a.sh\n")
    api.config["ini"] = str(ini)
    api.write_config()
    api.kill()
    api.start()
    for name in ("u-tokyo_enokiLab", NAME):
        api.add_token(f"agent-{name}", "--user", "mint", "--scope", "agent", "--site", name)
    job = register(api, folder, **{"remote-site": "u-tokyo_enokiLab", "command": "/a.sh"})
    request = caller(api, "agent-u-tokyo_enokiLab").call("GET", "calc-request", {"site_id": "u-tokyo_enokiLab"}, None)
    assert request[1]["errors"][0]["accept_id"] == job
    own = caller(api, f"agent-{NAME}").call("GET", "calc-request", {"site_id": NAME}, None)
    assert own[1]["errors"][0]["code"] == 404
    with pytest.raises(AssertionError, match="site id"):
        api.add_token("agent-x", "--user", "mint", "--scope", "agent", "--site", "Nobody")
