"""What every site of the tests starts from, made once by each process of the tests: the pyz, and its code compiled.

Compiling a hundred files at each installation and at each start of the pyz would be most of what the tests do. The pyz
itself is tried where it is meant: tests/test_house.py, the manual's commands and the deployed hosts.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from misrc.mint.packaging import zipapp

PYZ = "misrc-site.pyz"
# What an earlier release left, for a site of that release.
RELEASE = "release.pyz"
_UNPACK = """
import sys
sys.path.insert(0, sys.argv[1])
from misrc.site.install.installer import digest_sources, read_sources, unpack
sources = read_sources()
unpack(sys.argv[2], "code-" + digest_sources(sources)[:16], sources, 0o700)
"""


@functools.cache
def _made() -> Path:
    root = Path(tempfile.mkdtemp(prefix="misrc-builds-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    zipapp.write(root / PYZ)
    subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", _UNPACK, root / PYZ, root / "share"], check=True)
    return root


def lay(root: Path, share: Path) -> None:
    """The pyz in `root`, and in `share` the folder that its installation would compile; `current` is left to it."""
    shutil.copy(_made() / PYZ, root)
    for folder in (share.parent, share):
        folder.mkdir(mode=0o700, exist_ok=True)
    for folder in (_made() / "share").glob("code-*"):
        shutil.copytree(folder, share / folder.name)


def program(root: Path) -> str:
    """The same program as the pyz, compiled; or another release's, where one lies in `root`."""
    release = root / RELEASE
    return str(release if release.exists() else _made() / "share/current")
