"""Tokens: who somebody is and what they may do, without the server knowing any secret.

A token is 64 random characters (more than 380 bits), shown once. The store keeps its SHA-256: a slow, salted hash is
for passwords that people choose; nobody can guess a value of this length, and a plain hash can be looked up, so that
neither the work nor the time depends on how much of a token is right.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from ..declare.interface import API_USER
from ..job.errors import BadRequest
from ..job.names import SITE_ID
from . import notifier
from .database import Database, Transaction
from .schema import TOKENS

LENGTH = 64
ALPHABET = string.ascii_letters + string.digits
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
WORKFLOW, AGENT, OPERATOR = "workflow", "agent", "operator"
SCOPES = (WORKFLOW, AGENT, OPERATOR)
_WELL_FORMED = re.compile(rb"[A-Za-z0-9]{64}")


@dataclass(frozen=True)
class Token:
    """One token as the store knows it. Times are Unix seconds."""

    number: int
    name: str
    owner: str
    scopes: tuple[str, ...]
    sites: tuple[str, ...]
    digest: str
    created: float
    expires: float | None
    revoked: float | None

    def holds(self, now: float) -> bool:
        """Whether it counts now."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def make_token() -> str:
    """A new secret."""
    return "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))


def digest_token(token: bytes) -> str | None:
    """What the store keeps of it; None for what cannot be a token."""
    return hashlib.sha256(token).hexdigest() if _WELL_FORMED.fullmatch(token) else None


def add_token(
    tx: Transaction,
    name: str,
    owner: str,
    scopes: tuple[str, ...],
    sites: tuple[str, ...] = (),
    expires: float | None = None,
    secret: str | None = None,
) -> str:
    """A new token; its secret is returned and kept nowhere. `secret` takes over one that exists already."""
    _check(name, owner, scopes, sites)
    if tx.connection.execute(select(TOKENS.c.number).where(TOKENS.c.name == name)).first():
        raise BadRequest(f"a token named {name} exists already")
    secret = secret or make_token()
    digest = digest_token(secret.encode("utf-8", "surrogateescape"))
    if digest is None:
        raise BadRequest("a token has 64 letters and digits")
    tx.connection.execute(
        insert(TOKENS).values(
            name=name,
            owner=owner,
            scopes=" ".join(scopes),
            sites=" ".join(sites),
            digest=digest,
            created=tx.now,
            expires=expires,
        )
    )
    tx.notify(notifier.TOKENS)
    return secret


def _check(name: str, owner: str, scopes: tuple[str, ...], sites: tuple[str, ...]) -> None:
    if not re.fullmatch(NAME, name, re.ASCII):
        raise BadRequest("a token's name has letters, digits and . _ -")
    if not re.fullmatch(API_USER, owner, re.ASCII):
        raise BadRequest("a user's name has letters, digits and . _ @ -")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise BadRequest(f"a token needs a scope: {', '.join(SCOPES)}")
    if not all(re.fullmatch(SITE_ID, site, re.ASCII) for site in sites):
        raise BadRequest("a site id is not well formed")
    if (AGENT in scopes) != bool(sites):
        raise BadRequest("an agent's token names its sites, and no other token does")


def revoke_token(tx: Transaction, name: str) -> None:
    """It counts no longer, from this moment on; done twice is fine."""
    row = tx.connection.execute(select(TOKENS).where(TOKENS.c.name == name)).first()
    if row is None:
        raise BadRequest(f"there is no token named {name}")
    if row.revoked is None:
        tx.connection.execute(update(TOKENS).where(TOKENS.c.name == name).values(revoked=tx.now))
        tx.notify(notifier.TOKENS)


def list_tokens(connection: Connection) -> list[Token]:
    """All that were ever made, oldest first."""
    return [_token(row) for row in connection.execute(select(TOKENS).order_by(TOKENS.c.number))]


def _find(connection: Connection, digest: str) -> Token | None:
    row = connection.execute(select(TOKENS).where(TOKENS.c.digest == digest)).first()
    return None if row is None else _token(row)


def _token(row: Any) -> Token:
    values = dict(row._mapping)
    return Token(**{**values, "scopes": tuple(values["scopes"].split()), "sites": tuple(values["sites"].split())})


class TokenBook:
    """The tokens in memory, read again when one was added or revoked, by whatever process."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._stamp = -1
        self._known: dict[str, Token] = {}

    async def find(self, secret: bytes) -> Token | None:
        """The token that counts now, or None; looked up by its digest."""
        stamp = self._database.notifier.stamp(notifier.TOKENS)
        if stamp != self._stamp:
            known = await self._database.read(list_tokens)
            self._known, self._stamp = {token.digest: token for token in known}, stamp
        digest = digest_token(secret)
        if digest is None:
            return None
        # What is not known here may have been made by another process just now.
        token = self._known.get(digest) or await self._database.read(lambda connection: _find(connection, digest))
        return token if token is not None and token.holds(self._clock()) else None
