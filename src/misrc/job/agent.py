"""What a site declares of its agent: where MInt's API server is, how it is reached and trusted, where the token lies.

The token itself is never in this file, nor on a command line.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Optional, Union

from .codec import FieldError, decode, parse_json
from .descriptions import described
from .quantities import parse_duration

MAX_CONFIG_BYTES = 64 << 10
# What a token may look like; whatever else stands in a token's file is not one.
TOKEN = r"[\x21-\x7e]{8,4096}"
# The name under which systemd passes the token's file (LoadCredential=).
CREDENTIAL = "token"
PROXY_CREDENTIAL = "proxy"
_URL = re.compile(r"(https?)://(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9.-]{1,253})(?::([0-9]{1,5}))?/?", re.ASCII)


@dataclass(frozen=True)
class Address:
    """Host and port of a server, taken from its URL."""

    scheme: str
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether it is this machine, by number: a name may be anybody's."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def shown(self) -> str:
        """`HOST:PORT`, as ledger and messages name it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """A URL that is nothing but scheme, host and port; ValueError otherwise."""
    match = _URL.fullmatch(url)
    port = int(match[3] or (443 if match[1] == "https" else 80)) if match else 0
    if match is None or not 1 <= port <= 65535:
        raise ValueError("must be https://HOST or https://HOST:PORT, and nothing more")
    return Address(match[1], match[2].strip("[]"), port)


@dataclass(frozen=True)
class RetryRule:
    """How often a call is tried again, where an old client would give up."""

    count: int = described("tries after the first", 5)
    interval: Union[int, float, str] = described("seconds between them, or a duration such as `60s`", 60)

    def __post_init__(self) -> None:
        if not 0 <= self.count <= 1000:
            raise FieldError("count", "must be from 0 to 1000")
        if not 0 <= self.seconds <= 86400:
            raise FieldError("interval", "must be between nothing and a day")

    @property
    def seconds(self) -> float:
        """The interval in seconds."""
        if not isinstance(self.interval, str):
            return float(self.interval)
        try:
            return float(parse_duration(self.interval))
        except ValueError as error:
            raise FieldError("interval", str(error)) from None


@dataclass(frozen=True)
class AgentConfig:
    """`agent.json`, the site's own, beside its policy."""

    url: str = described("MInt's API server, `https://HOST:PORT`; `http://` only for a loopback address")
    ca: Optional[str] = described(
        "file with the certificates that alone are trusted: MInt's own, or that of an inspecting proxy",
        None,
        "the system's",
    )
    proxy: Optional[str] = described("the company's proxy, `http://HOST:PORT`, asked by CONNECT", None)
    proxy_credentials: Optional[str] = described("private file with `USER:PASSWORD` for the proxy", None)
    token: Optional[str] = described(
        "private file with the token; systemd's credential `token` and the variable `MISRC_TOKEN` come first", None
    )
    protocol: str = described("`v2`; `legacy` for a server of the predecessor, which is asked again and again", "v2")
    known_as: Optional[str] = described("this site's id at a predecessor's server", None, "the site id")
    poll: int = described("seconds between two questions to a predecessor's server", 30)
    retry: RetryRule = described("for a predecessor's server; see below", RetryRule, "as below")  # noqa: RUF009
    reason: Optional[str] = described("why, for auditors", None)

    def __post_init__(self) -> None:
        _parse_field("url", self.url)
        if self.server.scheme == "http" and not self.server.loopback:
            raise FieldError("url", "must be https: without TLS anybody on the way could give orders")
        if self.proxy is not None and _parse_field("proxy", self.proxy).scheme != "http":
            raise FieldError("proxy", "must be http://HOST:PORT; TLS goes through it to the server itself")
        for name in ("ca", "proxy_credentials", "token"):
            value = getattr(self, name)
            if value is not None and (not value.startswith("/") or "\0" in value):
                raise FieldError(name, "must be an absolute path")
        if self.protocol not in ("v2", "legacy"):
            raise FieldError("protocol", "one of v2, legacy is needed")
        if self.known_as is not None and not re.fullmatch("[A-Za-z0-9._-]{1,128}", self.known_as, re.ASCII):
            raise FieldError("known_as", "must be letters, digits, '.', '_' and '-', at most 128")
        if not 1 <= self.poll <= 3600:
            raise FieldError("poll", "must be from 1 to 3600 seconds")

    @property
    def server(self) -> Address:
        """Where the API server is."""
        return parse_address(self.url)

    @property
    def via(self) -> Optional[Address]:
        """Where the proxy is, if there is one."""
        return None if self.proxy is None else parse_address(self.proxy)


def _parse_field(name: str, url: str) -> Address:
    try:
        return parse_address(url)
    except ValueError as error:
        raise FieldError(name, str(error)) from None


def parse_agent_config(data: bytes) -> AgentConfig:
    """Parse `agent.json`; raises CodecError naming the place."""
    if len(data) > MAX_CONFIG_BYTES:
        raise ValueError("the agent's configuration is longer than 64 KiB")
    return decode(AgentConfig, parse_json(data))
