"""The module after the remote one: the peak and the picture of stresses that another organisation returned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/draw_stress.py"
NODES = [(1, 0), (2, 0), (2, 1), (1, 1), (1.5, 0), (2, 0.5), (1.5, 1), (1, 0.5)]
AXIAL = {1: 0.0, 2: 100.0}


def write_results(folder: Path, nodes: list[tuple[float, float]], values: dict[int, float] | None = None) -> None:
    """A deck of one element, or of two beside each other, each under one axial stress; `values` by element."""
    values = values or {1: 100.0}
    lines, elements = ["*NODE, NSET=ALL"], ["*ELEMENT, TYPE=CAX8R, ELSET=SOLID"]
    table = [" stresses (elem, integ.pnt.,sxx,syy,szz,sxy,sxz,syz) for set NOTCH and time  0.1000000E+01", ""]
    for index, (element, value) in enumerate(values.items()):
        first = index * 8
        lines += [f"{first + n}, {r + index}, {z}" for n, (r, z) in enumerate(nodes, 1)]
        elements.append(f"{element}, " + ", ".join(str(first + n) for n in range(1, 9)))
        table += [f"{element} {point} 0.0 {value} 0.0 0.0 0.0 0.0" for point in range(1, 9)]
    (folder / "XX.inp").write_text("\n".join([*lines, *elements]) + "\n", encoding="ascii")
    (folder / "XX.dat").write_text("\n".join(table) + "\n", encoding="ascii")


def draw(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    given = words or ("--応力分布データ", "XX.dat", "--inp", "XX.inp", "--応力分布図", "f.png", "--peak", "p.txt")
    command = [sys.executable, str(SCRIPT), *given]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_picture_shows_where_the_stress_is(tmp_path: Path) -> None:
    """Two elements, one without stress and one at the peak: blue on the left, red on the right, white around."""
    from PIL import Image

    write_results(tmp_path, NODES, AXIAL)
    done = draw(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.txt").read_text(encoding="utf-8").startswith("100.00 MPa at r = ")
    with Image.open(tmp_path / "f.png") as image:
        width, height = image.size
        shades = [image.getpixel((x, height - 150)) for x in range(0, width - 170)]
    blue, red = shades.index((49, 54, 149)), shades.index((190, 25, 35))
    assert shades[0] == (255, 255, 255) and 0 < blue < red


def test_equal_results_give_equal_pictures(tmp_path: Path) -> None:
    """The picture follows from the results alone."""
    write_results(tmp_path, NODES)
    assert draw(tmp_path).returncode == 0
    first = (tmp_path / "f.png").read_bytes()
    assert draw(tmp_path).returncode == 0
    assert (tmp_path / "f.png").read_bytes() == first


@pytest.mark.parametrize("nodes", [[(1.0, 1.0)] * 8, [(1.0, z) for _, z in NODES]])
def test_a_mesh_without_extent_is_refused(tmp_path: Path, nodes: list[tuple[float, float]]) -> None:
    """One line, no picture, no traceback."""
    write_results(tmp_path, nodes)
    done = draw(tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("draw_stress: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "f.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--応力分布データ", "XX.dat"),
        ("--dat", "XX.dat", "--inp"),
        ("--dat", "XX.dat", "--inp", "XX.inp", "--other", "x"),
        ("--dat", "nothing", "--inp", "XX.inp"),
        ("--dat", "XX.inp", "--inp", "XX.dat"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A missing, an unknown and a wrong port, each in one line with exit 1."""
    write_results(tmp_path, NODES)
    done = draw(tmp_path, *words)
    assert done.returncode == 1 and done.stderr.startswith("draw_stress: ") and done.stderr.count("\n") == 1
