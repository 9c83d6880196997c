"""What the agent's tests share: a site with an agent of its own that asks a double of the server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from api_double import TOKEN, Double
from conftest import CLEAN, Site, eventually, make_site


@dataclasses.dataclass
class AgentHost:
    """A site that asks `double` for work."""

    site: Site
    double: Double
    process: subprocess.Popen[str] | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    options: list[str] = dataclasses.field(default_factory=list)
    runs: int = 0

    @property
    def log(self) -> Path:
        return self.site.root / "agent.log"

    @property
    def config(self) -> Path:
        return self.site.prefix / "config/agent.json"

    def configure(self, **changes: Any) -> None:
        """Install `agent.json` beside the policy."""
        token = self.site.root / "token"
        token.write_text(TOKEN + "\n", encoding="ascii")
        token.chmod(0o600)
        config = {"url": self.double.url, "token": str(token), **changes}
        path = self.site.root / "agent.json"
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        pyz = self.site.root / "policy.json"
        words = ["install", "--site", self.site.name, "--policy", str(pyz), "--agent", str(path), "--yes"]
        self.site.people(*words, "--authorized-keys", str(self.site.root / "authorized_keys"))

    def argv(self, *words: str) -> list[str]:
        faults = ["--faults", str(self.site.faults)] if self.site.faults else []
        python = ["/usr/bin/python3", "-I", "-S", str(self.site.code), "--prefix", str(self.site.prefix)]
        return [*python, *faults, *self.options, "agent", *words]

    def start(self) -> subprocess.Popen[str]:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                env={**CLEAN, **self.environment},
            )
        self.runs += 1
        return self.process

    def stop(self, kill: bool = True) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            (self.process.kill if kill else self.process.terminate)()
        return self.process.wait(20)

    def keep_running(self, done: Any, seconds: float = 60.0) -> Any:
        """Until `done()`; an agent that was struck dead is started again."""

        def look() -> Any:
            if self.process is None or self.process.poll() is not None:
                self.start()
            return done()

        return eventually(look, seconds, "the end of the job")

    def check(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv("--check"),
            capture_output=True,
            text=True,
            env={**CLEAN, **self.environment},
            timeout=60,
            check=False,
        )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def starts(self) -> list[str]:
        path = self.site.root / "starts"
        return path.read_text(encoding="ascii").split() if path.exists() else []

    def state(self, job: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads(self.site.job_file(job, "job.json").read_text())["state"])
        return ""

    def rss(self) -> int:
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS"))) << 10


def tree(root: Path, spare: tuple[str, ...] = ()) -> dict[str, tuple[int, int, int]]:
    """Every name below a folder with what a change would show."""
    found = {}
    for folder, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(folder, name)
            if not any(part in path for part in spare):
                status = os.lstat(path)
                found[path] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


@contextlib.contextmanager
def agent_host(root: Path, policy: dict[str, Any] | None = None, faults: bool = False) -> Iterator[AgentHost]:
    """A site, its double, and no agent yet."""
    site = make_site(root, policy, faults)
    double = Double(site.name)
    with double.serving():
        host = AgentHost(site, double)
        host.configure()
        try:
            yield host
        finally:
            if host.process is not None:
                host.stop()
