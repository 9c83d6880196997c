"""The files and checks of a site's host, as the roles need them: plain values in, text or one-line faults out.

The roles hold no rule of their own about keys, sshd or versions: it stands in `job`, once, for them, for the site's
installer and for auditors.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from ..job import minimums
from ..job.authorized_keys import render_key_file
from ..job.errors import BadRequest
from ..job.policy import Policy, parse_policy
from ..job.sshd import (
    Gatehouse,
    compare,
    expected_values,
    forced_command,
    parse_sshd_version,
    render_drop_in,
)
from .inventory import dump_policy


def read_policy(value: Any) -> Policy:
    """The policy out of an inventory's variable; BadRequest says what is wrong with it."""
    return parse_policy(dump_policy(value, "inventory"))


def policy_text(value: Any) -> str:
    """The policy as the JSON that a site installs."""
    return dump_policy(value, "inventory").decode()


def key_lines(value: Any, site: str) -> str:
    """The whole key file of a root install, one line for each key of the policy."""
    try:
        return render_key_file(read_policy(value).job_keys, lambda name: forced_command(site, name))
    except ValueError as error:
        raise BadRequest(f"misrc_policy: {error}") from None


def sources(value: Any) -> list[str]:
    """The networks that job keys come from, each once; empty where a key may come from anywhere."""
    keys = read_policy(value).job_keys
    if any(not key.from_ for key in keys):
        return []
    return sorted({str(ipaddress.ip_network(source)) for key in keys for source in key.from_})


def probe_addresses(value: Any, undeclared: str = "192.0.2.1") -> list[str]:
    """Addresses to ask sshd about: the first of each declared network, and one that nobody declared."""
    declared = [str(ipaddress.ip_network(source).network_address) for source in sources(value)]
    return sorted({*declared, undeclared})


def drop_in(value: Any, gate: Mapping[str, Any]) -> str:
    """The sshd drop-in. `gate`: site, account, version (what `ssh -V` says), algorithms, sessions."""
    try:
        return render_drop_in(_gatehouse(value, gate))
    except ValueError as error:
        raise BadRequest(f"the sshd drop-in cannot be written: {error}") from None


def sshd_faults(printed: str, value: Any, gate: Mapping[str, Any]) -> list[str]:
    """What the sshd that printed this (`sshd -T -C …`) does not hold, one line each; empty is good."""
    house = _gatehouse(value, gate)
    return [deviation.describe() for deviation in compare(expected_values(house), printed, house.account)]


def version_fault(found: Mapping[str, Any], minimum: str) -> str:
    """Why a program is too old, or empty. `found`: system, name, package, and what it `said` of its version.

    `minimum` is the name of a floor in `misrc.job.minimums`, in lower case.
    """
    version = re.search(r"[0-9]+\.[0-9]+[^\s,]*", str(found["said"]))
    upstream = "" if version is None else version[0]
    package = found.get("package") or None
    known = minimums.Found(str(found["system"]), str(found["name"]), upstream, package)
    return minimums.judge(known, minimums.FLOORS[minimum])


def folders_above(paths: Iterable[str]) -> list[str]:
    """Every folder above these absolute paths, each once, the root last: who can write one can replace the rest."""
    return sorted({str(folder) for path in paths for folder in PurePosixPath(str(path)).parents}, reverse=True)


def _gatehouse(value: Any, gate: Mapping[str, Any]) -> Gatehouse:
    return Gatehouse(
        site=str(gate["site"]),
        account=str(gate["account"]),
        version=parse_sshd_version(str(gate["version"])),
        sources=tuple(sources(value)),
        algorithms=bool(gate.get("algorithms", True)),
        sessions=int(gate.get("sessions", 4)),
    )
