"""What the tests of a site's life share: MInt's side with nothing declared, and a site that is installed."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Mint, make_site


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Mint]:
    """MInt's side on which nothing is declared yet, and an installed site with its sshd."""
    site = make_site(tmp_path / "site-host")
    site.start_sshd()
    mint = Mint(tmp_path / "mint", site, {}, {"XDG_CONFIG_HOME": str(tmp_path / "config")})
    mint.root.mkdir()
    yield mint
    site.stop_sshd()


def keys_folder(house: Mint) -> Path:
    return Path(house.environment["XDG_CONFIG_HOME"]) / "misrc/keys"


def private_key(house: Mint, suffix: str = "") -> Path:
    return keys_folder(house) / f"{house.site.name}{suffix}"


def declared(house: Mint) -> Path:
    return house.root / f"inventory/host_vars/{house.site.name}.yml"


def add_words(house: Mint, **changes: str | None) -> list[str]:
    """The call that declares the site; a change of None leaves an option out."""
    options: dict[str, str | None] = {
        "address": "127.0.0.1",
        "port": str(house.site.port),
        "user": subprocess.check_output(["id", "-un"], text=True).strip(),
        "host-key": str(house.site.root / "host_key.pub"),
        "program": "noop",
        "from": "127.0.0.0/8",
        **changes,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return ["site", "add", house.site.name, *words]


def ask_json(house: Mint, *words: str) -> dict[str, Any]:
    done = house.command(*words, "--json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def accept(house: Mint, *entries: dict[str, Any]) -> None:
    """The site's administrator takes these job keys and no others."""
    house.site.policy["job_keys"] = list(entries)
    house.site.install()


def add(house: Mint) -> dict[str, Any]:
    """Declare the site, and let it take the key."""
    told = ask_json(house, *add_words(house))
    accept(house, told["policy_entry"])
    return told


def run_noop(house: Mint) -> subprocess.CompletedProcess[str]:
    return house.command("run", house.site.name, "noop", "--results", f"out-{time.monotonic_ns()}", "--new")


def check_one_line(done: subprocess.CompletedProcess[str], status: int, *parts: str) -> None:
    assert done.returncode == status, done
    assert done.stderr.count("\n") == 1 and all(part in done.stderr for part in parts), done.stderr


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; locks and the memory of parsed declarations hold nothing, and sshd writes its log."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".log"))
    return {str(path): path.read_bytes() for path in found if path.parent.name != "declared"}


def fault_points(house: Mint, tmp_path: Path, words: list[str]) -> list[str]:
    """The passages of a whole run, as orders for `kill`; the run's own effects stay."""
    folder = tmp_path / "faults-seen"
    folder.mkdir(exist_ok=True)
    (folder / "trace").unlink(missing_ok=True)
    house.environment["MISRC_FAULTS"] = str(folder)
    done = house.command(*words)
    del house.environment["MISRC_FAULTS"]
    assert done.returncode == 0, done.stderr
    names = (folder / "trace").read_text().split()
    return [f"{name} {names[:i].count(name) + 1}" for i, name in enumerate(names)]


def kill_at(house: Mint, tmp_path: Path, words: list[str], point: str) -> None:
    """Run a command that dies at a fault point."""
    folder = tmp_path / f"faults-{time.monotonic_ns()}"
    folder.mkdir()
    (folder / "kill").write_text(point)
    house.environment["MISRC_FAULTS"] = str(folder)
    done = house.command(*words)
    del house.environment["MISRC_FAULTS"]
    assert done.returncode == -9, (point, done)


def only_key(house: Mint) -> bool:
    """Nothing but the job key and its public half lies in the folder, and they belong together."""
    names = sorted(path.name for path in keys_folder(house).iterdir() if not path.name.endswith(".lock"))
    public = subprocess.check_output(["ssh-keygen", "-y", "-f", private_key(house)], text=True).split()[1]
    return names == [house.site.name, f"{house.site.name}.pub"] and public in private_key(house, ".pub").read_text()


def findings(house: Mint) -> dict[str, dict[str, str]]:
    """What `misrc site check` says, by name."""
    done = house.command("site", "check", house.site.name, "--json")
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
