"""What `misrc run` was asked: checked against the declaration before anything else happens."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..job.arguments import ArgumentRefused, fill_arguments
from ..job.errors import BadRequest, Refused
from ..job.interface import REQUIRED, Interface, ProgramInterface
from ..job.names import NameRefused, NameSet, check_distinct, check_input_name
from ..job.quantities import format_size
from .jobs import InputFile, MintJob, find_origin, identify_call
from .messages.catalog import say
from .places import inventory_folder
from .sites import find_program, load_site

MAX_LIST_BYTES = 64 << 20
# An empty path is a script's unset variable, and would mean the current folder.
_FILE_OPTIONS = ("--in", "--out")


@dataclass(frozen=True)
class RunRequest:
    """The words of the command line."""

    site: str
    program: str
    inputs: Sequence[str] = ()
    input_lists: Sequence[str] = ()
    arguments: Sequence[str] = ()
    outputs: Sequence[str] = ()
    results: str = "."
    inventory: str | None = None


def check_request(request: RunRequest) -> tuple[Interface, MintJob, tuple[InputFile, ...]]:
    """The site, a job record without an id, and the inputs; BadRequest or Refused with one clear line."""
    inventory = inventory_folder(request.inventory)
    site = load_site(inventory, request.site)
    program = find_program(site, request.program)
    arguments = _check_arguments(request, program)
    inputs = _check_inputs(request, program)
    copies = _check_outputs(request, program)
    results = _check_results(request.results)
    call = identify_call(site.id, request.program, arguments, inputs, results)
    record = MintJob(
        job="",
        call=call,
        inventory=str(inventory),
        site=site.id,
        program=request.program,
        arguments=arguments,
        results=results,
        files=len(inputs),
        bytes=sum(item.size for item in inputs),
        copies=copies,
        created=time.time(),
        origin=find_origin(),
    )
    return site, record, inputs


def refuse_expired(site: Interface) -> None:
    """Refused where the agreement has ended: no new jobs. A job that was begun before goes on to its end."""
    if site.valid_until is not None and time.strftime("%Y-%m-%d") > site.valid_until:
        contact = site.contact_mint or site.contact_site or "-"
        raise Refused(say("site.expired", site=site.id, day=site.valid_until, contact=contact))


def _pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name or (not value and option in _FILE_OPTIONS):
            raise BadRequest(say("pair.malformed", option=option, value=word))
        if name in pairs:
            raise BadRequest(say("pair.twice", option=option, name=name))
        pairs[name] = value
    return pairs


def _check_arguments(request: RunRequest, program: ProgramInterface) -> dict[str, str]:
    try:
        return fill_arguments(program.arguments, _pairs("--arg", request.arguments))
    except ArgumentRefused as error:
        raise BadRequest(say("argument.refused", program=request.program, why=error)) from None


def _check_inputs(request: RunRequest, program: ProgramInterface) -> tuple[InputFile, ...]:
    words = [*request.inputs]
    for path in request.input_lists:
        words += _read_list(path)
    given = _pairs("--in", words)
    allowed = NameSet(program.inputs)
    known = ", ".join(program.inputs) or "-"
    for name in given:
        if name not in allowed:
            raise BadRequest(say("input.undeclared", program=request.program, name=name, known=known))
        try:
            check_input_name(name)
        except NameRefused as error:
            raise BadRequest(say("input.name", name=name, why=error)) from None
    try:
        check_distinct(given)
    except NameRefused as error:
        raise BadRequest(say("input.alike", why=error)) from None
    for name, need in program.inputs.items():
        if need == REQUIRED and name not in given:
            raise BadRequest(say("input.required", name=name))
    return tuple(_check_file(name, path) for name, path in given.items())


def _read_list(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_LIST_BYTES + 1)
    except (OSError, UnicodeDecodeError):
        raise BadRequest(say("input.unreadable", path=path, name="--in-list")) from None
    if len(text) > MAX_LIST_BYTES:
        raise BadRequest(say("input.list_too_long", path=path, most=format_size(MAX_LIST_BYTES)))
    # A line ends where a person sees it end: a name may hold what Unicode calls a line break.
    return text.removesuffix("\n").split("\n") if text else []


def _check_file(name: str, path: str) -> InputFile:
    try:
        status = os.stat(path)
    except OSError:
        raise BadRequest(say("input.missing", path=path, name=name)) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadRequest(say("input.folder", path=path, name=name))
    if not os.access(path, os.R_OK):
        raise BadRequest(say("input.unreadable", path=path, name=name))
    return InputFile(name, os.path.abspath(path), status.st_size)


def _check_outputs(request: RunRequest, program: ProgramInterface) -> dict[str, str]:
    copies = _pairs("--out", request.outputs)
    declared = NameSet([*program.outputs, "remote_program_exec.log"])
    for name in copies:
        if name not in declared:
            known = ", ".join(program.outputs) or "-"
            raise BadRequest(say("output.undeclared", program=request.program, name=name, known=known))
    for name, path in copies.items():
        target = Path(path).absolute()
        why = _why_no_folder(target.parent) or _why_no_file(target)
        if why:
            raise BadRequest(say("output.copy", name=name, path=target, why=why))
    return {name: os.path.abspath(path) for name, path in copies.items()}


def _check_results(path: str) -> str:
    """The results folder must be usable now, not only when a long computation has ended."""
    folder = Path(path).absolute()
    why = _why_no_folder(folder) if path else "its name is empty"
    if why:
        raise BadRequest(say("results.folder", path=folder if path else "''", why=why))
    return str(folder)


def _why_no_folder(folder: Path) -> str:
    """Why nothing could be written into a folder, which may still be to be made."""
    existing = folder
    while True:
        try:
            # A link that leads nowhere is there as well: no folder can be made in its place.
            os.lstat(existing)
            break
        except (FileNotFoundError, NotADirectoryError):
            existing = existing.parent
        except OSError as error:
            return error.strerror or str(error)
    if not existing.is_dir():
        return f"{existing} is not a folder"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written"


def _why_no_file(path: Path) -> str:
    """Why a file could not take the place of what is there."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return "" if kind == stat.S_IFREG else "it is not a plain file"
