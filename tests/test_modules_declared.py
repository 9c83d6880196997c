"""What a declaration may say of a module, and what the module's script makes of MInt's words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misrc.declare.inventory import parse_site
from misrc.declare.module_rules import FAULTS, find_path_fault, find_port_fault
from misrc.job.codec import decode, dump_json, encode, parse_json
from misrc.job.errors import BadRequest
from misrc.job.interface import Interface
from misrc.job.spec import JobSpec, parse_spec, render_spec
from misrc.mint.messages.catalog import MESSAGES
from misrc.mint.module.call import Call, pair_words, parse_call
from misrc.mint.module.checking import check_bytes
from misrc.mint.module.document import parse_modules, render_modules
from misrc.mint.module.identity import export_identity, find_identity
from misrc.mint.module.ports import IN, OUT, list_ports
from misrc.mint.module.remote_command import make_request
from misrc.mint.module.rendering import make_module
from misrc.mint.module.solver_log import SolverLog, log_file

pytestmark = pytest.mark.quick

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
MODULE = {
    "model": "M000000000000001",
    "version": "1.0.0",
    "date": "2026-11-20",
    "creator": {"name": "x"},
    "path": "/a/b.sh",
}


def program(**changes: Any) -> dict[str, Any]:
    return {
        "inputs": {"in.dat": "required", "extra.dat": "optional", "*.tab": "optional"},
        "outputs": {"out.dat": "required", "log/**": "optional"},
        "arguments": {"mesh": {"choices": ["coarse", "fine"], "default": "coarse"}, "cycles": {"pattern": "[0-9]+"}},
        "ports": {"データ": "in.dat", "表": "a.tab", "結果": "out.dat", "記録": "log/x.txt"},
        "command": "/home/rme/run.sh",
        "module": {
            **MODULE,
            "ports": {
                "データ": {"descriptor": "D000000000000001", "alias": "data"},
                "表": {"descriptor": "D000000000000002"},
                "結果": {"descriptor": "D000000000000003"},
                "記録": {"descriptor": "D000000000000004"},
                "格子": {"descriptor": "D000000000000005", "argument": "mesh", "required": False},
            },
        },
        **changes,
    }


def site(**changes: Any) -> Interface:
    declared = {
        "id": "univ-a",
        "legacy_ids": ["UnivA_Lab"],
        "method": "ssh",
        "address": "gw.example",
        "host_keys": [KEY],
        "programs": {"solve": program(**changes)},
    }
    return parse_site({"misrc_site": declared}, Path("x.yml"))


def with_module(**changes: Any) -> dict[str, Any]:
    return {"module": {**program()["module"], **changes}}


def test_every_port_knows_its_side_and_its_need() -> None:
    """A file declared by name is what it is declared as; a pattern is optional; an argument has a port too."""
    ports = {port.name: port for port in list_ports(site().programs["solve"])}
    assert {name: port.direction for name, port in ports.items()} == {
        "データ": IN,
        "表": IN,
        "結果": OUT,
        "記録": OUT,
        "格子": IN,
    }
    assert [name for name, port in ports.items() if port.required] == ["データ", "結果"]
    assert ports["格子"].argument == "mesh" and ports["格子"].label == "mesh.value"


def test_the_module_comes_through_the_cache_of_declarations() -> None:
    """What the lean process reads back is what was declared."""
    declared = site()
    assert decode(Interface, parse_json(dump_json(encode(declared)))) == declared


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ports": {"データ": "nothing.dat"}, "module": None}, "neither input nor output"),
        ({"ports": {"a b": "in.dat"}, "module": None}, "a space"),
        ({"ports": {"-x": "in.dat"}, "module": None}, "a hyphen"),
        ({"ports": {"a;b": "in.dat"}, "module": None}, "a shell"),
        ({"ports": {unicodedata.normalize("NFD", "データ"): "in.dat"}, "module": None}, "NFC"),
        (
            {"outputs": {"in.dat": "optional"}, "ports": {"データ": "in.dat"}, "module": None},
            "both an input and an output",
        ),
        (with_module(model="P000000000000001"), "model"),
        (with_module(id="1"), "id"),
        (with_module(version="1"), "version"),
        (with_module(date="2026-02-30"), "day"),
        (with_module(path="b.sh"), "path"),
        (with_module(path="/a/../b.sh"), "path"),
        (with_module(creator={"name": "x", "id": "1"}), "creator"),
        (with_module(before=[["cp", "a", "b"]]), "command"),
        (with_module(before=[[]]), "command"),
        (with_module(ports={"格子": {"argument": "nothing"}}), "no argument"),
        (with_module(ports={"格子": {}}), "needs a file"),
        (with_module(ports={"データ": {"argument": "mesh"}}), "not both"),
        (with_module(ports={"データ": {"alias": "表"}}), "alias"),
        (with_module(ports={"データ": {"alias": "x"}, "表": {"alias": "x"}}), "alias"),
        (with_module(ports={"データ": {"descriptor": "1"}}), "descriptor"),
        (with_module(ports={"データ": {"unknown": "1"}}), "unknown"),
    ],
)
def test_a_wrong_declaration_of_a_module_is_refused(changes: dict[str, Any], words: str) -> None:
    """What cannot be a module is refused where it is declared, and the error says what is wrong."""
    with pytest.raises(BadRequest, match=words):
        site(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"module": None},
        with_module(before=[["{python}", "{scripts}/prepare.py"], ["/bin/true"]]),
        {
            "ports": {**program()["ports"], "生データ": "raw.csv"},
            **with_module(ports={"生データ": {"direction": "in"}}),
        },
    ],
)
def test_a_right_declaration_is_taken(changes: dict[str, Any]) -> None:
    """The legal neighbours."""
    assert "solve" in site(**changes).programs


def test_a_module_without_descriptor_or_result_is_not_rendered() -> None:
    """The error names the key that is missing."""
    with pytest.raises(BadRequest, match=r"module\.ports\.データ\.descriptor"):
        make_module(site(**with_module(ports={})), "solve")
    with pytest.raises(BadRequest, match="'ports'"):
        make_module(site(ports={}, **with_module(ports={})), "solve")
    with pytest.raises(BadRequest, match="'module'"):
        make_module(site(module=None), "solve")


def test_the_script_stays_lean() -> None:
    """What waits for a job holds no parser of declarations or module files, and nothing of Ansible."""
    heavy = "{'pydantic', 'lxml', 'yaml', 'ansible', 'rich', 'PIL'}"
    code = f"import sys, misrc.mint.module.script; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0
    control = f"import sys, misrc.mint.module.checking; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-I", "-c", control], check=False).returncode == 1


words = st.text(st.characters(codec="utf-8", min_codepoint=0x20, exclude_characters="\ufffe\uffff"), max_size=20)


@given(words, words, words, st.lists(st.sampled_from(["データ", "結果", "記録", "表"]), unique=True))
def test_what_a_declaration_renders_is_good(title: str, description: str, unit: str, described: list[str]) -> None:
    """Whatever the texts: the rendered file has no error, and says what was declared."""
    module = program()["module"]
    for name in described:
        module["ports"][name] |= {"description": description, "unit": unit, "default": title}
    made = make_module(site(title={"ja": "x" + title}, module={**module, "description": description}), "solve")
    data = render_modules(made)
    assert [finding for finding in check_bytes(data) if finding.level == "error"] == []
    assert parse_modules(data) == made and made.modules[0].title == "x" + title


@given(st.text(max_size=12))
def test_x04_a_port_is_one_word_of_a_command(name: str) -> None:
    """What passes as a port's name holds nothing by which a shell would split, expand or end it."""
    if find_port_fault(name) is None:
        assert (
            not set(name) & set(" \t\n\"'`$\\;|&<>(){}[]*?!#=/")
            and name.isprintable()
            and name[0] != "-"
            and name not in (".", "..")
        )


def test_every_fault_has_a_message() -> None:
    """The words for a declaration are those of the check."""
    assert {code: MESSAGES[f"why.{code}"][0] for code in FAULTS} == FAULTS
    assert [find_path_fault(path) for path in ("x", "/home/x", "/a//b", "/a b", "/a/b.sh")] == [
        "relative",
        "home",
        "parts",
        "unsafe",
        None,
    ]


# -- the call --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "mesh"):
        (tmp_path / name).write_text("fine\n", encoding="utf-8")
    return tmp_path


def call(*words: str) -> Call:
    return parse_call(words, list_ports(site().programs["solve"]))


@pytest.mark.parametrize("name", ["データ", unicodedata.normalize("NFD", "データ"), "data", "in.dat"])
def test_a_port_is_known_by_its_names(folder: Path, name: str) -> None:
    """By its own name, composed or not, by its alias, and by the file it stands for; the folder is the outputs'."""
    made = call(f"--{name}", "data", "--結果", "run/結果", "--格子=mesh")
    assert made.links() == {"in.dat": folder / "data"}
    assert made.arguments() == ["mesh=fine"]
    assert made.folder == folder / "run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "データ"),
        (("--データ", "data", "--他", "x"), "他"),
        (("--データ", "data", "--data", "data"), "data"),
        (("--データ",), "データ"),
        (("--データ", ""), "データ"),
        (("データ", "data"), "データ"),
        (("--", "data"), "--"),
        (("--データ", "nothing"), "nothing"),
        (("--データ", "."), "データ"),
        (("--データ", "data", "--結果", "a/x", "--記録", "b/y"), "folders"),
    ],
)
def test_a_wrong_call_is_refused(folder: Path, words: tuple[str, ...], message: str) -> None:
    """The line names the port, or the word, that is wrong."""
    with pytest.raises(BadRequest, match=message):
        call(*words)


@pytest.mark.parametrize("value", [b"fine\nrm -rf /", b"\xff", b"x" * 5000, b"a\0b"])
def test_x05_an_argument_out_of_a_file_is_one_line(folder: Path, value: bytes) -> None:
    """A file that is not one short line of text is not an argument's value."""
    (folder / "mesh").write_bytes(value)
    with pytest.raises(BadRequest, match="格子"):
        call("--データ", "data", "--格子", "mesh").arguments()


@given(st.lists(st.tuples(st.from_regex(r"[^\W=]{1,8}", fullmatch=True), st.from_regex(r"[^\0]{1,8}", fullmatch=True))))
def test_pairs_are_read_as_they_are(pairs: list[tuple[str, str]]) -> None:
    """Whatever a file is called, also like a port: it is the word after its port."""
    words = [word for name, value in pairs for word in (f"--{name}", value)]
    assert pair_words(words) == pairs


# -- who runs, and the solver log ---------------------------------------------------------------------------------


def test_the_ids_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """MISRC_* first, then MInt's own names; the PBS job stands for an unknown run; nothing breaks the log's line."""
    for name in ("MISRC_RUN_ID", "MISRC_USER_ID", "MISRC_WORKFLOW_ID", "miwf_runid", "PBS_JOBID"):
        monkeypatch.delenv(name, raising=False)
    assert find_identity().run == "unknown"
    monkeypatch.setenv("PBS_JOBID", "7.server")
    assert find_identity().run == "7.server"
    monkeypatch.setenv("miwf_runid", "R1")
    assert find_identity().run == "R1"
    monkeypatch.setenv("MISRC_RUN_ID", "R2")
    monkeypatch.setenv("MISRC_USER_ID", "a: b\nc")
    assert (find_identity().run, find_identity().user) == ("R2", "a__b_c")


def test_x08_a_runs_token_is_handed_on_once_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """MInt's token becomes that of `misrc run`, unless another is set; it is no part of what is printed."""
    monkeypatch.setenv("miwf_api_token", "t" * 64)
    monkeypatch.setenv("miwf_userid", "u1")
    for name in ("MISRC_TOKEN", "MISRC_USER_ID", "MISRC_RUN_ID", "MISRC_WORKFLOW_ID"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    identity = find_identity()
    export_identity(identity)
    assert os.environ["MISRC_TOKEN"] == "t" * 64 and "miwf_api_token" not in os.environ
    assert os.environ["MISRC_USER_ID"] == "u1" and "t" * 64 not in repr(identity)
    monkeypatch.setenv("miwf_api_token", "other")
    export_identity(find_identity())
    assert os.environ["MISRC_TOKEN"] == "t" * 64


@pytest.mark.parametrize("origin", [{"token": "x"}, {"user": "a b"}, {"user": ""}, {"run": "x\n"}, {"run": "x" * 129}])
def test_an_origin_that_is_not_one_is_refused(origin: dict[str, str]) -> None:
    """A spec says user, run and workflow, as words; the legal neighbour reads back, and is left out where empty."""
    job = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(ValueError):
        JobSpec(job, "univ-a", "solve", origin=origin)
    spec = JobSpec(job, "univ-a", "solve", origin={"user": "a@b", "run": "R1"})
    assert parse_spec(render_spec(spec)) == spec
    assert b"origin" not in render_spec(JobSpec(job, "univ-a", "solve"))


def test_x07_the_solver_log_has_a_line_for_start_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each, in MInt's form; a solver that never started has none; an unwritable log stops nothing."""
    monkeypatch.setenv("MISRC_SOLVER_LOGS", str(tmp_path))
    monkeypatch.setenv("MISYSTEM_SITEID", "site00002")
    monkeypatch.setenv("MISRC_RUN_ID", "R1")
    SolverLog("abaqus", find_identity()).end(True)
    path = tmp_path / "site00002/solver_logs/solver_execute.log"
    assert log_file() == path and not path.exists()
    for well in (True, False):
        log = SolverLog("abaqus: x", find_identity())
        log.start("00000000-0000-4000-8000-000000000000")
        log.end(well)
    lines = path.read_text(encoding="utf-8").splitlines()
    stamp = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d"
    events = ["start", "normal end", "start", "abnormal end"]
    for line, event in zip(lines, events, strict=True):
        assert re.fullmatch(
            rf"{stamp}: {event}: abaqus__x: unknown: 00000000-0000-4000-8000-000000000000: R1: unknown", line
        )
    monkeypatch.setenv("MISRC_SOLVER_LOGS", "/proc/nowhere")
    SolverLog("abaqus", find_identity()).start("x")
    monkeypatch.setenv("MISYSTEM_SITEID", "../../etc")
    assert log_file() is None


# -- the predecessor's words --------------------------------------------------------------------------------------


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    import yaml

    folder = tmp_path / "host_vars"
    folder.mkdir()
    declared = {
        "id": "univ-a",
        "legacy_ids": ["UnivA_Lab"],
        "method": "ssh",
        "address": "gw.example",
        "host_keys": [KEY],
        "programs": {"solve": program()},
    }
    (folder / "univ-a.yml").write_text(yaml.safe_dump({"misrc_site": declared}, sort_keys=False), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("host", ["univ-a", "UnivA_Lab", "gw.example"])
@pytest.mark.parametrize("command", ["solve", "/home/rme/run.sh"])
def test_the_old_words_find_site_and_program(inventory: Path, host: str, command: str) -> None:
    """A site by id, older id or address; a program by name or alias; words after it are its arguments, in order."""
    words = (f"client_name:{host}", f"client_cmd:{command} fine 300", "client_files:x/in.dat,a.tab")
    request = make_request(words, inventory, {"univ-a": site()})
    assert (request.site, request.program) == ("univ-a", "solve")
    assert list(request.inputs) == ["in.dat=x/in.dat", "a.tab=a.tab"]
    assert list(request.arguments) == ["mesh=fine", "cycles=300"]


@pytest.mark.parametrize(
    "words",
    [
        ("client_name:univ-a", "client_cmd:solve"),
        ("client_name:univ-a", "client_cmd:solve", "client_files:", "debug"),
        ("client_name:other", "client_cmd:solve", "client_files:"),
        ("client_name:univ-a", "client_cmd:rm -rf /", "client_files:"),
        ("client_name:univ-a", "client_cmd:solve fine 1 2", "client_files:"),
        ("client_name:univ-a", "client_name:univ-a", "client_cmd:solve", "client_files:"),
    ],
)
def test_x06_wrong_old_words_are_refused(inventory: Path, words: tuple[str, ...]) -> None:
    """Nothing that is not declared is run."""
    with pytest.raises(BadRequest):
        make_request(words, inventory, {"univ-a": site()})


def test_the_old_scripts_are_executable() -> None:
    """Every script that MInt or a module calls by name can be executed."""
    scripts = Path(__file__).resolve().parents[1] / "scripts"
    found = [*scripts.glob("kousoku_*"), *scripts.glob("execute_remote_command.sample.*"), scripts / "draw_stress.py"]
    assert len(found) == 7 and all(os.access(path, os.X_OK) for path in found)
