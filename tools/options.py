"""The table of a role's options in its README, rendered from its argument_specs: tools/options.py [ROLE…]

Without names all roles. `meta/argument_specs.yml` is the source; a test holds README.md and defaults/main.yml equal.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[1] / "roles"
BEGIN, END = "<!-- options -->", "<!-- end of options -->"
Specs = dict[str, dict[str, Any]]


def read_specs(role: Path) -> Specs:
    """The entry points of a role with their options."""
    specs: Specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    return specs


def render_table(specs: Specs) -> str:
    """The options of `main` as a Markdown table, between the two marks."""
    lines = [BEGIN, "", "| option | type | default | meaning |", "|---|---|---|---|"]
    for name, option in specs["main"].get("options", {}).items():
        lines += _render_option(name, option)
    return "\n".join([*lines, "", END])


def _render_option(name: str, option: dict[str, Any], prefix: str = "") -> list[str]:
    kind = option.get("type", "str") + (f" of {option['elements']}" if "elements" in option else "")
    needed = "needed" if option.get("required") else "–"
    default = f"`{json.dumps(option['default'], ensure_ascii=False)}`" if "default" in option else needed
    choices = f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}." if "choices" in option else ""
    row = f"| `{prefix}{name}` | {kind} | {default} | {_text(option['description'])}{choices} |"
    below = option.get("options", {}).items()
    return [row, *(line for key, value in below for line in _render_option(key, value, f"{prefix}{name}."))]


def _text(description: str | list[str]) -> str:
    text = " ".join(description) if isinstance(description, list) else description
    return re.sub(r"\b[CVOI]\(([^)]*)\)", r"`\1`", " ".join(text.split())).replace("|", "\\|")


def replace_table(readme: str, table: str) -> str:
    """The README with its table replaced; ValueError where the marks are missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README needs the lines {BEGIN} and {END}")
    return before + table + after


def main() -> None:
    """Write the tables."""
    for role in [ROLES / name for name in sys.argv[1:]] or sorted(ROLES.iterdir()):
        path = role / "README.md"
        path.write_text(
            replace_table(path.read_text(encoding="utf-8"), render_table(read_specs(role))), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
