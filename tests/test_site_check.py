"""`misrc site check` against real sshds: a sound site passes, and each weakness turns exactly its own line to FAIL."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Mint, Site, make_mint, make_program, make_site

from misrc.mint.site.probes import PROBES

FACTS = ["agreement", "host_key", "host_keys", "job_key", "gate", "site_id", "misrc", "python", "rsync"]
FACTS += ["clock", "space", "programs", "ledger"]
REFUSALS = [name for name, _ in PROBES]
# What an ordinary account cannot try, and what sshd never tells.
UNKNOWN = {"tunnel", "locale"}
FORWARDINGS = {"local", "remote", "dynamic", "stream_local", "stream_remote"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that each test weakens in its own way, and gives back as it was."""
    site = make_site(tmp_path_factory.mktemp("check") / "site-host")
    yield site
    site.stop_sshd()


def inspect(mint: Mint) -> tuple[int, dict[str, dict[str, str]]]:
    done = mint.command("site", "check", mint.site.name, "--json")
    assert done.stderr == "" and done.returncode in (0, 1), done
    told = json.loads(done.stdout)
    assert told["passed"] == (done.returncode == 0)
    return done.returncode, {finding["name"]: finding for finding in told["findings"]}


def by_verdict(found: dict[str, dict[str, str]], verdict: str) -> set[str]:
    return {name for name, finding in found.items() if finding["verdict"] == verdict}


def weakened(site: Site, tmp_path: Path, line: str, extra: str = "") -> Mint:
    """MInt's side of a site whose key line and sshd are these."""
    keys = site.root / "authorized_keys"
    keys.unlink()
    site.install()
    good = keys.read_text(encoding="utf-8")
    _, _, rest = good.partition('command="')
    command, _, key = rest.partition('" ')
    keys.write_text(line.replace("COMMAND", command).replace("KEY", key.strip()) + "\n", encoding="utf-8")
    site.stop_sshd()
    site.start_sshd(extra=extra)
    return make_mint(tmp_path / "mint", site)


def test_a_sound_site_passes(sound: Site, tmp_path: Path) -> None:
    """Every line is there; none fails; only what cannot be tried here is skipped; no job and no file is left."""
    mint = weakened(sound, tmp_path, 'restrict,command="COMMAND" KEY', "Subsystem sftp /usr/lib/openssh/sftp-server\n")
    before = sound.snapshot()
    status, found = inspect(mint)
    assert status == 0 and list(found) == [*FACTS, *REFUSALS], found
    assert by_verdict(found, "ok") == {*FACTS, *REFUSALS} - UNKNOWN - {"host_keys"}, found
    assert by_verdict(found, "warn") == {"host_keys"} and by_verdict(found, "skipped") == UNKNOWN
    assert found["host_key"]["note"].startswith("SHA256:")
    assert sound.snapshot() == before
    lines = mint.command("site", "check", sound.name).stdout.splitlines()
    assert len(lines) == len(found) and all(line.split()[0] in ("ok", "warn", "skipped") for line in lines)


CASES: list[tuple[str, str, str, set[str]]] = [
    ("restrict is gone", 'command="COMMAND" KEY', "", FORWARDINGS | {"agent", "pty", "rc"}),
    ("forwarding is allowed", 'restrict,port-forwarding,command="COMMAND" KEY', "", FORWARDINGS),
    ("the agent is allowed", 'restrict,agent-forwarding,command="COMMAND" KEY', "", {"agent"}),
    ("a terminal is allowed", 'restrict,pty,command="COMMAND" KEY', "", {"pty"}),
    ("X11 is allowed", 'restrict,x11-forwarding,command="COMMAND" KEY', "X11Forwarding yes\n", {"x11"}),
    ("~/.ssh/rc is run", 'restrict,user-rc,command="COMMAND" KEY', "", {"rc"}),
    ("the environment is taken", 'restrict,command="COMMAND" KEY', "AcceptEnv *\n", {"environment"}),
]


@pytest.mark.parametrize(("line", "extra", "wanted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_weakness_shows_in_its_own_line(
    sound: Site, tmp_path: Path, line: str, extra: str, wanted: set[str]
) -> None:
    """Exactly these lines fail; everything else stays as at a sound site."""
    status, found = inspect(weakened(sound, tmp_path, line, extra))
    assert status == 1 and by_verdict(found, "FAIL") == wanted, found
    skipped = {name: finding["note"] for name, finding in found.items() if finding["verdict"] == "skipped"}
    assert skipped.keys() == UNKNOWN, skipped


def test_forwarding_in_one_direction_only(sound: Site, tmp_path: Path) -> None:
    """Where sshd forwards from here to there only, the other direction is still called refused."""
    line = 'restrict,port-forwarding,command="COMMAND" KEY'
    _, found = inspect(weakened(sound, tmp_path, line, "AllowTcpForwarding local\nAllowStreamLocalForwarding no\n"))
    assert {"local", "dynamic"} <= by_verdict(found, "FAIL") and found["remote"]["verdict"] == "ok", found
    assert found["stream_remote"]["verdict"] == "ok", found


def test_a_gate_with_a_back_door(sound: Site, tmp_path: Path) -> None:
    """A forced command that serves the gate and hands everything else to a shell: these lines fail and no other."""
    door = make_program(
        tmp_path / "door",
        'gate=$1; case "$SSH_ORIGINAL_COMMAND" in hello|open*|wait*|get*|put*) exec $gate ;; esac\n'
        'exec /bin/sh -c "${SSH_ORIGINAL_COMMAND:-/bin/sh}"\n',
    )
    gate = make_program(tmp_path / "gate", "")
    mint = weakened(sound, tmp_path, f'restrict,command="{door} {gate}" KEY', "AcceptEnv LC_*\n")
    gate.write_text("#!/bin/sh\nexec " + " ".join(sound.gate_argv()) + "\n")
    status, found = inspect(mint)
    assert status == 1
    wanted = {"shell", "command", "scp", "environment", "locale"}
    assert by_verdict(found, "FAIL") == wanted and found["gate"]["verdict"] == "ok", found


def test_no_gate_at_all(sound: Site, tmp_path: Path) -> None:
    """A key without a forced command is a shell: what was carried out fails, and no refusal counts without `hello`."""
    status, found = inspect(weakened(sound, tmp_path, "restrict KEY", ""))
    assert status == 1 and {"gate", "shell", "command", "scp"} <= by_verdict(found, "FAIL"), found
    assert found["local"]["verdict"] == "skipped" and found["pty"]["verdict"] == "skipped", found
    assert not by_verdict(found, "ok") & set(REFUSALS), found


def test_another_host_key_stops_everything(sound: Site, tmp_path: Path) -> None:
    """The host key fails, nothing else is called anything but unknown, and the site's ledger shows no request."""
    mint = weakened(sound, tmp_path, 'restrict,command="COMMAND" KEY')
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    mint.declaration["host_keys"] = [" ".join(Path(f"{other}.pub").read_text().split()[:2])]
    mint.declare()
    before = sound.ledger()
    status, found = inspect(mint)
    assert status == 1 and by_verdict(found, "FAIL") == {"host_key"}, found
    assert by_verdict(found, "ok") == {"agreement"} and set(found) == {*FACTS, *REFUSALS}
    assert sound.ledger() == before


def test_a_host_key_that_changes(sound: Site, tmp_path: Path) -> None:
    """With the next key pinned beside it, the one that is shown is named, and no warning is left."""
    mint = weakened(sound, tmp_path, 'restrict,command="COMMAND" KEY')
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    mint.declaration["host_keys"].insert(0, " ".join(Path(f"{other}.pub").read_text().split()[:2]))
    mint.declare()
    status, found = inspect(mint)
    assert status == 0 and "number 2 of 2" in found["host_key"]["note"] and found["host_keys"]["verdict"] == "ok", found


def test_a_key_that_is_not_taken_and_a_site_that_is_silent(sound: Site, tmp_path: Path) -> None:
    """One line says what is the matter, all refusals are unknown, and the status is 1."""
    mint = weakened(sound, tmp_path, 'restrict,command="COMMAND" KEY')
    (sound.root / "authorized_keys").write_text("", encoding="utf-8")
    status, found = inspect(mint)
    assert status == 1 and by_verdict(found, "FAIL") == {"job_key"}, found
    assert by_verdict(found, "skipped") >= set(REFUSALS)
    sound.stop_sshd()
    status, found = inspect(mint)
    assert status == 1 and by_verdict(found, "FAIL") == {"host_key"} and "refused" in found["host_key"]["note"], found
    assert by_verdict(found, "skipped") >= set(REFUSALS)


def test_what_is_declared_and_not_there(sound: Site, tmp_path: Path) -> None:
    """Another site's gate, a program that the site does not offer, and an agreement that has ended are named."""
    mint = weakened(sound, tmp_path, 'restrict,command="COMMAND" KEY')
    mint.declaration["programs"]["ghost"] = {}
    mint.declaration["valid_until"] = "2020-01-31"
    mint.declare()
    _, found = inspect(mint)
    assert by_verdict(found, "FAIL") == {"programs", "agreement"} and "ghost" in found["programs"]["note"], found
    keys = sound.root / "authorized_keys"
    keys.write_text(keys.read_text().replace(f"gate {sound.name} ", "gate other-site "))
    _, found = inspect(mint)
    assert {"site_id", "programs", "agreement"} <= by_verdict(found, "FAIL") and "other-site" in found["site_id"][
        "note"
    ]


def test_a_ledger_that_was_cut(tmp_path: Path) -> None:
    """A ledger that ends before the line that a job told of is found; before the cut the line is ok."""
    site = make_site(tmp_path / "site-host")
    site.start_sshd()
    try:
        mint = make_mint(tmp_path / "mint", site)
        assert mint.command("run", site.name, "noop", "--results", "out").returncode == 0
        assert inspect(mint)[1]["ledger"]["verdict"] == "ok"
        path = site.prefix / "state/ledger.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0])
        _, found = inspect(mint)
        assert found["ledger"]["verdict"] == "FAIL", found
    finally:
        site.stop_sshd()


def test_nothing_of_an_inspection_is_left(sound: Site, tmp_path: Path) -> None:
    """No agent, no shared connection and no folder outlives the command."""
    mint = weakened(sound, tmp_path, 'restrict,command="COMMAND" KEY')
    place = tmp_path / "t"
    place.mkdir()
    mint.environment["TMPDIR"] = str(place)
    inspect(mint)
    assert list(place.iterdir()) == []
    assert processes_with(str(place)) == []


def processes_with(word: str) -> list[Any]:
    """Live processes that name `word`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found
