"""The sites that this server knows: MInt's inventory, and the predecessor's ini file beside it.

Both are read again when they have changed, while jobs run. A file that cannot be read, or is wrong, leaves what was
known before in force.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..declare.ini import load_ini
from ..declare.inventory import load_sites
from ..job.errors import BadRequest
from ..job.interface import Interface, ProgramInterface
from ..job.names import SITE_ID

LOOK_SECONDS = 1.0
GIVE_UP_SECONDS = 72 * 3600.0
LOG = logging.getLogger("misrc.api")


@dataclass(frozen=True)
class DeclaredSite:
    """One site. `user` is whose jobs its agent takes (empty: any); `names` are those of the predecessor's clients."""

    id: str
    user: str = ""
    names: tuple[str, ...] = ()
    programs: dict[str, ProgramInterface] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    give_up_after: float = GIVE_UP_SECONDS
    valid_until: str | None = None

    def open_for_jobs(self, now: float) -> bool:
        """Whether new jobs are taken: not after the declared last day (UTC)."""
        return self.valid_until is None or time.strftime("%Y-%m-%d", time.gmtime(now)) <= self.valid_until


def declared_site(interface: Interface) -> DeclaredSite:
    """What the server needs of a declaration."""
    commands = {program.command: name for name, program in interface.programs.items() if program.command is not None}
    return DeclaredSite(
        interface.id,
        interface.api_user,
        tuple(dict.fromkeys((interface.id, *interface.legacy_ids))),
        dict(interface.programs),
        commands,
        interface.give_up_after,
        interface.valid_until,
    )


def site_id_of(name: str) -> str:
    """The id of a site that only the ini file names: its own name where that is one, else one derived from it."""
    if re.fullmatch(SITE_ID, name, re.ASCII):
        return name
    plain = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:20]
    return f"ini-{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".replace("--", "-")


def program_name_of(command: str) -> str:
    """The program that stands for a command which only the ini file names."""
    plain = re.sub("[^a-z0-9]+", "_", command.rsplit("/", 1)[-1].lower()).strip("_")[:40]
    return f"ini_{plain}_{hashlib.sha256(command.encode()).hexdigest()[:8]}".replace("__", "_")


def merge_ini(sites: dict[str, DeclaredSite], ini: Mapping[str, tuple[str, ...]]) -> dict[str, DeclaredSite]:
    """The declared sites together with those of the ini file."""
    merged = dict(sites)
    for name, commands in ini.items():
        known = next((site for site in merged.values() if name in site.names), None)
        site = known or DeclaredSite(site_id_of(name), names=(name,))
        new = {command: program_name_of(command) for command in commands if command not in site.commands}
        programs = {program: ProgramInterface(command=command) for command, program in new.items()}
        merged[site.id] = replace(site, commands={**site.commands, **new}, programs={**programs, **site.programs})
    return merged


class Sites:
    """All known sites, as the files say now."""

    def __init__(self, inventory: str | None, ini: str | None) -> None:
        self._inventory = None if inventory is None else Path(inventory)
        self._ini = None if ini is None else Path(ini)
        self._looked = 0.0
        self._stamp: tuple[object, ...] = ()
        self._by_id: dict[str, DeclaredSite] = {}
        self._by_name: dict[str, DeclaredSite] = {}
        self.faults = ""

    def load(self) -> None:
        """Read everything again; BadRequest leaves what was known."""
        stamp = self._read_stamp()
        sites: dict[str, DeclaredSite] = {}
        if self._inventory is not None:
            if not self._inventory.is_dir():
                raise BadRequest(f"{self._inventory}: there is no such folder")
            found = load_sites(self._inventory)
            sites = {name: declared_site(site) for name, site in found.items() if site.method == "webapi"}
        if self._ini is not None:
            ini = load_ini(self._ini)
            for warning in ini.warnings:
                LOG.warning("%s: %s", self._ini, warning)
            sites = merge_ini(sites, ini.sites)
        names: dict[str, DeclaredSite] = {}
        for site in sites.values():
            for name in site.names:
                if name in names:
                    raise BadRequest(f"two sites are named {name}")
                names[name] = site
        self._by_id, self._by_name, self._stamp = sites, names, stamp

    def _read_stamp(self) -> tuple[object, ...]:
        return tuple(self._stamps())

    def _stamps(self) -> Iterator[object]:
        paths = [] if self._ini is None else [self._ini]
        if self._inventory is not None:
            paths += sorted([*self._inventory.glob("host_vars/*.yml"), *self._inventory.glob("host_vars/*/*.yml")])
        for path in paths:
            try:
                status = path.stat()
                yield path, status.st_mtime_ns, status.st_size, status.st_ino
            except OSError:
                yield path, None

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        try:
            self.load()
            self.faults = ""
        except BadRequest as error:
            self._stamp, self.faults = stamp, str(error)
            LOG.error("the declarations changed and are wrong; what was known stays in force: %s", error)

    def by_id(self, site: str) -> DeclaredSite | None:
        """The site with this id."""
        self._refresh()
        return self._by_id.get(site)

    def by_name(self, name: str) -> DeclaredSite | None:
        """The site that a client of the predecessor calls so."""
        self._refresh()
        return self._by_name.get(name)

    def of_user(self, user: str) -> tuple[str, ...]:
        """The sites whose agent takes this user's jobs."""
        self._refresh()
        return tuple(site.id for site in self._by_id.values() if site.user in ("", user))

    def least_patience(self) -> float:
        """The shortest `give_up_after` of all sites, in seconds."""
        self._refresh()
        return min((site.give_up_after for site in self._by_id.values()), default=GIVE_UP_SECONDS)
