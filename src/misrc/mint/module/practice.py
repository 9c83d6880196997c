"""A practice site on this machine: the real gate behind a real sshd on loopback, or the real agent behind a real API
server, for one program that is being tried.

For module authors: what runs here runs at a site, but for the site's own policy, machine and data. It is no site for
work: programs run under the caller's own account, and whatever the declaration returns may leave.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from ...declare.inventory import parse_site, read_variables, render_variables
from ...job.errors import BadRequest
from ..messages.catalog import say
from ..packaging.zipapp import write
from .practice_ways import SITE, Ssh, Way, WebApi, run_words, stop_processes


def start_practice(place: str, program: str, path: str, declaration: str, webapi: bool = False) -> int:
    """`misrc module practice`: a site with this program, and an inventory that declares it; prints what to source.

    Called again it takes a changed program or declaration, or the other way to reach it.
    """
    folder = Path(place).absolute()
    if os.getuid() == 0:
        raise BadRequest(say("practice.root"))
    if not os.access(path, os.X_OK):
        raise BadRequest(say("practice.program", path=path))
    declared = read_variables(Path(declaration))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    way: Way = WebApi(folder) if webapi else Ssh(folder)
    _write_declaration(folder, way, {program: declared}, Path(declaration))
    stop_practice(place)
    _install(folder, way, program, Path(path).absolute(), declared)
    way.start()
    env = folder / "env"
    names = {"MISRC_INVENTORY": folder / "inventory", "MISRC_STATE": folder / "state"}
    env.write_text("".join(f"export {k}={shlex.quote(str(v))}\n" for k, v in names.items()), encoding="utf-8")
    print(say("practice.up", site=SITE, program=program, env=env))
    return 0


def stop_practice(place: str) -> int:
    """`misrc module practice --stop`: end what runs of it; the folder stays."""
    stop_processes(Path(place).absolute())
    return 0


def _write_declaration(folder: Path, way: Way, programs: dict[str, Any], source: Path) -> None:
    """MInt's declaration, with the program as its author declares it in `source`; BadRequest names what is wrong."""
    variables = way.declare()
    variables["misrc_site"] |= {"id": SITE, "retry": {"count": 5, "interval": 1}, "programs": programs}
    parse_site(variables, source)
    path = folder / "inventory/host_vars" / f"{SITE}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("---\n" + render_variables(variables), encoding="utf-8")


def _install(folder: Path, way: Way, program: str, path: Path, declared: dict[str, Any]) -> None:
    """The site's part with a policy that allows just this program, as the interface has it."""
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
    policy = {"work_root": str(folder / "jobs"), "job_keys": way.job_keys(), "programs": {program: rule}}
    (folder / "policy.json").write_text(json.dumps(policy, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    write(folder / "misrc-site.pyz")
    words = ["--prefix", str(folder / "site"), "install", "--site", SITE, "--policy", str(folder / "policy.json")]
    keys = ["--authorized-keys", str(folder / "authorized_keys"), "--yes"]
    run_words(sys.executable, str(folder / "misrc-site.pyz"), *words, *keys, *way.install_words())
