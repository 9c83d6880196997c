"""A practice site on this machine: the real gate behind a real sshd on loopback, for one program that is being tried.

For module authors: what runs here runs at a site, but for the site's own policy, machine and data. It is no site for
work: programs run under the caller's own account, and whatever the declaration returns may leave.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ...declare.inventory import parse_site, read_variables, render_variables
from ...job.errors import BadRequest, MisrcError
from ..messages import say
from ..zipapp import write

SITE = "practice"
START_SECONDS = 10
_SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey "{folder}/host_key"
PidFile "{folder}/sshd.pid"
AuthorizedKeysFile "{folder}/authorized_keys"
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
DisableForwarding yes
PermitTTY no
LogLevel ERROR
"""


def start_practice(place: str, program: str, path: str, declaration: str) -> int:
    """`misrc module practice`: a site with this program, and an inventory that declares it; prints what to source.

    Called again it takes a changed program or declaration.
    """
    folder = Path(place).absolute()
    if os.getuid() == 0:
        raise BadRequest(say("practice.root"))
    if not os.access(path, os.X_OK):
        raise BadRequest(say("practice.program", path=path))
    declared = read_variables(Path(declaration))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    port = _free_port()
    _write_declaration(folder, port, {program: declared}, Path(declaration))
    stop_practice(place)
    _install(folder, program, Path(path).absolute(), declared)
    _start_sshd(folder, port)
    env = folder / "env"
    names = {"MISRC_INVENTORY": folder / "inventory", "MISRC_STATE": folder / "state"}
    env.write_text("".join(f"export {k}={shlex.quote(str(v))}\n" for k, v in names.items()), encoding="utf-8")
    print(say("practice.up", site=SITE, program=program, env=env))
    return 0


def stop_practice(place: str) -> int:
    """`misrc module practice --stop`: end its sshd; the folder stays."""
    pid = Path(place, "sshd.pid").absolute()
    with contextlib.suppress(OSError, ValueError):
        number = int(pid.read_text(encoding="ascii"))
        # A number may have been given to another process since: ours has our configuration among its words.
        if str(pid.with_name("sshd_config")).encode() in Path(f"/proc/{number}/cmdline").read_bytes():
            os.kill(number, signal.SIGTERM)
        pid.unlink()
    return 0


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _make_key(path: Path) -> str:
    if not path.exists():
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))
    return " ".join(path.with_name(path.name + ".pub").read_text(encoding="ascii").split()[:2])


def _write_declaration(folder: Path, port: int, programs: dict[str, Any], source: Path) -> None:
    """MInt's declaration, with the program as its author declares it in `source`; BadRequest names a wrong key there."""
    site = {
        "id": SITE,
        "method": "ssh",
        "address": "127.0.0.1",
        "port": port,
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "host_keys": [_make_key(folder / "host_key")],
        "retry": {"count": 5, "interval": 1},
        "programs": programs,
    }
    variables = {"misrc_identity": str(folder / "job_key"), "misrc_site": site}
    path = folder / "inventory/host_vars" / f"{SITE}.yml"
    parse_site(variables, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("---\n" + render_variables(variables), encoding="utf-8")


def _install(folder: Path, program: str, path: Path, declared: dict[str, Any]) -> None:
    """The gate with a policy that allows just this program, as the interface has it."""
    arguments = {
        name: {key: value for key, value in rule.items() if key in ("choices", "pattern")}
        for name, rule in (declared.get("arguments") or {}).items()
    }
    rule = {
        "path": str(path),
        "arguments": arguments,
        "returns": list(declared.get("outputs") or {}),
        "logs": "full",
        "network": "allow",
        "reason": "practice",
    }
    policy = {
        "work_root": str(folder / "jobs"),
        "job_keys": [{"key": _make_key(folder / "job_key"), "from": ["127.0.0.0/8"]}],
        "programs": {program: rule},
    }
    (folder / "policy.json").write_text(json.dumps(policy, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    write(folder / "misrc-site.pyz")
    words = ["--prefix", str(folder / "site"), "install", "--site", SITE, "--policy", str(folder / "policy.json")]
    keys = ["--authorized-keys", str(folder / "authorized_keys"), "--yes"]
    _run(sys.executable, str(folder / "misrc-site.pyz"), *words, *keys)


def _start_sshd(folder: Path, port: int) -> None:
    config = folder / "sshd_config"
    config.write_text(_SSHD.format(port=port, folder=folder), encoding="utf-8")
    _run("/usr/sbin/sshd", "-f", str(config), "-E", str(folder / "sshd.log"))
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise MisrcError(say("practice.failed", command="sshd", why=folder / "sshd.log"))


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise MisrcError(say("practice.failed", command=words[0], why=error.strerror)) from None
    if done.returncode != 0:
        why = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise MisrcError(say("practice.failed", command=Path(words[0]).name, why=why[-1] if why else done.returncode))
