#!/usr/bin/env python3
"""Report the largest von Mises stress of a returned stress distribution: XX.dat and XX.inp.

XX.dat holds stresses at integration points, which lie inside the elements, while the peak lies on the
surface. As a finite-element post-processor does, each component is extrapolated bilinearly from the 2 x 2
points of an element to its corners and averaged over the elements that share a node; von Mises follows from
the averages.

The files come from another organisation: sizes and counts are bounded, nothing of them is shown but numbers.
Units: mm, MPa. x of the deck is the radius r, y the height z above the notch root.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

LARGEST_FILE = 256 * 2**20
LONGEST_LINE = 1024
MOST_NODES = 2_000_000
MOST_ELEMENTS = 1_000_000
MOST_TABLES = 1000
LARGEST_NUMBER = 1e12

HEADER = re.compile(r" *stresses \(elem, *integ\.pnt\.,.*\) for set \S+ and time +(\S+)")
FORTRAN = re.compile(r"([-+]?[0-9]*\.?[0-9]+)([-+][0-9]{3})")  # 1.0-101: no room for the E

Stress = tuple[float, ...]  # radial, axial, hoop, shear in the r-z plane
Table = dict[int, dict[int, Stress]]  # by element and integration point

# Natural coordinates of a corner, in units of those of the integration points, and the order of both in ccx.
ROOT3 = math.sqrt(3.0)
CORNERS = ((-1, -1), (1, -1), (1, 1), (-1, 1))
POINTS = ((-1, -1), (1, -1), (-1, 1), (1, 1))
WEIGHTS = [[(1 + ROOT3 * a * p) * (1 + ROOT3 * b * q) / 4 for p, q in POINTS] for a, b in CORNERS]


class Malformed(ValueError):
    """A file that is not what it should be, with the one line to show."""


@dataclass(frozen=True)
class Deck:
    """Places of the nodes and corner nodes of the elements."""

    nodes: dict[int, tuple[float, float]]
    corners: dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Peak:
    """The largest von Mises stress of one step, and the stress state there."""

    step: int
    time: float
    von_mises: float
    r: float
    z: float
    node: int
    element: int
    radial: float
    axial: float
    hoop: float
    shear: float


def number(text: str) -> float:
    value = float(FORTRAN.sub(r"\1E\2", text) if FORTRAN.fullmatch(text) else text)
    if not abs(value) < LARGEST_NUMBER:  # nor NaN
        raise ValueError("neither a length nor a stress")
    return value


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a regular file of bounded size."""
    try:
        # A link or a pipe in place of a result must neither be followed nor waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Malformed(f"{path.name}: {error.strerror}") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
        os.close(handle)
        raise Malformed(f"{path.name}: not a file of at most {LARGEST_FILE >> 20} MiB")
    with os.fdopen(handle, encoding="ascii", newline="\n") as source:
        count = 0
        try:
            while line := source.readline(LONGEST_LINE + 1):
                count += 1
                if len(line) > LONGEST_LINE:
                    raise ValueError("too long")
                yield count, line.rstrip("\r\n")
        except ValueError:
            raise Malformed(f"{path.name}: line {count + 1} or before is not plain text") from None


def read_deck(path: Path) -> Deck:
    deck = Deck({}, {})
    keyword = ""
    for count, line in lines_of(path):
        if line.startswith("*"):
            if not line.startswith("**"):
                keyword = line.replace(" ", "").upper()
            continue
        fields = line.split(",")
        try:
            if keyword.startswith("*NODE,"):
                name, r, z = fields
                deck.nodes[int(name)] = (number(r), number(z))
            elif keyword.startswith("*ELEMENT,TYPE=CAX8"):
                element, *nodes = map(int, fields)
                if len(nodes) != 8 or not all(node in deck.nodes for node in nodes):
                    raise ValueError("not an eight-node element")
                deck.corners[element] = tuple(nodes[:4])
        except ValueError:
            raise Malformed(f"{path.name}: line {count} is not a node or an element") from None
        if len(deck.nodes) > MOST_NODES or len(deck.corners) > MOST_ELEMENTS:
            raise Malformed(f"{path.name}: too many nodes or elements")
    if not deck.corners:
        raise Malformed(f"{path.name}: no axisymmetric elements")
    return deck


def read_tables(path: Path, deck: Deck) -> Iterator[tuple[float, Table]]:
    """Each stress table: its time; per element and integration point radial, axial, hoop and shear stress."""
    time = 0.0
    table: Table | None = None
    for count, line in lines_of(path):
        fields = line.split()
        if not fields:
            continue
        try:
            if not fields[0].isdigit():
                if table:
                    yield time, table
                header = HEADER.fullmatch(line)
                time, table = (number(header[1]), {}) if header else (0.0, None)
            elif table is not None:
                element, point = int(fields[0]), int(fields[1])
                if element not in deck.corners or not 1 <= point <= 8 or len(fields) != 8:
                    raise ValueError("not a stress")
                table.setdefault(element, {})[point] = tuple(map(number, fields[2:6]))
        except ValueError:
            raise Malformed(f"{path.name}: line {count} is not a stress of this deck") from None
    if table:
        yield time, table


def von_mises(stress: Stress) -> float:
    radial, axial, hoop, shear = stress
    squares = (radial - axial) ** 2 + (axial - hoop) ** 2 + (hoop - radial) ** 2
    return math.sqrt(squares / 2 + 3 * shear**2)


def at_corners(points: dict[int, Stress]) -> list[Stress]:
    """Stress at the four corners of an element.

    ccx makes a thin wedge of an axisymmetric element; points 1-4 and 5-8 lie on either side of its middle.
    """
    middle = [[(a + b) / 2 for a, b in zip(points[k], points[k + 4])] for k in (1, 2, 3, 4)]
    return [tuple(sum(w * s[c] for w, s in zip(weights, middle)) for c in range(4)) for weights in WEIGHTS]


def find_peak(step: int, time: float, table: Table, deck: Deck) -> Peak:
    sums: dict[int, list[float]] = {}
    highest: dict[int, tuple[float, int]] = {}
    for element, points in table.items():
        if len(points) != 8:
            raise Malformed("XX.dat: an element lacks integration points")
        for node, stress in zip(deck.corners[element], at_corners(points)):
            total = sums.setdefault(node, [0.0] * 5)
            for k, value in enumerate((*stress, 1.0)):
                total[k] += value
            highest[node] = max(highest.get(node, (-1.0, 0)), (von_mises(stress), element))
    mean = {node: tuple(value / total[4] for value in total[:4]) for node, total in sums.items()}
    node = max(mean, key=lambda key: von_mises(mean[key]))
    r, z = deck.nodes[node]
    return Peak(step, time, von_mises(mean[node]), r, z, node, highest[node][1], *mean[node])


def report(directory: Path) -> list[Peak]:
    """One peak for each step; the deck prints one table at the end of each."""
    deck = read_deck(directory / "XX.inp")
    peaks: list[Peak] = []
    for time, table in read_tables(directory / "XX.dat", deck):
        if len(peaks) == MOST_TABLES:
            raise Malformed("XX.dat: too many tables")
        peaks.append(find_peak(len(peaks) + 1, time, table, deck))
    if not peaks:
        raise Malformed("XX.dat: no stresses")
    return peaks


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the largest von Mises stress and where it is.")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("."), help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="all steps, for programs")
    arguments = parser.parse_args()
    try:
        peaks = report(arguments.directory)
    except Malformed as error:
        print(f"report_stress: {error}", file=sys.stderr)
        return 1
    largest = max(peaks, key=lambda peak: peak.von_mises)
    if arguments.json:
        print(json.dumps({"largest": asdict(largest), "steps": [asdict(peak) for peak in peaks]}, indent=2))
    else:
        print(
            f"largest von Mises stress {largest.von_mises:.2f} MPa "
            f"at r = {largest.r:.4f} mm, z = {largest.z:.4f} mm "
            f"(node {largest.node}, element {largest.element}), step {largest.step}, time {largest.time:g}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
