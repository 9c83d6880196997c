"""Sections D and E of docs/attacks.md where they need a host: a deployed sshd, tried from another host.

The roles make the site; nothing about it is set by hand. tools/host_tests.sh runs these, as root.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import eventually
from hosts import BIN, Pair, pair, podman, run_job, why_not

KEYS = "/etc/ssh/misrc/authorized_keys.d/misrc"
PROBE = "/etc/ssh/sshd_config.d/90-premise.conf"
# A legal client is served again within this time after a flood; docs/operations.md lets MInt try for longer.
RECOVERY_SECONDS = 60


pytestmark = pytest.mark.skipif(why_not() != "", reason=why_not() or "-")
__all__ = ["pair"]


@pytest.fixture(scope="session", autouse=True)
def unprivileged() -> None:
    """Takes the place of the rule that tests run as an ordinary user: these make hosts of their own."""


@contextlib.contextmanager
def untouched(pair: Pair, *reasons: str) -> Iterator[None]:
    """Nothing changes at the site but one record for each refusal that the gate makes; then the legal request works."""
    tree, size = pair.scene(), len(pair.ledger())
    yield
    assert pair.scene() == tree
    records = pair.ledger()[size:]
    assert [(record["event"], record.get("reason")) for record in records] == [("refuse", reason) for reason in reasons]
    pair.works()


@contextlib.contextmanager
def waiting_gate(pair: Pair, *options: str, user: str = "misrc") -> Iterator[dict[str, str]]:
    """The environment that sshd gave to a gate which still reads its request."""
    names = [word for option in options for word in ("-o", option)]
    known = ["-o", "UserKnownHostsFile=/root/known_hosts", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
    job = str(uuid.uuid4())
    argv = ["podman", "exec", "-i", pair.mint.name, "ssh", "-F", "none", "-i", "/root/job", *known, *names]
    with subprocess.Popen(
        [*argv, f"{user}@{pair.site.address}", f"open {job}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as held:
        script = (
            "for i in $(seq 100); do for p in $(pgrep -u misrc python3); do "
            f"tr '\\0' '\\n' </proc/$p/environ | grep -qx 'SSH_ORIGINAL_COMMAND=open {job}' && "
            "{ tr '\\0' '\\n' </proc/$p/environ; exit 0; }; done; sleep 0.1; done; exit 1"
        )
        found = pair.site.sh(script)
        yield dict(line.split("=", 1) for line in found.splitlines() if "=" in line)
        held.communicate(timeout=60)


def test_a_real_job_runs_as_the_second_account(pair: Pair) -> None:
    """`misrc run` on MInt's host brings the result of a program of the pinned commit, run under the jobs' account."""
    assert run_job(pair) == "misrc-job"
    assert [record["event"] for record in pair.ledger() if record["event"] in ("run", "end")][-2:] == ["run", "end"]


def test_the_ledger_names_the_key_that_sshd_saw(pair: Pair) -> None:
    """One forced command serves all keys; the record has the fingerprint that sshd's own log has."""
    pair.works()
    printed = pair.mint.sh("ssh-keygen -y -f /root/job | ssh-keygen -l -f -").split()[1]
    assert pair.ledger()[-1]["key"] == printed
    assert printed in pair.site.sh("journalctl -u ssh --no-pager")


@pytest.mark.parametrize("command", ["id", "/bin/sh", "", None, "hello; id"])
def test_g01_the_forced_command_holds_on_a_deployed_host(pair: Pair, command: str | None) -> None:
    """No shell and no other command; one line, one status, one record."""
    with untouched(pair, "E02" if command else "E01"):
        done = pair.ssh(*([] if command is None else [command]), options=("-T",))
        assert (done.returncode, done.stdout) == (64, "")
        assert done.stderr == f"misrc: denied ({'E02' if command else 'E01'})\n"


def test_e01_a_key_line_that_lost_everything_still_meets_the_gate(pair: Pair) -> None:
    """Without `command=` and `restrict` sshd's block holds by itself: the gate, no forwarding, no terminal."""
    whole = pair.site.sh(f"cat {KEYS}")
    try:
        pair.site.write(KEYS, (pair.place / "job.pub").read_text(), "644")
        done = pair.ssh("id")
        assert (done.returncode, done.stdout, done.stderr) == (64, "", "misrc: denied (E02)\n")
        assert "prohibited" in pair.ssh(options=("-W", "127.0.0.1:22")).stderr
        assert "PTY allocation request failed" in pair.ssh("hello", options=("-tt",)).stderr
    finally:
        pair.site.write(KEYS, whole, "644")
    pair.works()


def test_g81_g83_no_forwarding_through_the_deployed_sshd(pair: Pair) -> None:
    """TCP and Unix sockets, both directions; the administrator of the same host can, so it is the account's block."""
    target = ("-W", "127.0.0.1:22")
    assert "SSH-2.0" in pair.site.sh("echo | timeout 5 nc -q 1 127.0.0.1 22 || true")
    with untouched(pair):
        assert "prohibited" in pair.ssh(options=target).stderr
    fail = ("-o", "ExitOnForwardFailure=yes")
    for spec in ("0.0.0.0:4444:127.0.0.1:22", "/tmp/planted:127.0.0.1:22"):
        tree = pair.scene()
        done = pair.ssh("hello", options=("-R", spec, *fail))
        assert done.returncode == 255 and "forwarding failed" in done.stderr, done
        assert pair.scene() == tree
    pair.works()


def test_g84_no_tunnel_device(pair: Pair) -> None:
    """`-w` is refused although the host permits tunnels to others: the premise shows that it would work."""
    pair.site.write(PROBE, "PermitTunnel yes\n", "644")
    pair.site.run("systemctl", "reload", "ssh")
    tunnel = ["-w", "any:any", "-o", "Tunnel=point-to-point", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
    known = ["-F", "none", "-o", "UserKnownHostsFile=/root/known_hosts"]

    def attempt(key: str, user: str, command: str) -> str:
        # A tunnel that stands keeps ssh alive when the command has ended.
        words = ["timeout", "8", "ssh", *known, *tunnel, "-i", f"/root/{key}", f"{user}@{pair.site.address}", command]
        done = pair.mint.run(*words, check=False)
        return done.stdout + done.stderr

    try:
        pair.mint.write("/root/admin", (pair.place / "admin").read_text())
        assert "tun" in attempt("admin", "root", "ls /sys/class/net")
        eventually(lambda: "tun" not in pair.site.sh("ls /sys/class/net"), 20, "the premise's end")
        said = attempt("job", "misrc", "hello")
        assert "Tunnel forwarding failed" in said and "tun" not in pair.site.sh("ls /sys/class/net"), said
    finally:
        pair.mint.sh("rm -f /root/admin")
        pair.site.sh(f"rm -f {PROBE}")
        pair.site.run("systemctl", "reload", "ssh")


def test_g85_g86_g98_g99_nothing_of_a_client_reaches_the_gates_environment(pair: Pair) -> None:
    """Agent, display, locale and loader variables: the deployed sshd hands none of them over."""
    sent = {"LC_X": "evil", "LANG": "../../x", "LD_PRELOAD": "/tmp/x.so", "PYTHONPATH": "/tmp", "BASH_ENV": "/tmp/x"}
    options = ["ForwardAgent=yes", "ForwardX11=yes", "SetEnv=" + " ".join(f"{k}={v}" for k, v in sent.items())]
    with waiting_gate(pair, *options) as environment:
        assert environment["SSH_ORIGINAL_COMMAND"].startswith("open ")
        assert not {"SSH_AUTH_SOCK", "DISPLAY", "SSH_TTY"} & set(environment)
        assert "evil" not in environment.values() and not {*sent} - {"LANG"} & set(environment)
        assert environment.get("LANG") != "../../x"
    pair.works()


def test_g88_no_sftp_and_no_scp_on_a_deployed_host(pair: Pair) -> None:
    """Both copies and the subsystem end at the gate; nothing is written."""
    with untouched(pair, "E02", "E02"):
        done = pair.ssh("sftp", options=("-s",))
        assert (done.returncode, done.stdout) == (64, "")
        words = ["scp", "-O", "-F", "none", "-i", "/root/job", "-o", "UserKnownHostsFile=/root/known_hosts", "-o"]
        copied = pair.mint.run(*words, "BatchMode=yes", "/etc/hosts", f"misrc@{pair.site.address}:/tmp/x", check=False)
        assert copied.returncode != 0


def test_g89_more_sessions_than_declared_are_refused(pair: Pair) -> None:
    """One connection carries four sessions at a time and not a fifth; when one has ended there is room again."""
    known = "-F none -i /root/job -o IdentitiesOnly=yes -o UserKnownHostsFile=/root/known_hosts -o BatchMode=yes"
    shared = f"{known} -S /root/control -o ControlMaster=no -o ProxyCommand=false misrc@{pair.site.address}"
    pair.mint.sh(f"ssh {known} -o ControlMaster=yes -o ControlPath=/root/control -Nf misrc@{pair.site.address}")
    for _ in range(4):
        held = f"sleep 60 | ssh {shared} 'open {uuid.uuid4()}'"
        podman("exec", "-d", pair.mint.name, "sh", "-c", held)
    try:
        eventually(lambda: len(pair.site.sh("pgrep -u misrc python3 || true").split()) == 4, 30, "four gates")
        fifth = pair.mint.run("sh", "-c", f"ssh {shared} hello", check=False)
        assert fifth.returncode == 255 and "open refused" in fifth.stderr, fifth
        pair.mint.sh("pkill -o sleep")
        eventually(lambda: pair.mint.run("sh", "-c", f"ssh {shared} hello", check=False).returncode == 0, 30, "room")
    finally:
        pair.mint.sh(f"pkill sleep; ssh {shared} -O exit", check=False)
    pair.works()


def test_g92_the_key_fails_from_another_address(pair: Pair) -> None:
    """From an address that the policy does not name the same key does not log in, and the gate hears nothing of it."""
    with untouched(pair):
        done = pair.ssh("hello", options=("-b", pair.stranger))
        assert done.returncode == 255 and "Permission denied" in done.stderr, done
    assert pair.ssh("hello", options=("-b", pair.mint.address)).returncode == 0


@pytest.mark.parametrize("method", ["password", "keyboard-interactive", "hostbased", "gssapi-with-mic", "none"])
def test_g93_only_a_key_logs_in(pair: Pair, method: str) -> None:
    """Every other method is refused and not even offered; to another account the same host offers passwords."""
    options = ("-v", "-o", f"PreferredAuthentications={method}", "-o", "PubkeyAuthentication=no")
    other = pair.ssh("id", options=options, user="nobody")
    assert "password" in other.stderr.partition("can continue: ")[2].splitlines()[0]
    with untouched(pair):
        done = pair.ssh("hello", options=options)
        assert done.returncode == 255
        assert {line.rpartition(": ")[2] for line in done.stderr.splitlines() if "can continue" in line} == {
            "publickey"
        }


@pytest.mark.parametrize("user", ["root", "misrc-job", "nobody", "daemon", "sshd"])
def test_g94_the_job_key_opens_no_other_account(pair: Pair, user: str) -> None:
    """The key works for the gate's account alone."""
    with untouched(pair):
        done = pair.ssh("id", user=user)
        assert done.returncode == 255 and "Permission denied" in done.stderr, done


def test_g95_no_certificate_opens_the_gate(pair: Pair) -> None:
    """A certificate of an authority that the whole host trusts is refused for the gate; for root it works (premise)."""
    pair.site.write("/etc/ssh/authority.pub", (pair.place / "authority.pub").read_text(), "644")
    pair.site.write(PROBE, "TrustedUserCAKeys /etc/ssh/authority.pub\n", "644")
    pair.site.run("systemctl", "reload", "ssh")
    sign = ["ssh-keygen", "-q", "-s", str(pair.place / "authority"), "-I", "x", "-n", "root,misrc"]
    subprocess.run([*sign, str(pair.place / "other.pub")], check=True)
    pair.mint.write("/root/other-cert.pub", (pair.place / "other-cert.pub").read_text())
    options = ("-o", "CertificateFile=/root/other-cert.pub")
    try:
        assert pair.ssh("id", options=options, user="root", key="other").returncode == 0
        with untouched(pair):
            done = pair.ssh("hello", options=options, key="other")
            assert done.returncode == 255 and "Permission denied" in done.stderr
    finally:
        pair.site.sh(f"rm -f {PROBE} /etc/ssh/authority.pub")
        pair.site.run("systemctl", "reload", "ssh")


def test_g96_the_account_can_plant_nothing_and_planted_files_do_nothing(pair: Pair) -> None:
    """The home cannot be written by the account, and what root puts there for the test changes nothing for the gate.

    PAM of Debian 12 does read `~/.pam_environment`: the gate's Python takes no notice of variables (`-I`).
    """
    names = [".ssh", ".bashrc", ".profile", ".pam_environment", ".ssh2"]
    for name in names:
        done = pair.site.run(
            "setpriv",
            "--reuid",
            "misrc",
            "--regid",
            "misrc",
            "--clear-groups",
            "mkdir",
            f"/var/lib/misrc/home/{name}",
            check=False,
        )
        assert done.returncode != 0, name
    assert pair.site.sh("ls -A /var/lib/misrc/home") == ""
    other = (pair.place / "other.pub").read_text().strip()
    script = f"""set -e; cd /var/lib/misrc/home; mkdir .ssh
echo '{other}' | tee .ssh/authorized_keys >.ssh/authorized_keys2
for f in .ssh/rc .bashrc .profile; do echo 'echo ran >/tmp/planted-ran' >$f; done
mkdir /tmp/planted; echo 'open("/tmp/planted-ran", "w")' >/tmp/planted/json.py
echo 'PYTHONPATH=/tmp/planted' | tee .ssh/environment >.pam_environment; chown -R misrc: .; chmod 700 .ssh"""
    pair.site.sh(script)
    try:
        assert pair.ssh("hello", key="other").returncode == 255
        pair.works()
        assert pair.site.run("test", "-e", "/tmp/planted-ran", check=False).returncode == 1
    finally:
        pair.site.sh(
            "cd /var/lib/misrc/home && rm -rf .ssh .bashrc .profile .pam_environment /tmp/planted && chown root: ."
        )
    pair.works()


def test_g97_a_flood_does_not_keep_a_legal_client_out(pair: Pair) -> None:
    """A hundred failing logins at once from a stranger's address; MInt is served again within the declared time."""
    flood = (
        "for i in $(seq 100); do (ssh -F none -i /root/other -o IdentitiesOnly=yes -o BatchMode=yes "
        f"-o UserKnownHostsFile=/root/known_hosts -b {pair.stranger} misrc@{pair.site.address} hello "
        ">/dev/null 2>&1 &); done"
    )
    size = len(pair.ledger())
    pair.mint.sh(flood)
    end = time.monotonic() + RECOVERY_SECONDS
    while pair.ssh("hello").returncode != 0:
        assert time.monotonic() < end, "MInt was not served again"
    assert [record["event"] for record in pair.ledger()[size:]] == ["hello"]
    pair.mint.sh("pkill -f /root/other", check=False)


def test_a_hundred_reconnects_do_not_lock_mint_out(pair: Pair) -> None:
    """After an outage MInt's node comes back with many connections that break off; the next ones are still served."""
    once = f"timeout 2 nc -s {pair.mint.address} {pair.site.address} 22 </dev/null >/dev/null 2>&1"
    pair.mint.sh(f"for i in $(seq 100); do {once} & done; wait")
    with ThreadPoolExecutor(8) as pool:
        results = [done.returncode for done in pool.map(lambda _: pair.ssh("hello"), range(8))]
    assert results == [0] * 8


def test_g100_a_client_cannot_set_the_original_command(pair: Pair) -> None:
    """Sent as a variable and without a command it does not arrive: E01, as with no command at all."""
    with untouched(pair, "E01"):
        done = pair.ssh(options=("-T", "-o", "SetEnv=SSH_ORIGINAL_COMMAND=hello"))
        assert (done.returncode, done.stdout, done.stderr) == (64, "", "misrc: denied (E01)\n")


def test_g144_no_terminal_on_a_deployed_host(pair: Pair) -> None:
    """sshd runs as root here and could give one: to root it does, to the gate's account it does not."""
    done = pair.ssh("hello", options=("-tt",))
    assert "PTY allocation request failed" in done.stderr and "\r" not in done.stdout
    pair.works()


def test_ssh_audit_finds_nothing_to_fail(pair: Pair) -> None:
    """The second reading of ciphers, key exchanges, MACs and host keys has no finding of its worst level."""
    done = subprocess.run(
        [str(BIN / "ssh-audit"), "--json", "--skip-rate-test", pair.site.address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(done.stdout)
    failed = [
        (part, item["algorithm"], item["notes"]["fail"])
        for part in ("kex", "key", "enc", "mac")
        for item in report[part]
        if item.get("notes", {}).get("fail")
    ]
    assert failed == [] and len(report["kex"]) >= 4, failed
