"""Private folders of MInt's processes: closed to others, gone with their process, and found again after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from misrc.mint import scratch

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR of the test's own, short enough for sockets, in which no folder is too young."""
    with tempfile.TemporaryDirectory() as made:
        monkeypatch.setattr(tempfile, "tempdir", made)
        monkeypatch.setattr(scratch, "YOUNG_SECONDS", 0.0)
        yield Path(made)


def test_what_a_killed_process_left_is_removed_and_a_living_one_keeps_its_own(place: Path) -> None:
    """The folder of a process that was killed goes, with what is in it; ours stays until we remove it."""
    script = (
        "import os, signal; from misrc.mint.scratch import make_scratch; (make_scratch() / 'token').write_text('x'); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    own = scratch.make_scratch()
    done = subprocess.run([sys.executable, "-c", script], env={"TMPDIR": str(place)}, check=False)
    assert done.returncode == -9 and len(list(place.iterdir())) == 2
    assert scratch.sweep_scratch() == 1 and list(place.iterdir()) == [own]
    assert scratch.sweep_scratch() == 0 and own.is_dir() and own.stat().st_mode & 0o777 == 0o700
    scratch.remove_scratch(own)
    assert list(place.iterdir()) == []


def test_a_young_folder_and_a_link_are_left_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may not be locked yet by the one who just made it; and no link is followed."""
    young = place / f"{scratch.PREFIX}young"
    young.mkdir()
    target = place / "elsewhere"
    target.mkdir()
    os.symlink(target, place / f"{scratch.PREFIX}link")
    monkeypatch.setattr(scratch, "YOUNG_SECONDS", 60.0)
    assert scratch.sweep_scratch() == 0 and young.is_dir()
    monkeypatch.setattr(scratch, "YOUNG_SECONDS", 0.0)
    assert scratch.sweep_scratch() == 1 and not young.exists() and target.is_dir()
