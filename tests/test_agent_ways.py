"""How the agent reaches its server: TLS, proxies, tokens; what it says of itself; and how it is on another system."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import select
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import AgentHost
from api_double import TOKEN, Double
from certificates import make_authority, make_certificate, server_context
from conftest import Site, eventually, free_port, make_site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path / "site-host")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("ca"))


@contextlib.contextmanager
def reached(site: Site, context: ssl.SSLContext | None, **config: Any) -> Iterator[AgentHost]:
    """An agent whose server speaks with `context`."""
    double = Double(site.name)
    with double.serving(context):
        host = AgentHost(site, double)
        host.configure(**config)
        try:
            yield host
        finally:
            if host.process is not None:
                host.stop()


def works(host: AgentHost) -> None:
    job = host.double.submit("copy", {"a.txt": b"fine"})
    assert eventually(lambda: host.double.ended(job), 40).files()["out.dat"] == b"fine"


def test_h81_a_job_runs_over_tls_with_the_declared_authority(site: Site, authority: Path) -> None:
    """With the authority that the site declares, everything works over TLS."""
    with reached(site, server_context(make_certificate(authority)), ca=str(authority)) as host:
        host.start()
        works(host)


@pytest.mark.parametrize("kind", ["other authority", "other host", "expired", "self-signed", "old TLS", "no TLS"])
def test_h81_p24_a_server_that_cannot_prove_itself_gets_nothing(
    site: Site, authority: Path, tmp_path: Path, kind: str
) -> None:
    """Whatever is wrong with the server's identity: no request is sent, so no token; the agent says so and tries on."""
    other = make_authority(tmp_path / "other")
    certificate = {
        "other authority": lambda: make_certificate(other),
        "other host": lambda: make_certificate(authority, "DNS:other.example"),
        "expired": lambda: make_certificate(authority, days=-1),
        "self-signed": lambda: _self_signed(other),
    }.get(kind, lambda: make_certificate(authority))()
    context: ssl.SSLContext | None = server_context(certificate)
    assert context is not None
    if kind == "old TLS":
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
    if kind == "no TLS":
        context = None
    with reached(site, context, ca=str(authority)) as host:
        host.configure(ca=str(authority), url=f"https://127.0.0.1:{host.double.port}")
        host.start()
        eventually(lambda: "cannot be asked" in host.said())
        done = host.check()
        assert done.returncode == 1 and "cannot be asked" in done.stdout
        assert host.double.seen == []
        assert TOKEN not in host.said() + done.stdout + done.stderr


def _self_signed(folder_of: Path) -> Path:
    path = folder_of.parent / "self.pem"
    path.write_bytes(folder_of.read_bytes() + folder_of.with_suffix(".key").read_bytes())
    return path


# -- proxies --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Proxy:
    """A company's proxy: CONNECT only, perhaps with a password, perhaps ending TLS itself to look inside."""

    secret: str = ""
    context: ssl.SSLContext | None = None
    port: int = 0
    heads: list[bytes] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Proxy]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            yield self

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError), link:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += link.recv(1)
            self.heads.append(head)
            wanted = b"Proxy-Authorization: Basic " + base64.b64encode(self.secret.encode())
            if self.secret and wanted not in head:
                link.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            host, _, port = head.split(b" ")[1].decode().rpartition(":")
            far: socket.socket = socket.create_connection((host, int(port)))
            link.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if self.context is not None:
                link = self.context.wrap_socket(link, server_side=True)
                far = ssl._create_unverified_context().wrap_socket(far)
            with link, far:
                _pump(link, far)


def _pump(one: socket.socket, other: socket.socket) -> None:
    pairs = {one: other, other: one}
    while True:
        ready = [link for link in pairs if isinstance(link, ssl.SSLSocket) and link.pending()]
        for link in ready or select.select(list(pairs), [], [], 30)[0]:
            link.settimeout(0.01)
            try:
                data = link.recv(65536)
            except (TimeoutError, ssl.SSLWantReadError):
                # Something of TLS's own, and nothing to hand on.
                continue
            if not data:
                return
            pairs[link].settimeout(30)
            pairs[link].sendall(data)


def test_the_way_through_a_companys_proxy(site: Site, authority: Path) -> None:
    """Everything goes by CONNECT to the declared server; the proxy never sees the token."""
    proxy = Proxy()
    with proxy.serving(), reached(site, server_context(make_certificate(authority)), ca=str(authority)) as host:
        host.configure(ca=str(authority), proxy=f"http://127.0.0.1:{proxy.port}")
        host.start()
        works(host)
        asked = f"CONNECT 127.0.0.1:{host.double.port} HTTP/1.1\r\n".encode()
        assert proxy.heads and all(head.startswith(asked) for head in proxy.heads)
        assert TOKEN.encode() not in b"".join(proxy.heads)


@pytest.mark.parametrize("right", [True, False])
def test_a_proxy_with_a_password(site: Site, authority: Path, right: bool) -> None:
    """The password comes from a private file; a wrong one is said, and is in no log or process list."""
    proxy = Proxy(secret="user:canary-pass")
    secret = site.root / "proxy.secret"
    secret.write_text("user:canary-pass\n" if right else "user:canary-wrong\n")
    secret.chmod(0o600)
    with proxy.serving(), reached(site, server_context(make_certificate(authority)), ca=str(authority)) as host:
        host.configure(ca=str(authority), proxy=f"http://127.0.0.1:{proxy.port}", proxy_credentials=str(secret))
        host.start()
        if right:
            works(host)
        else:
            eventually(lambda: "the proxy refuses the connection (status 407)" in host.said())
            assert host.double.seen == []
        assert "canary" not in host.said()
        assert host.process is not None
        assert b"canary" not in Path(f"/proc/{host.process.pid}/cmdline").read_bytes()


def test_an_inspecting_proxy_whose_authority_the_site_declares(site: Site, authority: Path, tmp_path: Path) -> None:
    """The proxy's own authority, declared, is trusted alone; the server's own is then not accepted any more."""
    company = make_authority(tmp_path / "company")
    proxy = Proxy(context=server_context(make_certificate(company)))
    with proxy.serving(), reached(site, server_context(make_certificate(authority)), ca=str(company)) as host:
        host.configure(ca=str(company), proxy=f"http://127.0.0.1:{proxy.port}")
        host.start()
        works(host)
        host.stop()
        host.configure(ca=str(company))
        assert host.check().returncode == 1


def test_p23_nothing_of_the_environment_leads_elsewhere(site: Site, authority: Path, tmp_path: Path) -> None:
    """Proxy variables, certificate variables and a `.netrc` change nothing."""
    dead = f"http://127.0.0.1:{free_port()}"
    evil = make_authority(tmp_path / "evil")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login evil password evil\n")
    names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY", "http_proxy")
    environment = {**dict.fromkeys(names, dead), "NO_PROXY": "", "HOME": str(tmp_path), "SSL_CERT_FILE": str(evil)}
    with reached(site, server_context(make_certificate(authority)), ca=str(authority)) as host:
        host.environment = environment
        host.start()
        works(host)
        assert all(headers["Authorization"] == f"Bearer {TOKEN}" for _, _, headers in host.double.seen)
    with reached(site, server_context(make_certificate(evil))) as host:
        host.environment = environment
        assert host.check().returncode == 1 and host.double.seen == []


@pytest.mark.parametrize("url", ["https://no-such-host.invalid", "https://127.0.0.1:1"])
def test_p24_a_server_that_cannot_be_found_is_asked_for_ever(site: Site, url: str) -> None:
    """A name that does not exist, a port where nobody listens: said once, and tried on without a busy loop."""
    with reached(site, None) as host:
        host.configure(url=url)
        host.start()
        eventually(lambda: "trying on" in host.said())
        assert host.process is not None and host.process.poll() is None
        assert host.said().count("trying on") <= 2


# -- tokens and configuration ---------------------------------------------------------------------------------------


def test_the_token_may_come_as_a_credential_a_variable_or_a_file(site: Site, tmp_path: Path) -> None:
    """Each of the three ways works; a changed file is read again; a file that others can read is refused."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o400)
    with reached(site, None) as host:
        host.configure(token=None)
        assert host.check().returncode == 2
        for environment in ({"CREDENTIALS_DIRECTORY": str(folder)}, {"MISRC_TOKEN": TOKEN}):
            host.environment = environment
            done = host.check()
            assert done.returncode == 0 and "takes the token" in done.stdout, done
        host.environment = {}
        host.configure()
        token = host.site.root / "token"
        token.chmod(0o644)
        done = host.check()
        assert done.returncode == 2 and "others can read it" in done.stderr
        token.chmod(0o600)
        token.write_text("another-token\n")
        done = host.check()
        assert done.returncode == 1 and "unauthenticated" in done.stdout
        host.start()
        eventually(lambda: "unauthenticated" in host.said())
        token.write_text(TOKEN)
        works(host)


def test_check_says_what_is_wrong(site: Site) -> None:
    """Server, token, clock, policy and the freeze are told one by one."""
    with reached(site, None) as host:
        done = host.check()
        assert done.returncode == 0, done
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["policy", "site", "server", "clock"]
        assert host.double.polls[-1]["room"] == 0
        site.people("freeze")
        assert "frozen" in host.check().stdout
        host.double.rule("/poll", _late, times=1)
        assert "clock    differs" in host.check().stdout
        os.chmod(site.prefix / "config/policy.json", 0o666)
        assert host.check().returncode == 2
        host.double.stopping = True


def _late(handler: Any) -> None:
    handler.body()
    handler.date_time_string = lambda *words: "Thu, 01 Jan 2015 00:00:00 GMT"
    handler.answer(200, b'{"claims":[],"cancel":[],"close":[],"lost":[]}')


@pytest.mark.parametrize(
    "config",
    [
        {"url": "http://mint.example.jp"},
        {"url": "https://user:pass@mint.example.jp"},
        {"url": "https://mint.example.jp/path"},
        {"url": "https://mint.example.jp:0"},
        {"url": "https://mint.example.jp:99999"},
        {"proxy": "https://proxy:1"},
        {"proxy": "http://a:b@proxy:1"},
        {"ca": "relative.pem"},
        {"ca": "/nonexistent.pem"},
        {"token": "token-itself"},
        {"protocol": "v1"},
        {"poll": 0},
        {"retry": {"count": -1}},
        {"retry": {"interval": "soon"}},
        {"verify": False},
    ],
)
def test_a_configuration_that_cannot_be_is_refused_at_the_install(site: Site, config: dict[str, Any]) -> None:
    """The installer names the key, and nothing of the installation changes. There is no key that turns checks off."""
    with reached(site, None) as host:
        before = host.config.read_bytes()
        with pytest.raises(subprocess.CalledProcessError) as caught:
            host.configure(**config)
        assert next(iter(config)) in caught.value.stderr or "nonexistent" in caught.value.stderr
        assert host.config.read_bytes() == before
        assert host.check().returncode == 0


def test_a_site_without_ssh_needs_no_key_and_gets_no_key_file(tmp_path: Path) -> None:
    """A policy without job keys and with an agent installs, touches no key file, and works."""
    site = make_site(tmp_path / "site-host")
    (site.root / "authorized_keys").unlink()
    del site.policy["job_keys"]
    (site.root / "policy.json").write_text(__import__("json").dumps(site.policy))
    with reached(site, None) as host:
        assert not (site.root / "authorized_keys").exists()
        host.start()
        works(host)


# -- another system -------------------------------------------------------------------------------------------------


def _say(host: AgentHost, job: str) -> Callable[[], Any]:
    return lambda: host.double.ended(job)


def test_without_what_only_linux_gives_it_still_runs_and_says_what_is_weaker(site: Site) -> None:
    """Subreaper, process table, pidfd, boot id and namespaces off: jobs run, fail, are cancelled and adopted."""
    with reached(site, None) as host:
        host.options = ["--portable"]
        host.start()
        works(host)
        failing = host.double.submit("fail")
        assert eventually(_say(host, failing)).reason == "the program ended with exit status 3"
        long = host.double.submit("sleep", arguments={"seconds": "60"})
        eventually(lambda: long in host.starts())
        host.double.wish(long, cancel=True)
        assert eventually(_say(host, long)).outcome == "cancelled"
        adopted = host.double.submit("sleep", arguments={"seconds": "2"})
        eventually(lambda: adopted in host.starts())
        host.stop()
        host.start()
        assert eventually(_say(host, adopted)).outcome == "succeeded"
        assert host.starts().count(adopted) == 1
        weaker = [line for line in host.said().splitlines() if "weaker here" in line]
        assert len(set(weaker)) >= 4
        assert "weaker" in host.check().stdout


def test_on_linux_nothing_is_weaker(site: Site) -> None:
    """Positive control: with all of it, nothing is said."""
    with reached(site, None) as host:
        host.start()
        works(host)
        assert "weaker" not in host.said() + host.check().stdout


def test_without_namespaces_a_program_that_may_have_no_network_does_not_start(site: Site) -> None:
    """`network: deny` is not kept by hope: elsewhere such a program is refused with E35."""
    site.policy["programs"]["noop"] = {**site.policy["programs"]["noop"], "network": "deny"}
    site.install()
    with reached(site, None) as host:
        host.options = ["--portable"]
        host.start()
        job = host.double.submit("noop")
        ended = eventually(_say(host, job))
        assert (ended.outcome, ended.reason) == ("refused", "E35") and host.starts() == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="molecule/api measures it on a host with systemd")
def test_the_units_score(site: Site, tmp_path: Path) -> None:
    """systemd's own measure of the agent's unit is at most 2.0; and it starts what the install put there."""
    from misrc.job.agent import AgentConfig
    from misrc.job.policy import Policy
    from misrc.job.units import render_agent_unit

    text = render_agent_unit(
        Policy("/var/lib/misrc/jobs", {}),
        AgentConfig("https://mint.example.jp:50443", token="/etc/misrc/agent.token"),
        "/usr/libexec/misrc/current",
    )
    assert "LoadCredential=token:/etc/misrc/agent.token" in text and TOKEN not in text
    path = tmp_path / "misrc-agent.service"
    path.write_text(text)
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
