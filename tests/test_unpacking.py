"""The site's program as plain files: from the pyz, whole at every moment, mended where it is not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import builds
import pytest
from conftest import CLEAN, Site, make_site

from misrc.mint.packaging import zipapp


def the_pyz(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of the pyz itself."""
    argv = ["/usr/bin/python3", str(site.root / builds.PYZ), "--prefix", str(site.prefix), *words]
    return subprocess.run(argv, capture_output=True, text=True, env=CLEAN, check=False)


def install(site: Site, *words: str) -> str:
    """Install by the pyz; what it said."""
    policy = ["--policy", str(site.root / "policy.json"), "--authorized-keys", str(site.root / "authorized_keys")]
    done = the_pyz(site, "install", "--site", site.name, *policy, *words)
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path / "s")


def stamps(site: Site) -> dict[str, tuple[int, int]]:
    """Which files the program is, and when they were written."""
    found = [site.code.resolve(), *site.code.resolve().rglob("*")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_the_pyz_installs_where_nothing_is(tmp_path: Path) -> None:
    """Unpacked and compiled under the names that tracebacks shall show; a gate of it answers."""
    site = make_site(tmp_path / "s")
    bare = Site(tmp_path / "bare", site.name, site.policy)
    bare.root.mkdir()
    zipapp.write(bare.root / builds.PYZ)
    (bare.root / "policy.json").write_bytes((site.root / "policy.json").read_bytes())
    install(bare, "--yes")
    assert bare.gate(b"hello").status == 0
    compiled = next(bare.code.rglob("gate.*.pyc"))
    assert str(bare.code.resolve()).encode() in compiled.read_bytes()
    assert not list((bare.prefix / "share").glob("*.new"))
    assert {path.stat().st_mode & 0o077 for path in bare.prefix.rglob("*") if not path.is_symlink()} == {0}


def test_installing_again_touches_no_file_of_the_program(site: Site) -> None:
    """A gate that starts meanwhile never reads a half-written one."""
    before = stamps(site)
    install(site, "--yes")
    assert stamps(site) == before


def cut(path: Path) -> None:
    path.write_bytes(b"")


def add(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"#")


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [("misrc/site/gate/gate.py", cut), ("misrc/site/gate/gate.py", add), ("misrc/site/gate/gate.py", os.unlink)]
    + [("misrc/site/gate/__pycache__/gate.*.pyc", damage) for damage in (cut, os.unlink)],
)
def test_a_damaged_program_is_named_and_mended(site: Site, pattern: str, damage: Callable[[Path], None]) -> None:
    """A source or a compiled file that is cut, changed or gone: `install` says it, and puts a whole program there."""
    whole = {str(path.relative_to(site.code)): path.read_bytes() for path in site.code.rglob("*") if path.is_file()}
    assert "the program" not in install(site, "--dry-run"), "positive control: nothing to do"
    damage(next(site.code.glob(pattern)))
    assert "the program" in install(site, "--dry-run")
    install(site, "--yes")
    assert site.gate(b"hello").status == 0
    mended = {str(path.relative_to(site.code)): path.read_bytes() for path in site.code.rglob("*") if path.is_file()}
    assert mended.keys() == whole.keys() and all(mended[n] == whole[n] for n in whole if n.endswith(".py"))
