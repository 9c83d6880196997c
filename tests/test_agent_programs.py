"""What a program may do under the agent is what it may do under the gate: the same runner, the same limits."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import AgentHost, agent_host
from api_double import DoubleJob
from conftest import eventually, make_program


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    with agent_host(tmp_path / "site-host") as made:
        yield made


def run(
    host: AgentHost, body: str, inputs: dict[str, bytes] | None = None, limits: Any = None, **rule: Any
) -> DoubleJob:
    """One job of a program with this body, to its end; afterwards the agent still works."""
    path = make_program(host.site.root / "programs/trial", body)
    known = {"path": str(path), "returns": ["**"], "logs": "full", "network": "allow", **rule}
    host.site.policy["programs"]["trial"] = known
    host.site.policy["limits"] = {**host.site.policy["limits"], **(limits or {})}
    host.site.install()
    if host.process is None:
        host.start()
    job = host.double.submit("trial", inputs)
    ended: DoubleJob = eventually(lambda: host.double.ended(job), 60)
    after = host.double.submit("noop")
    eventually(lambda: host.double.ended(after), 60)
    return ended


def test_p03_an_archive_is_a_file_like_any_other(host: AgentHost) -> None:
    """Nothing is unpacked: links and devices inside an archive never come into being."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    ended = run(host, "ls -l > out.dat\n", {"a.tar": packed.getvalue()})
    listing = ended.files()["out.dat"].decode()
    assert (
        "a.tar" in listing and "link" not in listing and not any(line.startswith("l") for line in listing.splitlines())
    )


def test_p31_a_program_that_forks_without_end_meets_the_limit(host: AgentHost) -> None:
    """The limit of the account's processes stops it; nothing of it is left, and the agent goes on."""
    own = sum(os.stat(f"/proc/{pid}").st_uid == os.getuid() for pid in os.listdir("/proc") if pid.isdigit())
    body = "i=0; while [ $i -lt 400 ]; do sleep 60 & i=$((i+1)); done; echo all > out.dat\n"
    ended = run(host, body, limits={"processes": own + 150})
    assert ended.outcome == "failed"


def test_p33_a_program_that_wants_all_memory_fails_alone(host: AgentHost) -> None:
    """Above the declared memory its own allocation fails; within it, it succeeds."""
    body = "/usr/bin/python3 -c 'print(len(bytearray(%d << 20)))' > out.dat\n"
    assert run(host, body % 2000, limits={"memory": "500MiB"}).outcome == "failed"
    assert run(host, body % 100, limits={"memory": "500MiB"}).outcome == "succeeded"


def test_p37_a_program_without_a_network_sees_none(host: AgentHost) -> None:
    """With `network: deny` there is not even a loopback that is up; where that cannot be had, it does not start."""
    ended = run(host, "cat /proc/net/dev | tail -n +3 | cut -d: -f1 > out.dat\n", network="deny")
    if ended.outcome == "refused":
        assert ended.reason == "E35"
    else:
        assert ended.files()["out.dat"].split() == [b"lo"]


def test_p38_p39_no_new_rights_no_core_no_foreign_temporary_files(host: AgentHost) -> None:
    """No new privileges, no core dumps, and temporary files lie in the job's own folder."""
    ended = run(host, "grep NoNewPrivs /proc/self/status; ulimit -c; echo $TMPDIR; mktemp\n")
    privileges, core, folder, file = bytes(ended.log).decode().split("\n")[:4]
    assert privileges.split()[-1] == "1" and core == "0"
    assert file.startswith(folder + "/") and str(host.site.work_root) in folder


def test_p41_a_program_that_is_not_the_pinned_one_does_not_start(host: AgentHost) -> None:
    """Its hash is taken right before the start: another file is refused, the pinned one runs."""
    body = "echo fine > out.dat\n"
    pinned = hashlib.sha256(b"#!/bin/sh\n" + body.encode()).hexdigest()
    assert run(host, body, sha256=pinned).outcome == "succeeded"
    assert run(host, body + "# changed\n", sha256=pinned).reason == "E13"


def test_p29_a_full_disk_while_results_are_taken_is_waited_out(host: AgentHost) -> None:
    """The server's disk is full: the upload pauses, goes on later, and arrives whole."""
    from api_double import say

    rule = host.double.rule("(PUT|PATCH) .*/results/", say(507, b"", Retry_After="1"), times=2)
    ended = run(host, "head -c 3000000 /dev/zero > big.dat\n")
    assert ended.outcome == "succeeded" and rule.hits == 2
    assert ended.files()["big.dat"] == bytes(3_000_000)
