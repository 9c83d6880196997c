"""What MInt's node keeps of a declaration, and which hosts an inventory implies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CLEAN, MISRC, Site

from misrc.declare.inventory import load_sites, read_variables
from misrc.declare.node import load_documents, render_node_config
from misrc.declare.ssh import render_config
from misrc.job.errors import BadRequest
from misrc.mint.site.provision import derive_hosts, find_playbook, make_words

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
SITE = f"""---
ansible_become_password: secret-of-an-administrator
misrc_identity: /etc/keys/of-mine
misrc_site:
  id: univ-a
  method: ssh
  address: univ-a.example
  port: 50022
  host_keys: ["{KEY}"]
  valid_until: 2027-03-31
  programs:
    noop: {{title: {{ja: 何もしない, en: nothing}}, outputs: {{out.dat: required}}}}
"""
POLICY = "misrc_policy: {work_root: /confidential}\n"


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """An inventory with one declared site, whose policy lies in the same file."""
    folder = tmp_path / "inventory"
    (folder / "host_vars").mkdir(parents=True)
    (folder / "host_vars/site-host.yml").write_text(SITE + POLICY, encoding="utf-8")
    return folder


@pytest.mark.quick
def test_the_node_gets_what_misrc_reads_and_nothing_else(inventory: Path, tmp_path: Path) -> None:
    """The document means the same to misrc as the original, and has neither the password nor the policy."""
    [(site, document)] = load_documents(inventory)
    copy = tmp_path / "copy"
    (copy / "host_vars").mkdir(parents=True)
    (copy / "host_vars/univ-a.yml").write_text(document, encoding="utf-8")
    assert load_sites(copy) == load_sites(inventory) == {"univ-a": site}
    assert set(read_variables(copy / "host_vars/univ-a.yml")) == {"misrc_site", "misrc_identity"}
    assert "secret" not in document and "confidential" not in document
    assert [text for _, text in load_documents(copy)] == [document]


@pytest.mark.quick
def test_what_is_wrong_in_the_inventory_is_refused(inventory: Path) -> None:
    """A missing folder, and a site that stands in two files, are named; one site in one file is taken."""
    assert len(load_documents(inventory)) == 1
    with pytest.raises(BadRequest, match="no such folder"):
        load_documents(inventory / "missing")
    (inventory / "host_vars/second.yml").write_text(SITE, encoding="utf-8")
    with pytest.raises(BadRequest, match="stands in another file"):
        load_documents(inventory)


@pytest.mark.quick
def test_the_nodes_ssh_file_is_the_one_that_a_job_uses(inventory: Path) -> None:
    """But for the three paths, what lies on the node is line for line what `misrc run` renders for a job."""
    site = load_sites(inventory)["univ-a"]
    node = render_node_config(site, "/etc/misrc").splitlines()
    job = render_config(site, "/tmp/known_hosts", "/tmp/key", "/tmp/c").splitlines()
    different = {line.split()[0] for line in set(node) ^ set(job)}
    assert different == {"IdentityFile", "UserKnownHostsFile", "ControlPath"}
    assert "  IdentityFile /etc/keys/of-mine" in node
    assert "  UserKnownHostsFile /etc/misrc/ssh/univ-a.known_hosts" in node


@pytest.mark.quick
def test_hosts_follow_from_the_declarations(inventory: Path) -> None:
    """A file with a policy is a site that can be provisioned; one without is not; this machine is MInt's node."""
    (inventory / "host_vars/elsewhere.yml").write_text(SITE.replace("univ-a", "univ-b"), encoding="utf-8")
    derived = derive_hosts(inventory)
    assert derived["sites"]["hosts"] == {"site-host": {"ansible_host": "univ-a.example"}}
    assert list(derived["mint_node"]["hosts"]) == ["localhost"]
    assert derived["mint_node"]["vars"] == {"mint_node_inventory": str(inventory)}


@pytest.mark.quick
def test_an_inventory_with_hosts_of_its_own_keeps_them(inventory: Path) -> None:
    """Where a file names hosts, this machine is not added to them, and a declared address is not replaced."""
    (inventory / "hosts.yml").write_text("mint_node: {hosts: {ssh-node01: }}\n", encoding="utf-8")
    own = "ansible_host: 192.0.2.1\n"
    (inventory / "host_vars/site-host.yml").write_text(SITE + POLICY + own, encoding="utf-8")
    derived = derive_hosts(inventory)
    assert "hosts" not in derived["mint_node"]
    assert derived["sites"]["hosts"] == {"site-host": {}}


@pytest.mark.quick
def test_a_value_never_becomes_an_option() -> None:
    """What follows --limit, --user and --set stays part of its own word, even if it begins with a dash."""
    words = make_words(True, False, "--syntax-check", "-x", False, ["--help=1"])
    assert words == ["--check", "--limit=--syntax-check", "--user=-x", "--extra-vars=--help=1"]
    assert make_words(False, True, None, None, True, []) == ["--diff", "--ask-become-pass"]


@pytest.mark.quick
@pytest.mark.parametrize("name", ["provision", "check", "rotate", "retire", "run"])
def test_the_playbooks_came_with_the_wheel(name: str) -> None:
    """Each playbook lies beside the installed package; one that does not exist is refused."""
    assert "site-packages" in str(find_playbook(name))
    with pytest.raises(BadRequest, match="there is no playbook"):
        find_playbook(f"{name}x")


def test_an_inventory_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    """`misrc provision` names the folder and exits with 2; no play begins."""
    misrc = Path(sys.executable).parent / "misrc"
    words: list[str | Path] = [misrc, "provision", "--inventory", tmp_path / "missing"]
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, env={"LANG": "C", "PATH": "/usr/bin:/bin"}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert str(tmp_path / "missing") in done.stderr and len(done.stderr.splitlines()) == 1


def test_m29_an_administrator_logs_in_to_no_unknown_host(site: Site, tmp_path: Path) -> None:
    """A host whose key nobody has pinned is not logged in to, nor is its key learned; one that is known is talked to.

    What is printed is Ansible's own, without marks for machines.
    """
    site.start_sshd()
    known = tmp_path / "known_hosts"
    node = {
        "ansible_host": "127.0.0.1",
        "ansible_port": site.port,
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={known} -o IdentitiesOnly=yes -o BatchMode=yes",
    }
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory/hosts.yml").write_text(json.dumps({"mint_node": {"hosts": {"node": node}}}))
    words: list[str | Path] = [MISRC, "provision", "--check", "--inventory", tmp_path / "inventory"]
    for pinned, said in (
        ("", "Host key verification failed"),
        (f"[127.0.0.1]:{site.port} {site.host_key()}\n", "denied"),
    ):
        known.write_text(pinned, encoding="ascii")
        done = subprocess.run(words, check=False, capture_output=True, text=True, env=CLEAN)
        assert done.returncode == 4 and said in done.stdout and "\x1b" not in done.stdout, done.stdout
        assert known.read_text(encoding="ascii") == pinned
    site.stop_sshd()
