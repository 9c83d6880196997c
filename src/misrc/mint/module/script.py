"""`misrc module run`: the module's script (program A), one for all modules; the declaration says what it does.

It links the inputs under the names that the program knows, runs what is declared for before, lets `misrc run` do the
job, runs what is declared for after, and puts each result where MInt expects it. SIGTERM stops the job at the site.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ...job.errors import BadRequest, JobCancelled, ProgramFailed
from ...job.interface import ModuleInterface, ProgramInterface
from ...job.names import NameSet
from ..display import Display
from ..launch import Play
from ..messages.catalog import say
from ..places import inventory_folder
from ..request import RunRequest
from ..retrieval import copy_whole
from ..run import run
from ..sites import find_program, load_site
from ..stopping import Stopped, stoppable
from .call import Call, parse_call
from .identity import export_identity, find_identity
from .ports import list_ports
from .solver_log import SolverLog
from .steps import run_steps

_PLAIN = ModuleInterface("", "", "", "", "/")


def run_module(site: str, program: str, words: Sequence[str], inventory: str | None, scripts: str) -> int:
    """`misrc module run`: 0 when every output is in its place; otherwise the errors and exit codes of `misrc run`.

    `scripts` is the folder of the module's script, for declared commands that lie beside it.
    """
    folder = inventory_folder(inventory)
    declared = load_site(folder, site).programs.get(program)
    declared = find_program(load_site(folder, site), program)
    call = parse_call(words, list_ports(declared))
    identity = find_identity()
    export_identity(identity)
    module = declared.module or _PLAIN
    log = SolverLog(module.solver or program, identity)
    place = Path(scripts).absolute()
    well = False
    # Made now, it loads while the inputs are looked at; nothing of it lives while declared commands run.
    play = None if module.before else Play()
    try:
        with stoppable():
            _enter(call)
            run_steps(module.before, call.folder, place)
            inputs = _name_inputs(declared, call)
            request = RunRequest(site, program, inputs, (), call.arguments(), inventory=str(folder))
            record = run(request, None, False, Display(), play or Play(), log.start)
            for name in record.delivered:
                print(Path(record.results, name), file=sys.stderr)
            run_steps(module.after, call.folder, place)
            deliver(declared, call)
            well = True
    except Stopped:
        raise JobCancelled(say("call.stopped")) from None
    finally:
        if play is not None:
            play.end()
        log.end(well)
    return 0


def _enter(call: Call) -> None:
    """Go to the working directory and link the inputs there; BadRequest where another file lies in the way."""
    call.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(call.folder)
    for name, path in call.links().items():
        link = call.folder / name
        if link.exists() and link.samefile(path):
            continue
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise BadRequest(say("call.in_the_way", path=link, port=path))
        link.symlink_to(path.resolve())


def _name_inputs(program: ProgramInterface, call: Call) -> list[str]:
    """What goes to the site: each declared input that lies in the working directory, whoever put it there."""
    names = dict.fromkeys(name for name in program.inputs if Path(name).is_file())
    names |= dict.fromkeys(name for name in call.links() if name in NameSet(program.inputs))
    return [f"{name}={call.folder / name}" for name in names]


def deliver(program: ProgramInterface, call: Call) -> None:
    """Put each result where MInt expects it; ProgramFailed where a required one is not there."""
    for port, target in call.outputs.items():
        source = call.folder / (port.file or "")
        if source.is_file():
            if not (target.exists() and target.samefile(source)):
                copy_whole(source, target)
        elif port.required:
            raise ProgramFailed(say("call.no_result", port=port.name, file=port.label))
        else:
            print(say("call.no_result", port=port.name, file=port.label), file=sys.stderr)
