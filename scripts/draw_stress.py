#!/usr/bin/env python3
"""The module after the remote one: reads the returned stress distribution, draws it, and names its peak.

    draw_stress.py --応力分布データ XX.dat --Abaqus入力データ XX.inp [--応力分布図 FIELD.png] [--最大応力 PEAK.txt]

A module of MInt's own: it uses no site. ASCII names of the ports: dat, inp, png, peak. The picture shows the von Mises
stress of the step with the largest peak, in the meridian plane of the specimen (r to the right, z upwards); the mesh
of which no stresses were returned is grey. Needs Pillow (`pip install misrc[picture]`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report_stress as stress

PORTS = {"応力分布データ": "dat", "Abaqus入力データ": "inp", "応力分布図": "png", "最大応力": "peak"}
WIDTH, HEIGHT, MARGIN, BAR = 1100, 760, 70, 150
# Each element is drawn as this many cells by as many, of one colour each.
CELLS = 6
# From low to high: blue, cyan, green, yellow, red, as finite-element people are used to.
COLOURS = ((49, 54, 149), (69, 170, 200), (120, 190, 90), (250, 220, 80), (190, 25, 35))

Point = tuple[float, float]


class Field(NamedTuple):
    """The von Mises stress at the nodes of the elements of one step."""

    peak: stress.Peak
    at_nodes: dict[int, float]
    elements: list[int]


def find_field(deck: stress.Deck, path: Path) -> Field:
    """The step with the largest stress."""
    best: Field | None = None
    for step, (time, table) in enumerate(stress.read_tables(path, deck), 1):
        if step > stress.MOST_TABLES:
            raise stress.Malformed(f"{path.name}: too many tables")
        peak = stress.find_peak(step, time, table, deck)
        if best is None or peak.von_mises > best.peak.von_mises:
            best = Field(peak, average(deck, table), list(table))
    if best is None:
        raise stress.Malformed(f"{path.name}: no stresses")
    return best


def average(deck: stress.Deck, table: stress.Table) -> dict[int, float]:
    """Each component extrapolated to the corners and averaged over the elements that share a node."""
    sums: dict[int, list[float]] = {}
    for element, points in table.items():
        for node, values in zip(deck.corners[element], stress.at_corners(points)):
            total = sums.setdefault(node, [0.0] * 5)
            for k, value in enumerate((*values, 1.0)):
                total[k] += value
    return {node: stress.von_mises(tuple(v / total[4] for v in total[:4])) for node, total in sums.items()}


def colour(share: float) -> tuple[int, int, int]:
    """The colour of a value between 0 and 1."""
    place = min(max(share, 0.0), 1.0) * (len(COLOURS) - 1)
    index = min(int(place), len(COLOURS) - 2)
    low, high, rest = COLOURS[index], COLOURS[index + 1], place - index
    red, green, blue = (round(a + (b - a) * rest) for a, b in zip(low, high))
    return red, green, blue


def blend(corners: Sequence[tuple[float, ...]], u: float, v: float) -> tuple[float, ...]:
    """Bilinear between the four corners of an element."""
    weights = ((1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v)
    return tuple(sum(w * corner[k] for w, corner in zip(weights, corners)) for k in range(len(corners[0])))


class Picture:
    """A canvas on which a part of the meridian plane is drawn."""

    def __init__(self, places: list[Point]) -> None:
        from PIL import Image, ImageDraw, ImageFont

        low, high = (min(r for r, _ in places), min(z for _, z in places)), max(r for r, _ in places)
        top = max(z for _, z in places)
        if not (high > low[0] and top > low[1]):
            raise stress.Malformed("XX.inp: the elements have no extent")
        self.origin = low
        self.scale = min((WIDTH - BAR - 2 * MARGIN) / (high - low[0]), (HEIGHT - 2 * MARGIN) / (top - low[1]))
        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(20)

    def place(self, point: tuple[float, ...]) -> Point:
        """From millimetres to pixels."""
        r, z = point[0] - self.origin[0], point[1] - self.origin[1]
        return MARGIN + r * self.scale, HEIGHT - MARGIN - z * self.scale

    def outline(self, corners: list[tuple[float, ...]]) -> None:
        """An element without stresses, if it is not far away."""
        places = [self.place(corner) for corner in corners]
        if all(-WIDTH < x < 2 * WIDTH and -HEIGHT < y < 2 * HEIGHT for x, y in places):
            self.draw.polygon(places, fill="#eeeeee", outline="#cccccc")

    def fill(self, corners: Sequence[tuple[float, ...]], largest: float) -> None:
        """An element with the stress as third number of each corner."""
        ends = [n / CELLS for n in range(CELLS + 1)]
        for u, to_u in zip(ends, ends[1:]):
            for v, to_v in zip(ends, ends[1:]):
                cell = [blend(corners, *uv) for uv in ((u, v), (to_u, v), (to_u, to_v), (u, to_v))]
                shade = colour(sum(corner[2] for corner in cell) / 4 / largest)
                self.draw.polygon([self.place(corner) for corner in cell], fill=shade)

    def legend(self, field: Field) -> None:
        """Scale, title and the place of the peak."""
        left, top, bottom = WIDTH - BAR, MARGIN, HEIGHT - MARGIN
        for row in range(top, bottom):
            self.draw.line([(left, row), (left + 24, row)], fill=colour((bottom - row) / (bottom - top)))
        for tick in range(6):
            y = bottom - (bottom - top) * tick / 5
            text = f"{field.peak.von_mises * tick / 5:.0f}"
            self.draw.text((left + 32, y), text, "black", self.font, anchor="lm")
        self.draw.text((left, top - 20), "MPa", "black", self.font, anchor="ls")
        title = f"von Mises stress, step {field.peak.step}: largest {field.peak.von_mises:.2f} MPa"
        title += f" at r = {field.peak.r:.3f} mm, z = {field.peak.z:.3f} mm"
        self.draw.text((MARGIN, MARGIN - 20), title, "black", self.font, anchor="ls")
        x, y = self.place((field.peak.r, field.peak.z))
        self.draw.ellipse([(x - 7, y - 7), (x + 7, y + 7)], outline="black", width=2)


def draw_field(deck: stress.Deck, field: Field, target: Path) -> None:
    """Write the PNG."""
    inside = set(field.elements)
    near = [deck.nodes[node] for element in field.elements for node in deck.corners[element]]
    picture = Picture(near)
    for element, nodes in deck.corners.items():
        if element not in inside:
            picture.outline([deck.nodes[node] for node in nodes])
    for element in field.elements:
        corners = [(*deck.nodes[node], field.at_nodes[node]) for node in deck.corners[element]]
        picture.fill(corners, field.peak.von_mises)
    # What reaches beyond the frame is covered, so that title and scale stand on white.
    for box in (((0, 0), (WIDTH, MARGIN)), ((0, 0), (MARGIN, HEIGHT)), ((WIDTH - BAR - 20, 0), (WIDTH, HEIGHT))):
        picture.draw.rectangle(list(box), fill="white")
    picture.draw.rectangle([(0, HEIGHT - MARGIN), (WIDTH, HEIGHT)], fill="white")
    picture.legend(field)
    picture.image.save(target, "PNG", optimize=True)


def parse_words(words: list[str]) -> dict[str, Path]:
    """The ports, by their ASCII names."""
    if len(words) % 2:
        raise stress.Malformed("ports come in pairs: --PORT FILE")
    found = {}
    for name, value in zip(words[::2], words[1::2]):
        port = PORTS.get(name[2:], name[2:])
        if not name.startswith("--") or port not in PORTS.values():
            raise stress.Malformed(f"there is no port {name}")
        found[port] = Path(value)
    for port in ("dat", "inp"):
        if port not in found:
            raise stress.Malformed(f"the port {port} is missing")
    return found


def main() -> int:
    try:
        ports = parse_words(sys.argv[1:])
        deck = stress.read_deck(ports["inp"])
        field = find_field(deck, ports["dat"])
        if "peak" in ports:
            peak = field.peak
            text = f"{peak.von_mises:.2f} MPa at r = {peak.r:.4f} mm, z = {peak.z:.4f} mm, step {peak.step}\n"
            ports["peak"].write_text(text, encoding="utf-8")
        if "png" in ports:
            draw_field(deck, field, ports["png"])
    except (stress.Malformed, OSError) as error:
        print(f"draw_stress: {error}", file=sys.stderr)
        return 1
    except ImportError:
        print("draw_stress: a picture needs Pillow: pip install misrc[picture]", file=sys.stderr)
        return 1
    print(f"largest von Mises stress {field.peak.von_mises:.2f} MPa")
    return 0


if __name__ == "__main__":
    sys.exit(main())
