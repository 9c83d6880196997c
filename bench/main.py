"""Run one benchmark by name; print a table, or one JSON object."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import overhead
import polls
import start_delay
import throughput
import transfer
import waiting

BENCHES = {
    "ssh-overhead": overhead.measure,
    "ssh-throughput": throughput.measure,
    "start-delay": start_delay.measure,
    "waiting": waiting.measure,
    "polls": polls.measure,
    "transfer": transfer.measure,
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHES))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--pairs", type=int, help="how many pairs (or jobs) to measure")
    options = parser.parse_args()
    results = BENCHES[options.name](options.pairs)
    if options.json:
        print(json.dumps({"name": options.name, "results": results}))
        return 0
    print(f"{options.name}")
    for row in results:
        better = "lower is better" if row["better"] == "lower" else "higher is better"
        print(f"  {row['case']:<18} {row['value']:>10.3f} {row['unit']:<8} ({better})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
