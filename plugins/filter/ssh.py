"""Filter plugins of `misrc.remote` that render MInt's SSH files. The rendering itself lives in `misrc.declare.ssh`."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError

from misrc.declare.node import render_node_config
from misrc.declare.ssh import render_known_hosts
from misrc.job.codec import CodecError, decode
from misrc.job.interface import Interface


def _parse(interface: Any) -> Interface:
    try:
        return decode(Interface, interface)
    except CodecError as error:
        raise AnsibleFilterError(f"this is not an interface as misrc.remote.sites gives it: {error}") from None


def known_hosts(interface: Any) -> str:
    """The pinned host keys of a site."""
    return render_known_hosts(_parse(interface))


def ssh_config(interface: Any, folder: str) -> str:
    """The ssh_config of a site, whose key and known_hosts lie below `folder`."""
    try:
        return render_node_config(_parse(interface), folder)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {"known_hosts": known_hosts, "ssh_config": ssh_config}
