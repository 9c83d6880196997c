"""The language of the person who called: apart from the messages, which a quick command need not load."""

from __future__ import annotations

import os


def language() -> str:
    """`ja` or `en`: MISRC_LANG, else the locale of messages."""
    for name in ("MISRC_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(name)
        if value:
            return "ja" if value.lower().startswith("ja") else "en"
    return "en"
