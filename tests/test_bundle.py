"""The bundle: what is installed here, packed so that a host without any index installs the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from misrc.job.errors import BadRequest
from misrc.mint.packaging import bundle, wheels, zipapp

MISRC = Path(sys.executable).parent / "misrc"


def make_distribution(folder: Path) -> Distribution:
    """An installed distribution with a module, a command, a script of another kind and a page of a manual."""
    site = folder / "lib/python3/site-packages"
    base = site / "sample-1.0.dist-info"
    base.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "share/man").mkdir(parents=True)
    files = {
        "sample.py": b"VALUE = 1\n",
        "sample-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n",
        "sample-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py2-none-any\nTag: py3-none-any\n",
        "sample-1.0.dist-info/entry_points.txt": b"[console_scripts]\nsample = sample:main\n",
        "sample-1.0.dist-info/INSTALLER": b"pip\n",
        "../../../bin/sample": b"#!/here/bin/python\nmade by the installer\n",
        "../../../bin/sample-tool": b"#!/here/bin/python3.11\nprint(1)\n",
        "../../../share/man/sample.1": b"manual\n",
    }
    lines = []
    for name, data in files.items():
        (site / name).write_bytes(data)
        lines.append(f"{name},sha256={wheels._digest(data)},{len(data)}")
    (base / "RECORD").write_text("\n".join([*lines, "sample-1.0.dist-info/RECORD,,", ""]), encoding="utf-8")
    return Distribution.at(base)


@pytest.mark.quick
def test_a_wheel_holds_what_a_wheel_holds(tmp_path: Path) -> None:
    """Modules and metadata as they are, scripts without this Python, data in its place; what pip adds is left out."""
    distribution = make_distribution(tmp_path)
    assert wheels.name_wheel(distribution) == "sample-1.0-py2.py3-none-any.whl"
    path = tmp_path / "sample.whl"
    path.write_bytes(wheels.build_wheel(distribution))
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    assert set(found) == {
        "sample.py",
        "sample-1.0.data/scripts/sample-tool",
        "sample-1.0.data/data/share/man/sample.1",
        *(f"sample-1.0.dist-info/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "RECORD")),
    }
    assert found["sample-1.0.data/scripts/sample-tool"] == b"#!python\nprint(1)\n"
    record = found["sample-1.0.dist-info/RECORD"].decode()
    assert f"sample.py,sha256={wheels._digest(b'VALUE = 1' + bytes([10]))},10\n" in record
    assert len(record.splitlines()) == len(found)


@pytest.mark.quick
@pytest.mark.parametrize("harm", ["change", "remove"])
def test_what_is_not_what_was_installed_is_refused(tmp_path: Path, harm: str) -> None:
    """A changed or missing file is named, and no wheel is made; before the harm one was."""
    distribution = make_distribution(tmp_path)
    assert wheels.build_wheel(distribution)
    module = tmp_path / "lib/python3/site-packages/sample.py"
    module.write_bytes(b"VALUE = 2\n") if harm == "change" else module.unlink()
    with pytest.raises(BadRequest, match=r"'sample': sample\.py"):
        wheels.build_wheel(distribution)


@pytest.mark.quick
def test_what_no_wheel_was_installed_from_is_refused(tmp_path: Path) -> None:
    """A distribution without RECORD, as Debian's packages are, is named and refused."""
    distribution = make_distribution(tmp_path)
    (tmp_path / "lib/python3/site-packages/sample-1.0.dist-info/RECORD").unlink()
    with pytest.raises(BadRequest, match="'sample' was not installed from a wheel"):
        wheels.build_wheel(distribution)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as a folder, made by the installed command."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    subprocess.run([MISRC, "bundle", "--output", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


def test_the_bundle_is_complete_and_its_sums_cover_it(made: Path) -> None:
    """SHA256SUMS holds and names every other file, and misrc-site.pyz is the one that `site build` makes."""
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=made, check=True, capture_output=True
    )
    named = {line.split(": ")[0] for line in checked.stdout.decode().splitlines()}
    assert named == {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert (made / "misrc-site.pyz").read_bytes() == zipapp.build()


def test_the_same_installation_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    """A second bundle, as a tar file, holds the same bytes, and a third tar file equals the second."""
    first, second = tmp_path / "a.tar", tmp_path / "b.tar"
    bundle.write_bundle(first)
    bundle.write_bundle(second)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        for member in archive.getmembers():
            data = archive.extractfile(member)
            assert data is not None and data.read() == (made / member.name).read_bytes()


def test_a_folder_with_something_in_it_is_refused(made: Path) -> None:
    """Wheels of another version would be found beside the new ones: such a folder is named and left alone."""
    before = sorted(made.rglob("*"))
    done = subprocess.run([MISRC, "bundle", "--output", made], check=False, capture_output=True, text=True)
    assert done.returncode == 2 and str(made) in done.stderr
    assert sorted(made.rglob("*")) == before


def installed_hashes(python: Path, name: str) -> set[str]:
    """Names and hashes of the files that an installation recorded for a distribution, but the installer's own."""
    program = (
        "import importlib.metadata, sys\n"
        "for file in importlib.metadata.distribution(sys.argv[1]).files:\n"
        "    if file.suffix != '.pyc' and file.hash: print(file, file.hash.value)\n"
    )
    done = subprocess.run([python, "-I", "-c", program, name], check=True, capture_output=True, text=True)
    own = re.compile(r"^(\.\./.*|.*\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json)) ")
    return {line for line in done.stdout.splitlines() if not own.match(line)}


def test_a_host_without_a_network_installs_the_same(made: Path, tmp_path: Path) -> None:
    """Cut off every network, with no index and no configuration of pip, the bundle installs; the files are the same."""
    isolated = ["unshare", "-Urn"]
    if subprocess.run([*isolated, "true"], check=False, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("this machine lets no ordinary account leave the network; the scenario mint_node shows it too")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull, "LANG": "C.UTF-8"}
    venv = tmp_path / "venv"

    def run(*words: object) -> str:
        done = subprocess.run(
            [*isolated, *map(str, words)], check=False, capture_output=True, text=True, env=environment, cwd=made
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    base = getattr(sys, "_base_executable", sys.executable)
    run(base, "-m", "venv", venv)
    options = ("--no-index", "--find-links", "wheels", "--require-hashes", "-r", "requirements.txt")
    run(venv / "bin/pip", "install", "--quiet", *options)
    run(venv / "bin/pip", "check")
    assert run(venv / "bin/misrc", "--version").strip() == importlib.metadata.version("misrc")
    for part in bundle.find_needed():
        here = installed_hashes(Path(sys.executable), part.metadata["Name"])
        assert here and here == installed_hashes(venv / "bin/python", part.metadata["Name"])


def test_a_wheel_that_was_exchanged_is_not_installed(made: Path, tmp_path: Path) -> None:
    """pip compares each wheel with requirements.txt: another content under the right name is refused."""
    wheel = next((made / "wheels").glob("mdurl-*.whl"))
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(folder / wheel.name, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + (b"\n" if name.endswith("METADATA") else b""))
    line = next(line for line in (made / "requirements.txt").read_text().splitlines() if line.startswith("mdurl=="))
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in line
    (tmp_path / "requirements.txt").write_text(line + "\n", encoding="utf-8")

    def install(links: Path) -> int:
        words = ["download", "--no-deps", "--no-index", "--find-links", str(links), "--require-hashes", "-d", "out"]
        pip = [sys.executable, "-m", "pip", "--isolated", *words, "-r", "requirements.txt"]
        return subprocess.run(pip, check=False, capture_output=True, cwd=tmp_path).returncode

    assert install(folder) != 0
    assert install(made / "wheels") == 0
