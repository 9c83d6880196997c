"""A player for tests and demos: runs modules as MInt's player would, without MInt.

Each module runs in a folder of its own, with PBS's variables, in a session of its own. A stop is SIGTERM to the whole
session, as PBS does it, and SIGKILL where that does not end it. Ports of several modules are joined as MInt joins
them: an input takes the output that has its descriptor.

Not covered: PBS itself, queues, and MInt's account.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...declare.module_rules import NODE_GROUP, normalize
from ...job.errors import BadRequest, JobCancelled, ProgramFailed
from ..messages.catalog import say
from ..retrieval import copy_whole
from ..stopping import Stopped, stoppable
from .call import pair_words
from .checking import check_bytes, read_file
from .document import Module, ModuleFile, Port, parse_modules
from .findings import ERROR

KILL_SECONDS = 60
SITE_ID = "site00000"


@dataclass(frozen=True)
class Played:
    """A module that is to be played, and its script."""

    module: Module
    script: Path


@dataclass
class Stage:
    """Where the modules of one workflow are played: its folder, its run, and what came out.

    `given` and `wanted` are the files that were named, by port; `made` is by descriptor, `outputs` by port.
    """

    folder: Path
    given: dict[str, Path]
    wanted: dict[str, Path]
    run: str = field(default_factory=lambda: f"R{uuid.uuid4().int % 10**15:015}")
    made: dict[str, Path] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)

    def environment(self, number: int, folder: Path) -> dict[str, str]:
        """What PBS and MInt set for the module with this number."""
        nodes = folder / ".nodefile"
        nodes.write_text(f"{NODE_GROUP}\n", encoding="ascii")
        return {
            **os.environ,
            "PBS_JOBID": f"{number}.{self.run}.player",
            "PBS_NODEFILE": str(nodes),
            "PBS_O_WORKDIR": str(folder),
            "MISYSTEM_SITEID": os.environ.get("MISYSTEM_SITEID", SITE_ID),
            "MISRC_SOLVER_LOGS": os.environ.get("MISRC_SOLVER_LOGS", str(self.folder / "workflow")),
            "MISRC_RUN_ID": self.run,
            "MISRC_WORKFLOW_ID": os.environ.get("MISRC_WORKFLOW_ID", "W000000000000000"),
            "MISRC_USER_ID": os.environ.get("MISRC_USER_ID", "player"),
        }


def play(words: Sequence[str], modules: str | None, workdir: str | None) -> int:
    """`misrc module play FILE … --PORT FILE …`: 0 when every module has ended well and the named outputs are there."""
    count = next((index for index, word in enumerate(words) if word.startswith("--")), len(words))
    if count == 0:
        raise BadRequest(say("play.no_file"))
    played = [entry for name in words[:count] for entry in load_modules(Path(name), modules)]
    folder = Path(workdir) if workdir else Path(tempfile.mkdtemp(prefix="misrc-module-"))
    stage = make_stage(played, words[count:], folder.absolute())
    with stoppable():
        try:
            for number, entry in enumerate(played, 1):
                _play_one(stage, number, entry)
        except Stopped:
            raise JobCancelled(say("play.stopped")) from None
    for name in stage.wanted:
        if name not in stage.outputs:
            raise ProgramFailed(say("play.no_result", port=name))
    for name, target in stage.wanted.items():
        copy_whole(stage.outputs[name], target)
        print(target)
    return 0


def load_modules(path: Path, modules: str | None) -> list[Played]:
    """The modules of a file with their scripts; BadRequest where the file has errors or a script is missing."""
    data = read_file(path)
    wrong = [finding for finding in check_bytes(data, local=True) if finding.level == ERROR]
    if wrong:
        raise BadRequest(wrong[0].render(str(path)))
    file: ModuleFile = parse_modules(data)
    for module in file.modules:
        if module.deleted == "true":
            raise BadRequest(say("play.deleted", module=module.title))
    return [Played(module, _find_script(path, str(module.object_path), modules)) for module in file.modules]


def _find_script(path: Path, object_path: str, modules: str | None) -> Path:
    """Below the modules directory where one is named; else beside the file, or in the file's checkout."""
    folder = modules or os.environ.get("MISRC_MODULES")
    parts = PurePosixPath(object_path).parts[1:]
    if folder:
        places = [Path(folder, *parts)]
    else:
        # A checkout keeps its files in modulesxml/, and is itself the first folder of objectPath.
        places = [path.absolute().parent / parts[-1], path.absolute().parents[1].joinpath(*parts[1:])]
    for script in places:
        if script.is_file() and os.access(script, os.X_OK):
            return script.absolute()
    raise BadRequest(say("play.no_script", path=places[0], object_path=object_path))


def make_stage(played: Sequence[Played], words: Sequence[str], folder: Path) -> Stage:
    """Sort the named files into inputs and outputs; BadRequest for a port that no module has."""
    inputs = {_name(port): port for entry in played for port in _ports(entry.module, "inputs")}
    outputs = {_name(port): port for entry in played for port in _ports(entry.module, "outputs")}
    given: dict[str, Path] = {}
    wanted: dict[str, Path] = {}
    for word, value in pair_words(words):
        name = normalize(word)
        if name not in inputs and name not in outputs:
            raise BadRequest(say("call.unknown", port=word, known=", ".join([*inputs, *outputs])))
        # A port between two modules is an output first: what the workflow itself makes is not given.
        (wanted if name in outputs else given)[name] = Path(value).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BadRequest(say("play.folder", path=folder))
    return Stage(folder, given, wanted)


def _ports(module: Module, side: str) -> tuple[Port, ...]:
    ports = getattr(module, side)
    return ports if isinstance(ports, tuple) else ()


def _name(port: Port) -> str:
    return normalize(str(port.name))


def _play_one(stage: Stage, number: int, entry: Played) -> None:
    folder = stage.folder / f"{number:02}"
    folder.mkdir()
    words = [str(entry.script)]
    for port in _ports(entry.module, "inputs"):
        source = stage.given.get(_name(port)) or stage.made.get(str(port.descriptor))
        if source is not None:
            words += [f"--{port.name}", str(source)]
        elif port.required == "true":
            raise BadRequest(say("play.no_input", port=port.name, module=entry.module.title))
    for port in _ports(entry.module, "outputs"):
        words += [f"--{port.name}", str(folder / str(port.name))]
    print(say("play.begins", number=number, module=entry.module.title, folder=folder), file=sys.stderr, flush=True)
    _run(words, folder, stage.environment(number, folder), str(entry.module.title))
    for port in _ports(entry.module, "outputs"):
        if (folder / str(port.name)).is_file():
            stage.made[str(port.descriptor)] = folder / str(port.name)
            stage.outputs[_name(port)] = folder / str(port.name)


def _run(words: list[str], folder: Path, environment: dict[str, str], title: str) -> None:
    try:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
        )
    except OSError as error:
        raise BadRequest(say("step.missing", command=words[0], why=error.strerror)) from None
    try:
        status = process.wait()
    except Stopped:
        _stop(process)
        raise
    if status != 0:
        raise ProgramFailed(say("play.failed", module=title, status=status))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """What PBS does: SIGTERM to the session, and after a while SIGKILL."""
    _signal_session(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)
    _signal_session(process.pid, signal.SIGKILL)
    process.wait()


def _signal_session(leader: int, number: signal.Signals) -> None:
    """Every process of the session, also in other process groups."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry)) == leader:
                    os.kill(int(entry), number)
