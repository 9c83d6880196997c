"""The list of fault points is the source's, and a test strikes each of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest
from conftest import ROOT
from faultpoints import GROUPS, STRIKERS

pytestmark = pytest.mark.quick

API = ROOT / "src/misrc/api"
LISTED = {name for names in GROUPS.values() for name in names}
# The records and ledger lines of a job are many, and each has the same three points: the listed ones stand for them.
# `test_resilience_faults.py` strikes every passage of them.
FAMILIES = [f"{kind}.{{}}.{step}" for kind in ("record", "ledger") for step in ("before", "written", "after")]


def calls(name: str) -> Iterator[tuple[Path, ast.expr]]:
    """The first argument of each call of a function or method of this name in the source."""
    for path in (ROOT / "src/misrc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and path.name != "faults.py":
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called == name:
                    yield path, node.args[0]


def named() -> set[str]:
    """What the source names; `{}` is what a name takes from a value."""
    found = set()
    for path, word in calls("reach"):
        if isinstance(word, ast.JoinedStr):
            found.add("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in word.values))
        else:
            assert isinstance(word, ast.Constant), f"{path}: the name of a fault point is written out"
            found.add(str(word.value))
    return found


def wanted() -> set[str]:
    """The names that must be listed: the source's, with every value that the source gives them."""
    labels = {str(word.value) for path, word in calls("write") if API in path.parents and is_label(word)}
    assert {"register", "claim", "end"} <= labels
    values = {
        "api": sorted(labels),
        "transfer": ["in", "return"],
        "legacy": ["announced", "started", "ended", "sent", "done"],
        "verb": ["hello", "open", "put", "start", "wait", "get", "cancel", "close"],
    }
    found: set[str] = set()
    for name in named() - set(FAMILIES):
        found |= {name.format(value) for value in values[name.partition(".")[0]]} if "{}" in name else {name}
    return found


def is_label(word: ast.expr) -> TypeGuard[ast.Constant]:
    return isinstance(word, ast.Constant) and isinstance(word.value, str) and word.value.isidentifier()


def test_every_fault_point_is_struck_by_a_test() -> None:
    """A new fault point fails here until a test of its own, or one of the groups, strikes it."""
    assert wanted() - LISTED == set()


def test_every_listed_point_exists() -> None:
    """A name that the source no longer has would be armed in vain."""
    patterns = [re.escape(family).replace(r"\{\}", ".+") for family in FAMILIES]
    spare = {name for name in LISTED - wanted() if not any(re.fullmatch(pattern, name) for pattern in patterns)}
    assert spare == set()
    assert set(FAMILIES) <= named()


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_every_group_has_its_test(group: str) -> None:
    """The test that is named for a group exists, and takes its points from the list."""
    file, _, test = STRIKERS[group].partition("::")
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    decorated = rf'points\("{group}"\)\)\n(@.*\n)*def {test}\('
    inside = rf'def {test}\((.|\n(?!\ndef))*check_all_struck\("{group}"'
    assert re.search(decorated, text) or re.search(inside, text), f"{STRIKERS[group]} does not strike {group}"


def test_the_list_names_nothing_twice() -> None:
    """One group strikes a point once, and every group has somebody who strikes it."""
    assert set(GROUPS) == set(STRIKERS)
    assert all(len(names) == len(set(names)) for names in GROUPS.values())
