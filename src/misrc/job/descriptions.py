"""Keys that describe themselves: what a key of a declaration means stands where the key is defined, and nowhere else.

`docs/site.md` shows the same words in its tables; a test holds the two equal.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, List, Optional, Tuple

NEEDED = "needed"


def described(meaning: str, default: Any = dataclasses.MISSING, shown: Optional[str] = None) -> Any:
    """A dataclass field with its meaning, one line of Markdown; `shown` is how people read its default.

    A callable default makes a new value each time.
    """
    words = {"meaning": meaning, "shown": _show(default) if shown is None else shown}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=words)
    if callable(default):
        factory: Callable[[], Any] = default
        return dataclasses.field(default_factory=factory, metadata=words)
    return dataclasses.field(default=default, metadata=words)


def _show(default: Any) -> str:
    if default is dataclasses.MISSING:
        return NEEDED
    if default is None or default == () or callable(default):
        return "none"
    return f"`{str(default).lower()}`" if isinstance(default, (bool, str)) else str(default)


def describe(cls: type) -> List[Tuple[str, str, str]]:
    """Every key of a described dataclass: its name in a file, its meaning, its default as people read it."""
    return [
        (field.name.rstrip("_"), field.metadata.get("meaning", ""), field.metadata.get("shown", ""))
        for field in dataclasses.fields(cls)
    ]
