"""Each role says the same thing three times: in its argument_specs, its defaults and its README."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import misrc

pytestmark = pytest.mark.quick
ROOT = Path(__file__).resolve().parents[1]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("options", ROOT / "tools/options.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


options = load_tool()


def declared_defaults(specs: dict[str, Any]) -> dict[str, Any]:
    """The defaults of all entry points; one option has one default."""
    found: dict[str, Any] = {}
    for entry in specs.values():
        for name, option in entry.get("options", {}).items():
            if "default" in option:
                assert found.setdefault(name, option["default"]) == option["default"], name
    return found


def test_there_are_roles() -> None:
    """The tests below have something to look at."""
    assert "mint_node" in [role.name for role in ROLES]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_are_the_declared_ones(role: Path) -> None:
    """defaults/main.yml holds exactly the options that have a default, with that default."""
    path = role / "defaults/main.yml"
    defaults = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    assert (defaults or {}) == declared_defaults(options.read_specs(role))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_option_bears_its_roles_name_and_a_meaning(role: Path) -> None:
    """Options begin with the role's name, have a type and a description."""
    for entry in options.read_specs(role).values():
        for name, option in entry.get("options", {}).items():
            assert name.startswith(f"{role.name}_"), name
            assert option.get("type") and option.get("description"), name


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_readme_has_the_table_of_the_declared_options(role: Path) -> None:
    """README.md is as tools/options.py would write it."""
    text = (role / "README.md").read_text(encoding="utf-8")
    assert text == options.replace_table(text, options.render_table(options.read_specs(role)))


def test_a_difference_is_seen(tmp_path: Path) -> None:
    """Positive control: another default changes both what the defaults and what the table must be."""
    specs = options.read_specs(ROOT / "roles/mint_node")
    table, defaults = options.render_table(specs), declared_defaults(specs)
    specs["main"]["options"]["mint_node_user"]["default"] = "other"
    assert options.render_table(specs) != table and declared_defaults(specs) != defaults


def test_the_node_gets_the_version_that_provisions_it() -> None:
    """The role's default version is this version."""
    assert options.read_specs(ROOT / "roles/mint_node")["main"]["options"]["mint_node_version"]["default"] == (
        misrc.__version__
    )
