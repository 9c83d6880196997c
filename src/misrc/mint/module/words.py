"""The words of `misrc module …`. Nothing of what they do is loaded before one of them is called."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..messages.translation import Parser


def add_module_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add them to the commands of `misrc`."""
    parser = commands.add_parser("module", help="programs as MInt's modules: files, scripts, and a player to try them")
    module = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        command = module.add_parser(name, help=text, allow_abbrev=False)
        command.set_defaults(run=function)
        return command

    render = add("render", "write the module file and the script of a declared program", _module_render)
    run = add("run", "the module's script: takes --PORT FILE pairs, as MInt's player gives them", _module_run)
    command = add("command", "the predecessor's words: client_name: client_cmd: client_files:", _module_command)
    for each in (render, run, command):
        each.add_argument("--inventory", metavar="DIR", help="the declarations (default: MISRC_INVENTORY)")
    for each in (render, run):
        each.add_argument("site", metavar="SITE")
        each.add_argument("program", metavar="PROGRAM")
    render.add_argument("--output", default=".", metavar="DIR", help="where both files go (default: here)")
    render.add_argument("--force", action="store_true", help="write over files that differ")
    run.add_argument("--scripts", default=".", metavar="DIR", help="the folder of the module's script")
    run.add_argument("ports", nargs=argparse.REMAINDER, metavar="--PORT FILE")
    command.add_argument("words", nargs=argparse.REMAINDER, metavar="WORD")
    check = add("check", "say what is wrong with module files, where, and what to do", _module_check)
    check.add_argument("files", nargs="+", metavar="FILE")
    check.add_argument("--local", action="store_true", help="the modules use no site")
    check.add_argument("--json", action="store_true", help="one JSON object for each file")
    retire = add("retire", "mark the modules of a file as deleted", _module_retire)
    retire.add_argument("file", metavar="FILE")
    retire.add_argument("--id", metavar="ID", help="only the module with this id (P and 15 digits)")
    practice = add("practice", "a practice site on this machine for one program", _module_practice)
    practice.add_argument("--folder", default="practice", metavar="DIR", help="where it lives (default: practice)")
    practice.add_argument("--stop", action="store_true", help="end what runs of it; the folder stays")
    practice.add_argument("--webapi", action="store_true", help="it asks an API server for work (needs misrc[api])")
    practice.add_argument("what", nargs="*", metavar="NAME PROGRAM DECLARATION")
    play = add("play", "run modules one after another, as MInt's player would", _module_play)
    play.add_argument("--modules", metavar="DIR", help="MInt's modules directory (default: beside each FILE)")
    play.add_argument("--workdir", metavar="DIR", help="the folder of the run (default: a new one)")
    play.add_argument("words", nargs=argparse.REMAINDER, metavar="FILE … --PORT FILE …")


def _module_render(options: argparse.Namespace) -> int:
    from .commands import render_module

    return render_module(options.site, options.program, options.inventory, options.output, options.force)


def _module_run(options: argparse.Namespace) -> int:
    from .script import run_module

    return run_module(options.site, options.program, options.ports, options.inventory, options.scripts)


def _module_command(options: argparse.Namespace) -> int:
    from .remote_command import run_command

    return run_command(options.words, options.inventory)


def _module_check(options: argparse.Namespace) -> int:
    from .commands import check_modules

    return check_modules(options.files, options.local, options.json)


def _module_retire(options: argparse.Namespace) -> int:
    from .commands import retire_module

    return retire_module(options.file, options.id)


def _module_practice(options: argparse.Namespace) -> int:
    from ...job.errors import BadRequest
    from ..messages.catalog import say
    from .practice import start_practice, stop_practice

    if options.stop:
        return stop_practice(options.folder)
    if len(options.what) != 3:
        raise BadRequest(say("practice.usage"))
    name, program, declaration = options.what
    return start_practice(options.folder, name, program, declaration, options.webapi)


def _module_play(options: argparse.Namespace) -> int:
    from .player import play

    return play(options.words, options.modules, options.workdir)
