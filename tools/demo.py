"""The demo's story, told while it happens: a site, a job, three refusals, and the site's own record of what left."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from misrc.job.manifest import Entry, digest_manifest, make_manifest, total_bytes
from misrc.job.spec import JobSpec, OpenRequest, render_open

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / ".cache/demo"
SITE = DEMO / "site"
MINT = DEMO / "mint"
SCRIPTS = SITE / "remote_workflow/scripts"
PROGRAM = SCRIPTS / "execute_remote-side_program_ssh.sh"
BIN = Path(sys.executable).parent
NAME = "demo-site"


def tell(text: str) -> None:
    """A heading of the story."""
    style = ("\033[1;36m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{style[0]}{text}{style[1]}", flush=True)


def run(*words: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command whose output the reader sees."""
    return subprocess.run([str(word) for word in words], check=check, text=True, **options)


def quiet(*words: object) -> str:
    """A command whose output the story uses."""
    return str(run(*words, stdout=subprocess.PIPE).stdout)


def make_site_files() -> None:
    """The site's own programs and confidential base models."""
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "scripts/remote-side_scripts", SCRIPTS / "remote-side_scripts", dirs_exist_ok=True)
    shutil.copy(ROOT / "scripts/execute_remote-side_program_ssh.sample.sh", PROGRAM)
    PROGRAM.chmod(0o755)
    if not (SCRIPTS / "input_data/large/base.inp").exists():
        run("/usr/bin/python3", SCRIPTS / "remote-side_scripts/make_specimen.py", "--into", SCRIPTS / "input_data")


def make_key(path: Path) -> str:
    """An ed25519 key, made once; its public half."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path)
    return " ".join(path.with_name(path.name + ".pub").read_text(encoding="ascii").split()[:2])


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def can_leave_network() -> bool:
    """Whether this machine lets an ordinary account run a program without a network."""
    return run("unshare", "-Urn", "true", check=False, stderr=subprocess.DEVNULL).returncode == 0


def write_declarations(port: int, receipt_key: str) -> Path:
    """Fill in the demo's inventory."""
    words = {
        "DEMO": DEMO,
        "PORT": port,
        "USER": getpass.getuser(),
        "HOST_KEY": make_key(SITE / "host_key"),
        "RECEIPT_KEY": receipt_key,
        "JOB_KEY": make_key(MINT / "keys" / NAME),
        "PROGRAM_SHA256": hashlib.sha256(PROGRAM.read_bytes()).hexdigest(),
        "NETWORK": "deny" if can_leave_network() else "allow",
    }
    source = ROOT / f"inventories/demo/host_vars/{NAME}.yml"
    text = re.sub(r"@([A-Z0-9_]+)@", lambda match: str(words[match[1]]), source.read_text(encoding="utf-8"))
    target = MINT / f"inventory/host_vars/{NAME}.yml"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def site_command(*words: object) -> list[str]:
    """A command of the site's people."""
    return ["/usr/bin/python3", str(SITE / "misrc-site.pyz"), "--prefix", str(SITE), *map(str, words)]


def install_gate(declarations: Path) -> None:
    """The site's administrator installs one file."""
    run(BIN / "misrc", "site", "build", "--output", SITE / "misrc-site.pyz")
    (SITE / "my-policy.json").write_text(quiet(BIN / "misrc", "site", "policy", declarations), encoding="utf-8")
    run(
        *site_command(
            "install",
            "--site",
            NAME,
            "--policy",
            SITE / "my-policy.json",
            "--authorized-keys",
            SITE / "authorized_keys",
            "--yes",
        )
    )


@contextlib.contextmanager
def sshd(port: int) -> Iterator[None]:
    """A private sshd on loopback, as the site."""
    (SITE / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {SITE}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {SITE}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "DisableForwarding yes\nPermitTunnel no\nX11Forwarding no\nAllowAgentForwarding no\n"
        "PermitTTY no\nLogLevel ERROR\n",
        encoding="utf-8",
    )
    with (SITE / "sshd.log").open("wb") as log:
        server = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(SITE / "sshd_config")],
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def misrc(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command of MInt's side."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "MISRC_STATE": str(MINT / "state"),
        "MISRC_INVENTORY": str(MINT / "inventory"),
        "MISRC_SITE": NAME,  # the sample modules name another site
    }
    print("$ misrc", *words, flush=True)
    return run(BIN / "misrc", *words, check=check, env=environment)


def play_workflow(results: Path) -> None:
    """A workflow of two modules, as MInt's player runs it: the remote job, then one that draws what came back."""
    shutil.rmtree(results, ignore_errors=True)
    inputs = ROOT / "scripts/sample_data"
    misrc(
        "module",
        "play",
        "--workdir",
        results,
        ROOT / "modulesxml/modules-stress_distribution.xml",
        ROOT / "modulesxml/modules-stress_picture.xml",
        *("--断面減少率", inputs / "reduction_area.dat"),
        *("--引っ張り強度", inputs / "tensile_strength.dat"),
        *("--降伏強度", inputs / "yield_strength.dat"),
        *("--応力分布図", results / "stress.png"),
        *("--最大応力", results / "peak.txt"),
    )
    tell(f"The largest von Mises stress: {(results / 'peak.txt').read_text(encoding='utf-8').strip()}")
    print(f"The stress field as a picture: {results / 'stress.png'}")


def try_forbidden(port: int) -> None:
    """What MInt, or whoever stole its key, may try."""
    host = f"{NAME} {make_key(SITE / 'host_key')}\n"
    (MINT / "known_hosts").write_text(host, encoding="ascii")
    ssh = [
        "ssh",
        "-F",
        "none",
        "-i",
        MINT / "keys" / NAME,
        "-o",
        f"UserKnownHostsFile={MINT / 'known_hosts'}",
        "-o",
        f"HostKeyAlias={NAME}",
        "-o",
        "BatchMode=yes",
        "-p",
        port,
    ]
    print("1. a shell, to read the confidential base model")
    show_refusal(*ssh, "127.0.0.1", f"cat {SCRIPTS}/input_data/medium/base.inp")
    print("2. a program that the site's policy does not name")
    refused = misrc("run", NAME, "database_dump", "--results", DEMO / "refused", check=False)
    assert refused.returncode == 3, refused
    print("3. the licence that the program leaves in its folder, through the file transfer of an ended job")
    job = run_without_fetching(ssh)
    rsh = " ".join(str(word) for word in ssh)
    loot = DEMO / "loot"
    show_refusal("rsync", "-rt", "-e", rsh, f"--rsync-path=get {job}", "127.0.0.1::return/../work/license.key", loot)
    licence = SITE / "jobs" / job / "work/license.key"
    assert licence.is_file() and not loot.exists()
    print(f"The licence lies at the site, {licence.stat().st_size} bytes in work/. Nothing arrived here.")


def run_without_fetching(ssh: list[object]) -> str:
    """A small job, driven by hand over the gate's verbs and left as it is when it has ended; its id."""
    inputs = {path.name: path.read_bytes() for path in (ROOT / "scripts/sample_data").glob("*.dat")}
    manifest = make_manifest(Entry(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in inputs.items())
    spec = JobSpec(
        str(uuid.uuid4()),
        NAME,
        "stress_distribution",
        {"mesh": "small", "analysis": "elastic", "amplitude": "100"},
        len(inputs),
        total_bytes(manifest),
        digest_manifest(manifest),
    )
    request = render_open(OpenRequest(spec, start=True, inline=manifest, wait=30))
    data = request + b"".join(inputs[entry.name] for entry in manifest)
    words = [str(word) for word in (*ssh, "127.0.0.1", f"open {spec.job}")]
    subprocess.run(words, input=data, check=True, stdout=subprocess.DEVNULL)
    return spec.job


def show_refusal(*words: object) -> None:
    """Run what must fail."""
    print("$", *(str(word).replace(str(DEMO), "…") for word in words), flush=True)
    assert run(*words, check=False, stdin=subprocess.DEVNULL).returncode != 0, "the site did not refuse"


def main() -> int:
    """The whole story."""
    started = time.monotonic()
    DEMO.mkdir(parents=True, exist_ok=True)
    tell("The site prepares its program and its confidential models")
    make_site_files()
    port = free_port()
    receipt_key = make_key(SITE / "config/site_key")
    (SITE / "config").chmod(0o700)
    declarations = write_declarations(port, receipt_key)
    tell("The site's administrator installs the gate: one file, one policy, one forced command")
    install_gate(declarations)
    with sshd(port):
        tell("MInt plays a workflow of two modules: a finite-element job there, then a picture of its stresses here")
        results = DEMO / "results"
        play_workflow(results)
        tell("Three things that MInt tried and the site refused")
        try_forbidden(port)
    tell("The site's ledger: what it refused")
    refusals = [line for line in quiet(*site_command("ledger", "show")).splitlines() if line[28:].startswith("refuse")]
    print("\n".join(f"{line[:150]}…" for line in refusals))
    tell("The site's ledger: all that ever left")
    run(*site_command("ledger", "show", "--left"))
    took = time.monotonic() - started
    tell(f"Done in {took:.0f} s. Results: {results}   Ledger: {SITE}/state/ledger.jsonl   Remove all: ./demo --clean")
    return 0


if __name__ == "__main__":
    sys.exit(main())
