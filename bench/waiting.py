"""What waiting costs: 100 jobs wait at once; memory and processor time of every process on both sides; none is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from conftest import _descendants, eventually
from stage import Mint, Row, Site, make_program, row, scene

JOBS = 100
SECONDS = 60.0
AT_ONCE = 4


def measure(jobs: int | None) -> list[Row]:
    """PSS per job, and per cent of one core on each side while nothing happens but waiting."""
    count = jobs or JOBS
    limits = {"jobs": count, "waiting": 10, "processes": 4096}
    with scene(limits=limits) as (site, mint, root):
        # Programs block on a pipe: they cost nothing themselves.
        os.mkfifo(root / "gate-of-the-bench")
        path = make_program(site.root / "programs/block", f"read x < {root}/gate-of-the-bench; echo done > out.dat\n")
        site.policy["programs"]["block"] = {"path": str(path), "returns": ["**"], "logs": "none", "network": "allow"}
        site.install()
        mint.declaration["programs"]["block"] = {"inputs": {"n": "required"}, "outputs": {"out.dat": "required"}}
        mint.declare()
        mint.environment["MISRC_PATIENCE"] = "1"
        runs = _start(mint, site, count)
        try:
            rows = _observe(runs, site, count)
        finally:
            _open_gate(root / "gate-of-the-bench")
        lost = _finish(mint, runs)
        rows.append(row("lost", lost, "jobs", "lower"))
    return rows


def _start(mint: Mint, site: Site, count: int) -> "list[subprocess.Popen[str]]":
    runs = []
    for number in range(count):
        given = mint.file(f"n{number}", str(number).encode())
        runs.append(mint.spawn("run", site.name, "block", "--in", f"n={given}", "--results", f"out/{number}"))
        eventually(lambda: sum(not _waits(run.pid) for run in runs) < AT_ONCE, 120, "a job that waits")
    eventually(lambda: all(_waits(run.pid) for run in runs), 120, "all jobs that wait")
    print(f"  {count} jobs wait", file=sys.stderr, flush=True)
    time.sleep(10)
    return runs


def _waits(pid: int) -> bool:
    """Whether a `misrc run` has nothing under it but ssh with a `wait`."""
    names = [_command(child) for child in _descendants(pid)]
    return any(" wait " in name for name in names) and not any("ansible" in name or "play" in name for name in names)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def _observe(runs: "list[subprocess.Popen[str]]", site: Site, count: int) -> list[Row]:
    mint_pids = [pid for run in runs for pid in [run.pid, *_descendants(run.pid)]]
    site_pids = _site_pids(site)
    before = _cpu(mint_pids), _cpu(site_pids)
    start = time.monotonic()
    time.sleep(SECONDS)
    took = time.monotonic() - start
    after = _cpu(mint_pids), _cpu(site_pids)
    pss = sum(_pss(pid) for pid in mint_pids) / count
    print(f"  {len(mint_pids)} processes on MInt's side, {len(site_pids)} at the site", file=sys.stderr, flush=True)
    return [
        row("pss-mib", pss / 1024, "MiB", "lower"),
        row("cpu-percent", 100 * (after[0] - before[0]) / took, "%", "lower"),
        row("site-cpu-percent", 100 * (after[1] - before[1]) / took, "%", "lower"),
    ]


def _site_pids(site: Site) -> list[int]:
    """sshd with everything below it, and the supervisors and programs that have detached themselves."""
    assert site.sshd is not None
    found = {site.sshd.pid, *_descendants(site.sshd.pid)}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (
            str(site.code) in _command(int(entry)) or str(site.root / "programs") in _command(int(entry))
        ):
            found.add(int(entry))
    return sorted(found)


def _cpu(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(words[11]) + int(words[12])
    return total / os.sysconf("SC_CLK_TCK")


def _pss(pid: int) -> int:
    """Proportional set size in KiB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.split("Pss:")[1].split()[0])


def _open_gate(fifo: Path) -> None:
    """Let every program go on."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return
        os.close(descriptor)
        time.sleep(0.2)


def _finish(mint: Mint, runs: "list[subprocess.Popen[str]]") -> int:
    for run in runs:
        run.communicate(timeout=600)
    starts = mint.starts()
    good = [run.returncode for run in runs].count(0)
    return max(len(runs) - good, len(starts) - len(set(starts)))
