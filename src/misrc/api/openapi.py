"""The OpenAPI document of v2, written from the table of calls and the types that they carry.

It is shipped as `docs/openapi.json` and not served: what exists is nobody's business who has no token. A test holds
the file equal to the code.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from .. import __version__
from ..job.names import JOB_ID, SITE_ID
from ..wire import api
from ..wire.api import ApiError
from .routes import ROUTES, Route

_REF = "#/components/schemas/{model}"
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    api.FENCE: ("The claim's fence.", _NUMBER),
    api.UPLOAD_LENGTH: ("The whole length in bytes.", _NUMBER),
    api.UPLOAD_OFFSET: ("Where these bytes go.", _NUMBER),
    api.DIGEST: ("The sha256 of the whole.", {"type": "string", "pattern": "^sha-256=:[A-Za-z0-9+/]{43}=:$"}),
    "Range": ("A single range of bytes.", {"type": "string", "pattern": "^bytes=([0-9]+-[0-9]*|-[0-9]+)$"}),
}
_PARAMETERS: dict[str, tuple[str, dict[str, Any]]] = {
    "job": ("The job's id.", {"type": "string", "pattern": f"^{JOB_ID}$"}),
    "site": ("The site's id.", {"type": "string", "pattern": f"^{SITE_ID}$"}),
    "name": ("A file's name, percent-encoded.", {"type": "string", "minLength": 1, "maxLength": 1024}),
}
# What any call may be answered: the refusals of the access and of the request's form, and a store that pauses.
_ALWAYS = (
    ApiError.MALFORMED,
    ApiError.UNAUTHENTICATED,
    ApiError.FORBIDDEN,
    ApiError.UNKNOWN,
    ApiError.METHOD,
    ApiError.TIMEOUT,
    ApiError.CONFLICT,
    ApiError.GONE,
    ApiError.FENCED,
    ApiError.TOO_LARGE,
    ApiError.MEDIA_TYPE,
    ApiError.OFFSET,
    ApiError.REFUSED,
    ApiError.BUSY,
    ApiError.PAUSED,
    ApiError.FULL,
)


# The head of a request is refused before anybody knows which call it is.
_TOO_LONG = {"414": "uri-too-long", "431": "head-too-long"}


def make_document() -> dict[str, Any]:
    """The document as plain values."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    refusal = _schema(api.Failure, schemas)
    responses = {
        code.value: {"description": f"{code.status} {code.value}", "content": {"application/json": {"schema": refusal}}}
        for code in _ALWAYS
    }
    for status, name in _TOO_LONG.items():
        words = f"{status} too-large: the request's head, before anything of it is looked at"
        responses[name] = {**responses[ApiError.TOO_LARGE.value], "description": words}
    for route in ROUTES:
        paths.setdefault(api.V2 + route.template, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "misrc API v2",
            "version": __version__,
            "description": "What docs/api.md explains. Every call may be repeated.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": responses,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    words = (route.handler.__doc__ or "").strip().split("\n")[0]
    operation: dict[str, Any] = {
        "operationId": "_".join([route.method.lower(), *(part.replace("{}", "one") for part in route.shape)]),
        "summary": words,
        "description": f"Scope `{route.scope}`.",
        "parameters": _parameters(route),
        "responses": {
            **{str(status): _answer(route, schemas) for status in route.good},
            **{str(code.status): {"$ref": f"#/components/responses/{code.value}"} for code in _ALWAYS},
            **{status: {"$ref": f"#/components/responses/{name}"} for status, name in _TOO_LONG.items()},
        },
    }
    if route.body is not None:
        operation["requestBody"] = {"required": route.body is not bytes, "content": _content(route, schemas)}
    return operation


def _content(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    if route.body is not bytes:
        return {"application/json": {"schema": _schema(route.body, schemas)}}
    if route.method == "PATCH":
        return {api.PARTIAL: _BYTES["application/octet-stream"]}
    return dict(_BYTES)


def _answer(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done."}
    if route.answer is bytes:
        answer["content"] = dict(_BYTES)
    elif route.answer is not None:
        answer["content"] = {"application/json": {"schema": _schema(route.answer, schemas)}}
    if route.body is bytes or route.method == "HEAD":
        answer["headers"] = {api.UPLOAD_OFFSET: {"description": "How much is here.", "schema": dict(_NUMBER)}}
    return answer


def _parameters(route: Route) -> list[dict[str, Any]]:
    found = []
    for part in route.template.split("/"):
        if part.startswith("{"):
            words, schema = _PARAMETERS[part[1:-1]]
            found.append(_parameter(part[1:-1], "path", words, schema, True))
    for name in route.query:
        schema = {**_NUMBER, "maximum": api.MAX_WAIT_SECONDS} if name == "wait" else dict(_NUMBER)
        if name == "after":
            schema = dict(_PARAMETERS["job"][1])
        found.append(_parameter(name, "query", "See docs/api.md.", schema, False))
    for name in route.headers:
        words, schema = _HEADERS[name]
        found.append(_parameter(name, "header", words, schema, name != "Range"))
    return found


def _parameter(name: str, where: str, words: str, schema: dict[str, Any], required: bool) -> dict[str, Any]:
    return {"name": name, "in": where, "description": words, "schema": dict(schema), "required": required}


def _schema(cls: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to a type's schema, which is added with all that it needs."""
    made = TypeAdapter(cls).json_schema(ref_template=_REF)
    for name, schema in made.pop("$defs", {}).items():
        schemas[name] = _strict(schema)
    schemas[cls.__name__] = _strict(made)
    return {"$ref": _REF.format(model=cls.__name__)}


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Unknown keys are refused by every type of ours."""
    if schema.get("type") == "object" and "properties" in schema:
        schema["additionalProperties"] = False
    return schema


def render_document() -> str:
    """The file's text."""
    return json.dumps(make_document(), indent=1, ensure_ascii=False, sort_keys=False) + "\n"


def main() -> int:
    """Print the document."""
    print(render_document(), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
