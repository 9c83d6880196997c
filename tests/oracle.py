"""The oracle for a refusal, O1 to O7 of docs/attacks.md: asserted together wherever the gate must say no."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conftest import CLEAN, GateResult, Site

from misrc.job.ledger import verify_lines

SYNTAX, POLICY = 64, 77
# O6: the gate and its children work within this much address space, which is stricter than resident memory.
MEMORY = 64 << 20
_GROWS = {"ledger.jsonl", "ledger.lock"}
_RECORDED = 256


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that a refusal must leave as it is, and the ledger, which must grow by one record."""

    tree: Mapping[str, tuple[Any, ...]]
    ledger: Sequence[Mapping[str, Any]]


def tree(site: Site) -> dict[str, tuple[Any, ...]]:
    """Every file of the site (work root, configuration, code, marks of started programs) with its times."""
    found: dict[str, tuple[Any, ...]] = {}
    state = site.prefix / "state"
    spared = {state, site.root, site.root / "sshd.log", *(state / name for name in _GROWS)}
    for folder, names, files in os.walk(site.root):
        for path in [Path(folder), *(Path(folder) / name for name in [*names, *files])]:
            if path in spared:
                continue
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino, status.st_nlink)
    return found


def ledger(site: Site) -> list[dict[str, Any]]:
    """All records of the ledger as it lies on disk; raises where the chain does not verify."""
    with (site.prefix / "state/ledger.jsonl").open("rb") as stream:
        return list(verify_lines(stream))


def scene(site: Site) -> Scene:
    return Scene(tree(site), ledger(site))


def bounded_gate(
    site: Site,
    command: bytes | None,
    stdin: bytes = b"",
    environment: Mapping[bytes, bytes] | None = None,
    timeout: float = 60,
    memory: int = MEMORY,
) -> GateResult:
    """`Site.gate` within `memory` bytes of address space."""
    env = {key.encode(): value.encode() for key, value in CLEAN.items()}
    env[b"SSH_CONNECTION"] = b"127.0.0.1 40000 127.0.0.1 22"
    if command is not None:
        env[b"SSH_ORIGINAL_COMMAND"] = command
    env.update(environment or {})
    argv = ["/usr/bin/prlimit", f"--as={memory}", *site.gate_argv()]
    done = subprocess.run(argv, input=stdin, capture_output=True, env=env, timeout=timeout, check=False)
    return GateResult(done.returncode, done.stdout, done.stderr)


def escaped(data: bytes) -> str:
    """How the ledger shows a request: printable, one line, never the raw bytes."""
    return data[:_RECORDED].decode("latin-1").encode("unicode_escape").decode("ascii")


class Oracle:
    """Asserts refusals at one site; `legal` is the command that must work after each of them."""

    def __init__(self, site: Site, legal: bytes = b"hello") -> None:
        self.site = site
        self.legal = legal

    def denied(
        self,
        command: bytes | None,
        code: str,
        stdin: bytes = b"",
        before: Sequence[str] = (),
        environment: Mapping[bytes, bytes] | None = None,
        peer: str = "127.0.0.1",
        follow: bool = True,
    ) -> GateResult:
        """`command` is refused with `code`; `before` lists events that are recorded ahead of the refusal.

        `follow` sends a legal command afterwards; within a row of attacks it is enough after the last one.
        """
        old = scene(self.site)
        result = bounded_gate(self.site, command, stdin, environment)
        check_answer(result, code)
        check_unchanged(self.site, old)
        new = ledger(self.site)[len(old.ledger) :]
        assert [record["event"] for record in new] == [*before, "refuse"], (command, new)
        check_record(new[-1], command or b"", code, peer)
        if follow:
            self.works()
        return result

    def all_denied(self, code: str, *commands: bytes | None) -> None:
        """Each command is refused; the legal one follows the last of them."""
        for command in commands:
            self.denied(command, code, follow=command is commands[-1])

    def works(self) -> GateResult:
        """The next legal command works (O7)."""
        return self.allowed(self.legal)

    def allowed(self, command: bytes, stdin: bytes = b"") -> GateResult:
        """A positive control: `command` is carried out."""
        result = self.site.gate(command, stdin)
        assert (result.status, result.stderr) == (0, b""), (command, result)
        return result


def check_answer(result: GateResult, code: str) -> None:
    """O1 and O2: the status, and one constant line."""
    syntax = code in ("E01", "E02")
    assert result.stderr == f"misrc: denied ({code})\n".encode(), result
    assert result.status == (SYNTAX if syntax else POLICY), result
    assert result.stdout == (b"" if syntax else b'{"refused":"%s","v":1}\n' % code.encode()), result


def check_unchanged(site: Site, old: Scene) -> None:
    """O3 and O4: no program left its mark, no file changed, came or went."""
    now = tree(site)
    changed = {path for path in now.keys() | old.tree.keys() if now.get(path) != old.tree.get(path)}
    assert not changed, changed


def check_record(record: Mapping[str, Any], command: bytes, code: str, peer: str = "127.0.0.1") -> None:
    """O5: what the ledger holds of a refused request."""
    wanted = {
        "event": "refuse",
        "decision": "deny",
        "reason": code,
        "input": escaped(command),
        "input_bytes": len(command),
        "input_sha256": hashlib.sha256(command).hexdigest(),
        "peer": peer,
        "key": "key-1",
    }
    assert {name: record.get(name) for name in wanted} == wanted
    assert json.dumps(record).isprintable()
