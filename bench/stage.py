"""What the benchmarks share: a site, MInt's side, and a plain sshd for the predecessor's way of working."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from conftest import SSHD, Mint, Site, eventually, free_port, make_mint, make_program, make_site

Row = dict[str, Any]


@contextlib.contextmanager
def scene(**policy: Any) -> Iterator[tuple[Site, Mint, Path]]:
    """A site behind a private sshd, MInt's side, and a folder of our own; all gone afterwards."""
    base = Path(__file__).resolve().parents[1] / ".cache"
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as name:
        root = Path(name)
        site = make_site(root / "site-host", policy)
        site.start_sshd()
        try:
            yield site, make_mint(root / "mint", site), root
        finally:
            site.stop_sshd()


class PlainHost:
    """An sshd of the same machine and account that gives a shell, as the predecessor's site does."""

    def __init__(self, site: Site, root: Path) -> None:
        self.port = free_port()
        keys = root / "plain_keys"
        keys.write_text((site.root / "job_key.pub").read_text(encoding="ascii"), encoding="ascii")
        config = root / "plain_sshd"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {site.root}/host_key\nPidFile none\nUsePAM no\n"
            f"StrictModes no\nAuthorizedKeysFile {keys}\nLogLevel ERROR\n",
            encoding="utf-8",
        )
        self._server = subprocess.Popen([SSHD, "-D", "-f", str(config)], stdin=subprocess.DEVNULL)
        self._site = site
        self._root = root
        eventually(
            lambda: (
                subprocess.run(
                    ["ssh", "-F", self.client(self.port), "site", "true"], check=False, capture_output=True
                ).returncode
                == 0
            ),
            what="the plain sshd",
        )

    def client(self, port: int) -> str:
        """An ordinary ssh_config for this host through `port`."""
        path = self._root / f"plain_config_{port}"
        known = self._root / f"plain_known_{port}"
        known.write_text(f"[127.0.0.1]:{port} {self._site.host_key()}\n", encoding="ascii")
        path.write_text(
            f"Host site\n HostName 127.0.0.1\n Port {port}\n IdentityFile {self._site.job_key}\n"
            f" IdentitiesOnly yes\n UserKnownHostsFile {known}\n BatchMode yes\n",
            encoding="utf-8",
        )
        return str(path)

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.wait()


class Nginx:
    """A private nginx of this account, which serves what a subclass says."""

    def __init__(self, root: Path, events: str, http: str) -> None:
        self.root = root
        places = " ".join(f"{kind}_temp_path {root}/tmp/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
        (root / "tmp").mkdir(parents=True)
        (root / "nginx.conf").write_text(
            f"pid {root}/pid; error_log {root}/error.log; worker_processes 1; daemon off;\n{events}\n"
            f"http {{ access_log off; client_body_temp_path {root}/tmp/body; {places}\n{http} }}\n"
        )

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(["nginx", "-c", str(self.root / "nginx.conf"), "-p", str(self.root)])
        eventually((self.root / "pid").exists, what="nginx")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def timed(action: Callable[[], Any]) -> float:
    """Seconds that an action takes."""
    os.sync()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def paired(first: Callable[[], float], second: Callable[[], float], pairs: int, label: str) -> list[float]:
    """Ratios first / second, pair by pair, the order alternating; one pair goes ahead uncounted."""
    ratios = []
    for number in range(pairs + 1):
        if number % 2:
            a, b = first(), second()
        else:
            b = second()
            a = first()
        if number:
            ratios.append(a / b)
            print(
                f"  {label} {number}/{pairs}: {a:.3f} s against {b:.3f} s, ratio {a / b:.3f}",
                file=sys.stderr,
                flush=True,
            )
    return ratios


def row(case: str, value: float, unit: str, better: str) -> Row:
    """One line of the result."""
    return {"case": case, "value": round(value, 4), "unit": unit, "better": better}


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


__all__ = [
    "Mint",
    "Nginx",
    "PlainHost",
    "Row",
    "Site",
    "make_mint",
    "make_program",
    "median",
    "paired",
    "row",
    "scene",
    "timed",
]
