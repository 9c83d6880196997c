"""Section D of docs/attacks.md, and G98 and G100 of E: real clients against a private sshd that is not root."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import CLEAN, Site, eventually, free_port, make_site
from oracle import check_answer, ledger, scene, tree

SFTP_SERVER = "/usr/lib/openssh/sftp-server"
# What a careless host allows; the key's own line must hold against it.
CARELESS = (
    "AcceptEnv *\nAllowTcpForwarding yes\nAllowStreamLocalForwarding yes\nAllowAgentForwarding yes\nX11Forwarding yes\n"
    f"PermitTunnel yes\nGatewayPorts yes\nPermitTTY yes\nPermitUserRC yes\nSubsystem sftp {SFTP_SERVER}\n"
)


@dataclass
class Login:
    """ssh, sftp and scp with a key of one site, as a client that tries everything."""

    site: Site
    place: Path

    def options(self, *more: str) -> list[str]:
        known = self.place / "known_hosts"
        known.write_text(f"[127.0.0.1]:{self.site.port} {self.site.host_key()}\n")
        return [
            "-F",
            "none",
            "-i",
            str(self.site.job_key),
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "BatchMode=yes",
            "-o",
            f"UserKnownHostsFile={known}",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "ConnectTimeout=20",
            *more,
        ]

    def ssh(
        self, *words: str, options: tuple[str, ...] = (), timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """`ssh host WORDS`, with nothing on standard input."""
        argv = [
            "/usr/bin/ssh",
            *self.options("-p", str(self.site.port), *options),
            f"{getpass.getuser()}@127.0.0.1",
            *words,
        ]
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, env=CLEAN, timeout=timeout, check=False
        )

    def copy(self, tool: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        """`sftp` or `scp`; HOST in a word stands for the site."""
        argv = [
            tool,
            *self.options("-P", str(self.site.port)),
            *(w.replace("HOST", f"{getpass.getuser()}@127.0.0.1") for w in words),
        ]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=CLEAN, timeout=60, check=False)

    def hello(self, *options: str) -> subprocess.CompletedProcess[bytes]:
        """The legal request."""
        return self.ssh("hello", options=options)

    def works(self) -> None:
        done = self.hello()
        assert done.returncode == 0 and b'"hello"' in done.stdout, done


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    """A site behind an sshd whose own configuration forbids nothing, and a second key that is not restricted."""
    site = make_site(tmp_path_factory.mktemp("open") / "site-host")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(site.root / "free_key")], check=True)
    with (site.root / "authorized_keys").open("a") as file:
        file.write((site.root / "free_key.pub").read_text())
    site.start_sshd(extra=CARELESS)
    yield Login(site, tmp_path_factory.mktemp("login"))
    site.stop_sshd()


def unrestricted(login: Login) -> Login:
    """The premise: the same account with a key that has no forced command and no `restrict`."""

    class Free(Login):
        def options(self, *more: str) -> list[str]:
            return [
                str(self.site.root / "free_key") if word == str(self.site.job_key) else word
                for word in super().options(*more)
            ]

    return Free(login.site, login.place)


@contextlib.contextmanager
def service() -> Iterator[tuple[int, list[bytes]]]:
    """A TCP service on loopback that notes what reaches it."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        seen.append(b"connection")
                        connection.sendall(b"reached")

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], seen
        server.shutdown(socket.SHUT_RDWR)


def check_denied_over_ssh(login: Login, done: subprocess.CompletedProcess[bytes], code: str = "E02") -> None:
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (64, [f"misrc: denied ({code})".encode()]), done
    assert not done.stdout


@pytest.mark.parametrize(
    "command", [None, "", "id", "hello; id", "wait x\nid", "/bin/sh", "hello\n", "rsync --server . /"]
)
def test_g01_g05_the_forced_command_judges_what_sshd_hands_over(login: Login, command: str | None) -> None:
    """Over a real connection: no shell, no second command, the same refusals as at the gate itself, and one record."""
    old = scene(login.site)
    done = login.ssh(*([] if command is None else [command]))
    check_denied_over_ssh(login, done, "E02" if command else "E01")
    assert tree(login.site) == old.tree
    assert [record["event"] for record in ledger(login.site)[len(old.ledger) :]] == ["refuse"]
    login.works()


def test_g81_no_tcp_forwarding(login: Login) -> None:
    """`-W`, `-L`, `-D` and `-R` carry nothing; with an unrestricted key of the same account they would."""
    with service() as (port, seen):
        assert unrestricted(login).ssh(options=("-W", f"127.0.0.1:{port}")).stdout == b"reached"
        seen.clear()
        done = login.ssh(options=("-W", f"127.0.0.1:{port}"))
        assert done.returncode != 0 and b"reached" not in done.stdout and b"prohibited" in done.stderr
        for option in ("-L", "-D"):
            local = free_port()
            target = f"{local}:127.0.0.1:{port}" if option == "-L" else str(local)
            reached = through_tunnel(login, (option, target), local, port, socks=option == "-D")
            assert reached == b"", option
        assert not seen
        done = login.ssh("hello", options=("-R", f"{free_port()}:127.0.0.1:{port}", "-o", "ExitOnForwardFailure=yes"))
        assert done.returncode == 255 and b"remote port forwarding failed" in done.stderr
    login.works()


def through_tunnel(login: Login, options: tuple[str, ...], local: int, port: int, socks: bool) -> bytes:
    """What a connection through a forwarding brings, while a legal command keeps the session open."""
    job = login.site.submit("sleep", arguments={"seconds": "600"})
    argv = ["/usr/bin/ssh", *login.options("-p", str(login.site.port), *options), "127.0.0.1", f"wait {job} 600 0"]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=CLEAN
    ) as held:
        assert held.stdout is not None and held.stdout.readline()
        with socket.create_connection(("127.0.0.1", local), timeout=20) as connection:
            if socks:
                connection.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
                greeting = connection.recv(2)
                assert greeting in (b"\x05\x00", b"")
            data = b""
            with contextlib.suppress(OSError):
                while piece := connection.recv(100):
                    data += piece
        login.site.gate(f"cancel {job}".encode())
        held.communicate()
    return data if b"reached" in data else b""


def test_g83_no_forwarding_of_unix_sockets(login: Login, tmp_path: Path) -> None:
    """Neither `-L` nor `-R` of a Unix socket is granted; nothing is created at the site."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        local = free_port()
        assert through_tunnel(login, ("-L", f"{local}:{path}"), local, 0, socks=False) == b""
        listener.settimeout(0.5)
        with pytest.raises(TimeoutError):
            listener.accept()
    remote = tmp_path / "remote"
    done = login.ssh("hello", options=("-R", f"{remote}:127.0.0.1:1", "-o", "ExitOnForwardFailure=yes"))
    assert done.returncode == 255 and not remote.exists()
    login.works()


def test_g85_no_agent_reaches_the_gate(login: Login, tmp_path: Path) -> None:
    """With `-A` and a running agent neither the gate nor a program has a socket of it; an unrestricted key would."""
    path = tmp_path / "agent"
    agent = subprocess.Popen(["/usr/bin/ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    eventually(path.exists)
    options = ("-A", "-o", f"IdentityAgent={path}", "-o", f"ForwardAgent={path}")
    assert b"SSH_AUTH_SOCK" in unrestricted(login).ssh("env", options=options).stdout
    assert environment_of_the_gate(login, options).get(b"SSH_AUTH_SOCK") is None
    assert login.hello(*options).returncode == 0
    agent.kill()
    agent.wait()


def environment_of_the_gate(login: Login, options: tuple[str, ...]) -> dict[bytes, bytes]:
    """What sshd gave to a gate that waits for a job."""
    job = login.site.submit("sleep", arguments={"seconds": "600"})
    argv = ["/usr/bin/ssh", *login.options("-p", str(login.site.port), *options), "127.0.0.1", f"wait {job} 600 0"]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=CLEAN
    ) as held:
        assert held.stdout is not None and held.stdout.readline()
        found = None
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and job.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                    data = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                    if b"SSH_ORIGINAL_COMMAND=wait " + job.encode() + b" 600 0" in data:
                        found = dict(item.split(b"=", 1) for item in data if b"=" in item)
        login.site.gate(f"cancel {job}".encode())
        held.communicate()
    assert found is not None
    return found


def test_g86_no_x11(login: Login) -> None:
    """`-X` and `-Y` give the gate no DISPLAY, and no xauth leaves a trace."""
    for option in ("-X", "-Y"):
        assert b"DISPLAY" not in environment_of_the_gate(login, (option,))
        assert login.hello(option).returncode == 0


def test_g144_no_terminal(login: Login) -> None:
    """A terminal is refused, with a command and without. (This sshd, which is not root, could not give one anyhow.)"""
    for words in (["hello"], []):
        done = login.ssh(*words, options=("-tt",))
        assert b"PTY allocation request failed" in done.stderr and b"\r" not in done.stdout
    login.works()


def test_g88_no_sftp_and_no_scp(login: Login, tmp_path: Path) -> None:
    """sftp, scp in both forms and subsystems end at the gate; nothing is copied. With an unrestricted key they work."""
    local = tmp_path / "local"
    local.write_text("data")
    free = unrestricted(login)
    assert (
        free.copy("/usr/bin/scp", str(local), f"HOST:{tmp_path}/premise").returncode == 0
        and (tmp_path / "premise").exists()
    )
    old = scene(login.site)
    target = tmp_path / "copied"
    attempts = [
        login.copy("/usr/bin/scp", str(local), f"HOST:{target}"),
        login.copy("/usr/bin/scp", "-O", str(local), f"HOST:{target}"),
        login.copy("/usr/bin/scp", "HOST:/etc/passwd", str(target)),
        login.copy("/usr/bin/scp", "-O", "HOST:/etc/passwd", str(target)),
        login.copy("/usr/bin/sftp", "-b", "/dev/null", "HOST"),
        login.ssh("sftp", options=("-s",)),
        login.ssh("nothing", options=("-s",)),
    ]
    assert all(done.returncode != 0 for done in attempts) and not target.exists()
    records = ledger(login.site)[len(old.ledger) :]
    assert len(records) == 6 and {record["reason"] for record in records} == {"E02"}, (
        "an unknown subsystem ends at sshd"
    )
    assert sum(SFTP_SERVER in record["input"] for record in records) == 4
    assert tree(login.site) == old.tree
    login.works()


def test_g89_every_session_of_a_connection_meets_the_gate(login: Login, tmp_path: Path) -> None:
    """On a shared connection each further session runs the forced command; how many there are is the host's setting."""
    control = ("-o", f"ControlPath={tmp_path}/m")
    job = login.site.submit("sleep", arguments={"seconds": "600"})
    argv = [
        "/usr/bin/ssh",
        *login.options("-p", str(login.site.port), "-M", *control),
        "127.0.0.1",
        f"wait {job} 600 0",
    ]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=CLEAN
    ) as held:
        assert held.stdout is not None and held.stdout.readline()
        for _ in range(3):
            assert login.hello(*control).returncode == 0
            check_denied_over_ssh(login, login.ssh("id", options=control))
            check_denied_over_ssh(login, login.ssh(options=control), "E01")
        assert login.ssh(options=(*control, "-W", "127.0.0.1:22")).returncode != 0
        login.site.gate(f"cancel {job}".encode())
        held.communicate()


def test_g92_the_key_works_only_from_where_the_policy_says(tmp_path: Path) -> None:
    """A connection from another address fails to authenticate, over IPv4 and IPv6; from the declared one it works."""
    root = tmp_path / "site-host"
    root.mkdir()
    site = make_site(root)
    site.policy["job_keys"][0]["from"] = ["127.0.0.1/32"]
    site.install()
    assert (root / "authorized_keys").read_text().count("\n") == 1
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        extra = "ListenAddress ::1\n"
        site.start_sshd(extra=extra)
    if site.sshd is None:
        site.start_sshd()
    login = Login(site, tmp_path)
    old = scene(site)
    done = login.hello("-b", "127.0.0.2")
    assert done.returncode == 255 and b"Permission denied" in done.stderr
    argv = [
        "/usr/bin/ssh",
        *login.options("-p", str(site.port), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=INFO"),
        "::1",
        "hello",
    ]
    six = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=CLEAN, timeout=60, check=False)
    assert six.returncode == 255 and b"hello" not in six.stdout
    assert ledger(site) == old.ledger
    login.works()
    site.stop_sshd()


def test_g92_an_expired_key_is_refused(tmp_path: Path) -> None:
    """After its last day the key fails to authenticate; the same key with a later day works."""
    site = make_site(tmp_path / "site-host")
    for until, status in (("2020-01-31", 255), ("2099-12-31", 0)):
        site.policy["job_keys"][0]["until"] = until
        site.install()
        site.start_sshd()
        assert Login(site, tmp_path).hello().returncode == status
        site.stop_sshd()


def test_g95_other_keys_and_certificates_are_refused(login: Login, tmp_path: Path) -> None:
    """A foreign key, and a certificate that somebody signed for the account, do not log in."""
    for name in ("ca", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    subprocess.run(
        [
            "ssh-keygen",
            "-q",
            "-s",
            str(tmp_path / "ca"),
            "-I",
            "x",
            "-n",
            getpass.getuser(),
            str(tmp_path / "other.pub"),
        ],
        check=True,
    )
    argv = [
        str(tmp_path / "other") if word == str(login.site.job_key) else word
        for word in login.options("-p", str(login.site.port))
    ]
    for extra in ([], ["-o", f"CertificateFile={tmp_path}/other-cert.pub"]):
        done = subprocess.run(
            ["/usr/bin/ssh", *argv, *extra, "127.0.0.1", "hello"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=CLEAN,
            timeout=60,
            check=False,
        )
        assert done.returncode == 255 and b"Permission denied" in done.stderr
    login.works()


def test_g98_locale_variables_of_the_client_change_nothing(login: Login) -> None:
    """Even where the host's sshd lets every variable in, answers and refusals stay the same bytes."""
    options = tuple(
        word
        for name in ("LC_X=1", "LANG=../../x", "LC_ALL=evil", "LANGUAGE=ja", "PYTHONPATH=/tmp", "PYTHONVERBOSE=9")
        for word in ("-o", f"SetEnv={name}")
    )
    assert login.hello(*options).returncode == 0
    check_denied_over_ssh(login, login.ssh("id", options=options))


def test_g100_a_client_s_own_original_command_gains_nothing(login: Login) -> None:
    """Where the host lets SSH_ORIGINAL_COMMAND in, its text meets the same grammar under the same key.

    Root installs refuse it at sshd; in a user install it is the host's `AcceptEnv`.
    """
    done = login.ssh(options=("-o", "SetEnv=SSH_ORIGINAL_COMMAND=id"))
    assert done.returncode == 64 and done.stderr.splitlines()[-1] in (b"misrc: denied (E01)", b"misrc: denied (E02)")
    done = login.ssh("id", options=("-o", "SetEnv=SSH_ORIGINAL_COMMAND=hello"))
    check_denied_over_ssh(login, done)


def test_g146_a_refusal_over_ssh_shows_nothing_of_the_site(login: Login) -> None:
    """Standard error of a refusal is the one constant line, and says neither paths nor versions nor the input."""
    for command in ("canary-7f3a", "hello canary-7f3a", f"start {uuid.uuid4()}"):
        done = login.ssh(command)
        said = done.stdout + done.stderr
        assert b"canary" not in said and str(login.site.root).encode() not in said and b"python" not in said
    check_answer(login.site.gate(b"canary"), "E02")
