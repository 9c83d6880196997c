"""The OpenAPI document: what is shipped is what the code says."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT

from misrc.api.openapi import make_document, render_document
from misrc.api.routes import ROUTES
from misrc.wire.api import ApiError

pytestmark = pytest.mark.quick


def test_the_shipped_document_is_the_codes() -> None:
    """`python -m misrc.api.openapi >docs/openapi.json` gives the file, to the byte."""
    assert (ROOT / "docs/openapi.json").read_text(encoding="utf-8") == render_document()


def test_every_call_stands_in_it_once() -> None:
    """Each route has an operation of its own, with an answer for success and one for each refusal."""
    document = make_document()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) == len(ROUTES) == len({operation["operationId"] for operation in operations})
    statuses = {str(code.status) for code in ApiError if code is not ApiError.INTERNAL}
    assert all(statuses <= set(operation["responses"]) for operation in operations)
    assert "INTERNAL" not in json.dumps(document)


def test_no_reference_leads_nowhere() -> None:
    """Every `$ref` names a component that is there."""
    document = make_document()
    text = json.dumps(document)
    for kind in ("schemas", "responses"):
        named = {part.split('"')[0] for part in text.split(f"#/components/{kind}/")[1:]}
        assert named <= set(document["components"][kind])
