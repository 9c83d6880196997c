"""The rules of module files that a schema cannot say: names that a shell can pass, ports that differ, the one node.

Each rule looks at elements, not at values, so that it can say the line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

from ...declare import module_rules
from ..messages.catalog import say
from . import document
from .findings import ERROR, WARNING, Finding, find

MODULES_FOLDER = "assets/modules"


def check_rules(root: Any, local: bool) -> list[Finding]:
    """Everything that breaks a rule; `local` for modules that use no site."""
    found: list[Finding] = []
    seen: dict[tuple[str, str], int] = {}
    for number, module in enumerate(_children(root, "module"), 1):
        place = f"module[{number}]"
        found += _check_head(module, place, seen)
        found += _check_path(module, place)
        found += _check_resources(module, place, local)
        found += _check_ports(module, place)
    return found


def _children(element: Any, name: str) -> list[Any]:
    return list(element.iterchildren(f"{{{document.NAMESPACE}}}{name}"))


def _child(element: Any, name: str, space: str = document.NAMESPACE) -> Any:
    return element.find(f"{{{space}}}{name}")


def _text(element: Any) -> str:
    return (element.text or "") if element is not None else ""


def _is_nil(element: Any) -> bool:
    return element is not None and element.get(document.NIL_ATTRIBUTE) in document.TRUE


def _check_head(module: Any, place: str, seen: dict[tuple[str, str], int]) -> Iterator[Finding]:
    identifier, version = _child(module, "identifier", document.DC), _child(module, "version")
    key = (_text(identifier), _text(version))
    if key[0]:
        if key in seen:
            element = f"{place}/dc:identifier"
            yield find(ERROR, identifier.sourceline, element, "same_module", id=key[0], version=key[1], first=seen[key])
        seen.setdefault(key, identifier.sourceline)
    deleted = _child(module, "deleted")
    if deleted is None or _is_nil(deleted):
        yield find(WARNING, module.sourceline if deleted is None else deleted.sourceline, place, "no_deleted")
    if _child(module, "creatorId") is None:
        yield find(WARNING, module.sourceline, place, "no_creator_id")


def _check_path(module: Any, place: str) -> Iterator[Finding]:
    path = _child(module, "objectPath")
    if path is None or not _text(path).startswith("/"):
        return  # the schema says it
    fault = module_rules.find_path_fault(_text(path))
    if fault:
        _, sign, rest = _text(path).partition(f"/{MODULES_FOLDER}/")
        better = "/" + rest if sign else "/folder/script.sh"
        yield find(ERROR, path.sourceline, f"{place}/objectPath", "path", why=say(f"why.{fault}"), better=better)


def _check_resources(module: Any, place: str, local: bool) -> Iterator[Finding]:
    resources = _child(module, "resourceRequests")
    if resources is None:
        return
    place += "/resourceRequests"
    group, old = _child(resources, "pbsNodeGroup"), _child(resources, "pbsNodesGroup")
    if old is not None:
        yield find(WARNING, old.sourceline, f"{place}/pbsNodesGroup", "old_group")
    given = group if group is not None else old
    if given is None or local:
        return
    name = "pbsNodeGroup" if group is not None else "pbsNodesGroup"
    wanted = module_rules.NODE_GROUP
    if _text(given) != wanted:
        yield find(ERROR, given.sourceline, f"{place}/{name}", "node_group", value=_text(given), wanted=wanted)
    yield from _check_cores(resources, place)
    queue = _child(resources, "pbsQueue")
    if _text(queue):
        yield find(WARNING, queue.sourceline, f"{place}/pbsQueue", "queue", value=_text(queue))


def _check_cores(resources: Any, place: str) -> Iterator[Finding]:
    cores = {name: _child(resources, f"pbs{name}Cores") for name in ("Min", "Base", "Max")}
    numbers = [
        (e, int(_text(e))) for e in cores.values() if e is not None and _text(e).isascii() and _text(e).isdigit()
    ]
    for (_, low), (element, high) in zip(numbers, numbers[1:], strict=False):
        if low > high:
            yield find(ERROR, element.sourceline, f"{place}/{_local(element)}", "cores_order")
    if numbers and max(number for _, number in numbers) > 1:
        element = max(numbers, key=lambda pair: pair[1])[0]
        yield find(WARNING, element.sourceline, f"{place}/{_local(element)}", "cores", "cores_site")


def _local(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _check_ports(module: Any, place: str) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for side in ("inputPorts", "outputPorts"):
        ports = _child(module, side)
        if ports is None:
            continue
        found = _children(ports, "port")
        if side == "outputPorts" and not found and not list(ports):
            yield find(ERROR, ports.sourceline, f"{place}/{side}", "no_outputs")
        for number, port in enumerate(found, 1):
            yield from _check_port(port, f"{place}/{side}/port[{number}]", side, seen)


def _check_port(port: Any, place: str, side: str, seen: dict[str, int]) -> Iterator[Finding]:
    name = _child(port, "name")
    text = _text(name)
    if text:
        fault = module_rules.find_port_fault(text)
        if fault:
            why = say(f"why.{fault}")
            yield find(ERROR, name.sourceline, f"{place}/name", "port_name", "port_words", value=text, why=why)
        normal = unicodedata.normalize("NFC", text)
        if normal != text:
            yield find(WARNING, name.sourceline, f"{place}/name", "combining", value=text)
        if normal in seen:
            yield find(ERROR, name.sourceline, f"{place}/name", "same_port", value=text, first=seen[normal])
        seen.setdefault(normal, name.sourceline)
    required = _child(port, "required")
    if side == "outputPorts" and _text(required):
        yield find(ERROR, required.sourceline, f"{place}/required", "output_required")
    if side == "inputPorts" and not _text(required):
        line = port.sourceline if required is None else required.sourceline
        yield find(WARNING, line, place, "no_required", value=text)
