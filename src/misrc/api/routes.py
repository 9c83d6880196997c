"""The table of v2's calls: the service answers from it, and the OpenAPI document is written from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..wire import api
from ..wire.api import ApiError
from . import agents, uploads, workflow
from .call import Answer, parse_segment
from .problems import Refused, unknown
from .tokens import AGENT, WORKFLOW

Handler = Callable[..., Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """One call. `body` and `answer` are types of `wire/api.py`; `bytes` where files travel; None for nothing.

    `headers` are those that the call reads, `query` its numbers, `good` the statuses of success.
    """

    method: str
    template: str
    scope: str
    handler: Handler
    body: Any = None
    answer: Any = None
    good: tuple[int, ...] = (200,)
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[str, ...]:
        """The template's parts, every parameter alike."""
        return tuple("{}" if part.startswith("{") else part for part in self.template.strip("/").split("/"))


_UPLOAD = (api.UPLOAD_LENGTH, api.DIGEST)
_PATCH = (api.UPLOAD_OFFSET,)
_F = (api.FENCE,)

ROUTES: tuple[Route, ...] = (
    Route("PUT", "/jobs/{job}", WORKFLOW, workflow.put_job, api.Submission, api.Job, (200, 201)),
    Route("GET", "/jobs/{job}", WORKFLOW, workflow.get_job, None, api.Job, query=("version", "wait")),
    Route("GET", "/jobs", WORKFLOW, workflow.list_jobs, None, api.JobList, query=("after", "limit")),
    Route("POST", "/jobs/{job}/check", WORKFLOW, workflow.check_job, api.Submission, api.Nothing),
    Route("POST", "/jobs/{job}/release", WORKFLOW, workflow.release_job, api.Release, api.Job),
    Route("POST", "/jobs/{job}/cancel", WORKFLOW, workflow.cancel_job, api.Nothing, api.Job),
    Route("POST", "/jobs/{job}/close", WORKFLOW, workflow.close_job, api.Nothing, api.Job),
    Route("GET", "/jobs/{job}/documents", WORKFLOW, workflow.get_documents, None, api.Documents),
    Route("GET", "/jobs/{job}/log", WORKFLOW, workflow.get_log, None, bytes, query=("offset",)),
    Route("GET", "/jobs/{job}/results/{name}", WORKFLOW, workflow.get_result, None, bytes, (200, 206), (), ("Range",)),
    Route(
        "PUT", "/jobs/{job}/inputs/{name}", WORKFLOW, uploads.put_input, bytes, api.LogOffset, (200, 201), (), _UPLOAD
    ),
    Route("HEAD", "/jobs/{job}/inputs/{name}", WORKFLOW, uploads.head_input, None, api.LogOffset),
    Route(
        "PATCH",
        "/jobs/{job}/inputs/{name}",
        WORKFLOW,
        uploads.patch_input,
        bytes,
        api.LogOffset,
        (200, 201),
        (),
        _PATCH,
    ),
    Route("POST", "/sites/{site}/poll", AGENT, agents.poll_site, api.Poll, api.Work),
    Route("POST", "/claims/{job}/report", AGENT, agents.report_claim, api.Report, api.Orders),
    Route("POST", "/claims/{job}/end", AGENT, agents.end_claim, api.End, api.Orders),
    Route("POST", "/claims/{job}/log", AGENT, agents.post_log, bytes, api.LogOffset, query=("offset",), headers=_F),
    Route("GET", "/claims/{job}/inputs/{name}", AGENT, agents.get_input, None, bytes, (200, 206), (), ("Range", *_F)),
    Route(
        "PUT",
        "/claims/{job}/results/{name}",
        AGENT,
        uploads.put_result,
        bytes,
        api.LogOffset,
        (200, 201),
        (),
        (*_UPLOAD, *_F),
    ),
    Route("HEAD", "/claims/{job}/results/{name}", AGENT, uploads.head_result, None, api.LogOffset, headers=_F),
    Route(
        "PATCH",
        "/claims/{job}/results/{name}",
        AGENT,
        uploads.patch_result,
        bytes,
        api.LogOffset,
        (200, 201),
        (),
        (*_PATCH, *_F),
    ),
)

_BY_SHAPE: dict[tuple[str, ...], dict[str, Route]] = {}
for _route in ROUTES:
    _BY_SHAPE.setdefault(_route.shape, {})[_route.method] = _route


@dataclass(frozen=True)
class Match:
    """A route, and the values of its parameters."""

    route: Route
    values: tuple[str, ...]


class MethodRefused(Refused):
    """The path is one of ours, and the method is not."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__(ApiError.METHOD, "this call has another method")
        self.allowed = allowed


def match(method: str, path: bytes) -> Match:
    """The route of a path below v2, which begins with `/`; raises Refused."""
    raw = path[1:].split(b"/")
    if len(raw) > 4:  # the name of a result in folders
        raw = [*raw[:3], b"/".join(raw[3:])]
    words = [part.decode("ascii", "replace") for part in raw]
    shape = tuple(words[i] if i % 2 == 0 else "{}" for i in range(len(words)))
    routes = _BY_SHAPE.get(shape)
    if routes is None or not all(raw[1::2]):
        raise _no_such_call()
    route = routes.get(method)
    if route is None:
        raise MethodRefused(tuple(sorted(routes)))
    return Match(route, tuple(parse_segment(part) for part in raw[1::2]))


def _no_such_call() -> Refused:
    refused = unknown()
    refused.message = "there is no such call"
    return refused
