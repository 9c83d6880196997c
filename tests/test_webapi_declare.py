"""The declaration of a site that opens no port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_contract_units import read_tables

from misrc.declare.interface import Api
from misrc.declare.inventory import parse_site
from misrc.job.errors import BadRequest

pytestmark = pytest.mark.quick

SITE: dict[str, Any] = {
    "id": "company-b",
    "method": "webapi",
    "api": {"url": "https://mint.example.jp:50443", "user": "company-b"},
    "programs": {"p": {}},
}


def parse(**changes: Any) -> Any:
    return parse_site({"misrc_site": {**SITE, **changes}}, Path("site.yml"))


def test_what_the_running_code_needs_is_there() -> None:
    """Server, user, CA, token and the wish to sign reach the interface."""
    site = parse(api={**SITE["api"], "ca": "/etc/ca.pem", "token_file": "/etc/token"}, signed=True)
    assert (site.method, site.api_url, site.api_user) == ("webapi", "https://mint.example.jp:50443", "company-b")
    assert (site.api_ca, site.api_token, site.signed) == ("/etc/ca.pem", "/etc/token", True)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"api": None}, "api"),
        ({"address": "gw.example.jp"}, "opens no port"),
        ({"api": {**SITE["api"], "url": "http://mint.example.jp"}}, "api.url"),
        ({"api": {**SITE["api"], "url": "https://a@mint.example.jp"}}, "api.url"),
        ({"api": {**SITE["api"], "url": "https://mint.example.jp/x?y"}}, "api.url"),
        ({"api": {**SITE["api"], "token": "secret"}}, "api.token"),
        ({"api": {**SITE["api"], "token_file": "token"}}, "api.token_file"),
        ({"api": {**SITE["api"], "user": "a b"}}, "api.user"),
        ({"signed": "perhaps"}, "signed"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], what: str) -> None:
    """Each error names the key; without the change the declaration is taken."""
    with pytest.raises(BadRequest, match=what):
        parse(**changes)
    assert parse().id == "company-b"


def test_the_page_says_of_each_key_what_the_code_says() -> None:
    """docs/operations.md has exactly the keys of `api`, with the same meanings."""
    rows = read_tables(ROOT / "docs/operations.md")["api."]
    fields = Api.model_fields.items()
    assert [row[:2] for row in rows] == [(name, field.description) for name, field in fields]
    assert [row[2] for row in rows] == ["needed" if field.is_required() else "none" for _, field in fields]
