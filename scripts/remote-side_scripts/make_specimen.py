#!/usr/bin/python3
"""Write the site's base models: a round fatigue specimen with a circumferential U groove.

Half of the specimen above its symmetry plane, axisymmetric: x is the radius r, y the height z above the
groove root, both in mm. D = 10 mm, net diameter d = 7 mm, root radius 0.75 mm, half length 20 mm; stresses in
MPa.

The model is a flat deck (no parts, no instances) without load and without plasticity: `build_deck.py` adds
both. The same size always gives the same bytes, so a site can pin the hash of what its program reads.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

GROSS_RADIUS = 5.0
NET_RADIUS = 3.5
ROOT_RADIUS = 0.75
HALF_LENGTH = 20.0
CENTRE = NET_RADIUS + ROOT_RADIUS

YOUNG, POISSON = 206000.0, 0.3

# Invented. They stand for what a company writes into its decks and would never let go.
CONFIDENTIAL = (
    "CONFIDENTIAL - not to be disclosed outside the site",
    "drawing number: DWG-7731-B rev 4",
    "supplier: Kitakaze Special Steel, heat 20417",
    "project code name: HAYABUSA-KAI",
    "heat treatment: quench 862 degC oil, temper 541 degC 97 min",
)
MATERIAL_NAME = "KITAKAZE_KX9"


@dataclass(frozen=True)
class Size:
    """Numbers of elements: along the quarter arc, along the wall, away from the groove, up the shank."""

    arc: int
    wall: int
    depth: int
    shank: int


SIZES = {
    "small": Size(arc=16, wall=6, depth=16, shank=10),
    "medium": Size(arc=28, wall=10, depth=28, shank=14),
    "large": Size(arc=160, wall=60, depth=120, shank=60),
}

BIAS = 12.0  # last over first element length, away from the groove and up the shank


def graded(index: int, count: int) -> float:
    """Position in 0..1 of the half-step `index` of 0..2*count; a middle node lies midway between its ends."""
    if index % 2:
        return (graded(index - 1, count) + graded(index + 1, count)) / 2
    ratio = BIAS ** (1 / (count - 1))
    return float((ratio ** (index // 2) - 1) / (ratio**count - 1))


class Mesh:
    """A lattice of half-steps: i runs along the groove's contour from its root, j away from it.

    Every line of constant i is straight and leaves the groove at a right angle: the elements where the stress
    peaks are undistorted. The 45 degree line ends on the axis at height CENTRE; the lines beyond it go on
    up the shank to the loaded end.
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        self.corner = size.arc  # in half-steps, the line at 45 degrees
        self.width = 2 * (size.arc + size.wall)
        self.number = {key: count for count, key in enumerate(self._nodes(), start=1)}

    def height(self, i: int) -> int:
        return 2 * (self.size.depth + (self.size.shank if i >= self.corner else 0))

    def _nodes(self) -> Iterator[tuple[int, int]]:
        for i in range(self.width + 1):
            for j in range(self.height(i) + 1):
                if not (i % 2 and j % 2):
                    yield i, j

    def elements(self) -> Iterator[tuple[int, int]]:
        """Lower lattice corner of each element."""
        for i in range(0, self.width, 2):
            for j in range(0, min(self.height(i), self.height(i + 2)), 2):
                yield i, j

    def nodes_of(self, i: int, j: int) -> list[int]:
        """Corners counter-clockwise, then the middle nodes: the order of CAX8."""
        ring = ((0, 0), (2, 0), (2, 2), (0, 2), (1, 0), (2, 1), (1, 2), (0, 1))
        return [self.number[i + di, j + dj] for di, dj in ring]

    def place(self, i: int, j: int) -> tuple[float, float]:
        """(r, z) of a lattice point in mm."""
        near, far = self._ends(i)
        if j <= 2 * self.size.depth:
            share = graded(j, self.size.depth)
            return near[0] + share * (far[0] - near[0]), near[1] + share * (far[1] - near[1])
        share = graded(j - 2 * self.size.depth, self.size.shank)
        return far[0], CENTRE + share * (HALF_LENGTH - CENTRE)

    def _ends(self, i: int) -> tuple[tuple[float, float], tuple[float, float]]:
        if i > 2 * self.size.arc:
            r = CENTRE + (GROSS_RADIUS - CENTRE) * (i - 2 * self.size.arc) / (2 * self.size.wall)
            return (r, ROOT_RADIUS), (r, CENTRE)
        angle = math.pi / 4 * i / self.size.arc
        near = (CENTRE - ROOT_RADIUS * math.cos(angle), ROOT_RADIUS * math.sin(angle))
        if i <= self.corner:
            return near, (0.0, CENTRE * math.tan(angle))
        return near, (CENTRE - CENTRE / math.tan(angle), CENTRE)


def rows(numbers: list[int]) -> Iterator[str]:
    for start in range(0, len(numbers), 10):
        yield ", ".join(map(str, numbers[start : start + 10]))


def deck(size: Size) -> Iterator[str]:
    """Lines of the base model."""
    mesh = Mesh(size)
    elements = {key: count for count, key in enumerate(mesh.elements(), start=1)}
    places = {key: mesh.place(*key) for key in mesh.number}
    end = [n for key, n in elements.items() if key[1] + 2 == mesh.height(key[0] + 2) > 2 * size.depth]
    # A third of the way inwards: where the stress peaks, and small enough to print for every step.
    notch = [n for key, n in elements.items() if key[1] < 2 * (size.depth // 3)]

    yield "*HEADING"
    yield f"Base model, {CONFIDENTIAL[3]}"
    yield from (f"** {line}" for line in CONFIDENTIAL)
    yield "*NODE, NSET=ALL"
    yield from (f"{mesh.number[key]}, {r:.9f}, {z:.9f}" for key, (r, z) in places.items())
    yield "*ELEMENT, TYPE=CAX8R, ELSET=SOLID"
    yield from (", ".join(map(str, [n, *mesh.nodes_of(*key)])) for key, n in elements.items())
    yield "*ELSET, ELSET=NOTCH"
    yield from rows(notch)
    yield "*ELSET, ELSET=LOADED"
    yield from rows(end)
    yield "*NSET, NSET=SYMMETRY"
    yield from rows([n for key, n in mesh.number.items() if key[0] == 0])
    yield "*NSET, NSET=AXIS"
    yield from rows([mesh.number[key] for key, (r, _) in places.items() if r < 1e-9])
    yield f"*MATERIAL, NAME={MATERIAL_NAME}"
    yield "*ELASTIC"
    yield f"{YOUNG:.1f}, {POISSON}"


def write_atomically(path: Path, lines: Iterator[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    out: TextIO
    with temporary.open("w", encoding="ascii", newline="\n") as out:
        out.writelines(f"{line}\n" for line in lines)
    os.replace(temporary, path)


def main() -> int:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Write the base models of the sample.")
    parser.add_argument("--into", type=Path, default=here.parent / "input_data", help="default: %(default)s")
    parser.add_argument("sizes", nargs="*", metavar="size", help=f"{', '.join(SIZES)}; default: all")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sizes if name not in SIZES]
    if unknown:
        parser.error(f"no such size: {unknown[0]}")
    for name in arguments.sizes or SIZES:
        write_atomically(arguments.into / name / "base.inp", deck(SIZES[name]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
