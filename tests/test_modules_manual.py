"""The page for module authors: its commands are run as they stand, its tables are those of the code, both languages."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import CLEAN, MISRC

from misrc.declare.module import Creator, Module, Port
from misrc.declare.strict import Strict

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, JAPANESE = ROOT / "docs/modules.md", ROOT / "docs/ja/modules.md"
TABLES: dict[str, type[Strict]] = {"`module`": Module, "`module.ports.NAME`": Port, "`module.creator`": Creator}
SHOWN = {"needed": "必須", "none": "なし"}


def commands(page: Path) -> list[str]:
    """The numbered commands of the walk, as they stand."""
    found = re.findall(r"^\d+\. [^\n]*\n\n   ```sh\n(.*?)\n   ```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [re.sub(r"^   ", "", text, flags=re.M) for text in found]


def table(page: Path, heading: str) -> list[list[str]]:
    text = page.read_text(encoding="utf-8").split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return rows[1:]


def describe(kind: type[Strict]) -> list[tuple[str, str, str]]:
    """Every key with its default as people read it and its meaning, out of the code."""
    found = []
    for name, field in kind.model_fields.items():
        default: Any = field.default
        empty = default in (None, (), "") or default == {}
        shown = "needed" if field.is_required() else "none" if empty else f"`{str(default).lower()}`"
        found.append((f"`{name}`", shown, str(field.description)))
    return found


@pytest.mark.parametrize("way", ["", " --webapi"], ids=["ssh", "webapi"])
def test_a_new_module_in_at_most_ten_commands(tmp_path: Path, way: str) -> None:
    """From nothing to a played run of a new program, by the manual alone, in one shell: the right coefficients."""
    walk = [words.replace("module practice", f"module practice{way}") for words in commands(ENGLISH)]
    assert 5 < len(walk) <= 10
    environment = {**CLEAN, "PATH": f"{Path(MISRC).parent}:{CLEAN['PATH']}", "HOME": str(tmp_path)}
    script = "set -e\n" + "\n".join(walk) + "\n"
    try:
        done = subprocess.run(
            ["sh"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "good (modules: 1, warnings: 0)" in done.stdout
        assert (tmp_path / "fit/coefficients.txt").read_text(encoding="utf-8") == "a = 2.0000, b = 2.0000\n"
        declared = (tmp_path / "fit/practice/inventory/host_vars/practice.yml").read_text(encoding="utf-8")
        assert ("method: webapi" in declared) is bool(way)
        last = "a = 2.0000, b = 2.0000"
        assert last in ENGLISH.read_text(encoding="utf-8") and last in JAPANESE.read_text(encoding="utf-8")
        check_argument(tmp_path / "fit", environment)
    finally:
        stop = [MISRC, "module", "practice", "--stop"]
        subprocess.run(stop, cwd=tmp_path / "fit", env=environment, check=True)
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit() and runs_below(pid, tmp_path)]
    assert pids == [], "nothing of the practice site is left"


def check_argument(folder: Path, environment: dict[str, str]) -> None:
    """The port of the argument works too."""
    (folder / "law").write_text("linear\n", encoding="utf-8")
    words = "misrc module play modules-fit_curve.xml --測定データ points.csv --法則 law --係数 linear.txt"
    subprocess.run(["sh", "-c", f". practice/env; {words}"], cwd=folder, env=environment, check=True)
    assert (folder / "linear.txt").read_text(encoding="utf-8") == "a = 8.0000, b = -6.6667\n"


def runs_below(pid: str, folder: Path) -> bool:
    try:
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.quick
def test_both_languages_walk_the_same_way() -> None:
    """The commands and every other block of code but messages are the same, and in the same order."""
    assert commands(ENGLISH) == commands(JAPANESE)
    blocks = [
        re.findall(r"^```yaml\n.*?^```$", page.read_text(encoding="utf-8"), re.M | re.S) for page in (ENGLISH, JAPANESE)
    ]
    assert blocks[0] == blocks[1] != []


@pytest.mark.quick
def test_both_languages_have_the_same_parts() -> None:
    """As many headings of each rank, as many rows in each table."""
    shapes = []
    for page in (ENGLISH, JAPANESE):
        lines = page.read_text(encoding="utf-8").splitlines()
        shapes.append([re.match(r"#+|\||\d+\.|-", line)[0] for line in lines if re.match(r"#+ |\| |\d+\. |- ", line)])  # type: ignore[index]
    assert shapes[0] == shapes[1]


@pytest.mark.quick
@pytest.mark.parametrize("heading", TABLES)
def test_the_tables_say_what_the_code_says(heading: str) -> None:
    """English word for word; Japanese with the same keys and defaults, in the same order."""
    wanted = describe(TABLES[heading])
    assert [tuple(row) for row in table(ENGLISH, heading)] == wanted
    assert [tuple(row[:2]) for row in table(JAPANESE, heading)] == [
        (name, SHOWN.get(shown, shown)) for name, shown, _ in wanted
    ]
    assert all(
        any(ord(c) > 0x3000 for c in row[2]) or row[2] in ("x.y.z", "YYYY-MM-DD") for row in table(JAPANESE, heading)
    )


@pytest.mark.quick
@pytest.mark.parametrize("page", [ENGLISH, JAPANESE], ids=["en", "ja"])
def test_every_file_and_command_that_is_named_is_there(page: Path) -> None:
    """Scripts, links and samples of the page exist, and every `misrc module` command is one."""
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`((?:kousoku|execute_remote|draw_)[\w.-]+\.(?:sh|py))`", text):
        assert (ROOT / "scripts" / name).exists(), name
    for path in re.findall(r"(?:modulesxml|scripts/sample_data)/[\w.-]+", text):
        assert (ROOT / path).exists(), path
    named = set(re.findall(r"misrc module (\w+)", text)) - {"command"}
    assert named == {"render", "check", "play", "retire", "run", "practice"}


def test_the_message_on_the_page_is_the_one_that_is_given(tmp_path: Path) -> None:
    """The example of `misrc module check` is real, in both languages."""
    (tmp_path / "modules.xml").write_bytes((ROOT / "tests/modules/broken/no_such_day.xml").read_bytes())
    for page, language in ((ENGLISH, "en"), (JAPANESE, "ja")):
        words = [MISRC, "module", "check", "modules.xml"]
        environment = {**CLEAN, "MISRC_LANG": language}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[0] in page.read_text(encoding="utf-8").splitlines()


def test_a_practice_site_takes_a_changed_program_and_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    """Called again it serves the new program, also the other way; what cannot run or is declared wrong is an error."""
    environment = {**CLEAN, "MISRC_INVENTORY": str(tmp_path / "p/inventory"), "MISRC_STATE": str(tmp_path / "p/state")}

    def misrc(*words: str) -> subprocess.CompletedProcess[str]:
        command = [MISRC, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    program, declared = tmp_path / "program", tmp_path / "declared.yml"
    declared.write_text("outputs: {out.dat: required}\n", encoding="utf-8")
    up = ("module", "practice", "--folder", "p", "one", "program", "declared.yml")
    try:
        program.write_text("#!/bin/sh\necho 1 > out.dat\n", encoding="utf-8")
        assert misrc(*up).returncode == 2
        program.chmod(0o755)
        for number, *way in (("1",), ("2",), ("3", "--webapi"), ("4", "--webapi"), ("5",)):
            program.write_text(f"#!/bin/sh\necho {number} > out.dat\n", encoding="utf-8")
            assert misrc(*up, *way).returncode == 0
            done = misrc("run", "practice", "one", "--results", "out", "--new")
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "out/out.dat").read_text(encoding="utf-8") == f"{number}\n"
        declared.write_text("output: {}\n", encoding="utf-8")
        refused = misrc(*up)
        assert refused.returncode == 2 and "output" in refused.stderr
        assert refused.stderr.startswith("misrc: declared.yml: "), "the author's own file is named"
    finally:
        assert misrc("module", "practice", "--folder", "p", "--stop").returncode == 0
