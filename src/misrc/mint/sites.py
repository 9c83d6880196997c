"""The declared sites, as the lean part of `misrc run` reads them.

Parsing YAML through pydantic costs time and memory that a waiting job should not hold, so it happens in a process of
its own, and its result is kept as long as no file of the inventory changes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from .. import __version__
from ..job.codec import CodecError, decode, parse_json
from ..job.errors import BadRequest
from ..job.interface import Interface, ProgramInterface
from ..job.records import write_record
from .messages.catalog import say
from .places import state_folder


def load_site(inventory: Path, site: str) -> Interface:
    """The interface of one site; BadRequest where it is not declared, or anything in the inventory is wrong."""
    sites = _load(inventory)
    if site not in sites:
        raise BadRequest(say("site.unknown", site=site, inventory=inventory, known=", ".join(sites) or "-"))
    return sites[site]


def find_program(site: Interface, name: str) -> ProgramInterface:
    """What is declared of a program; BadRequest where nothing is, as after it was taken out while a job of it ran."""
    program = site.programs.get(name)
    if program is None:
        raise BadRequest(say("program.unknown", site=site.id, program=name, known=", ".join(site.programs)))
    return program


def load_sites(inventory: Path) -> dict[str, Interface]:
    """Every declared site."""
    return _load(inventory)


def _load(inventory: Path) -> dict[str, Interface]:
    cache = state_folder() / "declared"
    name = f"{_fingerprint(inventory)}.json"
    try:
        return _decode((cache / name).read_bytes())
    except (OSError, CodecError):
        data = _parse(inventory)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in cache.glob("*.json"):
        old.unlink(missing_ok=True)
    folder = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)
    try:
        write_record(folder, name, data)
    finally:
        os.close(folder)
    return _decode(data)


def _decode(data: bytes) -> dict[str, Interface]:
    sites = parse_json(data)
    if not isinstance(sites, dict):
        raise CodecError("an object is needed")
    return {name: decode(Interface, value) for name, value in sites.items()}


def _fingerprint(inventory: Path) -> str:
    digest = hashlib.sha256(f"{__version__} {inventory}".encode())
    paths = [*inventory.glob("host_vars/*.yml"), *inventory.glob("host_vars/*/*.yml")]
    for path in sorted(paths):
        status = path.stat()
        digest.update(f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode())
    return digest.hexdigest()


def _parse(inventory: Path) -> bytes:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "misrc.declare.inventory", str(inventory)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise BadRequest(said[-1] if said else "the inventory could not be read")
    return done.stdout
