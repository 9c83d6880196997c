"""The predecessor's program B: `client_name:HOST client_cmd:COMMAND client_files:a,b,c`, done by `misrc run`.

HOST is a site by its id, an older id or its address; COMMAND is one of its programs, by name or by the declared
`command`. What follows the command is split at single spaces, and each word is the next declared argument. Everything
that returns comes into the current directory, as it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...job.errors import BadRequest
from ...job.interface import Interface
from ..commands import run_job
from ..launch import Play
from ..messages.catalog import say
from ..places import inventory_folder
from ..request import RunRequest
from ..sites import load_sites

WORDS = ("client_name", "client_cmd", "client_files")


def run_command(words: Sequence[str], inventory: str | None) -> int:
    """Run what the words ask for; the errors and exit codes of `misrc run`."""
    folder = inventory_folder(inventory)
    request = make_request(words, folder, load_sites(folder))
    return run_job(request, None, False, Play(), False)


def make_request(words: Sequence[str], inventory: Path, sites: Mapping[str, Interface]) -> RunRequest:
    """The request that the words mean; BadRequest where a site or program is not declared, or not only one fits."""
    given = _split(words)
    site = _find_site(given["client_name"], sites)
    name, values = _find_program(given["client_cmd"], site)
    arguments = _name_arguments(values, site.id, name, inventory) if values else []
    files = [file for file in given["client_files"].split(",") if file]
    inputs = [f"{Path(file).name}={file}" for file in files]
    return RunRequest(site.id, name, inputs, (), arguments, inventory=str(inventory))


def _split(words: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition(":")
        if not sign or name not in WORDS or name in given:
            raise BadRequest(say("command.usage", word=word))
        given[name] = value
    for name in WORDS:
        if name not in given:
            raise BadRequest(say("command.usage", word=f"{name}:"))
    return given


def _find_site(host: str, sites: Mapping[str, Interface]) -> Interface:
    found = [site for site in sites.values() if host == site.id or host in site.legacy_ids]
    found = found or [site for site in sites.values() if host == site.address]
    if len(found) != 1:
        raise BadRequest(say("command.site", host=host, count=len(found), known=", ".join(sites) or "-"))
    return found[0]


def _find_program(command: str, site: Interface) -> tuple[str, list[str]]:
    """The program, and the words that follow its command. The longest declared command wins."""
    for words in range(command.count(" "), -1, -1):
        parts = command.split(" ")
        head, rest = " ".join(parts[: words + 1]), parts[words + 1 :]
        for name, program in site.programs.items():
            if head in (name, program.command):
                return name, rest
    known = ", ".join(program.command or name for name, program in site.programs.items())
    raise BadRequest(say("program.unknown", site=site.id, program=command, known=known))


def _name_arguments(values: Sequence[str], site: str, program: str, inventory: Path) -> list[str]:
    """Each value as `misrc run --arg` takes it. Only the file itself has the arguments in their order."""
    from ...declare.inventory import load_declarations

    names = list(load_declarations(inventory)[site][1].programs[program].arguments)
    if len(values) > len(names):
        raise BadRequest(say("command.arguments", count=len(values), most=len(names)))
    return [f"{name}={value}" for name, value in zip(names, values, strict=False)]
