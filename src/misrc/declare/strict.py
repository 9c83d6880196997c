"""What every part of a declaration is: frozen, without unknown keys, and matched as a whole."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def match(pattern: str, value: str, what: str) -> str:
    """The value, if the whole of it matches; ValueError otherwise."""
    if not re.fullmatch(pattern, value, re.ASCII):
        raise ValueError(f"{what} is not well formed")
    return value


def explain(error: ValidationError) -> tuple[str, str]:
    """One fault of a declaration: the place of the key, and what is wrong with it, in words of our own.

    A misspelt key goes before the key that is missing for it.
    """
    first = min(error.errors(include_url=False, include_input=False), key=lambda e: e["type"] != "extra_forbidden")
    words = {"extra_forbidden": "unknown key", "missing": "is needed"}
    place = ".".join(str(part) for part in first["loc"])
    return place, words.get(first["type"], first["msg"].removeprefix("Value error, "))
