"""From a declared program to the two files of its module: the prediction-module file and the module's script."""

from __future__ import annotations

from pathlib import PurePosixPath

from ...declare.module_rules import NODE_GROUP
from ...job.errors import BadRequest
from ...job.interface import Interface, ModuleInterface
from ..messages.catalog import say
from .document import NIL, Module, ModuleFile, Resources
from .document import Port as DocumentPort
from .ports import IN, OUT, Port, list_ports

SHELL = """\
#!/bin/sh
# {title}: runs the program {program} at the site {site}, as both are declared.
PATH=$PATH:/usr/local/bin
exec misrc module run --scripts "$(dirname "$0")" {site} {program} "$@"
"""
PYTHON = """\
#!/usr/bin/env python3
# {title}: runs the program {program} at the site {site}, as both are declared.
import os
import sys

os.environ["PATH"] += ":/usr/local/bin"
folder = os.path.dirname(os.path.abspath(__file__))
os.execvp("misrc", ["misrc", "module", "run", "--scripts", folder, "{site}", "{program}", *sys.argv[1:]])
"""


def make_module(site: Interface, name: str) -> ModuleFile:
    """The module file of a declared program; BadRequest names what the declaration lacks."""
    program = site.programs.get(name)
    if program is None:
        raise BadRequest(say("program.unknown", site=site.id, program=name, known=", ".join(site.programs)))
    declared = program.module
    if declared is None:
        raise BadRequest(say("module.no_declaration", site=site.id, program=name))
    ports = list_ports(program)
    if not any(port.direction == OUT for port in ports):
        raise BadRequest(say("module.no_ports", program=name))
    title = program.title.get("ja") or program.title.get("en") or name
    return ModuleFile((_fill_module(declared, title, ports),))


def _fill_module(declared: ModuleInterface, title: str, ports: tuple[Port, ...]) -> Module:
    return Module(
        identifier=declared.id,
        title=title,
        description=declared.description or NIL,
        creator=declared.creator,
        creator_id=declared.creator_id or NIL,
        date=declared.date,
        model=declared.model,
        deleted="false",
        version=declared.version,
        object_path=declared.path,
        # Queue and cores decide nothing: the site's own batch system does.
        resources=Resources(queue=NIL, node_group=NODE_GROUP, min_cores="1", max_cores="1", base_cores="1"),
        appendix=NIL,
        history=NIL,
        inputs=tuple(_fill_port(port) for port in ports if port.direction == IN),
        outputs=tuple(_fill_port(port) for port in ports if port.direction == OUT),
    )


def _fill_port(port: Port) -> DocumentPort:
    if port.detail.descriptor is None:
        raise BadRequest(say("module.no_descriptor", port=port.name))
    return DocumentPort(
        name=port.name,
        description=port.detail.description or NIL,
        descriptor=port.detail.descriptor,
        type="file",
        unit=port.detail.unit or NIL,
        depth="0",
        default=port.detail.default or NIL,
        required=("true" if port.required else "false") if port.direction == IN else NIL,
    )


def make_script(site: Interface, name: str) -> tuple[str, str]:
    """The file name and the text of the module's script: Python where objectPath ends with .py, else sh."""
    program = site.programs[name]
    file = PurePosixPath(program.module.path if program.module else f"/{name}.sh").name
    title = " ".join((program.title.get("en") or name).split())
    text = PYTHON if file.endswith(".py") else SHELL
    return file, text.format(title=title, site=site.id, program=name)
