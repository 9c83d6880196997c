"""An installed distribution as the wheel that it came from, so that it can be carried to a host without an index.

An installation keeps no wheel. But it keeps the list of its files with their hashes (RECORD), and that is all a wheel
holds: the files are packed again, each only if its content is still the recorded one. Equal installations give equal
bytes. The bytes are not those of the index's wheel: order, times and compression differ, the files do not.

Not covered: distributions that leave no RECORD (Debian's own packages, editable installs). They are refused.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackagePath

from ...job.errors import BadRequest
from ..messages.catalog import say

_EPOCH = (1980, 1, 1, 0, 0, 0)
# What the installer adds by itself, and adds again where the wheel is installed.
_INSTALLERS_OWN = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_SCRIPT = re.compile(rb"\A#!.*\n")


def name_wheel(distribution: Distribution) -> str:
    """The wheel's file name: name, version and tags, as its metadata has them."""
    name = re.sub(r"[-_.]+", "_", distribution.metadata["Name"]).lower()
    text = distribution.read_text("WHEEL")
    if text is None:
        raise BadRequest(say("bundle.record", name=name))
    tags = [line.split(":", 1)[1].strip().split("-") for line in text.splitlines() if line.startswith("Tag:")]
    build = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("Build:")]
    columns = [".".join(dict.fromkeys(column)) for column in zip(*tags)]
    if len(columns) != 3:
        raise BadRequest(say("bundle.record", name=name))
    return "-".join([name, distribution.version, *build, *columns]) + ".whl"


def build_wheel(distribution: Distribution) -> bytes:
    """The wheel's bytes; BadRequest where a file is missing or no longer what was installed."""
    files = dict(sorted(_read_files(distribution)))
    base = next(name.partition("/")[0] for name in files if name.endswith(".dist-info/METADATA"))
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{base}/RECORD"] = f"{record}{base}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _read_files(distribution: Distribution) -> Iterator[tuple[str, bytes]]:
    name = distribution.metadata["Name"]
    commands = {entry.name for entry in distribution.entry_points if entry.group in ("console_scripts", "gui_scripts")}
    if not distribution.files:
        raise BadRequest(say("bundle.record", name=name))
    stem = f"{re.sub(r'[-_.]+', '_', name).lower()}-{distribution.version}"
    for file in distribution.files:
        if file.suffix == ".pyc" or (file.parent.name.endswith(".dist-info") and file.name in _INSTALLERS_OWN):
            continue
        if file.parts[0] != "..":
            yield str(file), _read(file, name)
        elif file.name not in commands or file.parent.name != "bin":
            yield _outside(file, stem), _restore(file, _read(file, name))


def _outside(file: PackagePath, stem: str) -> str:
    """Where a wheel keeps a file that is installed beside the packages: a script, or data."""
    parts = [part for part in file.parts if part != ".."]
    if parts[0] == "bin":
        return f"{stem}.data/scripts/{'/'.join(parts[1:])}"
    return f"{stem}.data/data/{'/'.join(parts)}"


def _restore(file: PackagePath, data: bytes) -> bytes:
    """A Python script names this installation's Python; a wheel leaves that to the installer."""
    first = _SCRIPT.match(data)
    if file.parent.name == "bin" and first and b"python" in first[0]:
        return b"#!python\n" + data[first.end() :]
    return data


def _read(file: PackagePath, name: str) -> bytes:
    try:
        data = file.read_binary()
    except OSError:
        raise BadRequest(say("bundle.changed", name=name, path=file)) from None
    if file.hash is not None:
        digest = hashlib.new(file.hash.mode, data).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            raise BadRequest(say("bundle.changed", name=name, path=file))
    return data
