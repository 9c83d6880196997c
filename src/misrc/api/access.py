"""Who is asking, and what may they do: a token's words, or those of MInt's gateway."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ..declare.interface import API_USER
from ..declare.server import Server
from ..wire.api import ApiError
from .call import Call
from .problems import Refused
from .proxies import is_within
from .sites import Sites
from .tokens import AGENT, TokenBook

_BEARER = re.compile(rb"[Bb]earer ([\x21-\x7e]{1,4096})")


@dataclass(frozen=True)
class Who:
    """Somebody who may call. `sites` are those whose jobs an agent may take; `token` is a token's name."""

    user: str
    scopes: tuple[str, ...]
    sites: tuple[str, ...]
    token: str

    def require(self, scope: str) -> None:
        """Refuse whoever lacks the scope."""
        if scope not in self.scopes:
            raise Refused(ApiError.FORBIDDEN, f"this needs the scope {scope}")

    def require_site(self, site: str) -> None:
        """Refuse an agent that does not serve this site."""
        self.require(AGENT)
        if site not in self.sites:
            raise Refused(ApiError.FORBIDDEN, "this token does not name that site")


class Access:
    """Finds out who is asking."""

    def __init__(self, server: Server, tokens: TokenBook, sites: Sites) -> None:
        self._tokens, self._sites = tokens, sites
        self._gateway = server.gateway
        self._sources = [] if server.gateway is None else [ipaddress.ip_network(n) for n in server.gateway.sources]

    async def find(self, call: Call) -> Who:
        """Who it is; Refused `unauthenticated` with the same words for every reason."""
        who = self._named_by_gateway(call) or await self._named_by_token(call)
        if who is None:
            raise Refused(ApiError.UNAUTHENTICATED, "a valid token is needed")
        return who

    async def _named_by_token(self, call: Call) -> Who | None:
        match = _BEARER.fullmatch(call.headers.get(b"authorization", b""))
        token = None if match is None else await self._tokens.find(match[1])
        return None if token is None else Who(token.owner, token.scopes, token.sites, token.name)

    def _named_by_gateway(self, call: Call) -> Who | None:
        """The header counts only from the gateway itself: whoever else sends it is asked for a token."""
        if self._gateway is None:
            return None
        user = call.headers.get(self._gateway.header.encode())
        if user is None or not is_within(call.client, self._sources):
            return None
        if self._gateway.header.encode() in call.duplicates:
            return None
        name = user.decode("latin-1")
        if not re.fullmatch(API_USER, name, re.ASCII):
            return None
        sites = self._sites.of_user(name) if AGENT in self._gateway.scopes else ()
        return Who(name, tuple(self._gateway.scopes), sites, "")
