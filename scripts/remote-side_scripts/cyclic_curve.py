#!/usr/bin/python3
"""Estimate the cyclic stress-strain curve of a steel from a tensile test.

Method: the modified universal slopes of U. Muralidharan and S. S. Manson, "A modified universal slopes
equation for estimation of fatigue characteristics of metals", J. Eng. Mater. Technol. 110 (1988) 55-58. With
the tensile strength S (MPa), Young's modulus E (MPa) and the fracture ductility D = -ln(1 - RA/100):

    strain amplitude = sigma_f'/E (2N)^b + eps_f' (2N)^c
    sigma_f' = 0.623 E (S/E)^0.832          b = -0.09
    eps_f'   = 0.0196 D^0.155 (S/E)^-0.53   c = -0.56

Elimination of the life 2N (compatibility) gives the Ramberg-Osgood curve, in true stress and plastic strain:

    stress amplitude = K' (plastic strain amplitude)^n',   n' = b/c = 0.1607,   K' = sigma_f' / eps_f'^n'

The yield strength does not enter these formulas. It serves two ends: it shows a mistaken input (a yield above
the tensile strength), and it says whether the steel softens or hardens when it is cycled. An estimate
replaces no test.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

B, C = -0.09, -0.56
EXPONENT = B / C

# A power law has no sharp yield; a solver needs one. Below this plastic strain the steel is taken as elastic.
ELASTIC_LIMIT_OFFSET = 1e-4
LARGEST_PLASTIC_STRAIN = 0.2
POINTS_PER_DECADE = 6

NUMBER = re.compile(rb"[0-9]{1,6}(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,2})?")
LARGEST_INPUT = 64
TENSILE_RANGE = (100.0, 3000.0)  # MPa; beyond it the input is a mistake of units, not a steel


class BadInput(ValueError):
    """An input that this program must refuse, with the one line to show."""


@dataclass(frozen=True)
class TensileTest:
    """Reduction of area (per cent), tensile strength and yield strength (MPa)."""

    reduction_area: float
    tensile_strength: float
    yield_strength: float

    def __post_init__(self) -> None:
        low, high = TENSILE_RANGE
        if not 0 < self.reduction_area < 100:
            raise BadInput(f"reduction of area must lie between 0 and 100 %, not {self.reduction_area:g}")
        if not low <= self.tensile_strength <= high:
            raise BadInput(f"tensile strength must lie in {low:g} to {high:g} MPa, not {self.tensile_strength:g}")
        if not 0 < self.yield_strength <= self.tensile_strength:
            raise BadInput(
                f"yield strength must lie between 0 and the tensile strength, not {self.yield_strength:g} MPa"
            )


@dataclass(frozen=True)
class CyclicCurve:
    """Stress amplitude = strength (MPa) * plastic strain amplitude ** exponent."""

    strength: float
    exponent: float

    def stress(self, plastic_strain: float) -> float:
        """True stress amplitude in MPa."""
        return float(self.strength * plastic_strain**self.exponent)

    @property
    def elastic_limit(self) -> float:
        """Stress in MPa at which the table starts: 0.01 % plastic strain."""
        return self.stress(ELASTIC_LIMIT_OFFSET)

    @property
    def yield_strength(self) -> float:
        """Cyclic yield strength in MPa, by the usual 0.2 % offset."""
        return self.stress(0.002)

    def table(self) -> list[tuple[float, float]]:
        """Rows of *PLASTIC: true stress (MPa), plastic strain, in even steps of log strain."""
        decades = math.log10(LARGEST_PLASTIC_STRAIN / ELASTIC_LIMIT_OFFSET)
        steps = math.ceil(decades * POINTS_PER_DECADE)
        strains = [ELASTIC_LIMIT_OFFSET * 10 ** (decades * k / steps) for k in range(1, steps + 1)]
        return [(self.elastic_limit, 0.0)] + [(self.stress(strain), strain) for strain in strains]


def estimate(test: TensileTest, young: float) -> CyclicCurve:
    """The cyclic curve; Young's modulus in MPa."""
    ratio = test.tensile_strength / young
    ductility = -math.log1p(-test.reduction_area / 100)
    fatigue_strength = 0.623 * young * ratio**0.832
    fatigue_ductility = 0.0196 * ductility**0.155 * ratio**-0.53
    return CyclicCurve(strength=fatigue_strength / fatigue_ductility**EXPONENT, exponent=EXPONENT)


def read_number(path: Path) -> float:
    """The one number of an input file. It comes from outside: only a plain decimal number passes."""
    try:
        with path.open("rb") as source:
            text = source.read(LARGEST_INPUT + 1)
    except OSError as error:
        raise BadInput(f"{path.name}: {error.strerror}") from None
    if len(text) > LARGEST_INPUT or not NUMBER.fullmatch(text.strip()):
        raise BadInput(f"{path.name}: not a number")
    return float(text)


def read_tensile_test(directory: Path) -> TensileTest:
    names = ("reduction_area.dat", "tensile_strength.dat", "yield_strength.dat")
    return TensileTest(*(read_number(directory / name) for name in names))


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the cyclic curve: stress (MPa), plastic strain.")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("."))
    parser.add_argument("--young", type=float, default=206000.0, help="MPa; default: %(default)s")
    arguments = parser.parse_args()
    try:
        curve = estimate(read_tensile_test(arguments.directory), arguments.young)
    except BadInput as error:
        print(f"cyclic_curve: {error}", file=sys.stderr)
        return 1
    for stress, strain in curve.table():
        print(f"{stress:.6f}, {strain:.9f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
