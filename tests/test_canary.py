"""Secrets stay in their places: tokens, a proxy's password and private keys, on the whole way and in every program."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from apiserver import SITE, V2, running
from canaries import Watch, body_of_key, core_limits, leaks, words_of
from chain import Chain, chain
from conftest import CLEAN, ROOT, eventually
from predecessor import scene
from predecessor.server import Server
from test_agent_legacy import TOKEN as OLD_TOKEN
from test_agent_legacy import Old, old  # noqa: F401 (a fixture)
from test_agent_ways import Proxy
from test_webapi_run import end_of

NO_CORE = ("0", "0")


@pytest.fixture(autouse=True)
def cores_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is started here might write a core dump as large as this account may, into this folder."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


def secrets_of(whole: Chain, password: Path) -> dict[str, tuple[bytes, Path]]:
    """Every secret of the chain, and the file where it may stand."""
    files = [path for path in (whole.mint.root / "config").rglob("*") if path.is_file()]
    signing = next(path for path in files if b"OPENSSH PRIVATE KEY" in path.read_bytes())
    keys = {
        "the server's key": whole.api.root / "tls/key.pem",
        "the signing key": signing,
        "the site's key": whole.site.prefix / "config/site_key",
    }
    return {
        "MInt's token": (whole.api.tokens["chain-mint"].encode(), whole.mint.token_file),
        "the agent's token": (whole.api.tokens["chain-agent"].encode(), whole.site.root / "token"),
        "the proxy's password": (b"canary-of-the-proxy", password),
        **{name: (body_of_key(path), path) for name, path in keys.items()},
    }


def fail_and_succeed(whole: Chain) -> str:
    """Jobs of every kind, asked for in every way; all that was said."""
    run = ("run", "test-site")
    calls = (
        (0, (*run, "noop", "--results", "a")),
        (1, (*run, "fail", "--results", "b")),
        (None, (*run, "nothing-of-this-name", "--results", "c")),
        (None, ("site", "check", "test-site")),
        (0, ("site", "show", "test-site")),
        (0, ("jobs", "--json")),
        (None, ("run", "test-site", "noop", "--results", "d", "--no-such-word")),
    )
    said = []
    for status, words in calls:
        done = whole.mint.command(*words)
        assert status in (None, done.returncode), (words, done.stderr, whole.said())
        said.append(done.stdout + done.stderr)
    right = whole.mint.token_file.read_text().strip()
    whole.mint.write_token(right[:-1] + ("a" if right[-1] != "a" else "b"))
    done = whole.mint.command("run", "test-site", "noop", "--results", "e")
    assert done.returncode != 0 and "token" in done.stderr
    said += [done.stdout, done.stderr, whole.mint.command("jobs").stdout]
    whole.mint.write_token(right)
    return "".join(said)


def test_h10_p45_no_secret_leaves_its_place_on_the_whole_way(tmp_path: Path) -> None:
    """MInt, server, an agent behind a proxy with a password: work, refusals, a wrong token, and deaths by a signal that
    dumps core. No secret in a log, record, ledger, error, core dump, list of processes or environment."""
    proxy = Proxy(secret="user:canary-of-the-proxy")
    with proxy.serving(), chain(tmp_path / "lab") as whole:
        password = whole.site.root / "proxy.secret"
        password.write_text("user:canary-of-the-proxy\n")
        password.chmod(0o600)
        whole.stop_agent()
        whole.site.policy["require_signature"] = [whole.mint.make_signing_key()]
        whole.configure(proxy=f"http://127.0.0.1:{proxy.port}", proxy_credentials=str(password))
        whole.declare(signed=True)
        whole.start_agent()
        placed = secrets_of(whole, password)
        secrets = {name: secret for name, (secret, _) in placed.items()}
        with Watch(secrets).running() as watch:
            said = fail_and_succeed(whole)
            process = whole.mint.spawn("run", "test-site", "sleep", "--arg", "seconds=300", "--results", "s")
            eventually(lambda: any(job["state"] == "running" for job in whole.mint.jobs()), 60, "the start")
            assert whole.agent is not None and whole.api.process is not None
            everybody = {whole.agent.pid, whole.api.process.pid, process.pid}
            eventually(lambda: everybody <= watch.seen, what="a look at each of them")
            assert {core_limits(pid) for pid in everybody} == {NO_CORE}
            whole.api.process.send_signal(signal.SIGSEGV)
            whole.agent.send_signal(signal.SIGABRT)
            assert (whole.api.process.wait(30), whole.agent.wait(30)) == (-signal.SIGSEGV, -signal.SIGABRT)
            os.killpg(process.pid, signal.SIGQUIT)
            end_of(process)
        assert watch.looks > 1 and watch.found == set()
        assert not [name for name, secret in secrets.items() if secret.decode() in said]
        assert all(secret in path.read_bytes() for secret, path in placed.values()), "each stands in its own place"
        assert leaks(tmp_path, secrets, [path for _, path in placed.values()]) == []
        assert b"canary-of-the-proxy" not in b"".join(proxy.heads), "and a proxy gets it encoded, in one header"


def test_the_watch_and_the_search_see_what_is_there(tmp_path: Path) -> None:
    """Positive control: a secret in a word, in an environment and in a file is found; such a process may dump core."""
    secrets = {"one": b"canary-" + uuid.uuid4().hex.encode(), "two": b"canary-" + uuid.uuid4().hex.encode()}
    one, two = (secret.decode() for secret in secrets.values())
    (tmp_path / "log").write_text(f"said {one}\n")
    process = subprocess.Popen(
        [sys.executable, "-c", "input()", one], env={**CLEAN, "SECRET": two}, stdin=subprocess.PIPE
    )
    try:
        watch = Watch(secrets)

        def look() -> bool:
            watch.look()
            return {name for name, _ in watch.found} == {"one", "two"}

        eventually(look, what="the two")
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        assert core_limits(process.pid) == NO_CORE if hard == 0 else core_limits(process.pid) != NO_CORE
    finally:
        process.communicate(b"\n")
    assert leaks(tmp_path, secrets, []) == [("one", str(tmp_path / "log"))]
    assert leaks(tmp_path, secrets, [tmp_path / "log"]) == []


def test_h10_a_gateways_header_from_a_stranger_is_nowhere(tmp_path: Path) -> None:
    """Who sends the gateway's header without being the gateway, or with a value that is no name, leaves no trace of it;
    a token or a cookie beside it neither."""
    for source, value in (("192.0.2.1/32", "canary-7aa1"), ("127.0.0.1/32", "canary-7aa1 is no name")):
        gateway = {"header": "X-MInt-User", "from": [source]}
        with running(tmp_path / source.replace("/", "-"), gateway=gateway) as api:
            headers = {"X-MInt-User": value, "Cookie": "canary-7aa1", "Referer": "https://x/?canary-7aa1"}
            for path in ("/jobs", f"/sites/{SITE}/poll", f"/jobs/{uuid.uuid4()}/inputs/canary-7aa1?canary-7aa1=1"):
                for method in ("GET", "PUT", "POST"):
                    answer = api.call(method, V2 + path, {}, "canary-7aa1" * 5, headers)
                    assert answer.status == 401 and b"canary" not in answer.body
            eventually(lambda: [line.get("status") for line in api.log()].count(401) >= 9, what="the lines in the log")
            assert api.stop() == 0
            assert leaks(api.root, {"the header": b"canary-7aa1"}, []) == []


def test_p45_an_old_command_line_shows_its_token_no_longer(old: Old) -> None:  # noqa: F811
    """The predecessor's poller gets its token as a word. Ours overwrites it at once, dumps no core, and works on."""
    process = old.start()
    shown = eventually(lambda: b"***" in words_of(process.pid) and words_of(process.pid), what="the hidden word")
    assert OLD_TOKEN.encode() not in shown and b"mi-system-remote.py" in shown and b"retry:3,0.05" in shown
    assert core_limits(process.pid) == NO_CORE
    assert old.compute() == 0
    process.send_signal(signal.SIGABRT)
    assert process.wait(20) == -signal.SIGABRT
    folder = old.site.root.parent
    assert leaks(folder, {"the token": OLD_TOKEN.encode()}, []) == []


def test_p45_the_old_workflow_client_shows_its_token_no_longer(tmp_path: Path) -> None:
    """The same for the workflow's client, whose job waits here for a site."""
    folder = tmp_path / "wf"
    folder.mkdir()
    authority = scene.certificate(tmp_path, "ca")
    ini = scene.write_ini(folder, scene.program(folder))
    with Server(ini, {scene.TOKEN}, authority) as server:
        words = [f"https://127.0.0.1:{server.port}", scene.SITE, scene.TOKEN, str(folder / "run.sh"), "", "out.txt"]
        script = [sys.executable, str(ROOT / "scripts/mi-system-wf.py"), *words]
        environment = {**CLEAN, "SSL_CERT_FILE": str(authority), "MISRC_WF_INTERVAL": "0.05"}
        with (tmp_path / "wf.log").open("wb") as log:
            process = subprocess.Popen(script, cwd=folder, env=environment, stdout=log, stderr=log)
        shown = eventually(lambda: b"***" in words_of(process.pid) and words_of(process.pid), what="the hidden word")
        assert scene.TOKEN.encode() not in shown and b"out.txt" in shown
        eventually(lambda: b"progress" in (tmp_path / "wf.log").read_bytes(), what="a look at the job")
        assert core_limits(process.pid) == NO_CORE
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 1
    assert leaks(tmp_path, {"the token": scene.TOKEN.encode()}, []) == []
