"""What a site's host must be: sshd's drop-in, key lines, minimum versions, and what an installation would change."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
from conftest import SSHD, Site
from hypothesis import given
from hypothesis import strategies as st

from misrc.declare import host
from misrc.job.errors import BadRequest
from misrc.job.minimums import OPENSSH_ROOT, RSYNC, Found, compare_debian, judge
from misrc.job.sshd import (
    Gatehouse,
    account_settings,
    compare,
    expected_values,
    forced_command,
    global_settings,
    parse_sshd_version,
    render_drop_in,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBp54sJrSzNA7MrngzcCdRSSf81IHK5vxd830dKerB8b"
HOUSE = Gatehouse("univ-a", "misrc", (9, 2), ("203.0.113.0/24",))
POLICY = {
    "work_root": "/var/lib/misrc/jobs",
    "programs": {"noop": {"path": "/opt/noop", "returns": ["**"]}},
    "job_keys": [{"key": KEY, "from": ["203.0.113.10/32"], "until": datetime.date(2027, 4, 30)}],
}


def effective(drop_in: str, place: Path, rest: str = "", address: str = "203.0.113.9") -> str:
    """What the real sshd of this machine says for the account, with the drop-in included first."""
    key, file = place / "host_key", place / "10-misrc.conf"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    file.write_text(drop_in)
    config = place / "sshd_config"
    config.write_text(f"Include {file}\nHostKey {key}\n{rest}")
    words = [SSHD, "-T", "-f", str(config), "-C", f"user=misrc,host={address},addr={address},laddr=127.0.0.1,lport=22"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def own_version() -> tuple[int, int]:
    return parse_sshd_version(subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr)


STOCK = (
    "AcceptEnv LANG LC_*\nX11Forwarding yes\nPermitTunnel yes\nAllowTcpForwarding yes\nPermitTTY yes\n"
    "PasswordAuthentication yes\nAuthorizedKeysFile .ssh/authorized_keys\nCompression yes\nMaxSessions 50\n"
)


@pytest.mark.parametrize("address", ["203.0.113.9", "192.0.2.1"])
def test_a_real_sshd_holds_every_line_of_the_drop_in(tmp_path: Path, address: str) -> None:
    """With the drop-in before a careless configuration, `sshd -T` says exactly what is declared, from any address."""
    house = Gatehouse("univ-a", "misrc", own_version(), ("203.0.113.0/24",))
    printed = effective(render_drop_in(house), tmp_path, STOCK, address)
    assert compare(expected_values(house), printed, "misrc") == []


@pytest.mark.parametrize(
    ("before", "keyword"),
    [
        ("PermitTunnel yes\n", "permittunnel"),
        ("Match User misrc\n  ForceCommand /bin/sh\n", "forcecommand"),
        ("Match Address 192.0.2.0/24\n  AllowTcpForwarding yes\n", "allowtcpforwarding"),
        ("Compression yes\n", "compression"),
    ],
)
def test_e08_what_is_read_before_the_drop_in_is_named(tmp_path: Path, before: str, keyword: str) -> None:
    """An earlier line or block that wins is found from the effective value, by name; without it nothing is found."""
    house = Gatehouse("univ-a", "misrc", own_version())
    # A block counts first where it stands first; `PermitTunnel` of the whole host must lose against the account's.
    printed = effective(before + ("Match all\n" if "Match" in before else "") + render_drop_in(house), tmp_path)
    stranger = effective(
        before + ("Match all\n" if "Match" in before else "") + render_drop_in(house), tmp_path, "", "192.0.2.7"
    )
    named = {d.keyword for text in (printed, stranger) for d in compare(expected_values(house), text, "misrc")}
    assert (keyword in named) == (keyword != "permittunnel"), named
    assert compare(expected_values(house), effective(render_drop_in(house), tmp_path), "misrc") == []


@pytest.mark.quick
def test_the_hosts_own_list_of_logins_is_reported_and_not_written() -> None:
    """AllowUsers without the account is a finding; with it, or without any list, there is none; we never write one."""
    held = "".join(f"{setting.keyword} {setting.value}\n" for setting in expected_values(HOUSE))
    assert compare(expected_values(HOUSE), held, "misrc") == []
    assert [d.keyword for d in compare(expected_values(HOUSE), held + "allowusers alice\n", "misrc")] == ["allowusers"]
    assert compare(expected_values(HOUSE), held + "allowusers alice\nallowusers mis*@203.0.113.0/24\n", "misrc") == []
    assert "AllowUsers" not in render_drop_in(HOUSE)


@pytest.mark.quick
def test_penalties_are_lifted_for_declared_sources_where_sshd_knows_them() -> None:
    """Only sshd 9.8 and later gets the list, and only with declared sources; newer key exchanges likewise."""
    keyword = "PerSourcePenaltyExemptList"
    assert keyword not in render_drop_in(HOUSE)
    assert f"{keyword} 203.0.113.0/24\n" in render_drop_in(Gatehouse("univ-a", "misrc", (10, 0), ("203.0.113.0/24",)))
    assert keyword not in render_drop_in(Gatehouse("univ-a", "misrc", (10, 0)))
    assert "mlkem" in render_drop_in(Gatehouse("univ-a", "misrc", (10, 0))) and "mlkem" not in render_drop_in(HOUSE)


@pytest.mark.quick
def test_every_setting_has_its_reason_and_stands_once() -> None:
    """Auditors read a reason for each line; no keyword stands twice in one part."""
    for part in (global_settings(HOUSE), account_settings(HOUSE, "x")):
        assert all(setting.reason for setting in part)
        assert len({setting.keyword for setting in part}) == len(part)


@pytest.mark.quick
@pytest.mark.parametrize("account", ["root", "", "a b", "x\nPermitTunnel yes", "-x", "ROOT", "*", "misrc,root"])
def test_an_account_that_would_need_quoting_is_refused(account: str) -> None:
    """No value of the drop-in can bring a second line or a pattern along; an ordinary name is taken."""
    with pytest.raises(ValueError, match="account"):
        Gatehouse("univ-a", account, (9, 2))
    assert Gatehouse("univ-a", "misrc2", (9, 2)).keys_file.endswith("/misrc2")


@pytest.mark.quick
@given(st.text(max_size=40))
def test_no_site_id_breaks_out_of_the_forced_command(site: str) -> None:
    """A forced command has the words that we wrote, or there is none."""
    try:
        command = forced_command(site, "key-1")
    except ValueError:
        return
    assert re.fullmatch(r"/usr/bin/python3 -I -S /usr/libexec/misrc/current gate [a-z][a-z0-9-]* key-1", command)


@pytest.mark.quick
def test_the_key_file_has_one_restricted_line_for_each_key() -> None:
    """`restrict`, source, last day and forced command stand in it, also where YAML made a date of the day."""
    line = host.key_lines(POLICY, "univ-a")
    assert line == (
        'restrict,from="203.0.113.10/32",expiry-time="20270430235959",'
        f'command="/usr/bin/python3 -I -S /usr/libexec/misrc/current gate univ-a key-1" {KEY} misrc:key-1\n'
    )
    assert host.sources(POLICY) == ["203.0.113.10/32"]
    assert host.probe_addresses(POLICY) == ["192.0.2.1", "203.0.113.10"]
    assert json.loads(host.policy_text(POLICY))["job_keys"][0]["until"] == "2027-04-30"


@pytest.mark.quick
def test_one_key_from_anywhere_means_that_no_source_is_exempt() -> None:
    """A key without `from` may come from anywhere: then no network is declared, and none is spared penalties."""
    policy = {**POLICY, "job_keys": [*POLICY["job_keys"], {"key": KEY}]}
    assert host.sources(policy) == []


@pytest.mark.quick
def test_a_policy_with_an_unknown_key_is_named() -> None:
    """Errors name the variable and the key."""
    with pytest.raises(BadRequest, match=r"misrc_policy.*colour"):
        host.policy_text({**POLICY, "colour": "red"})


@pytest.mark.quick
@pytest.mark.parametrize(
    ("system", "upstream", "package", "good"),
    [
        ("debian-12", "3.5.0", "3.5.0+ds1-0+deb12u1", True),
        ("debian-12", "3.2.7", "3.2.7-1+deb12u6", False),
        ("debian-11", "3.2.3", "3.2.3-4+deb11u3", False),
        ("rhel-9", "3.5.1", None, True),
        ("rhel-9", "3.2.5", None, False),
        ("debian-13", "", None, False),
    ],
)
def test_minimum_versions(system: str, upstream: str, package: str | None, good: bool) -> None:
    """The upstream version counts, or the distribution's mended package; Debian 11 hears what it can do instead."""
    said = judge(Found(system, "rsync", upstream, package), RSYNC)
    assert (said == "") == good
    assert ("WebAPI" in said) == (system == "debian-11")


@pytest.mark.quick
def test_an_openssh_too_old_for_a_root_install_is_named() -> None:
    """8.4 is refused, 9.2 is taken."""
    assert "8.7" in judge(Found("debian-11", "openssh", "8.4p1"), OPENSSH_ROOT)
    assert judge(Found("debian-12", "openssh", "9.2p1"), OPENSSH_ROOT) == ""


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="the second reading is dpkg's own")
@pytest.mark.parametrize("one", ["1.0", "1.0~rc1", "1:0.9", "3.5.0+ds1-0+deb12u1", "3.5.0-1", "2.0a", "2.0+b", "10"])
@pytest.mark.parametrize("other", ["1.0-1", "1.0~rc1-2", "3.5.0+ds1-0+deb12u2", "2.0b", "2.0", "09", "0:10", "2.0~"])
def test_package_versions_are_ordered_as_dpkg_orders_them(one: str, other: str) -> None:
    """Our comparison and dpkg's agree."""
    signs = {"lt": -1, "eq": 0, "gt": 1}
    agreed = [
        sign
        for word, sign in signs.items()
        if subprocess.run(["dpkg", "--compare-versions", one, word, other], check=False).returncode == 0
    ]
    assert agreed == [compare_debian(one, other)]


def install_words(site: Site, *more: str) -> list[str]:
    keys = str(site.root / "authorized_keys")
    policy = str(site.root / "policy.json")
    return ["install", "--site", site.name, "--policy", policy, "--authorized-keys", keys, "--json", *more]


def test_a_second_install_changes_nothing_and_a_drift_is_predicted_and_repaired(site: Site) -> None:
    """--dry-run tells the truth: nothing where all is well, exactly the drifted file where one drifted."""
    size = len(site.ledger())
    again = json.loads(site.people(*install_words(site, "--yes")).stdout)
    assert again["changed"] is False and len(site.ledger()) == size
    keys = site.root / "authorized_keys"
    whole = keys.read_bytes()
    keys.write_text(keys.read_text().replace("restrict,", ""))
    told = json.loads(site.people(*install_words(site, "--dry-run")).stdout)
    assert [change.split(": ")[1] for change in told["changes"]] == [str(keys)] and keys.read_bytes() != whole
    assert json.loads(site.people(*install_words(site, "--yes")).stdout)["changed"] is True
    assert keys.read_bytes() == whole


def test_json_never_asks(site: Site) -> None:
    """Without --yes or --dry-run it is a mistake in one line, and nothing is installed."""
    done = site.people(*install_words(site), check=False)
    assert done.returncode == 2 and "--yes" in done.stderr and not done.stdout


def test_a_policy_is_checked_before_it_is_installed(site: Site, tmp_path: Path) -> None:
    """`policy check` takes the site's policy and names what is wrong with another."""
    assert site.people("policy", "check", str(site.root / "policy.json")).returncode == 0
    wrong = tmp_path / "policy.json"
    wrong.write_text(json.dumps({**site.policy, "colour": "red"}))
    done = site.people("policy", "check", str(wrong), check=False)
    assert done.returncode == 2 and "colour" in done.stderr
    wrong.write_text('{\n  "work_root": "/w",\n  "programs": {},\n}\n')
    done = site.people("policy", "check", str(wrong), check=False)
    assert done.returncode == 2 and "not JSON" in done.stderr and "at line 4, column 1" in done.stderr


def test_a_policy_whose_programs_would_not_run_says_so(site: Site, tmp_path: Path) -> None:
    """`policy check` and `install` name each program that would be refused at its start, and why, and no other."""
    good = next(iter(site.policy["programs"].values()))["path"]
    writable = tmp_path / "writable"
    writable.write_text("#!/bin/sh\n")
    writable.chmod(0o777)
    paths = {"good": good, "gone": str(tmp_path / "gone"), "writable": str(writable)}
    programs = {name: {"path": path, "returns": []} for name, path in paths.items()}
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({**site.policy, "programs": programs}))
    done = site.people("policy", "check", str(policy))
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["programs.gone", "programs.writable"]
    assert done.stderr.count("(E13)") == 2 and "No such file" in done.stderr
    shown = site.people("install", "--site", site.name, "--policy", str(policy), "--dry-run").stdout
    assert [line.split(":")[0].strip() for line in shown.splitlines() if "does not run" in line] == ["gone", "writable"]


def test_mistakes_at_the_site_are_one_line(site: Site, tmp_path: Path) -> None:
    """What is not there, not installed, or asked of nobody: one line that names it, without a traceback or a number."""
    bare = dataclasses.replace(site, root=tmp_path / "bare")
    bare.root.mkdir()
    shutil.copy(site.root / "misrc-site.pyz", bare.root)
    for at, words, said in (
        (site, ("policy", "check", "/nowhere.json"), "/nowhere.json: No such file or directory"),
        (site, ("release", str(uuid.uuid4())), "no such job"),
        (bare, ("install", "--site", "other", "--policy", "/nowhere.json"), "/nowhere.json: No such file or directory"),
        (bare, ("install", "--site", "other", "--policy", str(site.root / "policy.json")), "--yes"),
        (bare, ("jobs",), "`install`"),
        (bare, ("ledger", "show"), "ledger.jsonl: No such file or directory"),
    ):
        done = at.people(*words, check=False)
        assert done.returncode == 2 and said in done.stderr, (words, done.stderr)
        assert len(done.stderr.splitlines()) == 1 and "Errno" not in done.stderr, done.stderr


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "said", "good"),
    [
        ("rsync", "rsync  version 3.5.0  protocol version 32\nCopyright 1996", True),
        ("rsync", "rsync  version 3.2.3  protocol version 31", False),
        ("openssh_root", "OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.17", True),
        ("openssh_root", "OpenSSH_8.4p1 Debian-5+deb11u3", False),
        ("python", "Python 3.9.2", True),
        ("rsync", "", False),
    ],
)
def test_a_version_is_read_out_of_what_a_program_says(name: str, said: str, good: bool) -> None:
    """The first version in the text is the program's own; a program that says nothing is too old."""
    fault = host.version_fault({"system": "debian-11", "name": name.partition("_")[0], "said": said}, name)
    assert (fault == "") == good
