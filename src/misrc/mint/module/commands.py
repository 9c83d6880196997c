"""The commands about module files: render, check, retire. Each is a short story: read, look, say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ...job.errors import BadRequest
from ..messages.catalog import say
from ..site.declarations import find_declaration
from .checking import check_bytes, check_file, read_file
from .document import parse_modules, render_modules
from .findings import ERROR
from .rendering import make_module, make_script
from .retiring import retire_file


def render_module(site: str, program: str, inventory: str | None, output: str, force: bool) -> int:
    """`misrc module render`: write the module file and its script; prints both paths."""
    # Not the lean `load_site`: only the file itself has the ports in their order.
    declared = find_declaration(site, inventory).site
    folder = Path(output)
    try:
        data = render_modules(make_module(declared, program))
    except ValueError as error:
        raise BadRequest(say("module.text", why=error)) from None
    name, script = make_script(declared, program)
    wrong = [finding for finding in check_bytes(data) if finding.level == ERROR]
    if wrong:
        raise BadRequest(wrong[0].render(f"{program}.xml"))
    written = (folder / f"modules-{program}.xml", data, 0o644), (folder / name, script.encode(), 0o755)
    for path, text, _ in written:
        if not force and path.exists() and path.read_bytes() != text:
            raise BadRequest(say("module.exists", path=path))
    for path, text, mode in written:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
            path.chmod(mode)
        except OSError as error:
            raise BadRequest(say("module.file", path=path, why=error.strerror)) from None
        print(path)
    return 0


def check_modules(files: Sequence[str], local: bool, as_json: bool) -> int:
    """`misrc module check`: 0 where no file has an error, else 1; a file that cannot be read is a bad request."""
    worst = 0
    for name in files:
        found = check_file(Path(name), local)
        errors = sum(finding.level == ERROR for finding in found)
        worst = max(worst, 1 if errors else 0)
        if as_json:
            print(json.dumps({"file": name, "findings": [dataclasses.asdict(f) for f in found]}, ensure_ascii=False))
            continue
        for finding in found:
            print(finding.render(name))
        count = 0 if errors else len(parse_modules(read_file(Path(name))).modules)
        key = "module.bad" if errors else "module.good"
        print(say(key, path=name, count=count, errors=errors, warnings=len(found) - errors))
    return worst


def retire_module(file: str, wanted: str | None) -> int:
    """`misrc module retire`."""
    count = retire_file(Path(file), wanted)
    print(say("module.retired" if count else "module.retired_before", path=file, count=count))
    return 0
