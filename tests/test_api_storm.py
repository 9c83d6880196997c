"""Calls of both faces on the same jobs, in any order and at the same time: never our own failure, never a way back."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apiserver import SITE, V2, Api, Reply, b64, digest, manifest, running, site, submission
from predecessor.calls import STDERR_NAME, STDOUT_NAME
from test_api_claims import database as database
from test_api_legacy import NAME, info, program

from misrc.job.states import JobState

BASE = "/mi-distcomp-api"
CONNECTIONS, CALLS = 8, 40
ORDER = [state.value for state in JobState]


class Caller:
    """One connection's part: any call on any of the jobs, with what may be right for it."""

    def __init__(self, api: Api, jobs: list[str], seed: int) -> None:
        self.api, self.jobs, self.chance = api, jobs, random.Random(seed)
        self.fences = [1, 2, 3]
        self.seen: list[tuple[str, Reply]] = []

    def run(self) -> None:
        for _ in range(CALLS):
            method, path, body, token, headers = self.choose(self.chance.choice(self.jobs))
            self.seen.append((f"{method} {path}", self.api.call(method, path, body, token, headers)))

    def choose(self, job: str) -> tuple[str, str, Any, str, dict[str, str]]:
        chance = self.chance
        fence = chance.choice(self.fences)
        data = chance.choice([b"one", b"two"])
        old = {"accept_id": job, "site_id": NAME}
        results = {"out.dat": {"content": b64(data), "mimetype1": "t", "mimetype2": "c"}}
        logs = {name: {"content": "", "mimetype1": "t", "mimetype2": "c"} for name in (STDOUT_NAME, STDERR_NAME)}
        upload = {"Upload-Length": "3", "Repr-Digest": digest(data), "Misrc-Fence": str(fence)}
        end = {"fence": fence, "outcome": "succeeded", "manifest": manifest({"out.dat": data})}
        calls: list[tuple[str, str, Any, str, dict[str, str]]] = [
            ("PUT", f"{V2}/jobs/{job}", submission(job, {"a.dat": data}, chance.random() < 0.5), "workflow", {}),
            ("PUT", f"{V2}/jobs/{job}/inputs/a.dat", data, "workflow", upload),
            ("POST", f"{V2}/jobs/{job}/release", {"manifest": manifest({"a.dat": data})}, "workflow", {}),
            ("POST", f"{V2}/jobs/{job}/cancel", {}, "workflow", {}),
            ("POST", f"{V2}/jobs/{job}/close", {}, "workflow", {}),
            ("GET", f"{V2}/jobs/{job}", None, "workflow", {}),
            ("GET", f"{V2}/jobs/{job}/documents", None, "workflow", {}),
            ("GET", f"{V2}/jobs/{job}/results/out.dat", None, "workflow", {}),
            ("POST", f"{V2}/sites/{SITE}/poll", {"agent": str(uuid.uuid4()), "wait": 0, "room": 1}, "agent", {}),
            ("POST", f"{V2}/claims/{job}/report", {"fence": fence, "state": "queued", "since": 1.0}, "agent", {}),
            ("POST", f"{V2}/claims/{job}/report", {"fence": fence, "state": "running", "since": 1.0}, "agent", {}),
            ("PUT", f"{V2}/claims/{job}/results/out.dat", data, "agent", upload),
            ("POST", f"{V2}/claims/{job}/log?offset=0", b"words", "agent", {"Misrc-Fence": str(fence)}),
            ("POST", f"{V2}/claims/{job}/end", end, "agent", {}),
            ("POST", f"{V2}/claims/{job}/end", {**end, "small": {"out.dat": b64(data)}}, "agent", {}),
            ("GET", f"{BASE}/calc-request?site_id={NAME}", None, "agent", {}),
            ("GET", f"{BASE}/calc-params?accept_id={job}&site_id={NAME}", None, "agent", {}),
            ("POST", f"{BASE}/calc-params-complete", old, "agent", {}),
            ("POST", f"{BASE}/calc-start", old, "agent", {}),
            ("POST", f"{BASE}/calc-end", {**old, "result": chance.choice(["calc end", "abnormal"])}, "agent", {}),
            ("POST", f"{BASE}/send-results", {**old, "result_files": {**results, **logs}}, "agent", {}),
            ("POST", f"{BASE}/end-send", {**old, "result": "end send"}, "agent", {}),
            ("POST", f"{BASE}/allow-wait-calc", {"accept_id": job}, "workflow", {}),
            ("POST", f"{BASE}/cancel-wait-calc", {"accept_id": job}, "workflow", {}),
            ("GET", f"{BASE}/calc-status?accept_id={job}", None, "workflow", {}),
            ("GET", f"{BASE}/calc-progress?accept_id={job}", None, "workflow", {}),
            ("GET", f"{BASE}/get-calc-result?accept_id={job}", None, "workflow", {}),
            ("GET", f"{BASE}/get-calcinfo", None, "workflow", {}),
        ]
        return chance.choice(calls)


def watch(api: Api, job: str, stop: Callable[[], bool]) -> list[str]:
    """The states that a job is seen in, one after the other."""
    found: list[str] = []
    while not stop():
        answer = api.call("GET", f"{V2}/jobs/{job}")
        if answer.status == 200 and (not found or found[-1] != answer.json["state"]):
            found.append(answer.json["state"])
    return found


def shoot(api: Api, folder: Path, seed: int) -> None:
    """One round on four new jobs, two of each face."""
    jobs = [str(uuid.uuid4()) for _ in range(2)]
    for _ in range(2):
        answer = api.call("POST", f"{BASE}/add-calcinfo", info(folder))
        jobs.append(str(answer.json["errors"][0]["accept_id"]))
    callers = [Caller(api, jobs, seed * 50 + number) for number in range(CONNECTIONS)]
    threads = [threading.Thread(target=one.run) for one in callers]
    watched: list[list[str]] = []
    over = threading.Event()
    watchers = [threading.Thread(target=lambda job=job: watched.append(watch(api, job, over.is_set))) for job in jobs]
    for thread in [*threads, *watchers]:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    for thread in watchers:
        thread.join()
    seen = [entry for one in callers for entry in one.seen]
    assert len(seen) == CONNECTIONS * CALLS
    failed = [(what, reply.status, reply.body[:200]) for what, reply in seen if reply.status >= 500]
    assert not failed, (failed, [line for line in api.log() if "trace" in line])
    for states in watched:
        places = [ORDER.index(state) for state in states]
        assert places == sorted(places), states


def test_h97_any_order_of_calls_at_once_is_answered_and_never_goes_back(database: str | None, tmp_path: Path) -> None:
    """Both faces, submitter and agents, on the same jobs: no 5xx, no trace in the log, states in their order."""
    declared = {
        "command": str(program(tmp_path)), "inputs": {"*.dat": "optional"}, "outputs": {"out.dat": "required"},
    }  # fmt: skip
    with running(tmp_path / "s", database, hosts=[]) as api:
        api.declare(site(SITE, legacy_ids=[NAME], programs={"noop": declared}))
        api.kill()
        api.start()
        for seed in (1, 2):
            shoot(api, tmp_path, seed)
        assert not [line for line in api.log() if "trace" in line]
        job = api.submit({"a.dat": b"x"})  # control: the server serves on
        assert api.job(job)["state"] == "staged"
