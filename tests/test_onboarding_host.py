"""From two bare hosts to the first finished job, as the manual says: four commands, nothing else is edited."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator

import pytest
from hosts import BIN, RELEASE, Pair, why_not

pytestmark = pytest.mark.skipif(why_not() != "", reason=why_not() or "-")
MOST_SECONDS = 600.0


@pytest.fixture(scope="session", autouse=True)
def unprivileged() -> None:
    """Takes the place of the rule that tests run as an ordinary user: these make hosts of their own."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two hosts on which nothing of ours is installed; the tests of this file follow each other on them."""
    made = Pair(tmp_path_factory.mktemp("bare"), RELEASE, label="bare")
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
    install_at_site(bare, [{"key": key_at_mint(bare), "until": "2099-12-31"}])
    run_at_mint(bare, "first")
    seconds = time.monotonic() - begin
    print(f"four commands, {seconds:.0f} s")
    assert seconds < MOST_SECONDS


def test_the_playbooks_check_the_site_and_change_its_key(bare: Pair) -> None:
    """`check` is content; after `rotate` both keys are valid, after its last step the old one is gone everywhere."""
    play(bare, "check")
    old = key_at_mint(bare)
    play(bare, "rotate", "misrc_rotated=univ-a")
    new = key_at_mint(bare, "univ-a.next.pub")
    assert new != old
    run_at_mint(bare, "with-the-old-key")
    install_at_site(bare, [{"key": old, "until": "2099-12-31"}, {"key": new}])
    run_at_mint(bare, "with-the-new-key")
    play(bare, "rotate", "misrc_rotated=univ-a", "misrc_step=--finish")
    assert key_at_mint(bare) == new and bare.mint.sh("ls /etc/misrc/keys").split() == ["univ-a", "univ-a.pub"]
    install_at_site(bare, [{"key": new}])
    assert old not in bare.site.sh("cat /etc/ssh/misrc/authorized_keys.d/misrc")
    run_at_mint(bare, "after-the-change")
    play(bare, "check")


def test_check_says_no_where_the_site_is_open(bare: Pair) -> None:
    """A forwarding that the site's sshd allows again fails the playbook, and its output names it."""
    bare.site.sh(
        "sed -i 's/AllowTcpForwarding no/AllowTcpForwarding yes/; s/DisableForwarding yes/DisableForwarding no/' "
        "/etc/ssh/sshd_config.d/*misrc*.conf; sed -i 's/restrict,/restrict,port-forwarding,/' "
        "/etc/ssh/misrc/authorized_keys.d/misrc; systemctl reload ssh"
    )
    done = play(bare, "check", status=2)
    assert "FAIL" in done and "forward" in done, done


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


def play(bare: Pair, name: str, *settings: str, status: int = 0) -> str:
    """A playbook of the collection, run on MInt's node for itself; what it printed."""
    node = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    hosts = {"mint_node": {"hosts": {"localhost": {**node, "mint_node_inventory": "/etc/misrc/inventory"}}}}
    bare.mint.write("/root/hosts.yml", json.dumps(hosts))
    collection = bare.mint.sh("ls -d /opt/misrc/venv/lib/python3*/site-packages/misrc/collection").strip()
    tools = ["env", f"ANSIBLE_COLLECTIONS_PATH={collection}", "LANG=C.UTF-8", "HOME=/root"]
    words = [word for setting in settings for word in ("-e", setting)]
    play = ["/opt/misrc/venv/bin/ansible-playbook", "-i", "/root/hosts.yml", *words, f"misrc.remote.{name}"]
    done = bare.mint.run(*tools, "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin", *play, check=False, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def key_at_mint(bare: Pair, name: str = "univ-a.pub") -> str:
    """A public job key of the node."""
    return " ".join(bare.mint.sh(f"cat /etc/misrc/keys/{name}").split()[:2])


def install_at_site(bare: Pair, keys: list[dict[str, str]]) -> None:
    """The site's administrator writes the policy and types the one command."""
    policy = {
        "install": "root",
        "work_root": "/var/lib/misrc/jobs",
        "job_keys": [{**key, "from": [f"{bare.mint.address}/32"]} for key in keys],
        "programs": {"noop": {"path": "/opt/noop", "returns": ["out.dat"], "logs": "full"}},
    }
    bare.site.write("/root/policy.json", json.dumps(policy))
    install = "python3 /root/misrc-site.pyz install --site univ-a --policy /root/policy.json --yes"
    assert "Installed." in bare.site.run(*install.split()).stdout


def run_at_mint(bare: Pair, results: str) -> None:
    """A whole job, typed by the modules' own account on the provisioned node."""
    folder = f"/var/lib/misrc/mint/{results}"
    done = bare.mint.run(*account(f"misrc run univ-a noop --new --results {folder}"), timeout=180, check=False)
    assert done.returncode == 0, done
    assert bare.mint.sh(f"cat {folder}/out.dat") == "done\n"
    assert bare.mint.sh(f"cat {folder}/remote_program_exec.log").strip() == "misrc-job"
