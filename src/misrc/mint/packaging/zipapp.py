"""Build `misrc-site.pyz`, byte for byte the same from the same sources: the one file that a site installs."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

_MAIN = b"""import sys

from misrc.site.main import main

sys.exit(main())
"""
_SHEBANG = b"#!/usr/bin/env python3\n"
_ROOMS = ("job", "wire", "site")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def build() -> bytes:
    """The zipapp's bytes: the rooms `job`, `wire` and `site` as sources, stored in order of name."""
    package = Path(__file__).resolve().parents[2]
    sources = {"__main__.py": _MAIN, "misrc/__init__.py": (package / "__init__.py").read_bytes()}
    for room in _ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            sources[f"misrc/{path.relative_to(package).as_posix()}"] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, sources[name])
    return _SHEBANG + buffer.getvalue()


def write(path: Path) -> str:
    """Write the zipapp to `path`; its sha256."""
    data = build()
    path.write_bytes(data)
    path.chmod(0o755)
    return hashlib.sha256(data).hexdigest()
