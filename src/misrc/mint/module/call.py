"""What MInt's player says to a module's script: `--<port name> <file path> …`, inputs and outputs alike.

Lean: it is read in the process that then waits for the job.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...declare.module_rules import normalize
from ...job.errors import BadRequest
from ..messages.catalog import say
from .ports import IN, Port

MAX_VALUE_BYTES = 4096


@dataclass(frozen=True)
class Call:
    """The files that were named, by port, and the folder in which the run takes place. Paths are absolute."""

    inputs: dict[Port, Path]
    outputs: dict[Port, Path]
    folder: Path

    def links(self) -> dict[str, Path]:
        """The inputs by the names that the program knows."""
        return {port.file: path for port, path in self.inputs.items() if port.file is not None}

    def arguments(self) -> list[str]:
        """The arguments whose values came in files, as `misrc run --arg` takes them."""
        return [f"{port.argument}={_read_value(port, path)}" for port, path in self.inputs.items() if port.argument]


def parse_call(words: Sequence[str], ports: Sequence[Port]) -> Call:
    """The words after the script's name; BadRequest names the port that is wrong or missing."""
    known = _name_ports(ports)
    inputs: dict[Port, Path] = {}
    outputs: dict[Port, Path] = {}
    for name, value in pair_words(words):
        port = known.get(normalize(name))
        if port is None:
            raise BadRequest(say("call.unknown", port=name, known=", ".join(port.name for port in ports) or "-"))
        side = inputs if port.direction == IN else outputs
        if port in side:
            raise BadRequest(say("pair.twice", option="--", name=name))
        side[port] = Path(value).absolute()
    for port in ports:
        if port.direction == IN and port.required and port not in inputs:
            raise BadRequest(say("call.missing", port=port.name, file=port.label))
    for port, path in inputs.items():
        _check_input(port, path)
    return Call(inputs, outputs, _choose_folder(outputs))


def pair_words(words: Sequence[str]) -> list[tuple[str, str]]:
    """`--name value` pairs; `--name=value` is taken too."""
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, sign, value = word[2:].partition("=")
        if not word.startswith("--") or not name:
            raise BadRequest(say("call.malformed", word=word))
        if not sign:
            if not rest:
                raise BadRequest(say("call.no_file", port=name))
            value = rest.pop(0)
        if not value or "\0" in value:
            raise BadRequest(say("call.no_file", port=name))
        pairs.append((name, value))
    return pairs


def _name_ports(ports: Sequence[Port]) -> dict[str, Port]:
    """Every name by which a port is taken: its own, its alias, and that of its file where only one port has it."""
    files = [port.file for port in ports]
    known = {port.file: port for port in ports if port.file is not None and files.count(port.file) == 1}
    known |= {port.detail.alias: port for port in ports if port.detail.alias}
    return known | {normalize(port.name): port for port in ports}


def _check_input(port: Port, path: Path) -> None:
    try:
        status = path.stat()
    except OSError:
        raise BadRequest(say("input.missing", path=path, name=port.name)) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadRequest(say("input.folder", path=path, name=port.name))
    if not os.access(path, os.R_OK):
        raise BadRequest(say("input.unreadable", path=path, name=port.name))


def _choose_folder(outputs: dict[Port, Path]) -> Path:
    """The folder of the outputs is the run's working directory; without outputs the current one."""
    folders = sorted({path.parent for path in outputs.values()})
    if len(folders) > 1:
        raise BadRequest(say("call.folders", folders=", ".join(map(str, folders))))
    return folders[0] if folders else Path.cwd()


def _read_value(port: Port, path: Path) -> str:
    """The value of an argument: the text of a small file, without white space around it."""
    with path.open("rb") as file:
        data = file.read(MAX_VALUE_BYTES + 1)
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = "\n"
    if len(data) > MAX_VALUE_BYTES or not text.isprintable():
        raise BadRequest(say("call.value", port=port.name, path=path))
    return text
