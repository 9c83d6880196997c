"""What `misrc serve` is told: one YAML file, parsed once, unknown keys refused."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ..job.errors import BadRequest
from ..job.quantities import parse_duration, parse_size
from .interface import HOST_NAME
from .inventory import read_variables
from .strict import Strict, explain

DEFAULT_LISTEN = "127.0.0.1:50443"
HEADER = r"[A-Za-z][A-Za-z0-9-]{0,63}"

Path_ = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]{0,1023}$")]


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(ipaddress.ip_network(item)) for item in value)


def split_address(value: str) -> tuple[str, int]:
    """`HOST:PORT` or `[V6]:PORT`: an address of this host, and a port (0: any free one)."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]{2,45})\]|([0-9.]{7,15})):([0-9]{1,5})", value, re.ASCII)
    if match is None or int(match[3]) > 65535:
        raise ValueError("an address like 127.0.0.1:50443 or [::1]:50443 is needed")
    return str(ipaddress.ip_address(match[1] or match[2])), int(match[3])


class Tls(Strict):
    """The certificate that the server shows."""

    certificate: Annotated[Path_, Field(description="PEM, with the intermediate certificates behind it.")]
    key: Annotated[Path_, Field(description="PEM, readable by the service alone.")]


class Gateway(Strict):
    """MInt's gateway in front, where it has already asked who somebody is."""

    header: Annotated[str, Field(description="The header in which it names the user.")]
    sources: Annotated[
        tuple[str, ...], Field(alias="from", min_length=1, description="The addresses that it comes from.")
    ]
    scopes: Annotated[
        tuple[Literal["workflow", "agent"], ...], Field(description="What users that it names may do.")
    ] = ("workflow", "agent")

    @field_validator("header")
    @classmethod
    def _check_header(cls, value: str) -> str:
        if not re.fullmatch(HEADER, value, re.ASCII) or value.lower() == "authorization":
            raise ValueError("the header's name is not well formed")
        return value.lower()

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _networks(value)


class Limits(Strict):
    """Bounds; what is beyond them is refused before work is done."""

    quota: Annotated[int | str, Field(description="Bytes of all files in the spool together.")] = "500GiB"
    job_bytes: Annotated[int | str, Field(description="Bytes of one job's inputs, and of its results.")] = "100GiB"
    log_bytes: Annotated[int | str, Field(description="Bytes of one job's log.")] = "1GiB"
    reserve: Annotated[int | str, Field(description="Free bytes that the spool leaves on its disk.")] = "256MiB"
    jobs: Annotated[int, Field(ge=1, description="Jobs of one user that are not closed.")] = 10_000
    uploads: Annotated[int, Field(ge=1, description="Unfinished uploads of one user.")] = 2_000
    connections: Annotated[int, Field(ge=1, description="Connections at a time.")] = 8_192
    header_seconds: Annotated[float, Field(gt=0, description="How long the head of a request may take.")] = 10.0
    body_rate: Annotated[int, Field(ge=0, description="Bytes a second that a body brings at least.")] = 1024
    body_seconds: Annotated[float, Field(gt=0, description="Over how many seconds that is averaged.")] = 30.0

    @field_validator("quota", "job_bytes", "log_bytes", "reserve")
    @classmethod
    def _check_sizes(cls, value: int | str) -> int:
        return parse_size(value)


class Times(Strict):
    """How long things last."""

    lease: Annotated[int | str, Field(description="A claim that nobody renews returns to the queue after it.")] = "2m"
    unreleased: Annotated[int | str, Field(description="A job that is never released expires.")] = "24h"
    untaken: Annotated[int | str, Field(description="A released job that no site takes expires.")] = "72h"
    legacy: Annotated[int | str, Field(description="Both, for jobs of the predecessor's clients.")] = "30m"
    legacy_claim: Annotated[int | str, Field(description="From the predecessor's params to its start.")] = "10m"
    legacy_results: Annotated[int | str, Field(description="From its end to its results.")] = "30m"
    legacy_abnormal: Annotated[int | str, Field(description="The same, after an abnormal end.")] = "2m"
    fetched: Annotated[int | str, Field(description="Results that the predecessor's client has got stay so long.")] = (
        "10m"
    )
    ended: Annotated[int | str, Field(description="Results that nobody fetches are kept so long.")] = "30d"

    @field_validator("*")
    @classmethod
    def _check(cls, value: int | str) -> int:
        return parse_duration(value)


class Server(Strict):
    """The declaration of the API server."""

    listen: Annotated[tuple[str, ...], Field(min_length=1, description="HOST:PORT, addresses of this host.")] = (
        DEFAULT_LISTEN,
    )
    tls: Annotated[Tls | None, Field(description="Without it: loopback only, or `plain`.")] = None
    plain: Annotated[bool, Field(description="Plain HTTP on other addresses too: a gateway is in front.")] = False
    hosts: Annotated[tuple[str, ...], Field(description="Names in `Host` that are ours; empty: any.")] = ()
    trusted_proxies: Annotated[tuple[str, ...], Field(description="Whose X-Forwarded-For counts, in the log.")] = ()
    gateway: Annotated[Gateway | None, Field(description="A gateway that names the user.")] = None
    database: Annotated[
        str,
        Field(pattern=r"^(sqlite:////|postgresql://)[^\s]{1,1000}$", description="sqlite:////FILE or postgresql://…"),
    ]
    spool: Annotated[Path_, Field(description="The folder for files; with several hosts, a shared one.")]
    inventory: Annotated[Path_ | None, Field(description="The declarations of the sites.")] = None
    ini: Annotated[Path_ | None, Field(description="The predecessor's ini file.")] = None
    limits: Annotated[Limits, Field(description="Bounds.")] = Limits()
    times: Annotated[Times, Field(description="Durations.")] = Times()
    keep_days: Annotated[
        int,
        Field(ge=1, description="Days after which the record of a closed job is deleted; its id stays refused."),
    ] = 90
    reason: Annotated[str | None, Field(description="Why, for auditors.")] = None

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            split_address(item)
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _networks(value)

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(rf"({HOST_NAME}|\[[0-9a-fA-F:]+\])(:[0-9]{{1,5}})?", name, re.ASCII):
                raise ValueError(f"{name!r} is not a host name")
        return tuple(name.lower() for name in value)

    @model_validator(mode="after")
    def _check(self) -> Server:
        if self.inventory is None and self.ini is None:
            raise ValueError("inventory or ini: without either no site is known")
        if self.tls is None and not self.plain:
            for item in self.listen:
                if not ipaddress.ip_address(split_address(item)[0]).is_loopback:
                    raise ValueError(f"listen: {item} would speak plain HTTP; declare tls, or plain: true")
        return self


def parse_server(value: dict[str, Any], where: str) -> Server:
    """The declaration out of plain values; BadRequest names file, key and reason."""
    try:
        return Server.model_validate(value)
    except ValidationError as error:
        place, fault = explain(error)
        raise BadRequest(f"{where}: {place}{': ' if place else ''}{fault}") from None


def load_server(path: Path) -> Server:
    """The declaration out of a file."""
    return parse_server(read_variables(path), str(path))
