"""How a program appears in MInt as a module: the prediction-module file and the module's script follow from this."""

from __future__ import annotations

import datetime
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ..job.interface import ModuleInterface, PortInterface
from ..job.names import NameSet
from . import module_rules as rules
from .strict import Strict, match

Names = Collection[str]


class Creator(Strict):
    """Who made the module."""

    name: Annotated[str, Field(min_length=1, description="The creator's name.")]
    id: Annotated[str | None, Field(description="MInt's number of the creator, 15 or 16 digits.")] = None

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str | None) -> str | None:
        return value if value is None else match(rules.CREATOR_ID, value, "the creator's id")


class Port(Strict):
    """One port as MInt shows it."""

    descriptor: Annotated[str | None, Field(description="MInt's descriptor: D and 15 digits.")] = None
    description: Annotated[str | None, Field(description="One line for the users of the workflow.")] = None
    unit: Annotated[str | None, Field(description="The unit of the value.")] = None
    default: Annotated[str | None, Field(description="The value that MInt offers.")] = None
    alias: Annotated[str | None, Field(description="An ASCII name by which the module's script takes it too.")] = None
    argument: Annotated[
        str | None, Field(description="The file holds the value of this argument, instead of being an input.")
    ] = None
    direction: Annotated[
        Literal["in", "out"] | None,
        Field(description="For a file that only `before` reads or only `after` writes: `in` or `out`."),
    ] = None
    required: Annotated[bool, Field(description="For an argument, or a file with `direction: in`.")] = True

    @field_validator("descriptor")
    @classmethod
    def _check_descriptor(cls, value: str | None) -> str | None:
        return value if value is None else match(rules.DESCRIPTOR, value, "the descriptor")

    @field_validator("alias")
    @classmethod
    def _check_alias(cls, value: str | None) -> str | None:
        return value if value is None else match(rules.ALIAS, value, "the alias")


class Module(Strict):
    """The module of one program."""

    id: Annotated[str | None, Field(description="P and 15 digits; none until MInt has registered the module.")] = None
    model: Annotated[str, Field(description="The prediction model: M and 15 digits.")]
    version: Annotated[str, Field(description="x.y.z")]
    date: Annotated[str, Field(description="YYYY-MM-DD")]
    creator: Annotated[Creator, Field(description="Who made it.")]
    path: Annotated[str, Field(description="objectPath: the script below MInt's modules directory, with a leading /.")]
    description: Annotated[str, Field(description="What it does, for the users of the workflow.")] = ""
    solver: Annotated[str | None, Field(description="Its name in MInt's solver log; default: the program.")] = None
    before: Annotated[
        tuple[tuple[str, ...], ...], Field(description="Commands before the job, as lists of words.")
    ] = ()
    after: Annotated[tuple[tuple[str, ...], ...], Field(description="Commands after the job, as lists of words.")] = ()
    ports: Annotated[dict[str, Port], Field(description="What MInt shows of each port.")] = {}

    @model_validator(mode="after")
    def _check(self) -> Module:
        if self.id is not None:
            match(rules.MODULE_ID, self.id, "id")
        match(rules.MODEL_ID, self.model, "model")
        match(rules.VERSION, self.version, "version")
        match("[0-9]{4}-[0-9]{2}-[0-9]{2}", self.date, "date")
        datetime.date.fromisoformat(self.date)
        fault = rules.find_path_fault(self.path)
        if fault:
            raise ValueError(f"path: {rules.FAULTS[fault]}")
        for step in (*self.before, *self.after):
            if not step or not all(step) or not step[0].startswith(("/", "{scripts}/", "{python}")):
                raise ValueError("a command begins with /, {scripts}/ or {python}, and has no empty word")
        return self

    def interface(self) -> ModuleInterface:
        """What the running code needs of it."""
        ports = {name: PortInterface(**port.model_dump()) for name, port in self.ports.items()}
        plain = self.model_dump(exclude={"ports", "creator", "solver"})
        return ModuleInterface(
            **plain, ports=ports, creator=self.creator.name, creator_id=self.creator.id, solver=self.solver or ""
        )


def check_ports(ports: dict[str, str], module: Module | None, inputs: Names, outputs: Names, arguments: Names) -> None:
    """Every port stands for a declared file or argument, and is known by one name; ValueError says which does not."""
    details = module.ports if module else {}
    _check_port_names(ports, details)
    for name, detail in details.items():
        if (name in ports) == (detail.argument is not None):
            raise ValueError(f"the port {name!r} needs a file in `ports`, or an `argument`, and not both")
        if detail.argument is not None and detail.argument not in arguments:
            raise ValueError(f"the port {name!r} is for {detail.argument!r}, which is no argument of the program")
    known = NameSet([*inputs, *outputs])
    for name, file in ports.items():
        if file in inputs and file in outputs:
            raise ValueError(f"the port {name!r} stands for {file!r}, which is both an input and an output")
        if file not in known and not (name in details and details[name].direction):
            raise ValueError(f"the port {name!r} stands for {file!r}, which is neither input nor output")


def _check_port_names(ports: dict[str, str], details: dict[str, Port]) -> None:
    for name in (*ports, *details):
        fault = rules.find_port_fault(name)
        if fault:
            raise ValueError(f"the port {name!r} cannot be one: {rules.FAULTS[fault]}")
        if rules.normalize(name) != name:
            raise ValueError(f"the port {name!r} is written with combining characters; write it composed (NFC)")
    taken = [*ports, *(name for name in details if name not in ports)]
    taken += [detail.alias for detail in details.values() if detail.alias]
    if len(set(taken)) != len(taken):
        raise ValueError("a port's alias is the name of another port")
