"""Install as root: two accounts, root-owned code, policy, keys and units. A list of resources that shall be so.

Each resource knows whether it is so already, so that a second install changes nothing, a dry run tells all that would
change, and a removal goes the same list backwards. The sshd drop-in and the key file close the list: nobody gets in
before everything that holds him is there.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

from ...job.agent import parse_agent_config
from ...job.authorized_keys import render_key_file
from ...job.codec import CodecError, dump_json
from ...job.names import SITE_ID
from ...job.policy import Policy, parse_policy
from ...job.sshd import KEYS_FOLDER, forced_command
from ...job.units import AGENT_FOLDER, AGENT_UNIT, GATE_ACCOUNT, JOB_ACCOUNT, render_agent_unit, render_units
from ...wire.refusals import Denied
from ..files import reason
from ..home import SYSTEM_SHARE, Home
from ..ledger import Ledger, create_ledger
from ..rsync import rsync_version
from .resources import HostError, Resource, account, file, folder, run

UNITS = "/etc/systemd/system"
KEYS = f"{KEYS_FOLDER}/{GATE_ACCOUNT}"
PYTHON = "/usr/bin/python3"
# Root's and empty: nothing that a login would read can ever lie in it. (One that is missing makes sshd say so to MInt.)
EMPTY_HOME = "/var/lib/misrc/home"
_ENABLED = ("misrc-runner.socket", "misrc-recover.service", "misrc-sweep.timer")


@dataclass(frozen=True)
class Host:
    """What a root install makes of one policy."""

    site: str
    policy: Policy
    policy_bytes: bytes
    sources: Dict[str, bytes]
    digest: str
    leave_sshd: bool = False
    agent_bytes: Optional[bytes] = None

    def key_lines(self) -> bytes:
        """The gate account's authorized_keys."""
        try:
            return render_key_file(self.policy.job_keys, lambda name: forced_command(self.site, name)).encode("ascii")
        except ValueError as error:
            raise HostError(str(error)) from None

    def resources(self) -> List[Resource]:
        """Everything, in the order in which it is made."""
        home, work = Home.locate(), self.policy.work_root
        gate, installed = GATE_ACCOUNT, dump_json({"code": self.digest, "site": self.site}) + b"\n"
        return [
            account(GATE_ACCOUNT, "/bin/sh", EMPTY_HOME),
            account(JOB_ACCOUNT, "/usr/sbin/nologin", EMPTY_HOME),
            folder("/usr/libexec", "root", "root", 0o755),
            folder(SYSTEM_SHARE, "root", "root", 0o755),
            self._code(),
            folder(home.config, "root", gate, 0o750),
            file(home.policy, self.policy_bytes, "root", gate, 0o640),
            file(f"{home.config}/installed.json", installed, "root", gate, 0o640),
            self._signing_key(home),
            folder("/var/lib/misrc", "root", "root", 0o755),
            folder(EMPTY_HOME, "root", "root", 0o555),
            folder(home.state, "root", "root", 0o700),
            self._ledger(home),
            folder(work, gate, JOB_ACCOUNT, 0o711),
            folder(f"{work}/.gone", "root", gate, 0o2750),
            *[folder(path, "root", "root", 0o755) for path in ("/etc/ssh/misrc", KEYS_FOLDER) if self._has_door()],
            *[file(f"{UNITS}/{name}", text.encode(), "root", "root", 0o644) for name, text in self._units().items()],
            *self._agent(home),
            *self._sshd(),
            *([file(KEYS, self.key_lines(), "root", "root", 0o644)] if self._has_door() else []),
        ]

    def _has_door(self) -> bool:
        """Whether somebody may log in, or could until now; where only an agent asks for work, sshd is not touched."""
        return bool(self.policy.job_keys) or self.agent_bytes is None or os.path.exists(KEYS)

    def _agent(self, home: Home) -> List[Resource]:
        if self.agent_bytes is None:
            return []
        return [
            file(f"{home.config}/agent.json", self.agent_bytes, "root", GATE_ACCOUNT, 0o640),
            folder(AGENT_FOLDER, GATE_ACCOUNT, GATE_ACCOUNT, 0o700),
        ]

    def _units(self) -> Dict[str, str]:
        units = render_units(self.policy, f"{SYSTEM_SHARE}/current", PYTHON)
        if self.agent_bytes is not None:
            config = parse_agent_config(self.agent_bytes)
            units[AGENT_UNIT] = render_agent_unit(self.policy, config, f"{SYSTEM_SHARE}/current", PYTHON)
        return units

    def _enabled_units(self) -> List[str]:
        return [*_ENABLED, *([] if self.agent_bytes is None else [AGENT_UNIT])]

    def _sshd(self) -> List[Resource]:
        from .host_sshd import drop_in

        return [] if self.leave_sshd else [drop_in(self.site, self.policy)]

    def _code(self) -> Resource:
        from .installer import is_unpacked, unpack

        target = f"code-{self.digest[:16]}"
        return Resource(
            f"program {SYSTEM_SHARE}/{target}",
            lambda: is_unpacked(SYSTEM_SHARE, target, self.sources),
            lambda: unpack(SYSTEM_SHARE, target, self.sources, 0o755),
        )

    def _signing_key(self, home: Home) -> Resource:
        from .installer import make_key

        return Resource(f"key {home.key}", lambda: os.path.exists(home.key), lambda: make_key(home.key, self.site))

    def _ledger(self, home: Home) -> Resource:
        def make() -> None:
            create_ledger(home.state)

        return Resource(f"ledger {home.state}/ledger.jsonl", lambda: os.path.exists(f"{home.state}/ledger.jsonl"), make)

    def pending(self) -> List[Resource]:
        """What is not so yet."""
        return [resource for resource in self.resources() if not resource.is_so()]

    def changes(self) -> List[str]:
        """Everything that `apply` would change, by name."""
        return [resource.name for resource in self.pending()] + [
            f"unit {u} enabled" for u in self._enabled_units() if not _enabled(u)
        ]

    def apply(self) -> List[str]:
        """Make everything so; the names of what was changed."""
        os.umask(0o022)
        changed = []
        for resource in self.resources():
            if not resource.is_so():
                resource.make_so()
                changed.append(resource.name)
        if any(name.startswith((f"file {UNITS}/", "program ")) for name in changed):
            self._reload()
            changed.append("systemd reloaded")
        for unit in self._enabled_units():
            if not _enabled(unit):
                later = unit.endswith(".service") and unit != AGENT_UNIT
                run("systemctl", "enable", *([] if later else ["--now"]), unit)
                changed.append(f"unit {unit} enabled")
        if changed:
            policy_hash = hashlib.sha256(self.policy_bytes).hexdigest()
            ledger = Ledger(Home.locate().state, site=self.site, key="-", peer="local")
            ledger.append("install", code=self.digest, policy=policy_hash, uid=os.getuid())
        return changed

    def _reload(self) -> None:
        """The runner ends and comes back at the next request; supervisors and programs go on."""
        run("systemctl", "daemon-reload")
        run("systemctl", "stop", "misrc-runner.service")
        if self.agent_bytes is not None:
            run("systemctl", "try-restart", AGENT_UNIT)


def plan_host(site: str, policy_file: str, leave_sshd: bool = False, agent_file: Optional[str] = None) -> Host:
    """Check everything that can be checked before anything changes. `leave_sshd`: others write sshd's drop-in."""
    from .installer import InstallError, digest_sources, read_agent_config, read_sources

    if not re.fullmatch(SITE_ID, site):
        raise HostError("the site id must be lower-case letters, digits and '-', at most 32")
    try:
        with open(policy_file, "rb") as source:
            data = source.read((1 << 20) + 1)
        policy = parse_policy(data)
        agent = None if agent_file is None else read_agent_config(agent_file)
        if policy.job_keys or agent is None:
            rsync_version()
    except InstallError as error:
        raise HostError(str(error)) from None
    except Denied as denied:
        raise HostError(f"{denied.note}; MInt's files travel by rsync, so install a newer one") from None
    except (OSError, CodecError, ValueError) as error:
        raise HostError(f"{policy_file}: {reason(error)}") from None
    if policy.install != "root":
        raise HostError(f"{policy_file}: it says install: {policy.install}; as root only install: root is done")
    if not os.path.isdir("/run/systemd/system"):
        raise HostError("a root install needs systemd; without it, use a user install")
    sources = read_sources()
    # A site that MInt does not log in to gets nothing of ours into its sshd.
    sshd_stays = leave_sshd or (agent is not None and not policy.job_keys)
    host = Host(site, policy, data, sources, digest_sources(sources), sshd_stays, agent)
    host.resources()
    return host


def _enabled(unit: str) -> bool:
    state = subprocess.run(["systemctl", "is-enabled", unit], capture_output=True, check=False)
    if state.returncode != 0:
        return False
    active = subprocess.run(["systemctl", "is-active", unit], capture_output=True, check=False)
    return (unit.endswith(".service") and unit != AGENT_UNIT) or active.returncode == 0


def describe(resources: Sequence[Resource], host: Optional[Host] = None) -> str:
    """What an install will do, for a person to read."""
    lines = [f"misrc gate and runner for site '{host.site}', as root"] if host else []
    return "\n".join([*lines, *(f"  {resource.name}" for resource in resources)] or ["nothing to change"])
