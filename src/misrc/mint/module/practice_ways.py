"""How a practice site is reached: an sshd on loopback, or an API server there that the site's agent asks for work.

Both are what a real site has. What is started here is known by its number and by this practice site's folder among its
words, so that a number which was given to another process since is left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...job.errors import MisrcError
from ..messages.catalog import say

SITE = "practice"
WAIT_SECONDS = 10
# In the order in which they are stopped.
_PROCESSES = ("agent", "server", "sshd")
_SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey "{folder}/host_key"
PidFile "{folder}/sshd.pid"
AuthorizedKeysFile "{folder}/authorized_keys"
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
DisableForwarding yes
PermitTTY no
LogLevel ERROR
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Way(Protocol):
    """What differs."""

    def declare(self) -> dict[str, Any]:
        """What MInt declares of the way."""

    def job_keys(self) -> list[dict[str, Any]]:
        """The policy's keys."""

    def install_words(self) -> list[str]:
        """Further words of the installation."""

    def start(self) -> None:
        """Start what answers."""


@dataclass(frozen=True)
class Ssh:
    """MInt logs in."""

    folder: Path
    port: int = field(default_factory=_free_port)

    def declare(self) -> dict[str, Any]:
        """Address, account and keys."""
        user = pwd.getpwuid(os.getuid()).pw_name
        host_keys = [_make_key(self.folder / "host_key")]
        site = {"method": "ssh", "address": "127.0.0.1", "port": self.port, "user": user, "host_keys": host_keys}
        return {"misrc_identity": str(self.folder / "job_key"), "misrc_site": site}

    def job_keys(self) -> list[dict[str, Any]]:
        """MInt's key, from this machine alone."""
        return [{"key": _make_key(self.folder / "job_key"), "from": ["127.0.0.0/8"]}]

    def install_words(self) -> list[str]:
        """None."""
        return []

    def start(self) -> None:
        """sshd, which goes into the background itself."""
        config = self.folder / "sshd_config"
        config.write_text(_SSHD.format(port=self.port, folder=self.folder), encoding="utf-8")
        run_words("/usr/sbin/sshd", "-f", str(config), "-E", str(self.folder / "sshd.log"))
        _wait_for(self.port, "sshd", self.folder / "sshd.log")


@dataclass(frozen=True)
class WebApi:
    """The site asks for work."""

    folder: Path
    port: int = field(default_factory=_free_port)

    @property
    def url(self) -> str:
        """The server's address; http is for loopback alone."""
        return f"http://127.0.0.1:{self.port}"

    def declare(self) -> dict[str, Any]:
        """Server and user."""
        api = {"url": self.url, "user": SITE, "token_file": str(self.folder / "node.token")}
        return {"misrc_site": {"method": "webapi", "api": api}}

    def job_keys(self) -> list[dict[str, Any]]:
        """None: nobody logs in."""
        return []

    def install_words(self) -> list[str]:
        """The agent's configuration."""
        config = self.folder / "agent.json"
        config.write_text(json.dumps({"url": self.url, "token": str(self.folder / "agent.token")}), encoding="utf-8")
        return ["--agent", str(config)]

    def start(self) -> None:
        """The server, and then the agent, once it finds everything fine."""
        config = self.folder / "server.yml"
        declared = {
            "listen": [f"127.0.0.1:{self.port}"],
            "hosts": ["127.0.0.1"],
            "database": f"sqlite:///{self.folder}/jobs.sqlite",
            "spool": str(self.folder / "spool"),
            "inventory": str(self.folder / "inventory"),
        }
        config.write_text(json.dumps(declared), encoding="utf-8")
        self._make_token("node", config, "--scope", "workflow")
        self._make_token("agent", config, "--scope", "agent", "--site", SITE)
        _start(self.folder, "server", *_MISRC, "serve", "--config", str(config))
        _wait_for(self.port, "misrc serve", self.folder / "server.log")
        site = self.folder / "site"
        agent = (sys.executable, "-I", "-S", str(site / "share/current"), "--prefix", str(site), "agent")
        run_words(*agent, "--check")
        _start(self.folder, "agent", *agent)

    def _make_token(self, name: str, config: Path, *scope: str) -> None:
        """Made once: the server keeps them."""
        path = self.folder / f"{name}.token"
        if not path.exists():
            made = run_words(*_MISRC, "token", "add", name, "--config", str(config), "--user", SITE, *scope)
            path.touch(mode=0o600)
            path.write_text(made, encoding="ascii")


_MISRC = (sys.executable, "-m", "misrc.cli")


def stop_processes(folder: Path) -> None:
    """End what runs of the practice site in this folder."""
    for name in _PROCESSES:
        pid = folder / f"{name}.pid"
        with contextlib.suppress(OSError, ValueError):
            number = int(pid.read_text(encoding="ascii"))
            for sign in (signal.SIGTERM, signal.SIGKILL):
                end = time.monotonic() + WAIT_SECONDS
                if _is_ours(number, folder):
                    os.kill(number, sign)
                while _is_ours(number, folder) and time.monotonic() < end:
                    time.sleep(0.02)
            pid.unlink()


def _is_ours(number: int, folder: Path) -> bool:
    try:
        return f"{folder}/".encode() in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False


def _make_key(path: Path) -> str:
    if not path.exists():
        run_words("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))
    return " ".join(path.with_name(path.name + ".pub").read_text(encoding="ascii").split()[:2])


def _start(folder: Path, name: str, *words: str) -> None:
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    (folder / f"{name}.pid").write_text(f"{process.pid}\n", encoding="ascii")


def _wait_for(port: int, command: str, log: Path) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise MisrcError(say("practice.failed", command=command, why=log))


def run_words(*words: str) -> str:
    """Run a command to its end; what it printed."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise MisrcError(say("practice.failed", command=words[0], why=error.strerror)) from None
    if done.returncode != 0:
        why = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise MisrcError(say("practice.failed", command=Path(words[0]).name, why=why[-1] if why else done.returncode))
    return done.stdout.decode("utf-8", "replace")
