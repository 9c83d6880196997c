"""The ports of a declared program: what MInt calls them, and which file or argument each stands for.

Lean: `misrc module run` uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...job.interface import REQUIRED, PortInterface, ProgramInterface
from ...job.names import NameSet

IN = "in"
OUT = "out"


@dataclass(frozen=True)
class Port:
    """One port. It stands for a `file`, or (an input) for the value of an `argument`."""

    name: str
    direction: str
    file: str | None
    argument: str | None
    required: bool
    detail: PortInterface

    @property
    def label(self) -> str:
        """What it stands for, as a file's name in the working directory."""
        return self.file or f"{self.argument}.value"


def list_ports(program: ProgramInterface) -> tuple[Port, ...]:
    """Every port of a program, as declared: those of files first, then those of arguments."""
    details: Mapping[str, PortInterface] = program.module.ports if program.module else {}
    ports = [
        _make_port(name, file, details.get(name, PortInterface()), program) for name, file in program.ports.items()
    ]
    ports += [
        Port(name, IN, None, detail.argument, detail.required, detail)
        for name, detail in details.items()
        if detail.argument is not None
    ]
    return tuple(ports)


def _make_port(name: str, file: str, detail: PortInterface, program: ProgramInterface) -> Port:
    """A file that is declared by name is what it is declared as; else `direction` counts, else the patterns."""
    if file in program.inputs:
        return Port(name, IN, file, None, program.inputs[file] == REQUIRED, detail)
    if file in program.outputs:
        return Port(name, OUT, file, None, program.outputs[file] == REQUIRED, detail)
    if detail.direction is not None:
        return Port(name, detail.direction, file, None, detail.required, detail)
    return Port(name, IN if file in NameSet(program.inputs) else OUT, file, None, False, detail)
