"""The interface of one site as the running code needs it: what both parties know, already checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Tuple

from .arguments import ArgumentRule

REQUIRED = "required"
OPTIONAL = "optional"


@dataclass(frozen=True)
class PortInterface:
    """What MInt shows of one port, and how the module's script takes it."""

    descriptor: Optional[str] = None
    description: Optional[str] = None
    unit: Optional[str] = None
    default: Optional[str] = None
    alias: Optional[str] = None
    argument: Optional[str] = None
    direction: Optional[str] = None
    required: bool = True


@dataclass(frozen=True)
class ModuleInterface:
    """How a program appears in MInt as a module. `before` and `after` are commands here, as lists of words."""

    model: str
    version: str
    date: str
    creator: str
    path: str
    id: Optional[str] = None
    creator_id: Optional[str] = None
    description: str = ""
    solver: str = ""
    before: Tuple[Tuple[str, ...], ...] = ()
    after: Tuple[Tuple[str, ...], ...] = ()
    ports: Mapping[str, PortInterface] = field(default_factory=dict)


@dataclass(frozen=True)
class ProgramInterface:
    """One program as both parties name it. Input and output names may be globs; the value says required | optional."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, ArgumentRule] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    title: Mapping[str, str] = field(default_factory=dict)
    command: Optional[str] = None
    ports: Mapping[str, str] = field(default_factory=dict)
    module: Optional[ModuleInterface] = None


@dataclass(frozen=True)
class Retry:
    """How often, and how many seconds apart, one call is tried again while staging, starting and fetching."""

    count: int = 5
    interval: float = 60.0


SSH = "ssh"
WEBAPI = "webapi"


@dataclass(frozen=True)
class Interface:
    """One site. Durations in seconds. `address` and what belongs to it is an ssh site's, `api_` a webapi site's."""

    id: str
    method: str
    programs: Mapping[str, ProgramInterface]
    address: str = ""
    port: int = 22
    user: str = ""
    host_keys: Tuple[str, ...] = ()
    proxy_jump: Optional[str] = None
    jump_keys: Tuple[str, ...] = ()
    socks4: Optional[str] = None
    retry: Retry = field(default_factory=Retry)
    give_up_after: float = 72 * 3600.0
    valid_until: Optional[str] = None
    contact_site: str = ""
    contact_mint: str = ""
    receipt_keys: Tuple[str, ...] = ()
    identity: Optional[str] = None
    api_url: str = ""
    api_user: str = ""
    api_ca: Optional[str] = None
    api_token: Optional[str] = None
    signed: bool = False
    legacy_ids: Tuple[str, ...] = ()
