"""The house: who may import whom, what a site gets, and that both languages say the same."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MISRC

import misrc
from misrc.mint.messages.catalog import MESSAGES, say
from misrc.mint.packaging import zipapp
from misrc.wire.refusals import Refusal

pytestmark = pytest.mark.quick

PACKAGE = Path(misrc.__file__).parent
TESTS = Path(__file__).parent
ALLOWED = {
    "job": set(),
    "wire": {"job"},
    "site": {"job", "wire"},
    "declare": {"job"},
    "mint": {"declare", "job", "wire"},
    "api": {"declare", "job", "wire"},
    "cli": {"job", "mint", "declare", "api"},
}

# Inside the site: what a room may import besides itself. `core` is what lies flat and below all rooms.
FLAT = {"operations": "operations", "premises": "operations", "commands": "commands", "main": "commands"}
ALLOWED_AT_SITE = {
    "core": set(),
    "runner": {"core"},
    "operations": {"core", "runner"},
    "gate": {"core", "runner", "operations"},
    "agent": {"core", "runner", "operations"},
    "install": {"core", "runner"},
    "commands": {"core", "runner", "operations", "gate", "agent", "install"},
}


def room_of(module: str) -> str:
    """`misrc.site.gate` → `site`; the package itself → ``."""
    return [*module.split("."), ""][1]


def imports_of(path: Path, module: str) -> Iterator[str]:
    """Every module of ours that a file imports, absolute, relative, and `from misrc import …` alike."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "misrc")
        elif isinstance(node, ast.ImportFrom):
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if base.split(".")[0] == "misrc":
                yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of_site(module: str) -> str:
    """`misrc.site.gate.verbs` → `gate`; of the modules that lie in no room of the site's, where they stand."""
    name = [*module.split("."), ""][2]
    return name if (PACKAGE / "site" / name).is_dir() and name else FLAT.get(name, "core")


def modules() -> Iterator[tuple[Path, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] != "collection":
            yield path, ".".join(["misrc", *relative.with_suffix("").parts]).removesuffix(".__init__")


def violations(path: Path, module: str) -> list[str]:
    room = room_of(module)
    found = []
    for imported in imports_of(path, module):
        target = room_of(imported)
        if target and target not in ("__version__", room) and target not in ALLOWED.get(room, set()):
            found.append(f"{module} imports {imported}")
    return found


def violations_of_site(path: Path, module: str) -> list[str]:
    imported = [name for name in imports_of(path, module) if room_of(name) == "site" and name != "misrc.site"]
    room = room_of_site(module)
    return [f"{module} imports {name}" for name in imported if room_of_site(name) not in {room, *ALLOWED_AT_SITE[room]}]


def test_rooms_import_only_what_they_may() -> None:
    """`job` imports nothing of ours, `wire` only `job`, and so on; nothing imports `cli`."""
    assert [text for path, module in modules() for text in violations(path, module)] == []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """What is left when every module goes that imports nothing any more: empty where there is no circle."""
    left = dict(graph)
    while free := [module for module, imported in left.items() if not imported & set(left)]:
        for module in free:
            del left[module]
    return sorted(left)


def test_no_import_leads_back() -> None:
    """No circle, lazy imports and those for types included: each file can be read after those that it stands on."""
    files = {module: path for path, module in modules()}
    graph = {
        module: {name if name in files else name.rpartition(".")[0] for name in imports_of(path, module)} - {module}
        for module, path in files.items()
    }
    assert circle(graph) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"], "positive control"


def test_rooms_of_the_site_import_only_downward() -> None:
    """The runner knows no door, the doors do not know each other, and nothing that runs needs the installer."""
    at_site = [(path, module) for path, module in modules() if room_of(module) == "site"]
    assert {room_of_site(module) for _, module in at_site} == set(ALLOWED_AT_SITE)
    assert [text for path, module in at_site for text in violations_of_site(path, module)] == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("misrc.site.spy", "from .runner import supervisor"),
        ("misrc.site.spy", "from . import operations"),
        ("misrc.site.runner.spy", "from ..premises import Premises"),
        ("misrc.site.gate.spy", "from ..agent.claim import Note"),
        ("misrc.site.agent.spy", "import misrc.site.install.host"),
    ],
)
def test_the_check_of_the_site_sees_a_step_upward(tmp_path: Path, module: str, line: str) -> None:
    """Positive control: what is not below is found, and what is below is not."""
    path = tmp_path / "spy.py"
    path.write_text(line + "\n", encoding="utf-8")
    assert violations_of_site(path, module)
    path.write_text("from misrc.site import files\n", encoding="utf-8")
    assert not violations_of_site(path, module)


@pytest.mark.parametrize(
    "line",
    ["from ..site import gate", "from misrc import site", "import misrc.site.gate", "from misrc.cli import main"],
)
def test_the_layering_check_sees_every_form_of_import(tmp_path: Path, line: str) -> None:
    """Positive control: each way to write a forbidden import is found."""
    path = tmp_path / "spy.py"
    path.write_text(line + "\n", encoding="utf-8")
    assert violations(path, "misrc.job.spy")


def test_no_file_is_longer_than_one_room() -> None:
    """No module has more than 500 lines."""
    assert [module for path, module in modules() if len(path.read_text(encoding="utf-8").splitlines()) > 500] == []


def test_the_site_needs_nothing_but_the_standard_library() -> None:
    """The modules of the pyz import only ours and the standard library."""
    foreign = set()
    for path, module in modules():
        if room_of(module) not in ("job", "wire", "site"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            foreign |= {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {"misrc", "__future__"}
    assert set() == foreign


def test_the_pyz_is_reproducible_and_runs(tmp_path: Path) -> None:
    """Built twice, it is the same to the byte; it holds only sources of its three rooms, and starts without `site`."""
    first, second = zipapp.build(), zipapp.build()
    assert first == second
    path = tmp_path / "misrc-site.pyz"
    told = subprocess.run([MISRC, "site", "build", "--output", path], capture_output=True, text=True, check=True)
    assert path.read_bytes() == first and hashlib.sha256(first).hexdigest() in told.stdout
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", str(path), "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == misrc.__version__


def test_the_wheel_brings_the_collection_along() -> None:
    """Playbook and plugins lie beside the installed package, so that misrc works outside a checkout."""
    collection = PACKAGE / "collection/ansible_collections/misrc/remote"
    for name in (
        "playbooks/run.yml",
        "plugins/action/stage.py",
        "plugins/action/execute.py",
        "plugins/action/retrieve.py",
        "galaxy.yml",
        "meta/runtime.yml",
    ):
        assert (collection / name).is_file(), name
    assert "site-packages" in str(PACKAGE), "the tests use the installed wheel, not the source tree"


def placeholders(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field}


def test_no_message_takes_anothers_place() -> None:
    """The tables of messages have no key in common: the one that is merged last would be said in both cases."""
    tables = [path for path in PACKAGE.glob("mint/messages/*.py") if path.name != "sentences.py"]
    nodes = [node for path in tables for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    named = [key for node in nodes if isinstance(node, ast.Dict) for key in node.keys]
    count = Counter(key.value for key in named if isinstance(key, ast.Constant))
    assert set(MESSAGES) <= set(count)
    assert not [key for key, times in count.items() if times > 1]


@pytest.mark.parametrize("key", sorted(MESSAGES))
def test_both_languages_say_the_same(key: str) -> None:
    """Each message has the same placeholders in English and Japanese, and the Japanese one is Japanese."""
    english, japanese = MESSAGES[key]
    assert placeholders(english) == placeholders(japanese)
    if re.sub(r"\{\w+\}", "", english).strip("': "):
        assert any(ord(c) > 0x3000 for c in japanese), japanese


def test_every_refusal_has_a_sentence() -> None:
    """No code of the wire reaches a person as a bare code, but the grammar's, which MInt cannot provoke."""
    silent = {refusal.value for refusal in Refusal} - set(MESSAGES) - {"E01", "E02"}
    assert set() == silent


def test_the_language_follows_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """MISRC_LANG decides, then the locale."""
    monkeypatch.setenv("MISRC_LANG", "ja")
    assert say("tend.nothing") == MESSAGES["tend.nothing"][1]
    monkeypatch.setenv("MISRC_LANG", "en")
    assert say("tend.nothing") == MESSAGES["tend.nothing"][0]


def cases(letters: str) -> dict[str, str]:
    """The ids of the catalogue of attacks that begin so, each with its last column."""
    text = (TESTS.parent / "docs/attacks.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| ([{letters}][0-9]{{2,3}}) \|.*\| ([^|]*) \|$", text, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "no id stands twice"
    return dict(rows)


def test_every_case_of_the_api_and_the_agent_has_its_test() -> None:
    """Parts H and P of the catalogue: each id stands in the name of a test, but for what is not offered; and no test
    bears an id that is not there."""
    names = re.findall(r"def (test_\w+)", "".join(path.read_text("utf-8") for path in TESTS.glob("test_*.py")))
    tested = {found.upper() for name in names for found in re.findall(r"(?<=_)[hp][0-9]{2,3}(?=_)", name)}
    known = cases("HP")
    assert {name for name, where in known.items() if not where.startswith("not offered")} - tested == set()
    assert tested - set(known) == set()
    assert len(known) > 90
