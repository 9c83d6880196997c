"""The agent from a claim to the close, at an installed site and a server's double."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import AgentHost, agent_host
from conftest import eventually


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    with agent_host(tmp_path / "site-host") as made:
        yield made


def test_a_job_runs_and_its_results_and_documents_arrive(host: AgentHost) -> None:
    """A released job runs with its inputs and arguments; results, manifest, receipt and signature reach the server."""
    host.start()
    job = host.double.submit("copy", {"a.txt": b"one\n", "b.txt": b"two\n"}, {"words": "hello"})
    ended = eventually(lambda: host.double.ended(job))
    assert ended.outcome == "succeeded"
    assert ended.files()["out.dat"] == b"one\ntwo\n"
    assert b"args: hello" in bytes(ended.log)
    assert {"manifest", "receipt", "signature"} <= set(ended.ends[-1])
    assert host.starts() == [job]
    host.double.wish(job, close=True)
    eventually(lambda: host.state(job) == "closed")
