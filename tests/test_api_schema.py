"""docs/openapi.json against the real server: calls of every form that it allows or forbids, made by schemathesis.

An unknown job would answer almost every call with 404, so half of the calls are moved near to something that exists: a
job in each state, its files, the right fence, and a body that is legal but for one part.

Not covered: pauses (503, 507), which need a disk or a store that fails; other tests have them.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from apiserver import SITE, V2, Api, b64, digest, manifest, running, submission
from conftest import ROOT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from misrc.wire.api import PARTIAL

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.core.failures import FailureGroup
    from schemathesis.core.result import Ok
    from schemathesis.schemas import APIOperation
    from schemathesis.specs.openapi import checks


def understood() -> Iterator[APIOperation[Any, Any, Any, Any]]:
    """All operations; one that schemathesis cannot read is no test left out, but a failure."""
    for made in SCHEMA.get_all_operations():
        assert isinstance(made, Ok), made
        yield made.ok()


SCHEMA = schemathesis.openapi.from_path(ROOT / "docs/openapi.json", config=schemathesis.Config())
OPERATIONS = {made.label: made for made in understood()}
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
TOKENS = ("workflow", "agent", "operator", None)
DATA = b"0123456789"
STATES = ("created", "half", "staged", "claimed", "running", "ended", "closed")
# The state in which an operation is done; the others mostly refuse it.
FITTING = {
    "GET /jobs/{job}/documents": "ended",
    "GET /jobs/{job}/results/{name}": "ended",
    "PATCH /jobs/{job}/inputs/{name}": "half",
    "HEAD /jobs/{job}/inputs/{name}": "half",
    "PUT /jobs/{job}/inputs/{name}": "created",
    "POST /jobs/{job}/release": "staged",
    "HEAD /claims/{job}/results/{name}": "begun",
    "PATCH /claims/{job}/results/{name}": "begun",
}


@schemathesis.serializer(PARTIAL)
def send_as_it_is(_context: Any, value: Any) -> Any:
    """Bytes of an upload."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("api") / "s", limits={"jobs": 1_000_000, "uploads": 1_000_000}) as server:
        yield server


@dataclass
class Place:
    """A job that exists, in one state."""

    job: str
    agent: str = field(default_factory=lambda: str(uuid.uuid4()))
    fence: int = 1


def make_place(api: Api, state: str) -> Place:
    """A job that has come as far as this, with an input, a log and results where its state has them."""
    if state in ("created", "half"):
        job = str(uuid.uuid4())
        body = submission(job, {}, release=False, manifest=None)
        body["spec"] = body["spec"].replace('"bytes":0', f'"bytes":{len(DATA)}').replace('"files":0', '"files":1')
        assert api.call("PUT", f"{V2}/jobs/{job}", body).status == 201
        if state == "half":
            headers = {"Upload-Length": str(len(DATA)), "Repr-Digest": digest(DATA)}
            assert api.call("PUT", f"{V2}/jobs/{job}/inputs/a.dat", DATA[:4], headers=headers).status == 200
        return Place(job)
    place = Place(api.submit({"a.dat": DATA}))
    if state == "staged":
        return place
    claim = next(c for c in api.poll(place.agent, room=1000)["claims"] if c["job"] == place.job)
    place.fence = claim["fence"]
    if state == "claimed":
        return place
    api.report(claim, "running", progress={"done": 1, "total": 2, "unit": "steps", "text": "計算"})
    fence = {"Misrc-Fence": str(place.fence)}
    assert api.call("POST", f"{V2}/claims/{place.job}/log?offset=0", b"said\n", "agent", fence).status == 200
    if state == "begun":
        headers = {"Upload-Length": str(len(DATA)), "Repr-Digest": digest(DATA), **fence}
        assert api.call("PUT", f"{V2}/claims/{place.job}/results/out.dat", DATA[:4], "agent", headers).status == 200
    if state in ("ended", "closed"):
        assert api.end(claim, {"out.dat": DATA}).status == 200
    if state == "closed":
        assert api.call("POST", f"{V2}/jobs/{place.job}/close", {}).status == 200
    return place


def legal_body(label: str, place: Place) -> dict[str, Any] | None:
    """A body that this call takes, where it takes JSON."""
    small = {"out.dat": b64(DATA)}
    end = {"fence": place.fence, "outcome": "succeeded", "manifest": manifest({"out.dat": DATA}), "small": small}
    bodies: Mapping[str, dict[str, Any]] = {
        "PUT /jobs/{job}": submission(place.job, {"a.dat": DATA}),
        "POST /jobs/{job}/check": submission(place.job, {}, release=False),
        "POST /jobs/{job}/release": {"manifest": manifest({"a.dat": DATA})},
        "POST /jobs/{job}/cancel": {},
        "POST /jobs/{job}/close": {},
        "POST /sites/{site}/poll": {"agent": place.agent, "room": 1, "holding": [{"job": place.job, "fence": 1}]},
        "POST /claims/{job}/report": {"fence": place.fence, "state": "running", "since": 1.5},
        "POST /claims/{job}/end": {**end, "reason": "", "receipt": "{}\n", "signature": "s", "log_end": 5},
    }
    return bodies.get(label.replace(V2, ""))


def move_near(case: Any, place: Place, draw: Any) -> None:
    """Let the call be about this job; one part of it stays as it was made."""
    label = f"{case.method} {case.path}"
    named: dict[str, dict[str, str]] = {"path": {}, "query": {}, "header": {}}
    for parameter in case.operation.iter_parameters():
        named[parameter.location][parameter.name] = parameter.name
    spared = draw(st.sampled_from([name for names in named.values() for name in names] + ["body"] + ["nothing"] * 4))
    paths = {"job": place.job, "site": SITE, "name": "a.dat" if "inputs" in label else "out.dat"}
    headers = {"Upload-Length": "10", "Upload-Offset": "4", "Repr-Digest": digest(DATA)}
    headers["Misrc-Fence"] = str(place.fence)
    queries = {"offset": 5, "version": 0, "limit": 3}
    for values, names, place_of in (
        (paths, named["path"], case.path_parameters),
        (queries, named["query"], case.query),
        (headers, named["header"], case.headers),
    ):
        for name in set(names) - {spared}:
            place_of.pop(name, None)
            if name in values:
                place_of[name] = values[name]
    legal = DATA[4:] if "PATCH" in label else DATA if "PUT" in label and "{name}" in label else legal_body(label, place)
    if legal is not None:
        case.body = spoil(legal, case.body, draw) if spared == "body" else legal


def spoil(legal: Any, made: Any, draw: Any) -> Any:
    """A legal body with one part of another one."""
    if not isinstance(legal, dict) or not isinstance(made, dict) or not made:
        return made
    key = draw(st.sampled_from(sorted(made)))
    return {**legal, key: made[key]}


def hurry(case: Any) -> None:
    """Nobody here waits a minute for news."""
    if isinstance(case.query, dict) and str(case.query.get("wait", "")).isdigit():
        case.query["wait"] = 0 if int(case.query["wait"]) <= 60 else 61
    if isinstance(case.body, dict) and isinstance(case.body.get("wait"), int) and case.body["wait"] <= 60:
        case.body["wait"] = min(case.body["wait"], 0)


def explore(api: Api, label: str, token: str | None, near: bool, examples: int) -> Counter[int]:
    """Call one operation in many ways; how often each status came. A fault raises, with the call that shows it."""
    seen: Counter[int] = Counter()
    operation = OPERATIONS[label]
    fitting = FITTING.get(label.replace(V2, ""), "running")
    session = requests.Session()
    session.trust_env = False

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data(), form=st.sampled_from(list(schemathesis.GenerationMode)))
    def call(data: st.DataObject, form: Any) -> None:
        case = data.draw(operation.as_strategy(generation_mode=form))
        if near:
            state = fitting if data.draw(st.booleans()) else data.draw(st.sampled_from(STATES))
            move_near(case, make_place(api, state), data.draw)
        hurry(case)
        answer = case.call(
            base_url=f"https://localhost:{api.port}",
            headers={} if token is None else {"Authorization": f"Bearer {api.tokens[token]}"},
            session=session,
            verify=str(api.root / "tls/ca.pem"),
            timeout=60,
        )
        seen[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    call()
    session.close()
    return seen


def check_operation(api: Api, label: str, examples: int) -> None:
    for token in TOKENS:
        seen = explore(api, label, token, False, examples)
        # Some calls bear a token that schemathesis made up, whoever calls.
        expected = {None: {401, 400, 414}, "operator": {401, 403, 404, 400, 414}}.get(token, set(seen))
        assert set(seen) <= expected, (token, seen)
    own = "agent" if "/claims/" in label or "/sites/" in label else "workflow"
    seen = explore(api, label, own, True, 4 * examples)
    assert any(status < 300 for status in seen), f"no call was legal: {seen}"
    assert label.endswith("/jobs") or any(400 <= status < 500 for status in seen), f"no call was refused: {seen}"
    assert not [line for line in api.log() if line["level"] == "error"]


@pytest.mark.parametrize("label", sorted(OPERATIONS))
def test_no_call_brings_an_undeclared_answer(api: Api, label: str) -> None:
    """Every operation, with each kind of token and with none, legal and not: no 500, no status, type, header or body
    that the document does not name. Some calls are done and some refused, so that neither side goes unseen."""
    check_operation(api, label, 5)


@pytest.mark.full
@pytest.mark.parametrize("label", sorted(OPERATIONS))
def test_no_call_brings_an_undeclared_answer_at_length(api: Api, label: str) -> None:
    """The same with many more calls."""
    check_operation(api, label, 60)


def test_an_undeclared_answer_would_be_seen(api: Api) -> None:
    """Positive control: of a document without the code 404, and of one with another type, the same call is a fault."""
    document = json.loads((ROOT / "docs/openapi.json").read_text(encoding="utf-8"))
    path = f"{V2}/jobs/{{job}}"
    without = json.loads(json.dumps(document))
    del without["paths"][path]["get"]["responses"]["404"]
    other = json.loads(json.dumps(document))
    other["components"]["schemas"]["Failure"]["properties"]["error"] = {"type": "integer"}
    for changed, fault in ((document, False), (without, True), (other, True)):
        schema = schemathesis.openapi.from_dict(changed, config=schemathesis.Config())
        case = schema[path]["GET"].Case(path_parameters={"job": str(uuid.uuid4())}, query={})
        bearer = {"Authorization": f"Bearer {api.tokens['workflow']}"}
        verify = str(api.root / "tls/ca.pem")
        answer = case.call(base_url=f"https://localhost:{api.port}", headers=bearer, verify=verify)
        assert answer.status_code == 404
        if fault:
            with pytest.raises(FailureGroup):
                case.validate_response(answer, checks=CHECKS)
        else:
            case.validate_response(answer, checks=CHECKS)
