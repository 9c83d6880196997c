#!/usr/bin/python3
"""Write the final deck XX.inp: what the site lets out of its base model, the cyclic curve, the steps.

XX.inp goes back to MInt, the base model must not. So nothing of the base model is copied: it is read, and
only what RELEASED names is written anew - nodes, elements, the four sets below and the elastic constants,
which together tell where a stress is and let MInt run the deck again. Comments, heading, material name and
whatever else the site puts into its model stay behind, because they are never on the list; an unknown keyword
stops the job, it does not leak.

Units: mm, MPa.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cyclic_curve import BadInput, CyclicCurve, TensileTest, estimate, read_tensile_test

RELEASED = {
    "*NODE": "*NODE, NSET=ALL",
    "*ELEMENT, TYPE=CAX8R, ELSET=SOLID": "*ELEMENT, TYPE=CAX8R, ELSET=SOLID",
    "*ELSET, ELSET=NOTCH": "*ELSET, ELSET=NOTCH",
    "*ELSET, ELSET=LOADED": "*ELSET, ELSET=LOADED",
    "*NSET, NSET=SYMMETRY": "*NSET, NSET=SYMMETRY",
    "*NSET, NSET=AXIS": "*NSET, NSET=AXIS",
    "*ELASTIC": "*ELASTIC",
}
KEPT_BACK = ("*HEADING", "*MATERIAL")

NUMBERS = re.compile(r"[-+0-9.eE, ]+")
# Loads at the ends of the steps, in amplitudes: the second one of `cyclic` shows the residual stress.
ANALYSES = {"elastic": (1.0,), "cyclic": (1.0, 0.0, 1.0)}


@dataclass
class Base:
    """The released blocks of a base model, as lines of numbers."""

    blocks: dict[str, list[str]] = field(default_factory=dict)

    def young_poisson(self) -> tuple[float, float]:
        young, poisson = self.blocks["*ELASTIC"][0].split(",")
        return float(young), float(poisson)

    def area_ratio(self) -> float:
        """Net over gross section: the load acts on the gross one, the amplitude is named for the net one."""
        radius = {}
        for line in self.blocks["*NODE"]:
            number, r, _ = line.split(",")
            radius[int(number)] = float(r)
        symmetry = [int(n) for line in self.blocks["*NSET, NSET=SYMMETRY"] for n in line.split(",")]
        return (max(radius[n] for n in symmetry) / max(radius.values())) ** 2


def read_base(path: Path) -> Base:
    base = Base()
    block: list[str] = []
    with path.open(encoding="ascii") as source:
        for line in map(str.strip, source):
            if line.startswith("**"):
                continue
            if line.startswith("*"):
                block = []
                keyword = next((k for k in RELEASED if line in (k, RELEASED[k])), None)
                if keyword:
                    base.blocks[keyword] = block
                elif line.split(",")[0] not in KEPT_BACK:
                    raise BadInput("the base model has a keyword that is not on the list of released ones")
            else:
                block.append(line)
    if missing := [keyword for keyword in RELEASED if not base.blocks.get(keyword)]:
        raise BadInput(f"the base model lacks {missing[0]}")
    # Free text under a released keyword would leave with it.
    if not all(NUMBERS.fullmatch(line) for lines in base.blocks.values() for line in lines):
        raise BadInput("the base model has something other than numbers where only numbers may leave")
    return base


def material(base: Base, curve: CyclicCurve, analysis: str) -> Iterator[str]:
    young, poisson = base.young_poisson()
    yield "*MATERIAL, NAME=SPECIMEN"
    yield "*ELASTIC"
    yield f"{young:.1f}, {poisson:g}"
    if analysis == "cyclic":
        # Isotropic on purpose: with kinematic hardening, results of ccx 2.20 change with the increments, even
        # for one element pulled once. On the cyclic curve the first peak is that of the stabilised loop; the
        # valley of a reversed load is its mirror image (Masing), and unloading is taken as elastic.
        yield "*PLASTIC, HARDENING=ISOTROPIC"
        yield from (f"{stress:.6f}, {strain:.9f}" for stress, strain in curve.table())
    yield "*SOLID SECTION, ELSET=SOLID, MATERIAL=SPECIMEN"
    yield "1."


def step(traction: float, analysis: str) -> Iterator[str]:
    """One static step of unit time up to a traction (MPa, tension positive) at the loaded end."""
    yield "*STEP" if analysis == "elastic" else "*STEP, INC=400"
    yield "*STATIC"
    if analysis == "cyclic":
        yield "0.25, 1., 1e-4, 0.25"
    yield "*DLOAD, OP=NEW"
    yield f"LOADED, P3, {-traction:.9g}"
    # Only at the end of a step, and only near the notch: the large model's results stay small.
    yield "*EL PRINT, ELSET=NOTCH, FREQUENCY=1000"
    yield "S"
    yield "*END STEP"


def check_amplitude(amplitude: float, analysis: str, test: TensileTest, curve: CyclicCurve) -> None:
    """The net section (MPa) must neither break nor, when cycled, flow as a whole: then no loop is stable."""
    if analysis == "cyclic":
        limit, name = curve.yield_strength, "0.2 % cyclic yield strength"
    else:
        limit, name = test.tensile_strength, "tensile strength"
    if not 0 < amplitude < limit:
        raise BadInput(f"amplitude must lie above 0 and below the {name} of {limit:.0f} MPa")


def deck(base: Base, test: TensileTest, analysis: str, amplitude: float) -> Iterator[str]:
    curve = estimate(test, base.young_poisson()[0])
    check_amplitude(amplitude, analysis, test, curve)
    yield "*HEADING"
    yield f"misrc sample, stress distribution: {analysis}, net section amplitude {amplitude:g} MPa"
    yield (
        f"** cyclic curve: K' {curve.strength:.1f} MPa, n' {curve.exponent:.4f}, 0.2 % cyclic yield "
        f"{curve.yield_strength:.1f} MPa, {curve.yield_strength / test.yield_strength:.2f} of the static one"
    )
    for keyword, heading in RELEASED.items():
        if keyword != "*ELASTIC":
            yield heading
            yield from base.blocks[keyword]
    yield from material(base, curve, analysis)
    yield "*BOUNDARY"
    yield "SYMMETRY, 2, 2"
    yield "AXIS, 1, 1"
    for load in ANALYSES[analysis]:
        yield from step(load * amplitude * base.area_ratio(), analysis)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the final deck of a job from the inputs here.")
    parser.add_argument("base", type=Path)
    parser.add_argument("analysis", choices=sorted(ANALYSES))
    parser.add_argument("amplitude", type=float, help="net section stress amplitude in MPa")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        test = read_tensile_test(Path("."))
        lines = list(deck(read_base(arguments.base), test, arguments.analysis, arguments.amplitude))
    except BadInput as error:
        print(f"stress_distribution: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        # Its name is the site's own, and this line may leave in a log.
        print(f"stress_distribution: base model: {error.strerror}", file=sys.stderr)
        return 1
    arguments.out.write_text("\n".join(lines) + "\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
