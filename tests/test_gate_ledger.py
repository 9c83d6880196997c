"""Section G of docs/attacks.md: ledger and configuration, and tampering with the ledger."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Site, make_program, make_site
from oracle import Oracle, check_answer, ledger

from misrc.job.ledger import Checkpoint, LedgerBroken, hash_line, verify_lines

FORGED = '{"decision":"allow","event":"start","seq":1}'


def ledger_path(site: Site) -> Path:
    return site.prefix / "state/ledger.jsonl"


def lines(site: Site) -> list[bytes]:
    return ledger_path(site).read_bytes().splitlines(keepends=True)


def test_g127_a_request_cannot_forge_a_record(shared_site: Site) -> None:
    """Line breaks and JSON in the request give one record on one line, escaped; the chain verifies."""
    oracle = Oracle(shared_site)
    for attack in (
        f"hello\n{FORGED}",
        f'"}}\n{FORGED}',
        f"close\r{FORGED}",
        f"\u2028{FORGED}\u2029",
        f"x\\n{FORGED}",
        "\\",
        '\\u000a"',
        "x" * 100_000,
        "\x1b[8m" + "y" * 300,
    ):
        before = len(lines(shared_site))
        oracle.denied(attack.encode(), "E02")
        written = lines(shared_site)[before:]
        assert len(written) == 2 and all(json.loads(line)["event"] in ("refuse", "hello") for line in written)
        assert len(written[0]) < 4096
    shown = shared_site.people("ledger", "show").stdout
    assert len(shown.splitlines()) == len(lines(shared_site)) + 1, "one line for each record, one for the verdict"


def test_g127_the_peer_and_the_key_cannot_forge_a_record(shared_site: Site) -> None:
    """What stands in for the peer's address is taken only if it looks like one; a key's comment never arrives."""
    for peer in (b'1"\n{"event":"start"}', b"\x1b[2J", b"evil host", b"\xff\xff", b"$(id)", b""):
        assert shared_site.gate(b"hello", environment={b"SSH_CONNECTION": peer}).status == 0
        record = ledger(shared_site)[-1]
        assert record["peer"] in ("?", "") and record["key"] == "key-1"
    assert shared_site.gate(b"hello", environment={b"SSH_CONNECTION": b"2001:db8::1 5 ::1 22"}).status == 0
    assert ledger(shared_site)[-1]["peer"] == "2001:db8::1"


def test_g127_names_of_files_cannot_forge_a_record_or_stop_the_ledger(tmp_path: Path) -> None:
    """A program's file names (line breaks, escapes, no UTF-8, very long) are one escaped record; the site goes on."""
    root = tmp_path / "site-host"
    (root / "programs").mkdir(parents=True)
    path = root / "programs/names"
    path.write_text(
        "#!/usr/bin/python3\nimport os\n"
        f"for name in ({FORGED!r}, 'a\\n' + {FORGED!r}, '\\x1b[2J', '\\u202e', 'good.dat'):\n"
        "    open(name, 'w').close()\n"
        "open(b'\\xff\\xfe\\xed\\xa0\\x80', 'w').close()\n"
        "for number in range(300):\n    open('\\x01' * 240 + str(number), 'w').close()\n"
        "for depth in range(70):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)\nopen('deep', 'w').close()\n"
    )
    path.chmod(0o755)
    rule = {"path": str(path), "returns": ["**"], "logs": "full", "network": "allow"}
    site = make_site(root, {"programs": {"names": rule}})
    job = site.submit("names")
    result = site.wait(job)
    assert result.reply.state == "ended", result
    assert {name for name in result.sections if name.startswith("file:")} == {
        "file:good.dat",
        "file:remote_program_exec.log",
    }
    assert [record["count"] for record in ledger(site) if record["event"] == "withhold"] == [306]
    assert site.people("ledger", "show").returncode == 0
    again = site.submit("names")
    assert site.wait(again).reply.state == "ended", "the ledger can still be written"


# -- tampering --------------------------------------------------------------------------------------------------------


def edit(rows: list[bytes], place: int) -> list[bytes]:
    return [*rows[:place], rows[place].replace(b'"hello"', b'"h3llo"'), *rows[place + 1 :]]


def forge_hash(rows: list[bytes], place: int) -> list[bytes]:
    """An edited line, with the hash in the next line mended: the one after that still tells."""
    changed = rows[place].replace(b'"hello"', b'"h3llo"')
    following = rows[place + 1].replace(hash_line(rows[place][:-1]).encode(), hash_line(changed[:-1]).encode())
    return [*rows[:place], changed, following, *rows[place + 2 :]]


TAMPERING: dict[str, Callable[[list[bytes], int], Sequence[bytes]]] = {
    "edit": edit,
    "edit with the next hash": forge_hash,
    "delete": lambda rows, place: [*rows[:place], *rows[place + 1 :]],
    "delete the first": lambda rows, place: rows[1:],
    "reorder": lambda rows, place: [*rows[:place], rows[place + 1], rows[place], *rows[place + 2 :]],
    "duplicate": lambda rows, place: [*rows[:place], rows[place], *rows[place:]],
    "insert": lambda rows, place: [*rows[:place], FORGED.encode() + b"\n", *rows[place:]],
    "insert an empty line": lambda rows, place: [*rows[:place], b"\n", *rows[place:]],
    "respace": lambda rows, place: [*rows[:place], rows[place].replace(b":", b": ", 1), *rows[place + 1 :]],
    "repeat a key": lambda rows, place: [*rows[:place], b'{"seq":0,' + rows[place][1:], *rows[place + 1 :]],
    "carriage return": lambda rows, place: [*rows[:place], rows[place][:-1] + b"\r\n", *rows[place + 1 :]],
    "no end": lambda rows, place: [*rows[:-1], rows[-1][:-1]],
    "garbage": lambda rows, place: [*rows[:place], b"\xff\xfe\n", *rows[place + 1 :]],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, list[bytes]]:
    """A ledger with a dozen records, as the gate wrote them."""
    site = make_site(tmp_path_factory.mktemp("written") / "site-host")
    for _ in range(12):
        site.gate(b"hello")
    return site, lines(site)


@pytest.mark.parametrize("how", TAMPERING)
@pytest.mark.parametrize("place", [1, 6, 10])
def test_g131_tampering_with_the_ledger_shows(written: tuple[Site, list[bytes]], how: str, place: int) -> None:
    """An edited, deleted, reordered, repeated or inserted line breaks the chain; `ledger show` says so.

    Control: the same ledger untouched verifies.
    """
    site, rows = written
    try:
        ledger_path(site).write_bytes(b"".join(TAMPERING[how](rows, place)))
        done = site.people("ledger", "show", check=False)
        assert done.returncode == 1 and "does not verify" in done.stderr and "Traceback" not in done.stderr
    finally:
        ledger_path(site).write_bytes(b"".join(rows))
    assert "The chain verifies." in site.people("ledger", "show").stdout


def rewritten(rows: Sequence[bytes], place: int) -> list[bytes]:
    """The whole chain written anew from `place` on, as somebody can who owns the account."""
    kept, last = list(rows[:place]), Checkpoint(place - 1, hash_line(rows[place - 1][:-1]))
    for row in rows[place:]:
        record = {**json.loads(row), "prev": last.hash, "seq": last.seq + 1, "event": "forged"}
        line = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        kept.append(line + b"\n")
        last = Checkpoint(last.seq + 1, hash_line(line))
    return kept


@pytest.mark.parametrize("seen", [0, 5, 12])
def test_g132_a_cut_or_rewritten_tail_shows_against_a_checkpoint(written: tuple[Site, list[bytes]], seen: int) -> None:
    """A chain that was cut, or written anew, verifies by itself; the checkpoint that MInt was told shows it.

    Controls: the whole chain passes through every checkpoint, and a tail cut after the checkpoint cannot show.
    """
    _, rows = written
    checkpoint = Checkpoint(seen, hash_line(rows[seen][:-1]))
    assert len(list(verify_lines(rows, checkpoint))) == len(rows)
    assert len(list(verify_lines(rows[: seen + 1], checkpoint))) == seen + 1
    forged = rewritten(rows, max(1, seen))
    list(verify_lines(rows[:seen]))
    list(verify_lines(forged))
    with pytest.raises(LedgerBroken, match="cut"):
        list(verify_lines(rows[:seen], checkpoint))
    if seen:
        with pytest.raises(LedgerBroken, match="checkpoint saw"):
            list(verify_lines(forged, checkpoint))


def test_g132_each_answer_carries_the_checkpoint_of_its_own_record(shared_site: Site) -> None:
    """What MInt keeps is the ledger's state at its own request."""
    reply = shared_site.gate(b"hello").reply
    rows = lines(shared_site)
    assert reply.checkpoint == Checkpoint(len(rows) - 1, hash_line(rows[-1][:-1]))
    assert list(verify_lines(rows, reply.checkpoint))


def test_g133_a_torn_last_line_is_set_aside(tmp_path: Path) -> None:
    """A crash while writing leaves a part of a line: it is kept apart, the chain goes on, and nothing whole is lost."""
    site = make_site(tmp_path / "site-host")
    site.gate(b"hello")
    whole, rng = ledger_path(site).read_bytes(), random.Random(133)
    for torn in (
        b"{",
        b'{"boot":"',
        whole.splitlines()[-1][:-1],
        rng.randbytes(3000).replace(b"\n", b""),
        b"x" * 100_000,
    ):
        before = ledger_path(site).read_bytes()
        ledger_path(site).write_bytes(before + torn)
        assert site.people("ledger", "show", check=False).returncode == 1
        assert site.gate(b"hello").status == 0
        after = ledger_path(site).read_bytes()
        assert after.startswith(before) and len(after.splitlines()) == len(before.splitlines()) + 1
        assert (site.prefix / "state/ledger.torn").read_bytes().endswith(torn + b"\n")
        assert len(ledger(site)) == len(after.splitlines())


@pytest.mark.parametrize("how", ["missing", "link", "folder", "read-only", "spoilt", "pipe", "state is a link"])
def test_g134_without_a_ledger_nothing_starts_or_leaves(tmp_path: Path, how: str) -> None:
    """Where the ledger cannot be written every verb is refused (E31), and no job comes into being."""
    site = make_site(tmp_path / "site-host")
    job = site.submit("noop")
    site.wait(job)
    path = ledger_path(site)
    kept = path.read_bytes()
    spoil(path, how)
    before = site.snapshot()
    request = site.open_request("3d9ae8f5-6a1c-4a52-9f0e-5bd6b7b4a5c1")
    check_answer(site.gate(b"open 3d9ae8f5-6a1c-4a52-9f0e-5bd6b7b4a5c1", request), "E31")
    for command in (b"hello", f"get {job} --server --daemon .".encode(), f"wait {job} 0 0".encode(), b"nonsense"):
        check_answer(site.gate(command), "E31")
    assert site.snapshot() == before
    restore(path, how, kept)
    Oracle(site).works()


def spoil(path: Path, how: str) -> None:
    """Make the ledger unfit in one way."""
    if how == "spoilt":
        path.write_bytes(path.read_bytes() + b"no record\n")
    elif how == "read-only":
        path.chmod(0o400)
    elif how == "state is a link":
        path.parent.rename(path.parent.with_name("elsewhere"))
        path.parent.symlink_to("elsewhere")
    else:
        path.rename(path.with_name("kept"))
        if how == "link":
            path.symlink_to("kept")
        elif how == "folder":
            path.mkdir()
        elif how == "pipe":
            os.mkfifo(path)


def restore(path: Path, how: str, data: bytes) -> None:
    if how == "state is a link":
        path.parent.unlink()
        path.parent.with_name("elsewhere").rename(path.parent)
    if path.is_dir():
        path.rmdir()
    elif how in ("link", "pipe", "read-only"):
        path.unlink()
    path.write_bytes(data)


# -- the site's own configuration -------------------------------------------------------------------------------------


def policy_text(site: Site, **changes: Any) -> str:
    return json.dumps({**site.policy, **changes})


SPOILT_POLICIES: dict[str, Callable[[Site], bytes]] = {
    "unknown key": lambda site: policy_text(site, extra=1).encode(),
    "unknown key in a program": lambda site: policy_text(
        site, programs={"x": {"path": "/bin/true", "returns": [], "shell": True}}
    ).encode(),
    "repeated key": lambda site: policy_text(site)[:-1].encode() + b',"work_root":"/tmp"}',
    "wrong type": lambda site: policy_text(site, keep_days="30").encode(),
    "true for a number": lambda site: policy_text(site, keep_days=True).encode(),
    "relative work root": lambda site: policy_text(site, work_root="jobs").encode(),
    "relative program": lambda site: policy_text(site, programs={"x": {"path": "bin/x", "returns": []}}).encode(),
    "returns missing": lambda site: policy_text(site, programs={"x": {"path": "/bin/true"}}).encode(),
    "negative limit": lambda site: policy_text(site, limits={"jobs": -1}).encode(),
    "broken pattern": lambda site: policy_text(
        site, programs={"x": {"path": "/bin/x", "returns": [], "arguments": {"a": {"pattern": "("}}}}
    ).encode(),
    "promise that is not kept": lambda site: policy_text(site, require_signature=["key"]).encode(),
    "yaml": lambda site: b"work_root: /tmp\nprograms: {}\n",
    "yaml aliases": lambda site: b"a: &a [x,x]\nb: &b [*a,*a]\nwork_root: *b\n",
    "yaml object": lambda site: b"!!python/object/apply:os.system ['id']\n",
    "empty": lambda site: b"",
    "null": lambda site: b"null",
    "list": lambda site: b"[]",
    "not text": lambda site: b"\xff\xfe{}",
    "byte order mark": lambda site: b"\xef\xbb\xbf" + policy_text(site).encode(),
    "deep": lambda site: b"[" * 100_000,
    "two megabytes": lambda site: policy_text(site).encode() + b" " * (2 << 20),
    "huge number": lambda site: policy_text(site).replace("16", "9" * 5000, 1).encode(),
}


@pytest.mark.parametrize("how", SPOILT_POLICIES)
def test_g129_a_policy_that_is_not_right_serves_nobody(shared_site: Site, how: str) -> None:
    """With a policy that does not parse whole and strictly nothing is served (E30); the right one is the control."""
    path = shared_site.prefix / "config/policy.json"
    good = path.read_bytes()
    try:
        path.write_bytes(SPOILT_POLICIES[how](shared_site))
        check_answer(shared_site.gate(b"hello"), "E30")
        assert ledger(shared_site)[-1]["reason"] == "E30"
    finally:
        path.write_bytes(good)
    Oracle(shared_site).works()


@pytest.mark.parametrize(
    "how",
    [
        "group-writable",
        "world-writable",
        "folder writable",
        "link",
        "hard link",
        "missing",
        "pipe",
        "socket",
        "folder is a link",
    ],
)
def test_g129_a_policy_that_others_could_change_serves_nobody(tmp_path: Path, how: str) -> None:
    """A policy that others may write, a link, a second name, or no plain file: E30, without blocking."""
    site = make_site(tmp_path / "site-host")
    path = site.prefix / "config/policy.json"
    kept = path.with_name("kept")
    if "writable" in how:
        (path.parent if "folder" in how else path).chmod({"group": 0o620, "world": 0o602, "folde": 0o770}[how[:5]])
    elif how == "folder is a link":
        path.parent.rename(path.parent.with_name("other"))
        path.parent.symlink_to("other")
    elif how == "hard link":
        os.link(path, kept)
    else:
        path.rename(kept)
        if how == "link":
            path.symlink_to(kept)
        elif how == "pipe":
            os.mkfifo(path, 0o600)
        elif how == "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                os.chdir(path.parent)
                listener.bind(path.name)
    check_answer(site.gate(b"hello", timeout=20), "E30")
    assert ledger(site)[-1]["reason"] == "E30"


def test_g130_the_gate_s_own_files_can_be_checked_against_hashes_kept_elsewhere(tmp_path: Path) -> None:
    """User install: the account can change everything, so only a hash kept elsewhere shows it.

    The installation records the hash of its code and policy in the ledger, whose checkpoint MInt keeps; installing the
    same again changes and records nothing, and a changed policy is another record.
    """
    site = make_site(tmp_path / "site-host")
    site.install()
    site.policy["keep_days"] = 7
    site.install()
    records = [record for record in ledger(site) if record["event"] == "install"]
    assert len(records) == 2 and len({record["code"] for record in records}) == 1
    assert records[0]["policy"] != records[1]["policy"]
    make_program(site.root / "unused", "exit 0\n")
    assert (site.prefix / "config/installed.json").exists()
