"""What a job is made of: codec, names, manifest, spec, arguments, states, ledger, keys. Pure, so properties rule."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from misrc.job.arguments import ArgumentRefused, ArgumentRule, fill_arguments
from misrc.job.authorized_keys import render_line
from misrc.job.codec import CodecError, decode, dump_json, encode, parse_json
from misrc.job.ledger import GENESIS, Checkpoint, LedgerBroken, render_record, verify_lines
from misrc.job.manifest import Entry, digest_manifest, make_manifest, parse_manifest, render_manifest
from misrc.job.names import NameRefused, NameSet, check_component, check_distinct, check_input_name, check_result_name
from misrc.job.policy import parse_policy
from misrc.job.public_keys import parse_public_key
from misrc.job.quantities import parse_duration, parse_size
from misrc.job.spec import JobSpec, OpenRequest, parse_open, render_open
from misrc.job.states import TRANSITIONS, JobState, TransitionError, check_transition

pytestmark = pytest.mark.quick

JOB = "0b0f7a52-4c0d-4b53-9d4c-0a1f5f6f7a10"

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_canonical_json_reads_back(value: Any) -> None:
    """What is written is read as the same value, and written again as the same bytes."""
    data = dump_json(value)
    assert parse_json(data) == value
    assert dump_json(parse_json(data)) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":1,"a":2}',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1" * 40,
        b"[" * 100 + b"]" * 100,
        b"[" * 200_000,
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'"\xff"',
        b"{'a':1}",
        b"{}x",
        b'{"a":' * 50 + b"1" + b"}" * 50,
    ],
)
def test_g109_h36_json_that_is_not_strict_is_refused(data: bytes) -> None:
    """Duplicate keys, NaN, long integers, deep nesting, BOM, UTF-16 and broken UTF-8 are refused, not repaired."""
    with pytest.raises(CodecError):
        parse_json(data)


def test_decode_refuses_unknown_keys_missing_keys_and_wrong_types() -> None:
    """A dataclass takes exactly its own keys and types; a bool is not a number."""
    good = {"name": "a", "size": 1, "sha256": "0" * 64}
    assert decode(Entry, good) == Entry("a", 1, "0" * 64)
    bad: object
    for bad in (
        {**good, "mode": 1},
        {"name": "a"},
        {**good, "size": True},
        {**good, "size": "1"},
        {**good, "size": -1},
        [],
        None,
        3,
    ):
        with pytest.raises(CodecError):
            decode(Entry, bad)


names = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=30)


@given(names)
def test_a_name_that_is_taken_is_safe_everywhere(name: str) -> None:
    """Whatever check_component lets through has no separator, no control character, no dot or dash in front."""
    try:
        check_component(name)
    except NameRefused:
        return
    assert "/" not in name and "\\" not in name and "\0" not in name
    assert name[0] not in ".-~ " and name[-1] not in ". "
    assert all(ord(c) >= 32 and ord(c) != 127 for c in name)


@pytest.mark.parametrize(
    "name",
    [
        "XX.dat",
        "reduction_area.dat",
        "計算標準出力.txt",
        "応力分布データ.dat",
        "a",
        "A-b_c.1",
        "x" * 255,
        "a b.txt",
        "a+b",
    ],
)
def test_ordinary_names_are_taken(name: str) -> None:
    """Positive control: ordinary English and Japanese names travel."""
    check_input_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/x",
        "a/b",
        "-rf",
        ".ssh",
        "~root",
        "a\nb",
        "a\x1b[31mb",
        "a\0",
        "CON",
        "com1.txt",
        "x" * 256,
        "a ",
        "a.",
        "a:b",
        "a*",
        "か\u3099",
        "a\u202eb",
        "a\u200bb",
        "a\ud800",
    ],
)
def test_p01_unsafe_names_are_refused(name: str) -> None:
    """Paths, hidden names, options, control and invisible characters, reserved and decomposed names are refused."""
    with pytest.raises(NameRefused):
        check_input_name(name)


def test_p02_names_that_fall_together_are_refused() -> None:
    """Same name, other case, and a file that is a folder as well; distinct names are fine."""
    check_distinct(["a", "b/c", "b/d"])
    for clash in (["a", "a"], ["a", "A"], ["straße", "STRASSE"], ["a", "a/b"]):
        with pytest.raises(NameRefused):
            check_distinct(clash)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("**", ["a", "a/b"], []),
        ("*.dat", ["x.dat"], ["a/x.dat", "x.dat.key"]),
        ("secret/**", ["secret/a", "secret/b/c"], ["secret", "x/secret/a"]),
        ("**/*.key", ["a.key", "b/c.key"], ["a.keys"]),
        ("?", ["a"], ["ab", "/"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_globs_mean_what_people_expect(pattern: str, inside: list[str], outside: list[str]) -> None:
    """`*` stays within one folder, `**` crosses folders, everything else is literal."""
    chosen = NameSet([pattern])
    assert all(name in chosen for name in inside)
    assert not any(name in chosen for name in outside)


def _legal(name: str) -> bool:
    try:
        check_result_name(name)
    except NameRefused:
        return False
    return True


entries = st.builds(
    Entry,
    st.text(alphabet="abcdefghij計算.-_", min_size=1, max_size=12).filter(_legal),
    st.integers(0, 10**15),
    st.text(alphabet="0123456789abcdef", min_size=64, max_size=64),
)


@given(st.lists(entries, max_size=20, unique_by=lambda e: e.name))
def test_a_manifest_reads_back_and_its_digest_knows_no_order(found: list[Entry]) -> None:
    """Rendered and parsed it is the same; the order in which files were found does not matter."""
    manifest = make_manifest(found)
    assert parse_manifest(render_manifest(manifest), check_result_name, 100) == manifest
    assert digest_manifest(make_manifest(reversed(found))) == digest_manifest(manifest)
    for line in render_manifest(manifest).splitlines():
        assert dump_json(parse_json(line)) == line, "the quick writer is the canonical writer"


def test_m08_a_hostile_manifest_is_refused() -> None:
    """Wrong order, twice the same, climbing names, a cut, other spellings and too many files are refused."""
    good = render_manifest(make_manifest([Entry("a", 1, "0" * 64), Entry("b", 2, "1" * 64)]))
    assert len(parse_manifest(good, check_result_name, 2)) == 2
    first, second = good.splitlines(keepends=True)
    for bad in (
        second + first,
        first + first,
        good[:-1],
        good.replace(b'"a"', b'"../a"'),
        good.replace(b'"size":1', b'"size":01'),
        good.replace(b'"size":1', b'"size": 1'),
        good.replace(b"}", b',"x":1}'),
        good.replace(b"0000", b"000G", 1),
    ):
        with pytest.raises(CodecError):
            parse_manifest(bad, check_result_name, 2)
    with pytest.raises(CodecError):
        parse_manifest(good, check_result_name, 1)


def test_open_carries_what_it_announces() -> None:
    """A request reads back; inputs other than the spec announces, a start without them, and a long wait are refused."""
    entry = Entry("a", 3, "ab" * 32)
    spec = JobSpec(JOB, "univ-a", "noop", {"mesh": "coarse"}, 1, 3, digest_manifest((entry,)))
    request = OpenRequest(spec, start=True, inline=(entry,), wait=5)
    assert parse_open(render_open(request)[:-1]) == request
    plain_request = json.loads(render_open(request))
    change: Mapping[str, object]
    for change in (
        {"inline": []},
        {"inline": None},
        {"wait": 31},
        {"wait": -1},
        {"extra": 1},
        {"spec": {**plain_request["spec"], "bytes": 4}},
        {"spec": {**plain_request["spec"], "job": JOB.upper()}},
        {"spec": {**plain_request["spec"], "program": "No"}},
    ):
        with pytest.raises((CodecError, ValueError)):
            parse_open(json.dumps({**plain_request, **change}).encode())


def test_g108_arguments_reach_the_program_only_if_declared() -> None:
    """Choices and whole-value patterns; declared order; unknown, missing and near-miss values are refused."""
    rules = {
        "mesh": ArgumentRule(choices=("coarse", "fine"), default="coarse"),
        "cycles": ArgumentRule(pattern="[0-9]{1,6}"),
    }
    assert list(fill_arguments(rules, {"cycles": "10"}).items()) == [("mesh", "coarse"), ("cycles", "10")]
    for bad in (
        {},
        {"cycles": "10\n"},
        {"cycles": "-1"},
        {"cycles": "1;id"},
        {"cycles": "1", "x": "1"},
        {"cycles": "1", "mesh": "Fine"},
        {"cycles": "1" * 5000},
        {"cycles": "1\0"},
    ):
        with pytest.raises(ArgumentRefused):
            fill_arguments(rules, bad)
    with pytest.raises(ValueError, match="either"):
        ArgumentRule()


class StateWalk(RuleBasedStateMachine):
    """Random walks through the table: final is final, order only grows, and the end is reachable from everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.state = JobState.CREATED

    @rule(new=st.sampled_from(list(JobState)))
    def step(self, new: JobState) -> None:
        """A change is made exactly where the table has it."""
        try:
            check_transition(self.state, new)
        except TransitionError:
            assert new not in TRANSITIONS[self.state]
            return
        assert new.order > self.state.order
        assert not (self.state.final and not new.final)
        self.state = new

    @invariant()
    def can_end(self) -> None:
        """No state is a trap."""
        reached, frontier = set(), {self.state}
        while frontier:
            reached |= frontier
            frontier = set().union(*(TRANSITIONS[s] for s in frontier)) - reached
        assert JobState.CLOSED in reached


TestStateWalk = StateWalk.TestCase
TestStateWalk.settings = settings(max_examples=30, stateful_step_count=20)


@given(
    st.lists(st.dictionaries(st.sampled_from(["event", "note"]), st.text(max_size=10)), min_size=1, max_size=8),
    st.data(),
)
def test_g127_the_chain_shows_every_change(fields: list[dict[str, str]], data: st.DataObject) -> None:
    """An unchanged ledger verifies; one byte changed, a line dropped, doubled or moved, or a cut tail does not."""
    last, lines = Checkpoint(-1, GENESIS), []
    for record in fields:
        line, last = render_record(last, record)
        lines.append(line + b"\n")
    assert len(list(verify_lines(lines, last))) == len(lines)
    index = data.draw(st.integers(0, len(lines) - 1))
    changed = bytearray(lines[index])
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position] ^= 1
    tampered = {
        "edited": [*lines[:index], bytes(changed), *lines[index + 1 :]],
        "dropped": [*lines[:index], *lines[index + 1 :]],
        "doubled": [*lines[: index + 1], *lines[index:]],
        "cut": lines[:-1],
    }
    for what, version in tampered.items():
        with pytest.raises(LedgerBroken):
            list(verify_lines(version, last))
            raise AssertionError(what)


def make_key(folder: Path, kind: str = "ed25519") -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(folder / kind)], check=True)
    return (folder / f"{kind}.pub").read_text(encoding="ascii").strip()


def test_e05_e07_an_authorized_keys_line_never_needs_quoting(tmp_path: Path) -> None:
    """A whole key becomes one line that ssh-keygen reads; options, second lines, other types and quotes are refused."""
    key = make_key(tmp_path)
    line = render_line(
        "/usr/bin/python3 -I -S /x/current gate site-a key-1",
        key,
        "key-1",
        ["203.0.113.7", "2001:db8::/32"],
        "2027-03-31",
    )
    assert line.startswith('restrict,from="203.0.113.7/32,2001:db8::/32",expiry-time="20270331235959",command="')
    (tmp_path / "line").write_text(line + "\n", encoding="ascii")
    subprocess.run(["ssh-keygen", "-l", "-f", str(tmp_path / "line")], check=True, stdout=subprocess.DEVNULL)
    rsa = make_key(tmp_path, "rsa")
    for bad in (
        key + "\n" + key,
        'command="x" ' + key,
        rsa,
        key[:-30],
        "ssh-ed25519",
        "ssh-ed25519 !!!!",
        key.replace("AAAA", "AAAB", 1),
    ):
        with pytest.raises(ValueError):
            parse_public_key(bad)
    for command in ('x" no-pty', "x\ny", "x'y", "x;y", "x$y"):
        with pytest.raises(ValueError, match="quoting"):
            render_line(command, key, "key-1")
    with pytest.raises(ValueError):
        render_line("/x", key, "key 1")
    with pytest.raises(ValueError):
        render_line("/x", key, "key-1", ["203.0.113.7 ,evil"])


def test_only_whole_ed25519_keys_are_taken() -> None:
    """A key with bytes too many is no key."""
    raw = b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(32)
    assert parse_public_key("ssh-ed25519 " + base64.b64encode(raw).decode())
    with pytest.raises(ValueError):
        parse_public_key("ssh-ed25519 " + base64.b64encode(raw + b"x").decode())


@pytest.mark.parametrize(("text", "value"), [("50GiB", 50 << 30), ("1 KiB", 1024), (7, 7), ("7", 7), ("0B", 0)])
def test_sizes(text: str | int, value: int) -> None:
    """Sizes with binary units."""
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "GiB", "1GB", "-1", "1.5GiB", "１", -1, True])
def test_sizes_that_are_not(text: Any) -> None:
    """Everything else is refused."""
    with pytest.raises(ValueError, match="needed"):
        parse_size(text)


def test_durations() -> None:
    """Durations with their units."""
    assert [parse_duration(text) for text in ("72h", "30m", "90s", "2d", 5)] == [259200, 1800, 90, 172800, 5]


POLICY: dict[str, Any] = {"work_root": "/var/x", "programs": {"p": {"path": "/opt/p", "returns": ["*.dat"]}}}


def test_g129_a_policy_is_strict_and_nothing_leaves_by_default() -> None:
    """`returns` must be said; unknown keys, relative paths, promises that this version cannot keep are refused."""
    policy = parse_policy(json.dumps(POLICY).encode())
    assert policy.programs["p"].arguments == {} and policy.programs["p"].network == "deny"
    assert encode(policy)["keep_days"] == 30
    program = POLICY["programs"]["p"]
    for bad in (
        {**POLICY, "x": 1},
        {**POLICY, "work_root": "jobs"},
        {**POLICY, "programs": {"p": {"path": "/opt/p"}}},
        {**POLICY, "batch": "slurm"},
        {**POLICY, "require_signature": ["k"]},
        {**POLICY, "windows": ["x"]},
        {**POLICY, "limits": {"jobs": 0}},
        {**POLICY, "limits": {"jobs_per_day": 0}},
        {**POLICY, "programs": {"P!": program}},
        {**POLICY, "programs": {"p": {**program, "path": "p"}}},
        {**POLICY, "programs": {"p": {**program, "logs": "some"}}},
        {**POLICY, "programs": {"p": {**program, "sha256": "x"}}},
    ):
        with pytest.raises((CodecError, ValueError)):
            parse_policy(json.dumps(bad).encode())
