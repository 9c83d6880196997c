"""`misrc site show`: every file that a declaration and a policy imply, and what they do not promise."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ...declare.inventory import load_policy
from ...declare.renderers import Subject, render_all
from ...job.errors import BadRequest
from ...job.policy import Policy
from ...job.public_keys import parse_public_key
from ..keys import public_file
from ..messages.catalog import say
from ..places import existing, jump_identity, next_identity
from .declarations import Declaration, find_declaration

# In what a user install is weaker than a root install; the words are in `messages/site`.
WEAKNESSES = ("account", "ledger", "other_jobs", "limits", "processes", "sshd", "network", "deletion")


def show_site(site: str, inventory: str | None, policy: str | None, as_json: bool) -> int:
    """`misrc site show`."""
    declaration = find_declaration(site, inventory)
    rules = load_policy(Path(policy)) if policy else None
    try:
        files = render_all(_subject(declaration, rules))
    except ValueError as error:
        raise BadRequest(f"{declaration.path}: {error}") from None
    weak = list(WEAKNESSES) if rules is None or rules.install == "user" else []
    sentences = [say(f"weaker.{name}") for name in weak]
    if as_json:
        print(json.dumps({"site": site, "files": [asdict(file) for file in files], "weaker": sentences}))
        return 0
    for file in files:
        print(f"# {say(f'show.{file.side}')}: {file.path} ({file.mode})")
        print(file.text)
    if rules is None:
        print(f"# {say('show.no_policy')}")
    if sentences:
        print(f"# {say('show.weaker')}")
        print("\n".join(f"# - {sentence}" for sentence in sentences))
    return 0


def _subject(declaration: Declaration, policy: Policy | None) -> Subject:
    """Public halves are read, never the private keys: whoever looks may not be allowed to."""
    identity = declaration.identity_place()
    following = next_identity(identity)
    return Subject(
        declaration.site,
        str(identity),
        existing(following),
        existing(jump_identity(identity)),
        _read_public_file(identity),
        _read_public_file(following),
        policy,
    )


def _read_public_file(private: Path) -> str | None:
    try:
        return parse_public_key(public_file(private).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
