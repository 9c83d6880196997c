"""A Japanese user is spoken to in Japanese, also by the rooms that know no languages, and by --help."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CLEAN, MISRC, free_port
from pages import ROOT

from misrc import cli
from misrc.mint.messages.sentences import SENTENCES
from misrc.mint.messages.translation import in_words

SOURCE = ROOT / "src/misrc"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO6vB3pWYYtVpZoGTGz79KqklrHFNtwGYiEorpkrMfyw"
# Rooms whose errors reach the people of MInt's side as they are.
_JOB = ("arguments", "names", "windows", "authorized_keys", "manifest", "quantities", "codec", "receipt")
SPEAKING = (
    *sorted((SOURCE / "mint").rglob("*.py")),
    *sorted((SOURCE / "declare").glob("*.py")),
    *(SOURCE / "job" / f"{name}.py" for name in _JOB),
    *(
        SOURCE / "api" / f"{name}.py"
        for name in ("tokens", "backup", "commands", "spool", "sites", "schema", "serving")
    ),
)
# Errors of programmers, which nobody sees.
INNER = ("TypeError", "LookupError", "AssertionError", "KeyError", "FileNotFoundError", "HostError")


def template(node: ast.expr) -> str:
    """The sentence of a raise, with `{}` for what differs; empty where it is no literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
    return "".join(parts)


def raised(path: Path) -> Iterator[str]:
    """The sentences that a file raises; what stands before a colon is a place or a key."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
            continue
        if ast.unparse(node.exc.func) not in INNER and (found := template(node.exc.args[0])):
            yield found


def is_japanese(text: str) -> bool:
    return any("ぁ" <= character <= "ヶ" or "一" <= character <= "龠" for character in text)


@pytest.mark.quick
@pytest.mark.parametrize("path", SPEAKING, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_sentence_has_its_japanese(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each raised sentence comes out in Japanese where the user has that language, and as it is in English."""
    missing = []
    for sentence in raised(path):
        said = sentence.replace("{}", "'x'")
        if sentence.rpartition(": ")[2] in ("{}", "{} {}", "{}{}{}"):
            continue  # a place, and a reason of another's
        monkeypatch.setenv("MISRC_LANG", "en")
        assert in_words(said) == said
        monkeypatch.setenv("MISRC_LANG", "ja")
        if not is_japanese(in_words(said)):
            missing.append(sentence)
    assert missing == []


@pytest.mark.quick
def test_the_table_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both languages have as many values, each Japanese is Japanese, and each sentence is found in its own place."""
    monkeypatch.setenv("MISRC_LANG", "ja")
    for english, japanese in SENTENCES.items():
        assert english.count("{}") == japanese.count("{}") and is_japanese(japanese), english
        said = f"/a/b.yml: key: {english.replace('{}', 'v')}"
        assert in_words(said) == f"/a/b.yml: key: {japanese.replace('{}', 'v')}", english


@pytest.mark.quick
@pytest.mark.parametrize("said", ["something new", "/tmp/missing/is needed.yml", "unknown", "サイト 'missing' です"])
def test_what_has_no_japanese_stays_as_it_is(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of a name is taken for a sentence."""
    monkeypatch.setenv("MISRC_LANG", "ja")
    assert in_words(said) == said


@pytest.mark.quick
def test_a_reason_within_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's own reason in the middle of our message, and a reason of a reason."""
    monkeypatch.setenv("MISRC_LANG", "ja")
    said = "univ-a でプログラムが異常終了しました: the program ended with exit status 3 (ジョブ x、ログは /tmp/a)"
    assert in_words(said) == said.replace(
        "the program ended with exit status 3", "プログラムは終了コード 3 で終わりました"
    )
    said = "f.yml: p: the port '断 面' cannot be one: it holds a space"
    assert in_words(said) == "f.yml: p: '断 面' はポート名にできません: 空白を含んでいます"


def misrc(folder: Path, *words: str, language: str = "ja") -> subprocess.CompletedProcess[str]:
    environment = {**CLEAN, "MISRC_LANG": language, "MISRC_INVENTORY": str(folder), "COLUMNS": "100"}
    return subprocess.run([MISRC, *words], env=environment, capture_output=True, text=True, check=False)


def test_commands_answer_in_japanese(tmp_path: Path) -> None:
    """A wrong key in a declaration, a wrong word, a missing word: the answer is Japanese; in English it is English."""
    (tmp_path / "host_vars").mkdir()
    declared = "misrc_site: {id: univ-a, methud: ssh, address: a, host_keys: [], programs: {p: {}}}\n"
    (tmp_path / "host_vars/univ-a.yml").write_text(declared, encoding="utf-8")
    done = misrc(tmp_path, "site", "show", "univ-a")
    assert done.returncode == 2 and "不明なキーです" in done.stderr and "methud" in done.stderr
    assert "unknown key" in misrc(tmp_path, "site", "show", "univ-a", language="en").stderr
    for words, japanese, english in (
        (("jobs", "--jsn"), "不明な引数があります: --jsn", "unrecognized arguments: --jsn"),
        (("run", "a"), "次の引数が必要です: PROGRAM", "the following arguments are required: PROGRAM"),
    ):
        done = misrc(tmp_path, *words)
        assert done.returncode == 2 and japanese in done.stderr and done.stderr.count("\n") == 1
        assert english in misrc(tmp_path, *words, language="en").stderr


def test_the_system_s_reasons_are_japanese(tmp_path: Path) -> None:
    """A file that is not there, or a folder that cannot be written: no word of the answer is English but its names."""
    for words, reason, english in (
        (("site", "build", "--output", "/nowhere/x"), "/nowhere/x: ファイルまたはフォルダがありません", "No such file"),
        (("serve", "--config", "/nowhere/x"), "/nowhere/x: ファイルまたはフォルダがありません", "No such file"),
        (("run", "univ-a", "p", "--results", "/proc/x"), "/proc に書き込めません", "/proc cannot be written"),
    ):
        (tmp_path / "host_vars").mkdir(exist_ok=True)
        declared = f"{{id: univ-a, method: ssh, address: a, host_keys: ['{HOST_KEY}'], programs: {{p: {{}}}}}}"
        (tmp_path / "host_vars/univ-a.yml").write_text(f"misrc_site: {declared}\n", encoding="utf-8")
        done = misrc(tmp_path, *words)
        assert done.returncode == 2 and reason in done.stderr, done.stderr
        assert english in misrc(tmp_path, *words, language="en").stderr


@pytest.mark.parametrize("words", [("serve", "--config", "x"), ("token", "list", "--config", "x")])
def test_a_part_that_is_not_installed_is_named(words: tuple[str, ...]) -> None:
    """Without the packages of the API server its commands say in one line what to install."""
    start = "import sys; sys.modules.update(uvicorn=None, sqlalchemy=None); import misrc.cli as c; sys.exit(c.main({}))"
    for language, said in (("en", "is not installed here"), ("ja", "インストールされていません")):
        environment = {**CLEAN, "MISRC_LANG": language}
        call = [sys.executable, "-c", start.format(list(words))]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and said in done.stderr and "misrc[api]" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_without_a_contact_the_site_is_named_in_words(tmp_path: Path) -> None:
    """A message ends in the user's language, also where the declaration names nobody to ask."""
    (tmp_path / "host_vars").mkdir()
    host = f"method: ssh, address: 127.0.0.1, port: {free_port()}, host_keys: ['{HOST_KEY}'], retry: {{count: 0}}"
    declared = f"misrc_site: {{id: univ-a, {host}, programs: {{p: {{}}}}}}\n"
    (tmp_path / "host_vars/univ-a.yml").write_text(declared, encoding="utf-8")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    with (tmp_path / "host_vars/univ-a.yml").open("a", encoding="utf-8") as file:
        file.write(f"misrc_identity: {tmp_path}/key\n")
    for language, said in (("ja", "連絡先: サイト管理者"), ("en", "ask the site")):
        done = misrc(tmp_path, "run", "univ-a", "p", "--dry-run", language=language)
        assert done.returncode == 4 and said in done.stderr.splitlines()[-1], done.stderr


def subcommands(parser: object) -> Iterator[list[str]]:
    for action in parser._actions:  # type: ignore[attr-defined]
        for name, below in (action.choices if isinstance(action.choices, dict) else {}).items():
            yield [name]
            for rest in subcommands(below):
                yield [name, *rest]


@pytest.mark.quick
def test_the_help_of_every_command_is_japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of any --help has words of explanation in English; in English none is Japanese."""
    monkeypatch.setenv("COLUMNS", "400")
    for language in ("ja", "en"):
        monkeypatch.setenv("MISRC_LANG", language)
        for words in [[], *subcommands(cli._parser())]:
            parser = cli._parser()
            for word in words:
                parser = next(a.choices[word] for a in parser._actions if isinstance(a.choices, dict))
            for line in parser.format_help().splitlines():
                explained = re.search(r"\S  +(\S.*)$", line)
                if explained:
                    assert is_japanese(explained[1]) == (language == "ja") or explained[1].isupper(), (words, line)


def test_help_is_asked_for_in_japanese(tmp_path: Path) -> None:
    """As typed, from the installed wheel."""
    done = misrc(tmp_path, "module", "play", "--help")
    assert done.returncode == 0 and "使い方: misrc module play" in done.stdout and "usage" not in done.stdout
    assert "usage: misrc module play" in misrc(tmp_path, "module", "play", "--help", language="en").stdout
