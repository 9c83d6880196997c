"""What misrc costs beside the predecessor's SSH sequence: no-op program, three inputs of 2 kB, results verified."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from relay import Relay
from stage import Mint, PlainHost, Row, make_mint, median, paired, row, scene, timed

SEQUENCE = Path(__file__).with_name("seed_sequence.sh")
DELAY_MS = 25


def measure(pairs: int | None) -> list[Row]:
    """Median ratio `misrc run` / seed_sequence.sh, without and with 25 ms each way."""
    with scene() as (site, mint, root):
        plain = PlainHost(site, root)
        inputs = []
        for name in ("a", "b", "c"):
            path = root / name
            path.write_bytes(os.urandom(2000))
            inputs.append(str(path))
        try:
            rows = [_case("loopback", mint, plain, plain.port, inputs, pairs or 9)]
            with Relay(site.port, delay_ms=DELAY_MS) as ours, Relay(plain.port, delay_ms=DELAY_MS) as theirs:
                far = make_mint(root / "mint-far", site, ours.port)
                rows.append(_case("rtt50", far, plain, theirs.port, inputs, pairs or 9))
        finally:
            plain.close()
    return rows


def _case(case: str, mint: Mint, plain: PlainHost, port: int, inputs: list[str], pairs: int) -> Row:
    config = plain.client(port)
    results = mint.root / "plain-results"
    results.mkdir()

    def ours() -> float:
        words = [word for path in inputs for word in ("--in", f"{Path(path).name}={path}")]
        return timed(lambda: _must(mint.command("run", mint.site.name, "noop", *words, "--results", "out", "--new")))

    def theirs() -> float:
        argv = ["bash", str(SEQUENCE), config, "site", "echo done > out.dat", *inputs]
        return timed(lambda: _must(subprocess.run(argv, cwd=results, check=False, capture_output=True, text=True)))

    return row(case, median(paired(ours, theirs, pairs, case)), "ratio", "lower")


def _must(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, (done.args, done.stdout, done.stderr)
