"""What every part of a declaration is: frozen, without unknown keys, and matched as a whole."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def match(pattern: str, value: str, what: str) -> str:
    """The value, if the whole of it matches; ValueError otherwise."""
    if not re.fullmatch(pattern, value, re.ASCII):
        raise ValueError(f"{what} is not well formed")
    return value
