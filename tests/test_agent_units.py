"""Parts of the agent that need no processes: its configuration, its page, what it asks for, how long it waits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from misrc.job.agent import AgentConfig, RetryRule, parse_address, parse_agent_config
from misrc.job.codec import CodecError
from misrc.job.descriptions import describe
from misrc.job.policy import Policy, parse_policy
from misrc.site.agent.claim import backoff
from misrc.site.agent.credentials import CredentialError, Token, check_token
from misrc.site.agent.legacy_agent import choose_program
from misrc.site.agent.legacy_command import UsageError, parse_words
from misrc.wire.refusals import Denied

pytestmark = pytest.mark.quick

POLICY = {
    "work_root": "/w",
    "programs": {
        "one": {"path": "/p", "returns": [], "command": "/opt/run.sh", "arguments": {"a": {"pattern": ".*"}}},
        "two": {"path": "/p", "returns": []},
    },
}


@pytest.mark.parametrize(("name", "cls"), [("key", AgentConfig), ("retry", RetryRule)])
def test_the_page_says_of_each_key_what_the_code_says(name: str, cls: type) -> None:
    """docs/agent.md has exactly the configuration's keys, in their order, with the same meanings and defaults."""
    rows: list[tuple[str, str, str]] | None = None
    found: dict[str, list[tuple[str, str, str]]] = {}
    for line in (ROOT / "docs/agent.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 3:
            rows = None
        elif rows is None:
            rows = found.setdefault(cells[0], [])
        elif not set(cells[0]) <= {"-"}:
            rows.append((cells[0].strip("`"), cells[1], cells[2]))
    assert found[name] == describe(cls)


def test_a_url_is_scheme_host_and_port_and_nothing_more() -> None:
    """Names, addresses and ports are read; users, paths and other schemes are refused."""
    assert parse_address("https://mint.example.jp").port == 443
    assert parse_address("https://[::1]:50443").shown == "[::1]:50443"
    for text in (
        "https://a@b",
        "https://a/b",
        "ftp://a",
        "https://a:1:2",
        "https://",
        "https://a?b",
        "https://a\n",
        "HTTPS://a",
    ):
        with pytest.raises(ValueError, match="must be https"):
            parse_address(text)


@pytest.mark.parametrize("host", ["mint.example.jp", "localhost", "10.0.0.1", "127.0.0.1.example"])
def test_http_is_for_loopback_addresses_alone(host: str) -> None:
    """Without TLS anybody on the way could give orders: not even a name that should mean this machine is taken."""
    with pytest.raises(CodecError, match="https"):
        parse_agent_config(json.dumps({"url": f"http://{host}"}).encode())
    assert parse_agent_config(b'{"url": "http://127.0.0.1:8080"}').server.port == 8080


@given(st.integers(0, 10**6), st.floats(0.01, 10))
def test_p15_waiting_is_bounded_and_never_nothing(failures: int, least: float) -> None:
    """However often something failed, the pause is at most a minute, and at least half of the first."""
    assert least / 2 <= backoff(failures, least) <= 60


@given(st.text())
def test_a_token_is_printable_ascii_without_spaces(text: str) -> None:
    """Whatever could break a header is no token, and the error does not repeat it."""
    try:
        assert re.fullmatch(r"[\x21-\x7e]{8,4096}", check_token(text, "here"))
    except CredentialError as error:
        assert len(text) < 4 or text not in str(error)


def test_a_token_file_that_is_gone_is_an_error_and_not_the_old_token(tmp_path: Path) -> None:
    """A deleted token file revokes at this end too."""
    path = tmp_path / "token"
    path.write_text("a-token-of-mine")
    path.chmod(0o600)
    token = Token(path=str(path))
    assert token.read() == "a-token-of-mine"
    path.unlink()
    with pytest.raises(CredentialError):
        token.read()


def test_a_program_is_chosen_by_its_alias_word_for_word() -> None:
    """The old command and its words; whatever is not exactly that is refused."""
    policy: Policy = parse_policy(json.dumps(POLICY).encode())
    assert choose_program(policy, "/opt/run.sh", "x;y") == ("one", {"a": "x;y"})
    for command, words in (
        ("/opt/run.sh ", ""),
        ("/p", ""),
        ("", ""),
        ("two", ""),
        ("/opt/run.sh", "a b"),
        ("/opt/run.sh", " "),
    ):
        with pytest.raises(Denied):
            choose_program(policy, command, words)


def test_the_old_command_line() -> None:
    """Every word of it is read as the predecessor reads it, but for plain no_auth."""
    words = ["SiteA", "https://mint.example.jp/", "t" * 64]
    old = parse_words([*words, "debug", "retry:3,1.5", "no_auth:/ca.pem", "port:443", "calc_base:/tmp"])
    assert (old.url, old.ca, old.retry) == ("https://mint.example.jp:443", "/ca.pem", RetryRule(3, 1.5))
    assert parse_words(words).url == "https://mint.example.jp:50443"
    for bad in ("no_auth", "retry:3", "retry:x,1", "port:x", "port:", "other", "calc_base:"):
        with pytest.raises(UsageError):
            parse_words([*words, bad])
