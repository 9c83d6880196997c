"""The files of the API server's host: its declaration and its systemd units, rendered from the role's options. Pure.

The server may write its own two folders and reach the network; it sees no home, no device and no other process.
Directives: systemd.exec(5), systemd.resource-control(5) of systemd 252. What `systemd-analyze security` still finds
is the network, which a server needs.

Not covered: the proxy in front and the database's own host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..job.errors import BadRequest
from .inventory import render_variables
from .server import Server, parse_server, split_address

UNIT = "misrc-api.service"
BACKUP = "misrc-api-backup"
# Its own part of the journal: what it keeps, and for how long, is not for others to use up.
JOURNAL = "misrc-api"
_PATH = re.compile(r"/[A-Za-z0-9._/+@-]+", re.ASCII)
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)
_CALENDAR = re.compile(r"[A-Za-z0-9*:/., ~-]{1,100}", re.ASCII)
_PRIVILEGED_BELOW = 1024

Lines = list[tuple[str, str]]

_SANDBOX: Lines = [
    ("NoNewPrivileges", "yes"),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("DevicePolicy", "closed"),
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectProc", "invisible"),
    ("ProcSubset", "pid"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("RemoveIPC", "yes"),
    ("KeyringMode", "private"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @resources @mount @debug @cpu-emulation @obsolete"),
    ("SystemCallErrorNumber", "EPERM"),
    ("LimitCORE", "0"),
    ("UMask", "0077"),
]


@dataclass(frozen=True)
class ServiceHost:
    """What the role knows of the host. `backup` empty: no timer; `secrets`: the file with the database's password."""

    user: str
    program: str
    config: str
    state: str
    secrets: str = ""
    backup: str = ""
    backup_times: str = "daily"
    backup_keep: int = 7
    memory: str = "1G"

    def __post_init__(self) -> None:
        for path in (self.program, self.config, self.state, self.secrets or "/", self.backup or "/"):
            if path != "/" and not _PATH.fullmatch(path):
                raise BadRequest(f"{path!r} has a character that a unit file cannot carry")
        if not _ACCOUNT.fullmatch(self.user):
            raise BadRequest(f"{self.user!r} is not the name of an account")
        if not _CALENDAR.fullmatch(self.backup_times):
            raise BadRequest("the times of the backup are not written as systemd.time(7) has them")
        if not re.fullmatch(r"[0-9]{1,12}[KMGT]?|infinity", self.memory, re.ASCII):
            raise BadRequest("the service's memory is written like 1G")
        if self.backup_keep < 1:
            raise BadRequest("at least one backup is kept")


def render_server(value: Mapping[str, Any]) -> str:
    """The declaration as `misrc serve` reads it, checked by the server's own rules; keys that are None are left out."""
    plain = {key: item for key, item in value.items() if item is not None}
    parse_server(plain, "dicomapi")
    return "# Written by the role dicomapi.\n" + render_variables(plain)


def render_units(value: Mapping[str, Any], host: ServiceHost) -> dict[str, str]:
    """Every unit of the host by file name. `value` is the server's declaration, as `render_server` takes it."""
    server = parse_server({key: item for key, item in value.items() if item is not None}, "dicomapi")
    if not _PATH.fullmatch(server.spool):
        raise BadRequest(f"{server.spool!r} has a character that a unit file cannot carry")
    units = {UNIT: _render_service(server, host)}
    if host.backup:
        units[f"{BACKUP}.service"] = _render_backup(server, host)
        units[f"{BACKUP}.timer"] = _render_timer(host)
    return units


def health_address(value: Mapping[str, Any]) -> dict[str, Any]:
    """Where the host itself asks whether the service answers: `url`, and the `host` that it says it wants."""
    server = parse_server({key: item for key, item in value.items() if item is not None}, "dicomapi")
    address, port = split_address(server.listen[0])
    if address in ("0.0.0.0", "::"):
        address = "127.0.0.1" if address == "0.0.0.0" else "::1"
    place = f"[{address}]" if ":" in address else address
    scheme = "http" if server.tls is None else "https"
    host = server.hosts[0] if server.hosts else f"{place}:{port}"
    return {"url": f"{scheme}://{place}:{port}", "host": host}


def _render(*sections: tuple[str, Lines]) -> str:
    parts = [f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in lines) for name, lines in sections]
    return "# Written by the role dicomapi. Changes here are undone by its next run.\n" + "\n".join(parts)


def _account(host: ServiceHost) -> Lines:
    secrets: Lines = []
    if host.secrets:
        # libpq reads it where a password is asked for; nothing of it stands in an environment or a command line.
        secrets = [("LoadCredential", f"pgpass:{host.secrets}"), ("Environment", "PGPASSFILE=%d/pgpass")]
    return [
        ("User", host.user),
        ("Group", host.user),
        ("Environment", "LANG=C.UTF-8 HOME=/nonexistent PYTHONDONTWRITEBYTECODE=1"),
        *secrets,
        ("LogNamespace", JOURNAL),
    ]


def _capabilities(server: Server) -> Lines:
    """A port below 1024 needs one capability, which a user namespace of its own would not have."""
    if any(split_address(item)[1] < _PRIVILEGED_BELOW for item in server.listen):
        return [("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE"), ("AmbientCapabilities", "CAP_NET_BIND_SERVICE")]
    return [("PrivateUsers", "yes"), *_NO_CAPABILITIES]


_NO_CAPABILITIES: Lines = [("CapabilityBoundingSet", ""), ("AmbientCapabilities", "")]


def _render_service(server: Server, host: ServiceHost) -> str:
    return _render(
        (
            "Unit",
            [
                ("Description", "misrc: MInt's API server"),
                ("Wants", "network-online.target"),
                ("After", "network-online.target postgresql.service"),
                # A shared spool that is not mounted yet would look like one without any files.
                ("RequiresMountsFor", server.spool),
                ("StartLimitIntervalSec", "0"),
            ],
        ),
        (
            "Service",
            [
                ("Type", "exec"),
                *_account(host),
                ("ExecStart", f"{host.program} serve --config {host.config}"),
                ("Restart", "always"),
                ("RestartSec", "2"),
                # Answers under way and transfers in flight are finished or left where they can go on.
                ("TimeoutStopSec", "60"),
                ("LimitNOFILE", "65536"),
                ("TasksMax", "128"),
                ("MemoryMax", host.memory),
                *_SANDBOX,
                *_capabilities(server),
                ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
                ("ReadWritePaths", " ".join(dict.fromkeys((host.state, server.spool)))),
            ],
        ),
        ("Install", [("WantedBy", "multi-user.target")]),
    )


def _render_backup(server: Server, host: ServiceHost) -> str:
    alone: Lines = [("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6")]
    if server.database.startswith("sqlite"):
        alone = [("PrivateNetwork", "yes"), ("RestrictAddressFamilies", "AF_UNIX")]
    store = f"{host.program} store backup --config {host.config} --keep {host.backup_keep} {host.backup}"
    return _render(
        (
            "Unit",
            [
                ("Description", "misrc: back up the API server's jobs"),
                ("RequiresMountsFor", f"{server.spool} {host.backup}"),
            ],
        ),
        (
            "Service",
            [
                ("Type", "oneshot"),
                *_account(host),
                ("ExecStart", store),
                ("IOSchedulingClass", "idle"),
                *_SANDBOX,
                ("PrivateUsers", "yes"),
                *_NO_CAPABILITIES,
                *alone,
                ("ReadWritePaths", " ".join(dict.fromkeys((host.state, server.spool, host.backup)))),
            ],
        ),
    )


def _render_timer(host: ServiceHost) -> str:
    return _render(
        ("Unit", [("Description", "misrc: back up the API server's jobs")]),
        ("Timer", [("OnCalendar", host.backup_times), ("RandomizedDelaySec", "10min"), ("Persistent", "yes")]),
        ("Install", [("WantedBy", "timers.target")]),
    )
