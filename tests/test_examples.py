"""The examples that people copy are correct."""

from __future__ import annotations

from pathlib import Path

import pytest

from misrc.declare.inventory import load_sites

pytestmark = pytest.mark.quick
ROOT = Path(__file__).resolve().parents[1]


def test_the_example_inventory_parses() -> None:
    """`inventories/example` is accepted as it stands."""
    assert list(load_sites(ROOT / "inventories/example")) == ["company-b", "univ-a"]
