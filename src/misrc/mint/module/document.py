"""MInt's prediction-module file as values, and back. Nothing is lost between the two.

An element may be left out (None), be nil (NIL), or hold a text, which may be empty: three things in XML, and three
here. Not kept: comments and the layout between elements. Whoever only changes a file (`retire`) changes its tree.

This module reads what is known to be good; `checking.py` says what is wrong with the rest.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import Any, Final

from lxml import etree

NAMESPACE = "http://www.example.com/predictionModuleSchema"
DC = "http://purl.org/dc/elements/1.1/"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
PREFIXES = {None: NAMESPACE, "dc": DC, "xsi": XSI}
NIL_ATTRIBUTE = f"{{{XSI}}}nil"
LOCATION_ATTRIBUTE = f"{{{XSI}}}schemaLocation"
TRUE = ("true", "1")


class Nil(enum.Enum):
    """An element that says that it has no value."""

    NIL = "nil"


NIL: Final = Nil.NIL
Text = str | Nil | None


@dataclass(frozen=True)
class Port:
    """One port of a module."""

    name: Text = None
    description: Text = None
    descriptor: Text = None
    type: Text = None
    unit: Text = None
    depth: Text = None
    default: Text = None
    required: Text = None


@dataclass(frozen=True)
class Resources:
    """What is asked of PBS. `old_node_group` is the older spelling of the element, of which a file has one."""

    queue: Text = None
    node_group: Text = None
    old_node_group: Text = None
    min_cores: Text = None
    max_cores: Text = None
    base_cores: Text = None


@dataclass(frozen=True)
class Module:
    """One prediction module."""

    identifier: Text = None
    title: Text = None
    description: Text = None
    creator: Text = None
    creator_id: Text = None
    date: Text = None
    model: Text = None
    deleted: Text = None
    version: Text = None
    object_path: Text = None
    resources: Resources | None = None
    appendix: Text = None
    history: Text = None
    inputs: tuple[Port, ...] | Nil | None = None
    outputs: tuple[Port, ...] | None = None


@dataclass(frozen=True)
class ModuleFile:
    """A file: its modules in order, and where it says that its schema lies."""

    modules: tuple[Module, ...] = ()
    schema_location: str | None = None


# Field → element, in the order of the file.
PORT_TAGS = {
    "name": f"{{{NAMESPACE}}}name",
    "description": f"{{{NAMESPACE}}}description",
    "descriptor": f"{{{NAMESPACE}}}descriptor",
    "type": f"{{{NAMESPACE}}}type",
    "unit": f"{{{NAMESPACE}}}unit",
    "depth": f"{{{NAMESPACE}}}depth",
    "default": f"{{{NAMESPACE}}}defaultValue",
    "required": f"{{{NAMESPACE}}}required",
}
RESOURCE_TAGS = {
    "queue": f"{{{NAMESPACE}}}pbsQueue",
    "node_group": f"{{{NAMESPACE}}}pbsNodeGroup",
    "old_node_group": f"{{{NAMESPACE}}}pbsNodesGroup",
    "min_cores": f"{{{NAMESPACE}}}pbsMinCores",
    "max_cores": f"{{{NAMESPACE}}}pbsMaxCores",
    "base_cores": f"{{{NAMESPACE}}}pbsBaseCores",
}
MODULE_TAGS = {
    "identifier": f"{{{DC}}}identifier",
    "title": f"{{{DC}}}title",
    "description": f"{{{DC}}}description",
    "creator": f"{{{DC}}}creator",
    "creator_id": f"{{{NAMESPACE}}}creatorId",
    "date": f"{{{DC}}}date",
    "model": f"{{{NAMESPACE}}}predictionModel",
    "deleted": f"{{{NAMESPACE}}}deleted",
    "version": f"{{{NAMESPACE}}}version",
    "object_path": f"{{{NAMESPACE}}}objectPath",
    "resources": f"{{{NAMESPACE}}}resourceRequests",
    "appendix": f"{{{NAMESPACE}}}appendix",
    "history": f"{{{NAMESPACE}}}history",
    "inputs": f"{{{NAMESPACE}}}inputPorts",
    "outputs": f"{{{NAMESPACE}}}outputPorts",
}


def make_parser(keep_comments: bool = False) -> Any:
    """A parser for files of strangers: no entities, no DTD, no network, no huge trees."""
    return etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        dtd_validation=False,
        no_network=True,
        huge_tree=False,
        remove_comments=not keep_comments,
        remove_pis=not keep_comments,
    )


def parse_modules(data: bytes) -> ModuleFile:
    """The values of a good file; ValueError (lxml's) for what is not XML."""
    root = etree.fromstring(data, make_parser())
    modules = tuple(read_module(element) for element in root)
    return ModuleFile(modules, root.get(LOCATION_ATTRIBUTE))


def read_module(element: Any) -> Module:
    """One `module` element; elements that it does not know are passed over."""
    values = _read_fields(element, MODULE_TAGS)
    found = {child.tag: child for child in element if isinstance(child.tag, str)}
    resources = found.get(MODULE_TAGS["resources"])
    values["resources"] = None if resources is None else Resources(**_read_fields(resources, RESOURCE_TAGS))
    for name in ("inputs", "outputs"):
        child = found.get(MODULE_TAGS[name])
        values[name] = child if child is None else _read_ports(child)
    return Module(**values)


def _read_ports(element: Any) -> tuple[Port, ...] | Nil:
    if element.get(NIL_ATTRIBUTE) in TRUE:
        return NIL
    return tuple(Port(**_read_fields(child, PORT_TAGS)) for child in element if isinstance(child.tag, str))


def _read_fields(element: Any, tags: dict[str, str]) -> dict[str, Any]:
    names = {tag: name for name, tag in tags.items()}
    return {names[child.tag]: _read_text(child) for child in element if child.tag in names}


def _read_text(element: Any) -> Text:
    if element.get(NIL_ATTRIBUTE) in TRUE:
        return NIL
    return element.text or ""


def render_modules(file: ModuleFile) -> bytes:
    """The file that `parse_modules` reads; ValueError for a character that XML cannot hold."""
    root = etree.Element(f"{{{NAMESPACE}}}modules", nsmap=PREFIXES)
    if file.schema_location is not None:
        root.set(LOCATION_ATTRIBUTE, file.schema_location)
    for module in file.modules:
        _add_fields(etree.SubElement(root, f"{{{NAMESPACE}}}module"), module, MODULE_TAGS)
    etree.indent(root, space="    ")
    data: bytes = etree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return data.replace(b"<?xml version='1.0' encoding='UTF-8'?>", b'<?xml version="1.0" encoding="UTF-8"?>', 1) + b"\n"


def _add_fields(parent: Any, value: Any, tags: dict[str, str]) -> None:
    for field in fields(value):
        content = getattr(value, field.name)
        if content is None:
            continue
        element = etree.SubElement(parent, tags[field.name])
        if content is NIL:
            element.set(NIL_ATTRIBUTE, "true")
        elif isinstance(content, Resources):
            _add_fields(element, content, RESOURCE_TAGS)
        elif isinstance(content, tuple):
            for port in content:
                _add_fields(etree.SubElement(element, f"{{{NAMESPACE}}}port"), port, PORT_TAGS)
        else:
            element.text = content
