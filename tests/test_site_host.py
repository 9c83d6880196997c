"""A site's life by the playbooks, on a real host: the same again, drift and repair, what is refused, retiring."""

from __future__ import annotations

import json
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hosts import BIN, IMAGE, Pair, pair, podman, policy_of, run_job, tree_of, why_not

from misrc.job.sshd import DROP_IN

KEYS = "/etc/ssh/misrc/authorized_keys.d/misrc"
pytestmark = pytest.mark.skipif(why_not() != "", reason=why_not() or "-")
__all__ = ["pair"]


@pytest.fixture(scope="session", autouse=True)
def unprivileged() -> None:
    """Takes the place of the rule that tests run as an ordinary user: these make hosts of their own."""


def test_e08_a_configuration_that_is_read_before_ours_stops_the_role(pair: Pair) -> None:
    """A block that is read earlier and opens forwarding is named, with its keyword; without it the role is content."""
    earlier = "/etc/ssh/sshd_config.d/05-careless.conf"
    pair.site.write(earlier, "Match Address 192.0.2.0/24\n  AllowTcpForwarding yes\n", "644")
    try:
        done = pair.provision(site_programs_trees=[tree_of(pair)])
        assert done.returncode != 0 and "allowtcpforwarding" in done.stdout, done.stdout
    finally:
        pair.site.sh(f"rm -f {earlier}; systemctl reload ssh")
    pair.works()


def test_a_second_converge_changes_nothing_and_a_drift_is_repaired(pair: Pair) -> None:
    """By state: files, units and accounts are the same to the modification time. A drift is foretold and mended."""
    before = pair.scene()
    done = pair.provision(site_programs_trees=[tree_of(pair)])
    assert "changed=0 " in done.stdout and done.returncode == 0, done.stdout
    assert pair.scene() == before
    pair.site.sh(
        f"sed -i s/PermitTunnel.no/PermitTunnel\\ yes/ {DROP_IN}; echo '# x' >>{KEYS}; echo >>/opt/programs/noop"
    )
    pair.site.sh("touch /opt/programs/planted; sed -i s/daily/weekly/ /etc/systemd/system/misrc-sweep.timer")
    drifted = pair.scene()
    told = pair.provision("--check", site_programs_trees=[tree_of(pair)])
    assert told.returncode == 0 and "changed=0 " not in told.stdout, told.stdout
    assert pair.scene() == drifted
    done = pair.provision(site_programs_trees=[tree_of(pair)])
    assert done.returncode == 0, done.stdout
    assert set(forget_times(pair.scene())) ^ set(forget_times(before)) == set()
    assert run_job(pair) == "misrc-job"


def forget_times(scene: str) -> list[str]:
    """Without times and without git's own files, which a checkout writes anew."""
    lines = [line.split() for line in scene.splitlines()]
    return [" ".join([*words[:5]]) for words in lines if "/.git/" not in words[0]]


def test_a_branch_is_no_pin(pair: Pair) -> None:
    """A tree that names a branch is refused, and the one that is there stays."""
    before = pair.scene()
    done = pair.provision(site_programs_trees=[{**tree_of(pair), "commit": "main"}])
    assert done.returncode != 0 and "full commit id" in done.stdout
    assert pair.scene() == before


def provision_here(pair: Pair, account: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The playbook run by `account` on MInt's host for that host itself, over no connection at all."""
    tools = ["HOME=/home/alice", f"PATH={BIN}:/usr/bin:/bin:/usr/sbin", "LANG=C.UTF-8", "ANSIBLE_NOCOLOR=1"]
    collections = f"ANSIBLE_COLLECTIONS_PATH={files('misrc') / 'collection'}"
    play = [str(BIN / "ansible-playbook"), "-i", "/home/alice/inventory.yml", *words, "misrc.remote.provision"]
    argv = ["exec", "-u", account, "-w", "/home/alice", pair.mint.name, "env", *tools, collections, *play]
    return podman(*argv, check=False, timeout=300)


def test_a_site_installs_itself_without_root(pair: Pair) -> None:
    """`connection: local` as an ordinary account: the gate answers, a second run changes nothing, root is refused."""
    pair.mint.sh("useradd -m -p '*' -s /bin/sh alice")
    program = {"path": "/home/alice/noop", "returns": ["**"], "network": "allow"}
    policy = {
        "install": "user",
        "work_root": "/home/alice/jobs",
        "job_keys": [{"key": " ".join((pair.place / "job.pub").read_text().split()[:2])}],
        "programs": {"noop": program},
    }
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "misrc_site_id": "own",
        "misrc_policy": policy,
    }
    inventory = {"all": {"children": {"sites": {"hosts": {"here": variables}}}}}
    pair.mint.write("/home/alice/inventory.yml", yaml.safe_dump(inventory), "644")
    pair.mint.sh("printf '#!/bin/sh\\necho done >out.dat\\n' >/home/alice/noop; chmod 755 /home/alice/noop")
    pair.mint.sh("chown alice: /home/alice/noop")
    told = provision_here(pair, "alice", "--check")
    assert told.returncode == 0 and "changed=0 " not in told.stdout, told.stdout
    assert pair.mint.sh("ls -A /home/alice/.config 2>/dev/null || true") == ""
    first, second = provision_here(pair, "alice"), provision_here(pair, "alice")
    assert first.returncode == 0 and "changed=0 " not in first.stdout, first.stdout
    assert second.returncode == 0 and "changed=0 " in second.stdout, second.stdout
    words = "-F none -i /root/job -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=accept-new"
    said = pair.mint.sh(f"ssh {words} alice@127.0.0.1 hello")
    assert json.loads(said)["hello"]["site"] == "own"
    assert "runs as the ordinary account" in provision_here(pair, "root").stdout


def test_debian_11_is_refused_with_the_reason_and_stays_as_it_is(tmp_path: Path) -> None:
    """Its rsync is too old: the play says so, and what can be done, before it changes anything."""
    if subprocess.run(["podman", "image", "exists", f"{IMAGE}:bullseye"], check=False).returncode:
        pytest.skip("needs the image of bullseye: tools/host_tests.sh")
    old = Pair(tmp_path, "bullseye", label="old")
    try:
        old.make()
        old.policy = policy_of(old)
        before = old.scene()
        done = old.provision()
        assert done.returncode != 0 and "rsync 3.2.3 is too old" in done.stdout and "WebAPI" in done.stdout
        assert "changed=0 " in done.stdout and old.scene() == before
    finally:
        old.remove()


def test_retiring_takes_keys_first_and_hands_the_ledger_over(pair: Pair) -> None:
    """After `absent` nobody logs in, accounts, units and files are gone, and the ledger lies where root keeps it."""
    records = len(pair.ledger())
    words = ("-e", "misrc_retired=site")
    done = pair.provision(*words, playbook="retire", site_programs_trees=[tree_of(pair)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert pair.ssh("hello").returncode == 255
    assert pair.site.sh("getent passwd misrc misrc-job || true") == ""
    left = pair.site.sh("find /etc /usr/libexec /var/lib /opt -name '*misrc*'")
    assert left.split() == ["/var/lib/misrc-retired"], left
    folder = "/var/lib/misrc-retired/deployed"
    assert len(pair.site.sh(f"cat {folder}/ledger.jsonl").splitlines()) == records
    assert json.loads(pair.site.sh(f"cat {folder}/retired.json"))["chain_holds"] is True
    again = pair.provision(*words, playbook="retire", site_programs_trees=[tree_of(pair)])
    assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout
