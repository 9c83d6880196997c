"""MInt's node after a converge: what is there, who may do what with it, and that it works."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

import pytest
import testinfra

SITES = ("univ-a", "univ-b")
HOST = testinfra.get_host(f"podman://{os.environ.get('MISRC_HOSTS', 'misrc')}-node01")


def run(command: str, user: str = "root") -> Any:
    """A command on the node, as root or as another account."""
    if user != "root":
        command = f"setpriv --reuid {user} --regid $(id -g {user}) --init-groups sh -c {shlex.quote(command)}"
    return HOST.run(command)


def good(command: str, user: str = "root") -> str:
    """The output of a command that must succeed."""
    done = run(command, user)
    assert done.rc == 0, (command, done.stdout, done.stderr)
    return str(done.stdout)


def test_the_node_was_provisioned_without_any_network() -> None:
    """The node has no route to anywhere, so nothing can have come from an index."""
    assert good("ip -o route") == ""
    assert [line.split()[1] for line in good("ip -o link").splitlines()] == ["lo:"]


def test_folders_have_their_owners_and_modes() -> None:
    """Root owns what decides; the account owns what it writes; keys and declarations are closed to others."""
    found = good(
        "stat -c '%n %A %U:%G' /etc/misrc /etc/misrc/inventory /etc/misrc/inventory/host_vars /etc/misrc/keys "
        "/etc/misrc/ssh /var/lib/misrc/mint /var/log/misrc /opt/misrc"
    )
    assert found.splitlines() == [
        "/etc/misrc drwxr-xr-x root:root",
        "/etc/misrc/inventory drwxr-x--- root:misrc",
        "/etc/misrc/inventory/host_vars drwxr-x--- root:misrc",
        "/etc/misrc/keys drwxr-x--- root:misrc",
        "/etc/misrc/ssh drwxr-xr-x root:root",
        "/var/lib/misrc/mint drwx------ misrc:misrc",
        "/var/log/misrc drwxr-x--- root:misrc",
        "/opt/misrc drwxr-xr-x root:root",
    ]


def test_the_account_cannot_log_in() -> None:
    """The account has no password and no shell."""
    assert good("getent passwd misrc").strip().endswith(":/var/lib/misrc/mint:/usr/sbin/nologin")
    assert good("getent shadow misrc").split(":")[1].startswith("!")


@pytest.mark.parametrize("site", SITES)
def test_the_account_reads_its_keys_and_changes_nothing(site: str) -> None:
    """The account can use a key but not replace, change or remove it; another account cannot even read it."""
    key = f"/etc/misrc/keys/{site}"
    public = good(f"ssh-keygen -y -f {key}", "misrc").split()[:2]
    assert good(f"cat {key}.pub", "misrc").split()[:2] == public
    for command in (f"rm -f {key}", f"mv {key} {key}.old", "touch /etc/misrc/keys/x", f"echo x >>{key}"):
        assert run(command, "misrc").rc != 0, command
    for path in (key, f"/etc/misrc/inventory/host_vars/{site}.yml"):
        assert run(f"cat {path}", "nobody").rc != 0, path
        assert good(f"cat {path}", "misrc")


def test_each_site_has_a_key_of_its_own() -> None:
    """No two sites share a key."""
    assert len({good(f"cat /etc/misrc/keys/{site}.pub").split()[1] for site in SITES}) == len(SITES)


def test_a_site_without_a_port_has_nothing_of_ssh() -> None:
    """The declaration of a webapi site is there, and no job key, no ssh_config and no known_hosts belong to it."""
    assert "webapi" in good("cat /etc/misrc/inventory/host_vars/company-c.yml", "misrc")
    assert good("ls /etc/misrc/keys /etc/misrc/ssh").count("company-c") == 0


def test_the_signing_key_is_there_for_the_account() -> None:
    """A site with `signed` brings the key that signs jobs; the account uses it and cannot change it."""
    key = "/etc/misrc/keys/spec_key"
    assert good(f"stat -c '%a %U' {key}").split() == ["400", "misrc"]
    assert good("HOME=/nonexistent /usr/local/bin/misrc signing-key", "misrc").startswith("ssh-ed25519 ")
    assert run(f"rm -f {key}", "misrc").rc != 0
    assert run(f"cat {key}", "nobody").rc != 0


def test_secrets_of_the_controllers_inventory_stay_there() -> None:
    """What else the controller's file holds, a password and the site's policy, is nowhere on the node."""
    assert "univ-a.example" in good("grep -r . /etc/misrc/inventory")
    assert run("grep -rE 'not-for-the-node|confidential|misrc_policy' /etc/misrc /opt/misrc/venv/pyvenv.cfg").rc == 1


def test_misrc_reads_the_declarations_and_agrees_with_the_ssh_files() -> None:
    """The installed misrc loads the inventory, and renders from it, byte for byte, the files below /etc/misrc/ssh."""
    program = (
        "from pathlib import Path\n"
        "from misrc.declare.inventory import load_sites\n"
        "from misrc.declare import node, ssh\n"
        "for site in load_sites(Path('/etc/misrc/inventory')).values():\n"
        "    if site.method == 'webapi':\n"
        "        continue\n"
        "    base = Path('/etc/misrc/ssh')\n"
        "    assert (base / f'{site.id}.conf').read_text() == node.render_node_config(site, '/etc/misrc')\n"
        "    assert (base / f'{site.id}.known_hosts').read_text() == ssh.render_known_hosts(site)\n"
        "    print(site.id)\n"
    )
    assert good(f"/opt/misrc/venv/bin/python -I -c {shlex.quote(program)}", "misrc").split() == list(SITES)


@pytest.mark.parametrize("site", SITES)
def test_ssh_takes_nothing_but_the_declaration(site: str) -> None:
    """What ssh makes of the file: pinned host key, one key, no agent, no forwarding, nothing asked."""
    effective = set(good(f"ssh -G -F /etc/misrc/ssh/{site}.conf site", "misrc").splitlines())
    wanted = {
        f"identityfile /etc/misrc/keys/{site}",
        f"userknownhostsfile /etc/misrc/ssh/{site}.known_hosts",
        "globalknownhostsfile /dev/null",
        "stricthostkeychecking true",
        "identitiesonly yes",
        "identityagent none",
        "forwardagent no",
        "clearallforwardings yes",
        "permitlocalcommand no",
        "batchmode yes",
        "updatehostkeys false",
    }
    assert wanted - effective == set()


def test_the_command_works_and_is_the_wanted_version() -> None:
    """`misrc` on the path runs as the account, finds its inventory, and its dependencies fit together."""
    assert good("/usr/local/bin/misrc --version", "misrc").strip() == os.environ.get("MISRC_VERSION", "0.1.0")
    refused = run("cd / && HOME=/nonexistent /usr/local/bin/misrc run nowhere noop --dry-run", "misrc")
    assert refused.rc == 2 and "univ-a, univ-b" in refused.stderr
    good("/opt/misrc/venv/bin/pip check")


def test_the_timer_runs_the_service() -> None:
    """The timer is enabled and waits; the service ends well and leaves a log that the group can read."""
    assert good("systemctl is-enabled misrc-tend.timer").strip() == "enabled"
    assert good("systemctl show -P NextElapseUSecMonotonic misrc-tend.timer").strip() not in ("", "infinity")
    good("systemctl start misrc-tend.service")
    assert good("systemctl show -P Result misrc-tend.service").strip() == "success"
    assert good("stat -c %s /var/log/misrc/tend.log", "misrc").strip() != "0"


def test_the_service_is_shut_in_and_ansible_still_works_inside() -> None:
    """systemd finds little to add to the service's confinement, and a play runs within it all the same."""
    score = re.search(r"level.*: ([0-9.]+)", good("systemd-analyze security --no-pager misrc-tend.service | tail -1"))
    assert score is not None and float(score[1]) <= 2.0
    folder = "/run/systemd/system/misrc-tend.service.d"
    ansible = "/opt/misrc/venv/bin/ansible -i localhost, -c local -m ansible.builtin.command -a"
    good(f"mkdir -p {folder}")
    try:
        for words, status in (("true", 0), ("touch /etc/misrc/ssh/x", 2), ("touch /var/lib/misrc/mint/x", 0)):
            good(f"printf '[Service]\\nExecStart=\\nExecStart={ansible} \"{words}\" localhost\\n' >{folder}/test.conf")
            good("systemctl daemon-reload")
            run("systemctl start misrc-tend.service")
            assert good("systemctl show -P ExecMainStatus misrc-tend.service").strip() == str(status), words
    finally:
        good(f"rm -rf {folder} && systemctl daemon-reload && systemctl reset-failed misrc-tend.service || :")


def test_logs_are_rotated() -> None:
    """A forced rotation keeps the old log and makes a new one that the group can read and others cannot."""
    good("echo line >>/var/log/misrc/tend.log && logrotate -f /etc/logrotate.d/misrc")
    assert good("stat -c '%A %U:%G' /var/log/misrc/tend.log").strip() == "-rw-r----- root:misrc"
    assert "line" in good("cat /var/log/misrc/tend.log.1")
