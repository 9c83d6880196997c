"""Files on their way to MInt's side and at the site: what is hashed ahead, and how results become a folder."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from conftest import eventually, sha256

from misrc.job.following import Found
from misrc.job.manifest import Entry, identify, make_manifest
from misrc.mint import retrieval
from misrc.mint.link import arrival

pytestmark = pytest.mark.quick

FILES = {f"file-{number:04}": b"%d" % number for number in range(3 * arrival._RUN)}
MANIFEST = make_manifest(Entry(name, len(data), sha256(data)) for name, data in FILES.items())


def _write(folder: Path) -> None:
    for name, data in FILES.items():
        (folder / name).write_bytes(data)


def _arrive(folder: Path, write: bool = True) -> dict[str, Found]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        following = arrival.Arrival(descriptor, MANIFEST)
        if write:
            _write(folder)
            eventually(lambda: len(following._found) >= 2 * arrival._RUN, what="the files before the last ones")
        return following.finish()
    finally:
        os.close(descriptor)


def test_files_are_hashed_while_others_arrive(tmp_path: Path) -> None:
    """What is noted of a file is its size, its hash and its identity."""
    found = _arrive(tmp_path)
    for name, noted in found.items():
        assert (noted.size, noted.sha256) == (len(FILES[name]), hashlib.sha256(FILES[name]).hexdigest())
        assert noted.identity == identify((tmp_path / name).stat())


def test_what_changes_after_it_was_hashed_is_hashed_again(tmp_path: Path) -> None:
    """A note counts only for the file that was read: one that was replaced, or is a link now, has its own content."""
    name, other = list(FILES)[:2]
    found = _arrive(tmp_path)
    control = retrieval._list_arrived(tmp_path)
    assert retrieval._measure(control[name], 1, found[name]) == (1, sha256(FILES[name]))
    os.utime(tmp_path / name, ns=(0, 0))
    (tmp_path / "new").write_bytes(b"9")
    os.utime(tmp_path / "new", ns=(0, 0))
    (tmp_path / "new").rename(tmp_path / name)
    (tmp_path / other).unlink()
    (tmp_path / other).symlink_to(tmp_path / name)
    arrived = retrieval._list_arrived(tmp_path)
    assert retrieval._measure(arrived[name], 1, found[name]) == (1, sha256(b"9"))
    assert retrieval._measure(arrived[other], 1, found[other]) == (-1, "")


def test_nothing_is_hashed_ahead_over_an_older_transfer(tmp_path: Path) -> None:
    """rsync may write to files that a cut transfer left."""
    (tmp_path / "file-0000").write_bytes(b"")
    _write(tmp_path)
    assert _arrive(tmp_path, write=False) == {}


@pytest.mark.parametrize("hindrance", [None, "a file there", "a folder among them"])
def test_a_new_results_folder_takes_everything(tmp_path: Path, hindrance: str | None) -> None:
    """One rename gives it all files and the mode of any new folder, unless it is not empty or folders came along."""
    results = tmp_path / "results"
    arriving = retrieval._choose_folder(results, ".arriving")
    assert arriving.parent == tmp_path, "beside a folder that is still to be made"
    arriving.mkdir(mode=0o700)
    (arriving / "a").write_bytes(b"1")
    results.mkdir()
    mode = stat.S_IMODE(results.stat().st_mode)
    if hindrance == "a file there":
        (results / "b").write_bytes(b"2")
    elif hindrance:
        (arriving / "empty").mkdir()
    assert retrieval._replace_empty(results, arriving) is (hindrance is None)
    assert arriving.exists() is (hindrance is not None)
    if hindrance:
        retrieval._move_each(["a"], arriving, results)
    assert (results / "a").read_bytes() == b"1" and stat.S_IMODE(results.stat().st_mode) == mode
    assert not (results / "empty").exists()


def test_results_arrive_inside_a_folder_that_is_there(tmp_path: Path) -> None:
    """Its neighbours may be closed to us; and what a cut transfer left beside it is used up first."""
    assert retrieval._choose_folder(tmp_path, ".arriving") == tmp_path / ".arriving"
    (tmp_path.parent / ".arriving").mkdir()
    try:
        assert retrieval._choose_folder(tmp_path, ".arriving") == tmp_path.parent / ".arriving"
    finally:
        (tmp_path.parent / ".arriving").rmdir()
