"""MInt's declaration of a site: what both parties know. One YAML file per site in MInt's inventory."""

from __future__ import annotations

import datetime
import ipaddress
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ..job.arguments import ArgumentRule
from ..job.interface import Interface, ProgramInterface, Retry
from ..job.names import ARGUMENT_NAME, PROGRAM_NAME, SITE_ID, NameRefused, check_component
from ..job.public_keys import parse_public_key
from ..job.quantities import parse_duration
from .agreements import Agreement, Survey
from .module import Module, check_ports
from .strict import Strict
from .strict import match as _match

HOST_NAME = r"[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9-]{1,63}){0,10}"
USER_NAME = r"[a-z_][a-z0-9_-]{0,31}"
LEGACY_ID = r"[A-Za-z0-9._-]{1,128}"
API_USER = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"


def _check_host(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return _match(HOST_NAME, value, "the host name")


class Argument(Strict):
    """One argument of a program: choices or a pattern."""

    choices: Annotated[tuple[str, ...] | None, Field(description="The values that may be given.")] = None
    pattern: Annotated[str | None, Field(description="A regular expression for the whole value.")] = None
    default: Annotated[str | None, Field(description="The value where none is given.")] = None
    reason: Annotated[str | None, Field(description="Why, for auditors.")] = None

    def rule(self) -> ArgumentRule:
        """The rule that the running code applies."""
        return ArgumentRule(self.choices, self.pattern, self.default)

    @model_validator(mode="after")
    def _check(self) -> Argument:
        self.rule()
        return self


Need = Literal["required", "optional"]


class Program(Strict):
    """One program as both parties name it."""

    title: Annotated[dict[Literal["ja", "en"], str], Field(description="Its name for people.")] = {}
    command: Annotated[str | None, Field(description="The alias by which clients of the predecessor name it.")] = None
    inputs: Annotated[dict[str, Need], Field(description="File names (or patterns) that it takes.")] = {}
    arguments: Annotated[dict[str, Argument], Field(description="Arguments, in the order it takes them.")] = {}
    outputs: Annotated[dict[str, Need], Field(description="File names (or patterns) that come back.")] = {}
    ports: Annotated[dict[str, str], Field(description="MInt's port names and the files they stand for.")] = {}
    module: Annotated[Module | None, Field(description="How MInt's users meet it: the module made of it.")] = None
    reason: Annotated[str | None, Field(description="Why, for auditors.")] = None

    @model_validator(mode="after")
    def _check_ports(self) -> Program:
        check_ports(self.ports, self.module, self.inputs, self.outputs, self.arguments)
        return self

    @field_validator("inputs", "outputs")
    @classmethod
    def _check_names(cls, value: dict[str, Need]) -> dict[str, Need]:
        for name, need in value.items():
            plain = name.replace("**", "x").replace("*", "x").replace("?", "x")
            try:
                for component in plain.split("/"):
                    check_component(component)
            except NameRefused as error:
                raise ValueError(f"{name!r} {error}") from None
            if plain != name and need == "required":
                raise ValueError(f"{name!r} is a pattern, and a pattern can only be optional")
        return value

    @field_validator("inputs")
    @classmethod
    def _check_flat(cls, value: dict[str, Need]) -> dict[str, Need]:
        if any("/" in name for name in value):
            raise ValueError("inputs are flat: no folders")
        return value

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, value: dict[str, Argument]) -> dict[str, Argument]:
        for name in value:
            _match(ARGUMENT_NAME, name, f"the argument name {name!r}")
        return value

    def interface(self) -> ProgramInterface:
        """What the running code needs of it."""
        rules = {name: argument.rule() for name, argument in self.arguments.items()}
        return ProgramInterface(
            dict(self.inputs),
            rules,
            dict(self.outputs),
            {str(k): v for k, v in self.title.items()},
            self.command,
            dict(self.ports),
            self.module.interface() if self.module else None,
        )


class Via(Strict):
    """How MInt reaches a site that is not directly reachable."""

    proxy_jump: Annotated[str | None, Field(description="A jump host: [user@]host[:port].")] = None
    host_keys: Annotated[tuple[str, ...], Field(description="The jump host's own pinned keys.")] = ()
    socks4: Annotated[str | None, Field(description="A SOCKS4 proxy: host:port.")] = None

    @field_validator("proxy_jump", "socks4")
    @classmethod
    def _check(cls, value: str | None) -> str | None:
        if value is not None:
            _match(rf"({USER_NAME}@)?{HOST_NAME}(:[0-9]{{1,5}})?", value, "the host to go through")
        return value

    @field_validator("host_keys")
    @classmethod
    def _check_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_public_key(key) for key in value)

    @model_validator(mode="after")
    def _check_pins(self) -> Via:
        if self.proxy_jump and self.socks4:
            raise ValueError("proxy_jump and socks4 cannot be combined")
        if self.proxy_jump and not self.host_keys:
            raise ValueError("host_keys: a jump host needs at least one pinned host key of its own")
        if self.host_keys and not self.proxy_jump:
            raise ValueError("host_keys: these are the jump host's keys, and there is no proxy_jump")
        return self


class Api(Strict):
    """MInt's API server, for a site that asks it for work."""

    url: Annotated[str, Field(description="https://HOST[:PORT], or http:// on this host alone.")]
    user: Annotated[str, Field(description="Whose jobs this site's agent takes.")]
    ca: Annotated[str | None, Field(description="A file with the CA that signed its certificate.")] = None
    token_file: Annotated[str | None, Field(description="The token of that user; default `keys/SITE.token`.")] = None

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        return _match(
            rf"https://({HOST_NAME}|\[[0-9a-f:]+\])(:[0-9]{{1,5}})?|http://(127\.0\.0\.1|localhost)(:[0-9]{{1,5}})?",
            value,
            "the address of the API",
        )

    @field_validator("user")
    @classmethod
    def _check_user(cls, value: str) -> str:
        return _match(API_USER, value, "the user's name")

    @field_validator("ca", "token_file")
    @classmethod
    def _check_path(cls, value: str | None) -> str | None:
        return value if value is None else _match(r"/[^\x00-\x1f]{1,1000}", value, "the absolute path of the file")


class RetryRule(Strict):
    """How often one call is tried again while staging, starting and fetching."""

    count: Annotated[int, Field(ge=0, le=1000, description="Further tries.")] = 5
    interval: Annotated[float, Field(ge=0, le=86400, description="Seconds between tries.")] = 60.0


class Site(Strict):
    """One remote compute site."""

    id: Annotated[str, Field(description="The site's id.")]
    legacy_ids: Annotated[tuple[str, ...], Field(description="Names that old clients use.")] = ()
    method: Annotated[Literal["ssh", "webapi"], Field(description="How jobs get there.")]
    address: Annotated[str, Field(description="Host name or address; an ssh site needs it.")] = ""
    port: Annotated[int, Field(ge=1, le=65535, description="The port of its sshd.")] = 22
    user: Annotated[str, Field(description="The account that holds the gate.")] = "misrc"
    host_keys: Annotated[tuple[str, ...], Field(description="Pinned host keys; never learned on first use.")] = ()
    via: Annotated[Via, Field(description="Jump host or proxy.")] = Via()
    api: Annotated[Api | None, Field(description="MInt's API; a webapi site needs it.")] = None
    signed: Annotated[bool, Field(description="Sign this site's jobs with MInt's signing key.")] = False
    retry: Annotated[RetryRule, Field(description="Retries per call.")] = RetryRule()
    give_up_after: Annotated[int | str, Field(description="How long an unreachable site may keep a job waiting.")] = (
        "72h"
    )
    valid_until: Annotated[str | None, Field(description="No new jobs after this day (YYYY-MM-DD).")] = None
    receipt_keys: Annotated[tuple[str, ...], Field(description="Keys that sign the site's receipts.")] = ()
    contacts: Annotated[dict[Literal["site", "mint"], str], Field(description="Whom to ask.")] = {}
    agreements: Annotated[tuple[Agreement, ...], Field(description="Agreements in force, for the survey sheet.")] = ()
    survey: Annotated[Survey, Field(description="What else the survey sheet says; nothing that runs needs it.")] = (
        Survey()
    )
    programs: Annotated[dict[str, Program], Field(min_length=1, description="What may be run there.")]
    reason: Annotated[str | None, Field(description="Why, for auditors.")] = None

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str) -> str:
        return _match(SITE_ID, value, "the site id")

    @field_validator("legacy_ids")
    @classmethod
    def _check_legacy(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_match(LEGACY_ID, name, "a legacy id") for name in value)

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        return _check_host(value) if value else value

    @field_validator("user")
    @classmethod
    def _check_user(cls, value: str) -> str:
        if value == "root":
            raise ValueError("the gate never runs as root")
        return _match(USER_NAME, value, "the user name")

    @field_validator("host_keys", "receipt_keys")
    @classmethod
    def _check_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_public_key(key) for key in value)

    @field_validator("give_up_after")
    @classmethod
    def _check_duration(cls, value: int | str) -> int:
        return parse_duration(value)

    @field_validator("valid_until")
    @classmethod
    def _check_day(cls, value: str | None) -> str | None:
        if value is not None:
            _match(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", value, "the day")
            datetime.date.fromisoformat(value)
        return value

    @field_validator("programs")
    @classmethod
    def _check_programs(cls, value: dict[str, Program]) -> dict[str, Program]:
        for name in value:
            _match(PROGRAM_NAME, name, f"the program name {name!r}")
        return value

    @model_validator(mode="after")
    def _check_survey(self) -> Site:
        unknown = sorted(set(self.survey.programs) - set(self.programs))
        if unknown:
            raise ValueError(f"survey.programs: {unknown[0]!r} is not one of the site's programs")
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Site:
        if self.method == "webapi":
            self._check_webapi()
        elif not self.address:
            raise ValueError("address: an ssh site needs one")
        elif self.api is not None:
            raise ValueError("api: only a webapi site has one")
        elif not self.host_keys:
            raise ValueError("host_keys: an ssh site needs at least one pinned host key")
        return self

    def _check_webapi(self) -> None:
        if self.api is None:
            raise ValueError("api: a webapi site needs it")
        if self.address or self.host_keys or self.via != Via():
            raise ValueError("address, host_keys and via belong to an ssh site; a webapi site opens no port")

    def interface(self, identity: str | None) -> Interface:
        """What the running code needs of it."""
        return Interface(
            id=self.id,
            method=self.method,
            address=self.address,
            port=self.port,
            user=self.user,
            programs={name: program.interface() for name, program in self.programs.items()},
            host_keys=self.host_keys,
            proxy_jump=self.via.proxy_jump,
            jump_keys=self.via.host_keys,
            socks4=self.via.socks4,
            retry=Retry(self.retry.count, self.retry.interval),
            give_up_after=float(self.give_up_after),
            valid_until=self.valid_until,
            contact_site=self.contacts.get("site", ""),
            contact_mint=self.contacts.get("mint", ""),
            receipt_keys=self.receipt_keys,
            identity=identity,
            api_url="" if self.api is None else self.api.url,
            api_user="" if self.api is None else self.api.user,
            api_ca=None if self.api is None else self.api.ca,
            api_token=None if self.api is None else self.api.token_file,
            signed=self.signed,
            legacy_ids=self.legacy_ids,
        )
