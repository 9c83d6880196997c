"""`misrc token` and `misrc store`, beside a server that runs or not."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from ..declare.server import Server, load_server
from ..job.codec import dump_json
from ..job.errors import BadRequest
from ..job.names import SITE_ID
from ..job.quantities import parse_duration
from . import backup
from .database import Database, Transaction
from .notifier import Notifier
from .sites import Sites
from .tokens import Token, add_token, list_tokens, revoke_token

T = TypeVar("T")


def _with_store(config: str, work: Callable[[Transaction], T]) -> T:
    database = Database(load_server(Path(config)).database, Notifier())
    database.prepare()
    try:
        return database.write_now(work)
    finally:
        database.close()


def find_ids(server: Server, names: list[str]) -> list[str]:
    """The ids of sites, where a name that only old clients use may stand for one. A site may be declared later."""
    sites = Sites(server.inventory, server.ini)
    try:
        sites.load()
    except BadRequest:
        if all(re.fullmatch(SITE_ID, name, re.ASCII) for name in names):
            return names
        raise
    found = map(sites.by_name, names)
    return [name if site is None else site.id for name, site in zip(names, found, strict=True)]


def add(
    config: str, name: str, user: str, scopes: list[str], sites: list[str], expires: str | None, read: bool = False
) -> int:
    """Make a token and print it, this once; `read` takes one that exists from standard input instead."""
    secret = None
    if read:
        if sys.stdin.isatty():
            raise BadRequest("--take reads the token from a pipe or a file, so that it never stands on a screen")
        secret = sys.stdin.readline(256).strip()
    try:
        end = None if expires is None else time.time() + parse_duration(expires)
    except ValueError as error:
        raise BadRequest(f"--expires: {error}") from None
    named = tuple(dict.fromkeys(find_ids(load_server(Path(config)), sites)))
    made = _with_store(config, lambda tx: add_token(tx, name, user, tuple(dict.fromkeys(scopes)), named, end, secret))
    if not read:
        print(made)
    return 0


def revoke(config: str, name: str) -> int:
    """The token counts no longer: running servers see it within a second."""
    _with_store(config, lambda tx: revoke_token(tx, name))
    return 0


def show(config: str, as_json: bool) -> int:
    """All tokens, without anything that would let somebody in."""
    for token in _with_store(config, lambda tx: list_tokens(tx.connection)):
        plain = {key: value for key, value in asdict(token).items() if key not in ("digest", "number")}
        print(dump_json(plain).decode() if as_json else _line(token))
    return 0


def back_up(config: str, folder: str, keep: int) -> int:
    """Write a backup, and print where it lies."""
    print(backup.back_up(load_server(Path(config)), Path(folder), keep))
    return 0


def restore(config: str, folder: str) -> int:
    """Put a backup in place, and say what is not in it."""
    note = backup.restore(load_server(Path(config)), Path(folder))
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(note.time))
    print(f"restored as of {moment}: {note.jobs} jobs with files, {note.files} files, {note.bytes} bytes")
    print("Tokens that were revoked after that count again: see misrc token list")
    return 0


def _line(token: Token) -> str:
    state = "valid" if token.holds(time.time()) else ("revoked" if token.revoked is not None else "expired")
    sites = f" ({', '.join(token.sites)})" if token.sites else ""
    end = "" if token.expires is None else time.strftime("  until %Y-%m-%d", time.gmtime(token.expires))
    return f"{token.name:<24} {state:<8} {token.owner:<16} {', '.join(token.scopes)}{sites}{end}"
