"""Filters of the role dicomapi: each is one function of `misrc.declare.service`, with its errors in Ansible's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ansible.errors import AnsibleFilterError

from misrc.declare import service
from misrc.job.errors import BadRequest

_Told = TypeVar("_Told")


def server_text(value: Mapping[str, Any]) -> str:
    """The server's declaration as `misrc serve` reads it."""
    return _told(lambda: service.render_server(_plain(value)))


def server_units(value: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, str]:
    """The units of the server's host by file name."""
    return _told(lambda: service.render_units(_plain(value), service.ServiceHost(**_plain(host))))


def server_health(value: Mapping[str, Any]) -> dict[str, Any]:
    """Where the host itself asks whether the service answers."""
    return _told(lambda: service.health_address(_plain(value)))


def _plain(value: Any) -> Any:
    """Ansible's containers hold templates that are only resolved when Python code takes them out."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def _told(call: Callable[[], _Told]) -> _Told:
    try:
        return call()
    except (BadRequest, TypeError) as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"server_text": server_text, "server_units": server_units, "server_health": server_health}
