"""Declared arguments: choices or a pattern, and nothing else reaches a program's argv."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List, Mapping, Optional, Tuple

from .descriptions import described

MAX_VALUE_BYTES = 4096
MAX_ARGUMENTS = 64


class ArgumentRefused(ValueError):
    """An argument that was not declared, or a value that its declaration does not allow."""


@dataclass(frozen=True)
class ArgumentRule:
    """One argument: exactly one of `choices` and `pattern` (a Python regular expression for the whole value)."""

    choices: Optional[Tuple[str, ...]] = described("the values that are allowed", None)
    pattern: Optional[str] = described("or a regular expression that the whole value matches", None)
    default: Optional[str] = described("the value where MInt gives none", None)

    def __post_init__(self) -> None:
        if (self.choices is None) == (self.pattern is None):
            raise ValueError("an argument needs either choices or a pattern")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"the pattern does not compile: {error}") from None
        if self.default is not None and not self.allows(self.default):
            raise ValueError("the default is not allowed by its own rule")

    def allows(self, value: str) -> bool:
        """Whether `value` may reach the program."""
        if "\0" in value or len(value.encode("utf-8", "surrogatepass")) > MAX_VALUE_BYTES:
            return False
        if self.choices is not None:
            return value in self.choices
        return re.fullmatch(self.pattern or "", value) is not None


def fill_arguments(rules: Mapping[str, ArgumentRule], given: Mapping[str, str]) -> "dict[str, str]":
    """Every declared argument with its value, in declared order; raises ArgumentRefused naming the argument."""
    for name in given:
        if name not in rules:
            raise ArgumentRefused(f"argument {name!r} is not declared")
    filled = {}
    for name, rule in rules.items():
        value = given.get(name, rule.default)
        if value is None:
            raise ArgumentRefused(f"argument {name!r} is missing")
        if not rule.allows(value):
            raise ArgumentRefused(f"argument {name!r} has a value that is not allowed")
        filled[name] = value
    return filled


def argument_words(filled: Mapping[str, str]) -> List[str]:
    """The words after the program's name, in declared order."""
    return list(filled.values())
