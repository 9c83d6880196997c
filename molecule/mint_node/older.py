"""Pack a bundle again so that the misrc in it is version 0.0.9: older.py BUNDLE.tar OLDER.tar

A package index over its wheels, as plain pages, is added below `simple/`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
import tarfile
import zipfile

OLDER = "0.0.9"


def age(wheel: bytes, version: str) -> bytes:
    """The same wheel under the earlier version."""
    files = {}
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for name in archive.namelist():
            if not name.endswith("/RECORD"):
                files[name.replace(f"misrc-{version}.dist-info", f"misrc-{OLDER}.dist-info")] = archive.read(name)
    for name in (f"misrc-{OLDER}.dist-info/METADATA", "misrc/__init__.py"):
        files[name] = files[name].replace(version.encode(), OLDER.encode(), 1)
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    files[f"misrc-{OLDER}.dist-info/RECORD"] = ("".join(lines) + f"misrc-{OLDER}.dist-info/RECORD,,\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def main() -> None:
    """Read one bundle, write the other."""
    with tarfile.open(sys.argv[1]) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}
    name = next(name for name in files if name.startswith("wheels/misrc-"))
    version = name.split("-")[1]
    wheel = age(files.pop(name), version)
    files[name.replace(version, OLDER)] = wheel
    line = f"misrc=={OLDER} --hash=sha256:{hashlib.sha256(wheel).hexdigest()}"
    files["requirements.txt"] = re.sub(rb"(?m)^misrc==.*$", line.encode(), files["requirements.txt"])
    for name in [name for name in files if name.startswith("wheels/")]:
        project = re.sub(r"[-_.]+", "-", name.partition("/")[2].split("-")[0]).lower()
        page = f'<a href="../../{name}#sha256={hashlib.sha256(files[name]).hexdigest()}">{name.partition("/")[2]}</a>\n'
        files[f"simple/{project}/index.html"] = page.encode()
    with tarfile.open(sys.argv[2], "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


main()
