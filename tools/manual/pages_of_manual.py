"""The manual's pages, in their order. A page that does not exist (yet) is left out of the contents."""

from __future__ import annotations

TITLES = {"en": "misrc manual", "ja": "misrc マニュアル"}

# After `index`. Each exists as docs/NAME.md and docs/ja/NAME.md.
PAGES = (
    "operations",
    "provision",
    "site",
    "modules",
    "serve",
    "agent",
    "auditors",
    "predecessor",
    "troubleshooting",
    "reference",
    "terms",
)

# Pages for whoever changes the code or reviews it: English alone, as the code and its comments are.
DEVELOPERS = ("design", "attacks", "api")
