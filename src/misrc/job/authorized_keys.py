"""authorized_keys lines: every value is matched first, so that nothing in a line ever needs quoting."""

from __future__ import annotations

import ipaddress
import re
from typing import Callable, Optional, Sequence

from .names import SITE_ID
from .policy import JobKey
from .public_keys import parse_public_key

_COMMAND = re.compile(r"[A-Za-z0-9._/ =-]+", re.ASCII)


def render_line(command: str, key: str, key_id: str, sources: Sequence[str] = (), until: Optional[str] = None) -> str:
    """One line: `restrict`, the forced command, and where declared the source networks and the last day."""
    if not _COMMAND.fullmatch(command):
        raise ValueError("the forced command has a character that would need quoting")
    if not re.fullmatch(SITE_ID, key_id, re.ASCII):
        raise ValueError("the key id is not well formed")
    options = ["restrict"]
    if sources:
        options.append('from="' + ",".join(str(ipaddress.ip_network(s)) for s in sources) + '"')
    if until is not None:
        if not re.fullmatch(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]", until, re.ASCII):
            raise ValueError("the last day must be YYYY-MM-DD")
        options.append(f'expiry-time="{until.replace("-", "")}235959"')
    options.append(f'command="{command}"')
    return f"{','.join(options)} {parse_public_key(key)} misrc:{key_id}"


def render_key_file(keys: Sequence[JobKey], command: Callable[[str], str]) -> str:
    """All lines of a policy's job keys, numbered from 1; `command` is the forced command of a key id.

    ValueError names the key that cannot be written.
    """
    lines = []
    for number, key in enumerate(keys, 1):
        name = f"key-{number}"
        try:
            lines.append(render_line(command(name), key.key, name, key.from_, key.until) + "\n")
        except ValueError as error:
            raise ValueError(f"job_keys[{number - 1}]: {error}") from None
    return "".join(lines)
