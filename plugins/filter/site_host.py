"""Filters of the site roles: each is one function of `misrc.declare.host`, with its errors in Ansible's words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

from misrc.declare import host
from misrc.job.errors import MisrcError


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*words: Any, **named: Any) -> Any:
        try:
            return function(*words, **named)
        except (MisrcError, ValueError) as error:
            raise AnsibleFilterError(str(error)) from error

    return call


class FilterModule:
    """What the roles site_account and site_gate ask of the declaration."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        functions: dict[str, Callable[..., Any]] = {
            "policy_text": host.policy_text,
            "key_lines": host.key_lines,
            "key_sources": host.sources,
            "probe_addresses": host.probe_addresses,
            "sshd_drop_in": host.drop_in,
            "sshd_faults": host.sshd_faults,
            "version_fault": host.version_fault,
            "folders_above": host.folders_above,
        }
        return {name: _told(function) for name, function in functions.items()}
