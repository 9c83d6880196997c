"""The files of the API server's host: what the role's options become, and what they may not become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from misrc.declare.server import load_server
from misrc.declare.service import ServiceHost, health_address, render_server, render_units
from misrc.job.errors import BadRequest

pytestmark = pytest.mark.quick

HOST = ServiceHost("misrc-api", "/opt/misrc/api/bin/misrc", "/etc/misrc-api/server.yml", "/var/lib/misrc-api")
PLAIN: dict[str, Any] = {
    "listen": ["127.0.0.1:50443"],
    "tls": None,
    "database": "sqlite:////var/lib/misrc-api/store.db",
    "spool": "/srv/spool",
    "inventory": "/etc/misrc-api/inventory",
}
TLS = {"certificate": "/etc/misrc-api/certificate.pem", "key": "/etc/misrc-api/key.pem"}


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_the_text_is_what_the_server_reads(tmp_path: Path) -> None:
    """The rendered file gives the server the declared values, and keys without a value are left out."""
    path = tmp_path / "server.yml"
    path.write_text(render_server({**PLAIN, "limits": {"quota": "2TiB"}}), encoding="utf-8")
    server = load_server(path)
    assert server.spool == "/srv/spool" and server.tls is None and server.limits.quota == 2 << 40
    assert "tls" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        {"listen": ["0.0.0.0:50443"]},
        {"unknown": 1},
        {"database": "mysql://x/y"},
        {"spool": "relative"},
        {"limits": {"quota": "much"}},
    ],
    ids=["plain-http", "unknown-key", "database", "relative", "size"],
)
def test_what_the_server_would_not_take_is_refused_before_it_reaches_the_host(change: dict[str, Any]) -> None:
    """A wrong declaration is an error of the renderer; without the change it is none."""
    render_server(PLAIN)
    with pytest.raises(BadRequest, match="dicomapi: "):
        render_server({**PLAIN, **change})


def test_the_service_may_write_its_own_folders_and_nothing_else() -> None:
    """State and spool are writable; the rest of the file system is not, and there are no capabilities."""
    unit = lines(render_units(PLAIN, HOST)["misrc-api.service"])
    assert "ReadWritePaths=/var/lib/misrc-api /srv/spool" in unit
    assert "RequiresMountsFor=/srv/spool" in unit
    assert {"ProtectSystem=strict", "CapabilityBoundingSet=", "PrivateUsers=yes", "User=misrc-api"} <= set(unit)
    assert not [line for line in unit if line.startswith("LoadCredential")]


def test_a_privileged_port_gives_one_capability() -> None:
    """Below 1024 the unit gets the right to bind, and no other; above it gets none."""
    server = {**PLAIN, "listen": ["0.0.0.0:443"], "tls": TLS}
    unit = lines(render_units(server, HOST)["misrc-api.service"])
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE" in unit and "AmbientCapabilities=CAP_NET_BIND_SERVICE" in unit
    assert "PrivateUsers=yes" not in unit


def test_the_password_goes_by_a_credential() -> None:
    """Where there is one, the unit loads its file; the environment holds only where that lies."""
    host = ServiceHost(HOST.user, HOST.program, HOST.config, HOST.state, secrets="/etc/misrc-api/pgpass")
    server = {**PLAIN, "database": "postgresql://misrc@db/misrc"}
    unit = lines(render_units(server, host)["misrc-api.service"])
    assert "LoadCredential=pgpass:/etc/misrc-api/pgpass" in unit and "Environment=PGPASSFILE=%d/pgpass" in unit


def test_a_backup_has_a_timer_where_it_is_asked_for() -> None:
    """Without a folder there is one unit; with one there are three, and the backup reaches no network."""
    assert set(render_units(PLAIN, HOST)) == {"misrc-api.service"}
    host = ServiceHost(HOST.user, HOST.program, HOST.config, HOST.state, backup="/srv/backup", backup_keep=3)
    units = render_units(PLAIN, host)
    assert set(units) == {"misrc-api.service", "misrc-api-backup.service", "misrc-api-backup.timer"}
    backup = lines(units["misrc-api-backup.service"])
    assert "PrivateNetwork=yes" in backup
    words = "store backup --config /etc/misrc-api/server.yml --keep 3 /srv/backup"
    assert f"ExecStart=/opt/misrc/api/bin/misrc {words}" in backup


@pytest.mark.parametrize(
    "change",
    [
        {"state": "/var/lib/x y"},
        {"config": "/etc/x\nExecStart=/bin/sh"},
        {"user": "root\nUser=x"},
        {"backup_times": "daily\nOnBootSec=1"},
        {"backup_keep": 0},
        {"memory": "1G\nUser=root"},
    ],
    ids=["space", "line", "user", "times", "keep", "memory"],
)
def test_nothing_breaks_out_of_a_unit(change: dict[str, Any]) -> None:
    """A value that a unit file cannot carry is refused."""
    plain: dict[str, Any] = {
        "user": HOST.user, "program": HOST.program, "config": HOST.config, "state": HOST.state, "backup": "/b"
    }  # fmt: skip
    ServiceHost(**plain)
    with pytest.raises(BadRequest):
        ServiceHost(**{**plain, **change})


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, {"url": "http://127.0.0.1:50443", "host": "127.0.0.1:50443"}),
        ({"listen": ["0.0.0.0:443"], "tls": TLS}, {"url": "https://127.0.0.1:443", "host": "127.0.0.1:443"}),
        ({"listen": ["[::]:443"], "tls": TLS}, {"url": "https://[::1]:443", "host": "[::1]:443"}),
        ({"hosts": ["mint.example"]}, {"url": "http://127.0.0.1:50443", "host": "mint.example"}),
    ],
    ids=["loopback", "any", "v6", "named"],
)
def test_the_host_asks_itself_where_it_listens(change: dict[str, Any], wanted: dict[str, str]) -> None:
    """An address that stands for all is asked at the loopback one, by a name that the server takes."""
    assert health_address({**PLAIN, **change}) == wanted
