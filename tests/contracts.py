"""What the tests of a site's own contract share: what a site says of a job, of its ledger, and who looks after it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from conftest import Site, eventually
from oracle import Oracle

DAY = 86400
LIMITS = {"jobs": 8, "waiting": 100}


def state_of(site: Site, job: str) -> tuple[str, str | None]:
    """State and reason, as `wait JOB 0 0` says them."""
    reply = site.gate(f"wait {job} 0 0".encode()).reply
    assert reply.state is not None
    return reply.state.value, reply.reason


def events(site: Site, event: str) -> list[dict[str, Any]]:
    return [record for record in site.ledger() if record["event"] == event]


def refused(site: Site, code: str, job: str | None = None) -> None:
    """A new job is refused with `code`, and leaves nothing but the record."""
    job = job or str(uuid.uuid4())
    Oracle(site).denied(f"open {job}".encode(), code, site.open_request(job))


def hold_slots(site: Site, seconds: float = 300) -> str:
    """A job that runs for long."""
    job = site.submit("sleep", arguments={"seconds": str(seconds)})
    eventually(lambda: state_of(site, job)[0] == "running", what="the start")
    return job


def supervisor_pid(site: Site, job: str) -> int:
    """Who holds the supervisor's lock."""
    inode = site.job_file(job, "supervisor.lock").stat().st_ino

    def holder() -> int:
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if "->" not in words and words[5].endswith(f":{inode}") and Path(f"/proc/{words[4]}").exists():
                return int(words[4])
        return 0

    return int(eventually(lambda: holder() or descriptor_holder(site.job_file(job, "supervisor.lock")), what="its pid"))


def descriptor_holder(path: Path) -> int:
    """A process that has the file open: the lock's list names who took it, who may be gone."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                links = [os.readlink(f"/proc/{entry}/fd/{name}") for name in os.listdir(f"/proc/{entry}/fd")]
            except OSError:
                continue
            if str(path) in links:
                return int(entry)
    return 0
