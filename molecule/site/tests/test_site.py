"""The site as the roles leave it: owners, modes, units, and what sshd and the gate's own reading say."""

from __future__ import annotations

import json
from typing import Any

import pytest

PYZ = "/usr/bin/python3 /usr/libexec/misrc/misrc-site.pyz"


@pytest.mark.parametrize(
    ("path", "user", "group", "mode"),
    [
        ("/etc/ssh/misrc/authorized_keys.d/misrc", "root", "root", 0o644),
        ("/etc/ssh/sshd_config.d/10-misrc.conf", "root", "root", 0o644),
        ("/etc/misrc/policy.json", "root", "misrc", 0o640),
        ("/etc/misrc/site_key", "root", "root", 0o600),
        ("/var/lib/misrc/home", "root", "root", 0o555),
        ("/var/lib/misrc/ledger", "root", "root", 0o700),
        ("/opt/programs/noop", "root", "root", 0o755),
    ],
)
def test_files_belong_to_root_and_are_closed(host: Any, path: str, user: str, group: str, mode: int) -> None:
    """Owner, group and mode of what decides who may do what."""
    file = host.file(path)
    assert (file.user, file.group, file.mode) == (user, group, mode)


def test_the_accounts_have_no_password_and_no_home_of_their_own(host: Any) -> None:
    """`*` matches nothing and does not count as locked."""
    for name, shell in (("misrc", "/bin/sh"), ("misrc-job", "/usr/sbin/nologin")):
        account = host.user(name)
        assert (account.password, account.shell, account.home) == ("*", shell, "/var/lib/misrc/home")
    assert host.check_output("ls -A /var/lib/misrc/home") == ""


def test_there_is_one_restricted_key(host: Any) -> None:
    """The key file is the policy's and holds nothing else."""
    lines = host.file("/etc/ssh/misrc/authorized_keys.d/misrc").content_string.splitlines()
    assert len(lines) == 1 and lines[0].startswith(
        'restrict,from="203.0.113.10/32",expiry-time="20991231235959",command='
    )


@pytest.mark.parametrize("address", ["203.0.113.10", "192.0.2.1", "127.0.0.1"])
def test_sshd_holds_the_block_from_every_address(host: Any, address: str) -> None:
    """What sshd itself says for the account."""
    place = f"user=misrc,host={address},addr={address},laddr=127.0.0.1,lport=22"
    said = host.check_output(f"/usr/sbin/sshd -T -C {place}").splitlines()
    for line in ("permittunnel no", "disableforwarding yes", "permittty no", "acceptenv MISRC_NONE", "maxsessions 4"):
        assert line in said
    assert not [line for line in said if line.startswith("acceptenv") and line != "acceptenv MISRC_NONE"]


def test_the_runner_waits_and_the_timer_runs(host: Any) -> None:
    """Units are enabled as installed, and nothing is left for the installer to do."""
    for unit in ("misrc-runner.socket", "misrc-sweep.timer"):
        assert host.service(unit).is_enabled and host.service(unit).is_running
    words = "install --site scenario --policy /etc/misrc/declared.json --leave-sshd --dry-run --json"
    assert json.loads(host.check_output(f"{PYZ} {words}"))["changes"] == []


def test_the_ledger_holds(host: Any) -> None:
    """Its chain verifies, and it begins with the installation."""
    records = [json.loads(line) for line in host.check_output(f"{PYZ} ledger show --json").splitlines()]
    assert records[0]["event"] == "install"


@pytest.mark.parametrize("checkout", ["misrc_remote_workflow", "remote_workflow"])
def test_the_predecessors_names_lead_into_the_checkout(host: Any, checkout: str) -> None:
    """The old account owns the links, and a program that it calls by an old path is ours."""
    link = f"/home/rme/{checkout}/scripts/execute_remote_command.sample.sh"
    # testinfra's own `user` is that of the file behind a link.
    assert host.check_output(f"stat --format %U {link}") == "rme"
    assert host.file(link).linked_to == "/srv/misrc-checkout/scripts/execute_remote_command.sample.sh"
    said = host.run(f"setpriv --reuid rme --regid rme --init-groups {link} no_such:word")
    assert said.rc == 2 and "unknown word: no_such:word" in said.stderr
