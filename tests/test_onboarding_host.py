"""From two bare hosts to the first finished job, as the manual says: four commands, nothing else is edited."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import BIN, RELEASE, Pair, why_not

pytestmark = pytest.mark.skipif(why_not() != "", reason=why_not() or "-")
MOST_SECONDS = 600.0


@pytest.fixture(scope="session", autouse=True)
def unprivileged() -> None:
    """Takes the place of the rule that tests run as an ordinary user: these make hosts of their own."""


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Pair]:
    """Two hosts on which nothing of ours is installed."""
    made = Pair(tmp_path, RELEASE, label="bare")
    try:
        made.make()
        yield made
    finally:
        made.remove()


def test_four_commands_lead_from_two_bare_hosts_to_the_first_job(bare: Pair) -> None:
    """`site add` and `provision` at MInt, `install` at the site, `run`; each side wrote one file of its own."""
    bring_the_toolkit(bare)
    # What the two parties write: the agreed program at MInt, the program and the policy at the site.
    bare.mint.write("/root/noop.yml", "outputs: {out.dat: required}\n")
    bare.mint.write("/root/host.pub", bare.host_key() + "\n")
    bare.site.write("/opt/noop", "#!/bin/sh\nid -un; echo done >out.dat\n", "755")
    begin = time.monotonic()

    add = (
        "misrc site add univ-a --inventory /etc/misrc/inventory --host-key /root/host.pub --program noop=/root/noop.yml"
    )
    type_at_mint(bare, f"{add} --address {bare.site.address} --from {bare.mint.address} --json")
    type_at_mint(bare, "misrc provision --inventory /etc/misrc/inventory -e mint_node_bundle=/root/bundle.tar")
    key = bare.mint.sh("cat /etc/misrc/keys/univ-a.pub").split()[:2]
    policy = {
        "install": "root",
        "work_root": "/var/lib/misrc/jobs",
        "job_keys": [{"key": " ".join(key), "from": [f"{bare.mint.address}/32"], "until": "2099-12-31"}],
        "programs": {"noop": {"path": "/opt/noop", "returns": ["out.dat"], "logs": "full"}},
    }
    bare.site.write("/root/policy.json", json.dumps(policy))
    install = "python3 /root/misrc-site.pyz install --site univ-a --policy /root/policy.json --yes"
    done = bare.site.run(*install.split())
    assert "Installed." in done.stdout
    ran = bare.mint.run(*account("misrc run univ-a noop --results /var/lib/misrc/mint/first"), timeout=180, check=False)
    assert ran.returncode == 0, ran

    seconds = time.monotonic() - begin
    assert bare.mint.sh("cat /var/lib/misrc/mint/first/out.dat") == "done\n"
    assert bare.mint.sh("cat /var/lib/misrc/mint/first/remote_program_exec.log").strip() == "misrc-job"
    print(f"four commands, {seconds:.0f} s")
    assert seconds < MOST_SECONDS


def bring_the_toolkit(bare: Pair) -> None:
    """MInt's node gets misrc as an administrator brings it: the bundle, which holds what the site installs too."""
    bare.mint.sh(f"{BIN}/misrc bundle --output /root/bundle.tar")
    bare.mint.sh("mkdir /root/bundle && tar -xf /root/bundle.tar -C /root/bundle")
    bare.mint.sh("python3 -m venv /root/venv && /root/venv/bin/pip install -q --no-index -f /root/bundle/wheels misrc")
    pyz = bare.mint.run("base64", "/root/bundle/misrc-site.pyz").stdout
    bare.site.write("/root/misrc-site.pyz.b64", pyz)
    bare.site.sh("base64 -d /root/misrc-site.pyz.b64 >/root/misrc-site.pyz")


def type_at_mint(bare: Pair, line: str) -> str:
    """A command of MInt's administrator."""
    words = ["env", "PATH=/root/venv/bin:/usr/bin:/bin:/usr/sbin", "HOME=/root", "LANG=C.UTF-8", *shlex.split(line)]
    done = bare.mint.run(*words, timeout=MOST_SECONDS, check=False)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


def account(line: str) -> list[str]:
    """The words with which the modules' own account types a command on the provisioned node."""
    own = ["setpriv", "--reuid", "misrc", "--regid", "misrc", "--init-groups", "env", "-i", "-C", "/var/lib/misrc/mint"]
    return [*own, "PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/var/lib/misrc/mint", *shlex.split(line)]
