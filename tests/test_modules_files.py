"""Module files: what is read is written again; what is wrong is said with line, element and remedy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest
from conftest import CLEAN, MISRC
from hypothesis import given
from hypothesis import strategies as st

from misrc.declare.inventory import load_sites
from misrc.job.errors import BadRequest
from misrc.mint.module import document
from misrc.mint.module.checking import check_bytes, check_file
from misrc.mint.module.document import NIL, Module, ModuleFile, Port, Resources, parse_modules, render_modules
from misrc.mint.module.findings import ERROR, WARNING
from misrc.mint.module.rendering import make_module, make_script
from misrc.mint.module.retiring import retire_bytes, retire_file

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests/modules"
BROKEN = sorted((CORPUS / "broken").glob("*.xml"))
GOOD = sorted((CORPUS / "good").glob("*.xml"))
XML_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\ufffe\uffff").filter(
        lambda c: c in "\t\n\r" or ord(c) >= 0x20
    ),
    max_size=20,
)
texts = st.none() | st.just(NIL) | XML_TEXT
ports = st.builds(Port, **{name: texts for name in document.PORT_TAGS})
resources = st.builds(Resources, **{name: texts for name in document.RESOURCE_TAGS})
lists = st.lists(ports, max_size=3).map(tuple)
modules = st.builds(
    Module,
    **{name: texts for name in document.MODULE_TAGS if name not in ("resources", "inputs", "outputs")},
    resources=st.none() | resources,
    inputs=st.none() | st.just(NIL) | lists,
    outputs=st.none() | lists,
)
# An attribute's white space is not kept by XML itself.
locations = st.none() | st.from_regex(r"[a-z:/.]{1,20}( [a-z:/.]{1,20})?", fullmatch=True)
files = st.builds(ModuleFile, st.lists(modules, max_size=3).map(tuple), locations)


def misrc(*words: object, language: str = "en") -> subprocess.CompletedProcess[str]:
    environment = {**CLEAN, "MISRC_LANG": language}
    return subprocess.run([MISRC, *map(str, words)], capture_output=True, text=True, env=environment, check=False)


@given(files)
def test_what_is_rendered_parses_to_the_same(file: ModuleFile) -> None:
    """Render and parse lose nothing: an element left out, a nil, an empty and a text stay what they are."""
    assert parse_modules(render_modules(file)) == file


@given(files)
def test_what_is_parsed_renders_to_the_same(file: ModuleFile) -> None:
    """Parse and render lose nothing: the second rendering is the first, to the byte."""
    data = render_modules(file)
    assert render_modules(parse_modules(data)) == data


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_file_in_use_parses_and_renders_to_the_same_values(path: Path) -> None:
    """Every variant in use comes through a round trip with the same values."""
    file = parse_modules(path.read_bytes())
    assert len(file.modules) == path.read_text(encoding="utf-8").count(":title>") / 2
    assert parse_modules(render_modules(file)) == file


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_variant_in_use_is_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nil, empty or left out, a schemaLocation, an older spelling: no error, and the expected warnings."""
    monkeypatch.setenv("MISRC_LANG", "en")
    found = check_file(path)
    assert [finding for finding in found if finding.level == ERROR] == []
    expected = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    assert [finding.render(path.name) for finding in found] == expected


def test_the_corpus_is_large_and_whole() -> None:
    """At least 30 broken files, each with its expected answer; the good ones are the control."""
    assert len(BROKEN) >= 30 and len(GOOD) >= 5
    assert {path.with_suffix(".txt") for path in [*BROKEN, *GOOD]} == set(CORPUS.glob("*/*.txt"))


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_file_is_answered_with_line_element_and_remedy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is the expected one; it names a line that exists, and says in both languages what to do."""
    monkeypatch.setenv("MISRC_LANG", "en")
    found = check_file(path)
    assert [f.render(path.name) for f in found] == path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    lines = path.read_bytes().count(b"\n") + 1
    errors = [finding for finding in found if finding.level == ERROR]
    assert errors and all(1 <= finding.line <= lines and finding.remedy for finding in errors)
    monkeypatch.setenv("MISRC_LANG", "ja")
    japanese = check_file(path)
    assert [finding.key for finding in japanese] == [finding.key for finding in found]
    assert all(any(ord(c) > 0x3000 for c in finding.what + finding.remedy) for finding in japanese)


def test_no_answer_of_the_corpus_is_a_shrug() -> None:
    """The parser's own words stand only where the file is not XML; nowhere is the schema's own error passed on."""
    keys = {path.stem: {finding.key for finding in check_file(path)} for path in BROKEN}
    assert [name for name, found in keys.items() if "schema" in found] == []
    assert {name for name, found in keys.items() if "syntax" in found} == {"empty", "not_xml", "cut_off"}


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_the_bytes_there_is_an_answer(data: bytes) -> None:
    """Bytes that are no module file give an error, never a traceback."""
    assert any(finding.level == ERROR for finding in check_bytes(data))


@given(st.sampled_from(GOOD), st.data())
def test_a_damaged_file_is_answered_or_good(path: Path, data: st.DataObject) -> None:
    """A good file with a piece cut out or doubled is judged without a traceback, on a line that exists."""
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 300)))
    damaged = data.draw(st.sampled_from([whole[:start] + whole[end:], whole[:end] + whole[start:]]))
    for finding in check_bytes(damaged):
        assert 1 <= finding.line <= damaged.count(b"\n") + 1


@pytest.mark.parametrize("attribute", ["xsi:schemaLocation", "xsi:noNamespaceSchemaLocation"])
def test_x01_x02_no_file_that_a_file_names_is_opened(tmp_path: Path, attribute: str) -> None:
    """A schema or an entity that the file names is not read: a pipe there, which would block, is never opened."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    opened = threading.Event()

    def wait_for_a_reader() -> None:
        with pipe.open("wb"):
            opened.set()

    threading.Thread(target=wait_for_a_reader, daemon=True).start()
    good = (CORPUS / "good/written_by_hand.xml").read_text(encoding="utf-8")
    value = f"{document.NAMESPACE} {pipe}" if attribute.endswith("n:schemaLocation") else str(pipe)
    assert check_bytes(good.replace("<modules ", f'<modules {attribute}="{value}" ').encode()) == []
    entity = f'<!DOCTYPE modules [<!ENTITY x SYSTEM "file://{pipe}">]>\n<modules '
    bad = good.replace("<modules ", entity).replace("<version>1.0.0", "<version>&x;")
    assert [finding.key for finding in check_bytes(bad.encode())] == ["doctype"]
    assert not opened.is_set()
    pipe.read_bytes()
    assert opened.wait(10), "positive control: the pipe tells when somebody opens it"


def test_x03_a_huge_file_is_refused(tmp_path: Path) -> None:
    """More than 8 MiB are not read, and a tree that is too deep is an error."""
    path = tmp_path / "huge.xml"
    path.write_bytes(b"<modules>" + b" " * (8 << 20))
    with pytest.raises(BadRequest, match="8 MiB"):
        check_file(path)
    assert any(finding.level == ERROR for finding in check_bytes(b"<a>" * 100_000))


def test_a_local_module_may_run_on_another_node() -> None:
    """Only a module that uses a site is bound to ssh-node01: with `local` the same file is good."""
    data = (ROOT / "modulesxml/modules-stress_picture.xml").read_bytes()
    assert [finding.key for finding in check_bytes(data)] == ["node_group"]
    assert check_bytes(data, local=True) == []


def test_the_sample_module_is_what_its_declaration_renders() -> None:
    """`modulesxml/modules-stress_distribution.xml` is rendered from the example inventory, and is good."""
    site = load_sites(ROOT / "inventories/example")["univ-a"]
    data = render_modules(make_module(site, "stress_distribution"))
    assert (ROOT / "modulesxml/modules-stress_distribution.xml").read_bytes() == data
    assert check_bytes(data) == []


def test_the_demo_renders_a_good_module() -> None:
    """The demo's declaration gives the same ports as the example's."""
    text = (ROOT / "inventories/demo/host_vars/demo-site.yml").read_text(encoding="utf-8")
    block = re.search(r"      module:\n(?:        .*\n)+", text)
    example = (ROOT / "inventories/example/host_vars/univ-a.yml").read_text(encoding="utf-8")
    assert block and block[0] in example


@pytest.mark.parametrize(("name", "way"), [("univ-a", "ssh"), ("company-b", "api")])
def test_a_rendered_script_runs_the_declared_program(name: str, way: str) -> None:
    """The script is named by objectPath, and hands all on to `misrc module run`; the samples name these sites."""
    site = load_sites(ROOT / "inventories/example")[name]
    script, text = make_script(site, "stress_distribution")
    assert script == f"kousoku_abaqus_{way}_version2.py"
    compile(text, script, "exec")
    assert '"module", "run"' in text and f'"{name}", "stress_distribution"' in text
    assert f'"MISRC_SITE", "{name}"' in (ROOT / "scripts" / script).read_text(encoding="utf-8")
    shell = (ROOT / "scripts" / script).with_suffix(".sh").read_text(encoding="utf-8")
    assert f"MISRC_SITE:-{name}}}" in shell
    assert check_bytes(render_modules(make_module(site, "stress_distribution"))) == []


@pytest.mark.parametrize("path", [p for p in GOOD], ids=lambda path: path.stem)
def test_retiring_changes_one_element_and_no_other_byte(path: Path) -> None:
    """Every module becomes deleted; without the new elements the bytes are the old ones; a second time does nothing."""
    before = path.read_bytes()
    after, count = retire_bytes(before, path, None)
    file = parse_modules(after)
    assert count == len(file.modules) and all(module.deleted == "true" for module in file.modules)
    element = rb"\s*<(m:)?deleted>(true|false)</(m:)?deleted>"
    assert re.sub(element, b"", after) == re.sub(element, b"", before)
    assert retire_bytes(after, path, None) == (after, 0)
    assert not [finding for finding in check_bytes(after, local=True) if finding.level == ERROR]


def test_retire_takes_one_module_by_its_id(tmp_path: Path) -> None:
    """With --id only that module is retired; an id that is not there is an error, and the file's mode stays."""
    path = tmp_path / "modules.xml"
    path.write_bytes((CORPUS / "good/two_modules_single_quotes_no_line_ends.xml").read_bytes())
    path.chmod(0o640)
    done = misrc("module", "retire", path, "--id", "P000000000000002")
    assert done.returncode == 0, done.stderr
    assert [module.deleted for module in parse_modules(path.read_bytes()).modules] == ["false", "true"]
    assert path.stat().st_mode & 0o777 == 0o640
    missing = misrc("module", "retire", path, "--id", "P000000000000009")
    assert missing.returncode == 2 and "P000000000000009" in missing.stderr


def test_a_broken_file_is_not_retired(tmp_path: Path) -> None:
    """A file with errors is left as it is, to the byte."""
    path = tmp_path / "broken.xml"
    data = (CORPUS / "broken/no_title.xml").read_bytes()
    path.write_bytes(data)
    with pytest.raises(BadRequest):
        retire_file(path, None)
    assert path.read_bytes() == data and os.listdir(tmp_path) == ["broken.xml"]


def test_check_answers_in_the_readers_language() -> None:
    """`misrc module check`: 0 for good files with warnings, 1 for errors, 2 for a file that is not there; --json."""
    good, broken = CORPUS / "good/older_spelling_and_schema_location.xml", CORPUS / "broken/no_title.xml"
    done = misrc("module", "check", good)
    assert done.returncode == 0 and "pbsNodesGroup" in done.stdout and "warnings: 3" in done.stdout
    done = misrc("module", "check", good, broken, language="ja")
    assert done.returncode == 1 and "<dc:title> がありません" in done.stdout
    assert misrc("module", "check", "/nowhere.xml").returncode == 2
    done = misrc("module", "check", "--json", good, broken)
    found = [json.loads(line)["findings"] for line in done.stdout.splitlines()]
    assert [finding["level"] for finding in found[0]] == [WARNING] * 3
    assert (found[1][0]["line"], found[1][0]["element"], found[1][0]["key"]) == (5, "module[1]", "missing")


def test_render_writes_nothing_over(tmp_path: Path) -> None:
    """Both files are written beside each other; a changed one is written over only with --force."""
    words = ("module", "render", "--inventory", ROOT / "inventories/example", "--output", tmp_path)
    program = ("univ-a", "stress_distribution")
    done = misrc(*words, *program)
    assert done.returncode == 0, done.stderr
    script = tmp_path / "kousoku_abaqus_ssh_version2.py"
    assert done.stdout.splitlines() == [str(tmp_path / "modules-stress_distribution.xml"), str(script)]
    assert os.access(script, os.X_OK)
    assert misrc(*words, *program).returncode == 0
    script.write_text("mine\n", encoding="utf-8")
    assert misrc(*words, *program).returncode == 2 and script.read_text(encoding="utf-8") == "mine\n"
    assert misrc(*words, "--force", *program).returncode == 0 and "misrc" in script.read_text(encoding="utf-8")
