"""The server under the predecessor's name (`mi_dicomapi.py`): where its ini file lies, `misrc serve` takes its place.

Jobs are kept in a folder, so that unlike the predecessor's they survive a restart. Tokens are ours: the declaration
that is written beside the jobs, and named at the start, is the one to give to `misrc token add --config`.

Not covered: TLS. As the predecessor's, this server speaks plain HTTP to a gateway in front. A server that is its own
gateway is declared by `misrc serve --config`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ...declare.ini import FILE_NAME, load_ini, render_server
from ...declare.server import parse_server
from ...job.codec import dump_json
from ...job.errors import BadRequest, MisrcError
from ...job.secrecy import leave_no_core
from ..serving import serve

CONFIG = "server.yml"


def find_ini(words: Sequence[str], script: Path) -> Path:
    """The file that was named, or the one in the current folder, or the one beside the script."""
    if len(words) > 1:
        raise BadRequest(f"usage: mi_dicomapi.py [{FILE_NAME}]")
    folders = dict.fromkeys([Path.cwd(), script.parent])
    places = [Path(words[0])] if words else [folder / FILE_NAME for folder in folders]
    for place in places:
        if place.is_file():
            return place.resolve()
    raise BadRequest(f"there is no {' and no '.join(map(str, places))}")


def state_folder() -> Path:
    """Where jobs are kept: MISRC_API_STATE, else /var/lib/misrc/api if it is ours, else the user's own."""
    if os.environ.get("MISRC_API_STATE"):
        return Path(os.environ["MISRC_API_STATE"]).resolve()
    shared = Path("/var/lib/misrc/api")
    if os.access(shared, os.W_OK):
        return shared
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "misrc/api"


def write_config(ini: Path, state: Path) -> Path:
    """The declaration that says what the ini file says; raises BadRequest."""
    found = load_ini(ini)
    for warning in found.warnings:
        print(f"{ini}: {warning}", file=sys.stderr)
    declared = render_server(found, ini, state)
    parse_server(declared, str(ini))
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, new = state / CONFIG, state / f"{CONFIG}.new"
        new.write_bytes(dump_json(declared) + b"\n")
        os.replace(new, path)
    except OSError as error:
        raise BadRequest(f"{state}: {error.strerror}") from None
    return path


def main(words: Sequence[str], script: Path) -> int:
    """The command: runs until it is stopped; its exit status."""
    leave_no_core()
    try:
        config = write_config(find_ini(words, script), state_folder())
        print(f"declaration: {config}", file=sys.stderr, flush=True)
        return serve(config)
    except MisrcError as error:
        print(error, file=sys.stderr)
        return error.exit_code
