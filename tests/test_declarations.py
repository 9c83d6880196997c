"""Declarations as text: what is written reads back, what is not pinned is refused, what is rendered is strict."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misrc.declare.interface import Site
from misrc.declare.inventory import load_policy, parse_site, parse_variables, render_variables
from misrc.declare.renderers import RENDERERS, Subject, render_all
from misrc.declare.ssh import render_config, render_known_hosts
from misrc.job.errors import BadRequest
from misrc.job.policy import parse_policy
from misrc.mint.keys import fingerprint
from misrc.mint.site.findings import Verdict
from misrc.mint.site.inspection import CLOCK_SECONDS, _check_clock, _check_version

pytestmark = pytest.mark.quick
PATH = Path("host_vars/x.yml")


def key(number: int) -> str:
    """A well-formed public key."""
    raw = b"\0\0\0\x0bssh-ed25519\0\0\0 " + number.to_bytes(32, "big")
    return f"ssh-ed25519 {base64.b64encode(raw).decode()}"


def declaration(**changes: Any) -> dict[str, Any]:
    return {
        "id": "univ-a",
        "method": "ssh",
        "address": "gw.example",
        "host_keys": [key(1)],
        "programs": {"noop": {}},
        **changes,
    }


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
# What YAML would take for something else than text.
traps = st.sampled_from(
    ["yes", "no", "null", "~", "012", "1e3", "2027-03-31", "*", "&x", "- a", "a: b", "#", "'", "…", ""]
)
needs = st.sampled_from(["required", "optional"])
names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
files = st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}\.dat", fullmatch=True), needs, max_size=3)
programs = st.fixed_dictionaries(
    {},
    optional={
        "inputs": files,
        "outputs": files,
        "title": st.dictionaries(st.sampled_from(["ja", "en"]), words | traps),
        "arguments": st.dictionaries(
            names,
            st.fixed_dictionaries({"choices": st.lists(words | traps, min_size=1, max_size=3, unique=True)}),
            max_size=2,
        ),
        "reason": words | traps,
    },
)
declarations = st.fixed_dictionaries(
    {
        "id": st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True),
        "method": st.just("ssh"),
        "address": st.sampled_from(["gw.example", "192.0.2.7", "2001:db8::1"]),
        "port": st.integers(1, 65535),
        "host_keys": st.lists(st.integers(0, 9).map(key), min_size=1, max_size=3),
        "programs": st.dictionaries(names, programs, min_size=1, max_size=3),
    },
    optional={
        "contacts": st.dictionaries(st.sampled_from(["site", "mint"]), words | traps),
        "valid_until": st.dates().map(str).filter(lambda day: day.startswith("20")),
        "via": st.fixed_dictionaries(
            {
                "proxy_jump": st.just("me@jump.example:2222"),
                "host_keys": st.lists(st.integers(0, 9).map(key), min_size=1),
            }
        ),
        "reason": words | traps,
    },
)


@given(declarations)
def test_a_written_declaration_reads_back_the_same(plain: dict[str, Any]) -> None:
    """Whatever a declaration holds, its text gives the same values and the same interface."""
    variables = {"misrc_site": plain}
    read = parse_variables(render_variables(variables).encode(), PATH)
    assert read == variables
    assert parse_site(read, PATH) == Site.model_validate(plain).interface(None)


@pytest.mark.parametrize(
    "text", ["\x85", "a\x85b", "\u2028", "a \u2029", " \x85 # x: y", "\ufeffa", "a\n\x85\nb", "\x9f\xa0"]
)
def test_the_line_breaks_of_unicode_are_not_taken_for_newlines(text: str) -> None:
    """In a value and in a key, alone and beside ordinary ones."""
    variables = {"contacts": {"site": text, "mint": [text, "plain"]}, "x" + text: "y"}
    assert parse_variables(render_variables(variables).encode(), PATH) == variables


@pytest.mark.parametrize(
    ("via", "wanted"),
    [
        ({"proxy_jump": "jump.example"}, "host_keys"),
        ({"proxy_jump": "jump.example", "host_keys": []}, "host_keys"),
        ({"proxy_jump": "jump.example", "host_keys": ["ssh-rsa AAAA"]}, "via.host_keys"),
        ({"host_keys": [key(2)]}, "proxy_jump"),
        ({"proxy_jump": "jump.example", "socks4": "proxy:1080", "host_keys": [key(2)]}, "socks4"),
    ],
)
def test_a_jump_host_without_a_pinned_key_is_refused(via: dict[str, Any], wanted: str) -> None:
    """Its host key is pinned, or there is no jump host; with a key the same declaration is taken."""
    with pytest.raises(BadRequest, match=wanted):
        parse_site({"misrc_site": declaration(via=via)}, PATH)
    good = {"proxy_jump": "jump.example", "host_keys": [key(2)]}
    assert parse_site({"misrc_site": declaration(via=good)}, PATH).jump_keys == (key(2),)


def test_the_jump_host_is_held_to_its_own_pin(tmp_path: Path) -> None:
    """ssh itself reads from the rendered file: both hosts strict, each with an alias and a pin of its own."""
    via = {"proxy_jump": "me@jump.example:2222", "host_keys": [key(2)]}
    site = parse_site({"misrc_site": declaration(via=via)}, PATH)
    assert render_known_hosts(site) == f"misrc-univ-a {key(1)}\nmisrc-univ-a-jump {key(2)}\n"
    path = tmp_path / "config"
    path.write_text(render_config(site, "/k/known_hosts", "/k/id", "/k/c", "/k/id.next", "/k/id.jump"))
    target, jump = read_config(path, "site"), read_config(path, "jump")
    assert target["proxyjump"] == ["jump"] and "proxyjump" not in jump
    assert (target["hostkeyalias"], jump["hostkeyalias"]) == (["misrc-univ-a"], ["misrc-univ-a-jump"])
    assert (jump["user"], jump["hostname"], jump["port"]) == (["me"], ["jump.example"], ["2222"])
    assert target["identityfile"] == ["/k/id.next", "/k/id"] and jump["identityfile"] == ["/k/id.jump"]
    for host in (target, jump):
        assert host["stricthostkeychecking"] == ["true"] and host["userknownhostsfile"] == ["/k/known_hosts"]
        assert host["globalknownhostsfile"] == ["/dev/null"] and host["hostkeyalgorithms"] == ["ssh-ed25519"]
        assert host["forwardagent"] == ["no"] and host["batchmode"] == ["yes"] and host["updatehostkeys"] == ["false"]


def read_config(path: Path, host: str) -> dict[str, list[str]]:
    """What ssh makes of a configuration."""
    done = subprocess.run(["/usr/bin/ssh", "-G", "-F", str(path), host], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("day", ["2027-02-29", "2027-13-01", "2027-1-1", "soon"])
def test_a_last_day_is_a_day_of_the_calendar(day: str) -> None:
    """valid_until must exist; 2028-02-29 does."""
    with pytest.raises(BadRequest, match="valid_until"):
        parse_site({"misrc_site": declaration(valid_until=day)}, PATH)
    assert parse_site({"misrc_site": declaration(valid_until="2028-02-29")}, PATH).valid_until == "2028-02-29"


def test_every_renderer_is_in_the_list_and_the_policy_reads_back(tmp_path: Path) -> None:
    """The policy file that is shown is one that a site can install, and means the same."""
    path = tmp_path / "policy.yml"
    entry = {"key": key(3), "from": ["192.0.2.0/24"], "until": "2027-04-30"}
    policy = {"work_root": "/w", "job_keys": [entry], "programs": {"noop": {"path": "/p", "returns": ["**"]}}}
    path.write_text(render_variables({"misrc_policy": policy}))
    site = parse_site({"misrc_site": declaration()}, PATH)
    rules = load_policy(path)
    shown = {file.path.rpartition("/")[2]: file.text for file in render_all(Subject(site, "/k/id", policy=rules))}
    assert set(shown) == {"config", "known_hosts", "authorized_keys", "policy.json"}
    assert parse_policy(shown["policy.json"].encode()) == rules
    assert 'from="192.0.2.0/24",expiry-time="20270430235959"' in shown["authorized_keys"]


def test_a_root_install_is_shown_with_its_drop_in_its_keys_and_its_units(tmp_path: Path) -> None:
    """With `install: root` every renderer of the list has something to show, and nothing lies in a home."""
    path = tmp_path / "policy.yml"
    rule = {"path": "/p", "returns": ["**"]}
    entry = {"key": key(3), "from": ["192.0.2.0/24"], "until": "2027-04-30"}
    policy = {"install": "root", "work_root": "/w", "job_keys": [entry], "programs": {"noop": rule}}
    path.write_text(render_variables({"misrc_policy": policy}))
    site = parse_site({"misrc_site": declaration()}, PATH)
    shown = {file.path: file.text for file in render_all(Subject(site, "/k/id", policy=load_policy(path)))}
    assert len(RENDERERS) == 6 and not any(place.startswith("/home") for place in shown)
    assert parse_policy(shown["/etc/misrc/policy.json"].encode()) == load_policy(path)
    assert "Match User misrc" in shown["/etc/ssh/sshd_config.d/10-misrc.conf"]
    assert 'from="192.0.2.0/24"' in shown["/etc/ssh/misrc/authorized_keys.d/misrc"]
    assert "PrivateNetwork=yes" in shown["/etc/systemd/system/misrc-strict@.service"]


def test_fingerprints_are_those_of_openssh(tmp_path: Path) -> None:
    """The same as `ssh-keygen -l` says."""
    (tmp_path / "k.pub").write_text(key(7) + "\n")
    done = subprocess.run(["ssh-keygen", "-lf", tmp_path / "k.pub"], capture_output=True, text=True, check=True)
    assert fingerprint(key(7)) == done.stdout.split()[1]


def test_a_clock_may_be_a_minute_off() -> None:
    """The bound is on the distance from the middle of question and answer."""
    assert _check_clock(1000.0 + CLOCK_SECONDS, 999.0, 1001.0).verdict is Verdict.OK
    assert _check_clock(1001.0 + CLOCK_SECONDS, 999.0, 1001.0).verdict is Verdict.FAIL
    assert _check_clock(999.0 - CLOCK_SECONDS, 999.0, 1001.0).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("name", "text", "verdict"),
    [
        ("python", "3.9.2", Verdict.OK),
        ("python", "3.8.19", Verdict.FAIL),
        ("rsync", "3.5.0", Verdict.OK),
        ("rsync", "3.2.7", Verdict.WARN),
        ("rsync", "3.5.0; rm", Verdict.FAIL),
    ],
)
def test_versions_have_a_floor(name: str, text: str, verdict: Verdict) -> None:
    """Older than the floor is said; an rsync that the gate took in spite of that is left to a person."""
    assert _check_version(name, text, (3, 9) if name == "python" else (3, 5, 0)).verdict is verdict
