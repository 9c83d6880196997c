"""What the resilience tests share: the one guarantee as an assertion, and who is who among a job's processes.

The guarantee: each job reaches exactly one final state, its program is started exactly once, and its results are
identical byte by byte, or the call ends with a clear error and the same call made again finishes the job.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from conftest import Mint, Site, eventually, job_processes, make_program

COMMON = {"returns": ["**"], "logs": "full", "network": "allow"}
SECONDS = {"seconds": {"pattern": "[0-9]{1,4}(\\.[0-9])?", "default": "1"}}


def add_program(site: Site, name: str, body: str, **rule: Any) -> None:
    """One more program at the site, counted like the others; the site installs again."""
    counted = f'echo "$MISRC_JOB_ID" >> {site.root}/starts\n'
    path = make_program(site.root / "programs" / name, counted + body)
    site.policy["programs"][name] = {"path": str(path), "arguments": SECONDS, **COMMON, **rule}
    site.install()


def declare(mint: Mint, name: str, outputs: dict[str, str] | None = None) -> None:
    """MInt's side of `add_program`."""
    mint.declaration["programs"][name] = {
        "inputs": {"*": "optional"},
        "arguments": copy.deepcopy(SECONDS),
        "outputs": outputs or {"out.dat": "required"},
    }
    mint.declare()


def starts(site: Site) -> list[str]:
    """Job ids in the order in which programs were really started: the programs' own word."""
    path = site.root / "starts"
    return path.read_text(encoding="ascii").split() if path.exists() else []


def started(site: Site) -> str:
    """Wait for a program's start; its job."""
    return str(eventually(lambda: starts(site), 60, "a start")[-1])


# -- who is who ---------------------------------------------------------------------------------------------------


def program_pid(site: Site, job: str) -> int:
    """The program itself, by the marker that it took."""
    marker = site.job_file(job, "started")
    return int(eventually(lambda: marker.exists() and marker.read_text().split(), what="the marker")[0])


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def monitor_pid(site: Site, job: str) -> int:
    return parent(program_pid(site, job))


def supervisor_pid(site: Site, job: str) -> int:
    return parent(monitor_pid(site, job))


def holder(lock: Path) -> int:
    """The process that has a lock file open (the kernel only says who took it first)."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(link) == str(lock) for link in Path(f"/proc/{entry}/fd").iterdir()):
                    return int(entry)
    raise AssertionError(f"nobody holds {lock}")


def gate_pids(site: Site) -> list[int]:
    """Gates of this site that serve a connection now (a supervisor has the same command line, but leads a session)."""
    return [pid for pid in processes(f"--prefix {site.prefix} gate") if os.getsid(pid) != parent_session(pid)]


def parent_session(pid: int) -> int:
    """1 where the parent is gone; supervisors are children of init, or of whoever adopts orphans."""
    with contextlib.suppress(OSError):
        return os.getsid(parent(pid))
    return 1


def processes(text: str) -> list[int]:
    """Live processes whose command line holds `text`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if text in words:
                    found.append(int(entry))
    return found


def driven_by(pid: int) -> list[int]:
    """Live processes that work for the `misrc run` with this pid: its plays and all below them."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                if f"MISRC_DRIVER={pid}".encode() in environment and state != "Z":
                    found.append(int(entry))
    return found


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL a `misrc run`, as an out-of-memory killer or a node's end would."""
    process.kill()
    process.communicate()


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM, seconds: float = 90) -> tuple[int, str]:
    """Stop a `misrc run` as a workflow does; its exit status and its last words."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


# -- the guarantee ------------------------------------------------------------------------------------------------


def check_site(site: Site, job: str, outcome: str = "succeeded", count: int = 1) -> None:
    """At the site: so many starts, one final state, nothing left over, a ledger whose chain verifies."""
    assert starts(site).count(job) == count
    record = site_record(site, job)
    assert record["outcome"] == outcome, record
    states = [state for state, _ in record["history"]]
    assert len(states) == len(set(states)), states
    assert states.count("ended") == 1
    ledger = [line for line in site.ledger() if line.get("job") == job]
    ends = {(line["outcome"], line["manifest"]) for line in ledger if line["event"] == "end"}
    assert len(ends) == 1, ends
    eventually(lambda: not job_processes(job), what="the end of all the job's processes")
    eventually(lambda: not processes(f"{site.work_root}/{job}"), what="the end of its transfers")
    assert not [name for name in os.listdir(site.work_root) if name.startswith(".new-")]


def site_record(site: Site, job: str) -> dict[str, Any]:
    import json

    record: dict[str, Any] = json.loads(site.job_file(job, "job.json").read_text(encoding="utf-8"))
    return record


def finish(mint: Mint, *words: str, calls: int = 3, timeout: float = 120) -> list[subprocess.CompletedProcess[str]]:
    """Make the same call until it succeeds: every failure before is one clear line and a documented status."""
    made = []
    for _ in range(calls):
        done = mint.command("run", *words, timeout=timeout)
        made.append(done)
        if done.returncode == 0:
            return made
        check_error(done)
    raise AssertionError([(done.returncode, done.stderr) for done in made])


def check_error(done: subprocess.CompletedProcess[str]) -> str:
    """A failed call's last line, which says it all."""
    assert done.returncode in range(1, 8), done
    assert "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("misrc: ")]
    assert errors, done.stderr
    return errors[-1]
