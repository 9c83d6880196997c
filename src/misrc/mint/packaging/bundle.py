"""`misrc bundle`: all that a host without any package index needs to install this misrc, in one folder or tar file.

    wheels/            misrc and everything that it needs, in the versions that run here
    requirements.txt   these versions, with the hashes of these wheels
    requirements-api.txt   the same for the API server's host, where the bundle was asked for it
    misrc-site.pyz     what a site installs
    SHA256SUMS         of all of these
    INSTALL            the one command

The wheels are packed out of what is installed here (see `wheels`), so no index is asked and nothing can differ from
what was tried. Compiled parts fit the same Python version and the same kind of machine only; INSTALL says which.
"""

from __future__ import annotations

import hashlib
import io
import platform
import re
import sys
import tarfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from ... import __version__
from ...job.errors import BadRequest
from ..messages.catalog import say
from . import zipapp
from .wheels import build_wheel, name_wheel

_INSTALL = """misrc {version} for Python {python} on {machine}

    sha256sum --check SHA256SUMS
    python3 -m venv /opt/misrc/venv
    /opt/misrc/venv/bin/pip install --no-index --find-links wheels --require-hashes -r requirements.txt

The role misrc.remote.mint_node does this and the rest: give it the tar file as mint_node_bundle. The role
misrc.remote.dicomapi takes a tar file with requirements-api.txt as dicomapi_bundle.
"""


def find_needed(root: str = "misrc") -> list[Distribution]:
    """The distribution `root` and everything that it needs on this machine, in order of name."""
    found: dict[str, Distribution] = {}
    open_ends = [Requirement(root)]
    while open_ends:
        wanted = open_ends.pop()
        key = re.sub(r"[-_.]+", "-", wanted.name).lower()
        try:
            found[key] = found.get(key) or distribution(wanted.name)
        except PackageNotFoundError:
            raise BadRequest(say("bundle.missing", name=wanted.name)) from None
        for line in found[key].requires or ():
            further = Requirement(line)
            known = re.sub(r"[-_.]+", "-", further.name).lower() in found
            if not known and _applies(further, wanted.extras):
                open_ends.append(further)
    return [found[name] for name in sorted(found)]


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({"extra": extra}) for extra in (*extras, ""))


def make_files(api: bool = False) -> dict[str, bytes]:
    """The bundle's files by name; the same for the same installation. `api`: with what the API server needs, too."""
    files: dict[str, bytes] = {}
    pins: dict[str, str] = {}
    for part in find_needed("misrc[api]" if api else "misrc"):
        data = build_wheel(part)
        files[f"wheels/{name_wheel(part)}"] = data
        name = part.metadata["Name"]
        pins[name] = f"{name}=={part.version} --hash=sha256:{hashlib.sha256(data).hexdigest()}\n"
    node = [part.metadata["Name"] for part in find_needed()]
    files["requirements.txt"] = "".join(pins[name] for name in node).encode()
    if api:
        files["requirements-api.txt"] = "".join(pins.values()).encode()
    files["misrc-site.pyz"] = zipapp.build()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    files["INSTALL"] = _INSTALL.format(version=__version__, python=python, machine=platform.machine()).encode()
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    files["SHA256SUMS"] = sums.encode()
    return files


def write_bundle(target: Path, api: bool = False) -> str:
    """Write a folder, or a tar file where the name ends with .tar; the SHA-256 of SHA256SUMS, which covers the rest.

    A folder that is there and not empty is refused: a wheel of another version in it would be found too.
    """
    files = make_files(api)
    try:
        if target.suffix == ".tar":
            target.write_bytes(_pack(files))
        else:
            if target.is_dir() and any(target.iterdir()):
                raise BadRequest(say("bundle.folder", path=target))
            for name, data in files.items():
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    except OSError as error:
        raise BadRequest(say("bundle.write", path=target, why=error.strerror or error)) from None
    return hashlib.sha256(files["SHA256SUMS"]).hexdigest()


def _pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
