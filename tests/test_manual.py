"""The manual is true: its commands, options, files, links, messages and translations are those of the code."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
import spelling
import yaml
from pages import DOCS, ROOT, Page, all_pages, english_pages, logical_lines, manual, read_page
from pydantic import ValidationError

from misrc.declare.interface import Site
from misrc.declare.server import parse_server
from misrc.job.agent import parse_agent_config
from misrc.job.codec import CodecError
from misrc.job.policy import parse_policy
from misrc.mint.messages.catalog import MESSAGES

pytestmark = pytest.mark.quick

PAGES = {str(path.relative_to(ROOT)): read_page(path) for path in all_pages()}
MANUAL = [str(path.relative_to(ROOT)) for path in manual()]
ENGLISH = [path.stem for path in english_pages()]
JAPANESE = [name for name in MANUAL if name.startswith("docs/ja/")]
# Addresses outside that pages may name. Nothing reaches for them; a reader may.
OUTSIDE = {"http://www.calculix.de": "the sample's solver"}


def made_page(tmp_path: Path, text: str) -> Page:
    """A page of a test's own, as a control."""
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    return read_page(path)


# -- translation ----------------------------------------------------------------------------------------------------


def test_every_page_exists_in_both_languages() -> None:
    """A page of the manual without its Japanese, or the reverse, is missing."""
    assert sorted(path.stem for path in (DOCS / "ja").glob("*.md")) == ENGLISH


def comparable(text: str, language: str) -> list[str]:
    """A block without what may differ between languages: comments, and reasons for people."""
    if not language:
        return ["…" for _ in text.splitlines()]  # what a program prints, in the language of the page
    if language == "json":
        text = re.sub(r'("reason": )"[^"]*"', r"\1…", text)
    else:
        text = re.sub(r'(--reason )"[^"]*"', r"\1…", text)
        text = re.sub(r"(^|\s)#.*$", "", text, flags=re.MULTILINE)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", ENGLISH)
def test_both_languages_have_the_same_build(name: str) -> None:
    """Same headings (in level and order), same blocks of code, same tables (in rows and columns)."""
    english, japanese = PAGES[f"docs/{name}.md"], PAGES[f"docs/ja/{name}.md"]
    assert [level for level, _ in english.headings] == [level for level, _ in japanese.headings]
    ours, theirs = (
        [(block.language, block.marks, comparable(block.text, block.language)) for block in page.blocks]
        for page in (english, japanese)
    )
    assert ours == theirs
    assert english.tables == japanese.tables


@pytest.mark.parametrize("name", JAPANESE)
def test_japanese_pages_are_japanese(name: str) -> None:
    """Headings are translated, and sentences end politely; a page in plain form or left in English is found."""
    page = PAGES[name]
    assert english_words(page) == []
    assert bad_endings(page) == []
    assert any(re.search("[ぁ-ん]", text) for text in page.prose)


# What has no other name in Japanese; commands, keys and files are told by their form.
NAMES = {"MInt", "API", "WebAPI", "SSH", "Ansible", "Linux", "root"}


def english_words(page: Page) -> list[str]:
    """Headings with a word of English that is no name."""
    named = r"\bmisrc(-site\.pyz)?(?!_)( [a-z-]+)*|[A-Za-z_]+([._[][\w.\][]*)+|^[a-z]+$"
    return [text for _, text in page.headings if set(re.findall("[A-Za-z]+", re.sub(named, "", text))) - NAMES]


def test_the_check_of_headings_sees_english(tmp_path: Path) -> None:
    """Control: a heading that is English, or half of it, is found; a command, a key and a file in one are not."""
    good = ["宣言", "misrc run の終了コード", "設定 (agent.json)", "limits", "programs.NAME", "root のアカウント"]
    assert english_words(made_page(tmp_path, "".join(f"## {text}\n\n" for text in good))) == []
    bad = ["Operations", "Jobの実行", "署名付きのjob", "ポリシーのkeys (policy.json)", "Limits per day"]
    assert english_words(made_page(tmp_path, "".join(f"## {text}\n\n" for text in bad))) == bad


def bad_endings(page: Page) -> list[str]:
    """Sentences that end with a verb or adjective in plain form; a noun may end an item of a list."""
    plain = r"(?<!ま)(?<!で)([うくぐすつぬぶむる]|ない|だ)$|(?<!まし)(?<!でし)た$"
    texts = [re.sub(r"[（(][^）)]*[）)]", "", text) for text in page.prose]
    sentences = [part.strip() for text in texts for part in re.findall(r"[^。]+(?=。)", text)]
    return [sentence for sentence in sentences if re.search(plain, sentence)]


def test_the_check_of_endings_sees_plain_form(tmp_path: Path) -> None:
    """Control: a sentence in plain form is found, a polite one is not."""
    page = made_page(
        tmp_path, "これは正しい文です。これは誤りである。正しく書きました。間違えた。できません。できない。\n"
    )
    assert bad_endings(page) == ["これは誤りである", "間違えた", "できない"]


# Words that stand for a term of docs/terms.md and are not it.
WRONG_TERMS = {
    "レシート": "受領書",
    "元帳": "台帳",
    "サイトオーナー": "サイト管理者",
    "アウトカム": "結末",
    "ディレクトリー": "ディレクトリ",
    "サーバ[^ー]": "サーバー",
    "ユーザ[^ー]": "ユーザー",
    "キャンセルド": "キャンセル",
    "マニフェスト・ファイル": "マニフェスト",
    "プレデセッサ": "旧システム",
    "リモートサイト": "サイト",
}


@pytest.mark.parametrize("name", JAPANESE)
def test_japanese_pages_use_one_word_for_one_thing(name: str) -> None:
    """No variant of a term stands in a page."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [wrong for wrong in WRONG_TERMS if re.search(wrong, text)] == []


def test_terms_are_the_same_in_both_pages() -> None:
    """Both tables of terms have the same words in their first two columns."""
    rows = []
    for name in ("docs/terms.md", "docs/ja/terms.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        rows.append([tuple(line.split("|")[1:3]) for line in text.splitlines() if line.startswith("| ")][1:])
    assert rows[0] == rows[1]
    assert len(rows[0]) > 20


# -- links ----------------------------------------------------------------------------------------------------------


def dead_links(page: Page) -> list[str]:
    dead = []
    for link in page.links:
        if re.match("[a-z]+:", link):
            if link not in OUTSIDE:
                dead.append(link)
            continue
        target, _, anchor = unquote(link).partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        here = path.exists() and ROOT in (path, *path.parents)
        if not here or (anchor and anchor not in read_page(path).anchors()):
            dead.append(link)
    return dead


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links_lead_somewhere(name: str) -> None:
    """Every link names a file of the repository, and a heading in it; addresses outside are known."""
    assert dead_links(PAGES[name]) == []


def test_the_check_of_links_sees_dead_ones() -> None:
    """Control: a missing file, a missing heading, an unknown address; and a good one."""
    page = Page(DOCS / "index.md")
    page.links = ["gone.md", "site.md#gone", "https://gone.example", "site.md#refusal-codes", "ja/site.md#拒否コード"]
    assert dead_links(page) == page.links[:3]


# -- commands and files ---------------------------------------------------------------------------------------------


def wrong_blocks(page: Page) -> list[str]:
    found = []
    for block in page.blocks:
        for line in logical_lines(block.text) if block.language == "sh" else ():
            for words in spelling.commands(line):
                wrong = spelling.check_command(words)
                if wrong:
                    found.append(f"{page.path.name}:{block.line}: {' '.join(words)}: {wrong}")
    return found


@pytest.mark.parametrize("name", MANUAL)
def test_commands_in_blocks_are_taken_by_the_real_parsers(name: str) -> None:
    """Each command is one of ours that its parser takes word for word, a script of ours, or a known program."""
    assert wrong_blocks(PAGES[name]) == []


def wrong_mentions(page: Page) -> list[str]:
    ours = spelling.all_options(spelling.misrc_parser()) | spelling.all_options(spelling.site_parser())
    found = []
    for code, line in page.codes:
        wrong = ""
        if code.startswith("misrc "):
            wrong = spelling.mention(spelling.misrc_parser(), code.removeprefix("misrc ").split(" || ")[0])
        elif code.startswith("misrc-site.pyz "):
            words = spelling.strip_first_options(code.removeprefix("misrc-site.pyz "))
            wrong = spelling.mention(spelling.site_parser(), words)
        elif re.match("--[a-z]", code):
            option = re.split(r"[ =]", code)[0]
            wrong = "" if option in ours or option in spelling.FOREIGN else "no such option"
        if wrong:
            found.append(f"{page.path.name}:{line}: {code}: {wrong}")
    return found


@pytest.mark.parametrize("name", MANUAL)
def test_commands_in_sentences_exist(name: str) -> None:
    """Each `misrc …`, `misrc-site.pyz …` and `--option` in running text is a command or an option of the code."""
    assert wrong_mentions(PAGES[name]) == []


def test_the_checks_of_commands_see_wrong_ones(tmp_path: Path) -> None:
    """Control: unknown commands, options and values, in blocks and in sentences; and good ones."""
    page = made_page(
        tmp_path,
        "`misrc site chek SITE` `misrc run SITE --outt X` `misrc-site.pyz ledger shew` `--no-such`\n\n"
        "`misrc site rotate SITE [--finish \\| --abort]` `misrc run SITE PROGRAM …` `--dry-run`\n\n"
        "```sh\nmisrc run a\nmisrc run a b --inn x\npython3 misrc-site.pyz jobs --jsn\n./gone\nfrobnicate x\n"
        "ansible-playbook misrc.remote.gone\nmisrc run a b --in c=d \\\n  --new | grep x\n./test quick\n```\n",
    )
    assert len(wrong_mentions(page)) == 4
    assert len(wrong_blocks(page)) == 6


@pytest.mark.parametrize("name", MANUAL)
def test_files_that_pages_name_exist(name: str) -> None:
    """A file or folder in running text is in the repository, or known to be made elsewhere (spelling.ELSEWHERE)."""
    page = PAGES[name]
    assert [
        code for code, _ in page.codes if spelling.looks_like_a_file(code) and not spelling.find_file(page, code)
    ] == []


def test_the_check_of_files_sees_wrong_ones(tmp_path: Path) -> None:
    """Control: what is not there is found, also where only the ending makes it a file."""
    page = made_page(tmp_path, "`src/misrc/gone.py` `gone.yml` `docs/` `job/policy.py` `receipt_keys` `/etc/misrc`")
    files = [code for code, _ in page.codes if spelling.looks_like_a_file(code)]
    assert [code for code in files if not spelling.find_file(page, code)] == ["src/misrc/gone.py", "gone.yml"]


def test_nothing_is_declared_elsewhere_in_vain() -> None:
    """Each entry of the table of files elsewhere is needed by some page."""
    codes = {code for name in MANUAL for code, _ in PAGES[name].codes}
    idle = [pattern for pattern in spelling.ELSEWHERE if not any(fnmatch.fnmatchcase(code, pattern) for code in codes)]
    assert idle == []


@pytest.mark.parametrize("name", MANUAL)
def test_declarations_in_pages_are_taken(name: str) -> None:
    """Each YAML block with a whole `misrc_site` is a declaration that the code takes; a part has only known keys."""
    for block in PAGES[name].blocks:
        if block.language != "yaml" or "misrc_site:" not in block.text:
            continue
        declared = yaml.load(block.text, yaml.BaseLoader)["misrc_site"]
        if declared.get("method") == "webapi":
            Site.model_validate(declared | {"programs": {"p": {}}})
        elif "id" in declared:
            declared["via"] = {key: value for key, value in declared["via"].items() if value not in ("null", "[]")}
            declared["via"].pop("host_keys", None)
            Site.model_validate(declared, strict=False)
        else:
            with pytest.raises(ValidationError) as caught:
                Site.model_validate(declared | {"programs": {"stress_distribution": {}}})
            assert {error["type"] for error in caught.value.errors()} == {"missing"}


@pytest.mark.parametrize("language", ["", "ja/"])
def test_files_of_the_api_in_pages_are_taken(language: str) -> None:
    """The server's declaration and the agent's configuration are accepted as they stand."""
    server = next(block for block in PAGES[f"docs/{language}serve.md"].blocks if block.language == "yaml")
    assert parse_server(yaml.safe_load(server.text), "page").listen == ("0.0.0.0:50443",)
    agent = next(block for block in PAGES[f"docs/{language}agent.md"].blocks if block.language == "json")
    assert parse_agent_config(agent.text.encode()).server.port == 50443


@pytest.mark.parametrize("language", ["", "ja/"])
def test_messages_of_the_agent_are_those_of_the_code(language: str) -> None:
    """Each message in the agent's last table stands in its code; the reason of a refusal is a word of the protocol."""
    text = (DOCS / f"{language}agent.md").read_text(encoding="utf-8").split("\n## ")[-1]
    quoted = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/misrc").rglob("*.py"))
    words = [message.replace("answers, and says ", "") for message in quoted]
    assert [word for word in words if word not in code] == []
    assert len(quoted) > 5 and "answers, and says " in code


# -- what is said of the code ---------------------------------------------------------------------------------------


def test_the_reference_is_what_the_code_says() -> None:
    """docs/reference.md and its Japanese are what tools/reference.py writes, without a word that has no Japanese."""
    command = [sys.executable, "-I", str(ROOT / "tools/reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("language", [0, 1])
def test_messages_in_troubleshooting_are_those_of_the_code(language: int) -> None:
    """Each message in the tables of MInt's side is one that the code has, in the page's language."""
    path = DOCS / ("ja/troubleshooting.md" if language else "troubleshooting.md")
    text = path.read_text(encoding="utf-8")
    texts = [re.sub(r"\{\w+\}", "…", entry[language]) for entry in MESSAGES.values()]
    known = {"queued", "held", "misrc status"}
    quoted = [match[1] for match in re.finditer(r"^\| (?:.*?)`([^`]+)`[^|]* \|", text.split("\n## ")[0], re.MULTILINE)]
    for section in text.split("\n## ")[1:5]:
        quoted += re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    missing = [
        message for message in quoted if message not in known and not any(fits(message, entry) for entry in texts)
    ]
    assert missing == []
    assert len(quoted) > 25


def fits(quoted: str, message: str) -> bool:
    """Whether a message has these words in this order; `…` stands for anything."""
    return re.search(".*".join(map(re.escape, quoted.split("…"))), message) is not None


def takes_webapi() -> bool:
    """Whether a declaration with `method: webapi` is accepted."""
    declared = {"id": "a", "method": "webapi", "api": {"url": "https://a.example", "user": "u"}, "programs": {"p": {}}}
    try:
        return bool(Site.model_validate(declared))
    except ValidationError:
        return False


def takes_batch() -> bool:
    """Whether a policy with a batch scheduler is accepted."""
    try:
        return bool(parse_policy(b'{"work_root": "/var/x", "programs": {}, "batch": "slurm"}'))
    except CodecError:
        return False


@pytest.mark.parametrize(("name", "is_built"), [("webapi", takes_webapi), ("batch", takes_batch)])
def test_what_pages_call_missing_is_missing(name: str, is_built: Callable[[], bool]) -> None:
    """`<!-- not built: NAME -->` marks sentences that must go when the code has it, and no sooner."""
    marked = [page for page in MANUAL if f"<!-- not built: {name} -->" in (ROOT / page).read_text(encoding="utf-8")]
    assert bool(marked) is not is_built(), f"{name} is {'' if is_built() else 'not '}built; look at {marked or 'pages'}"


FIGURE = re.compile(r"\d+(\.\d+)? ?(ms|µs|MB/s|MiB/s|GB/s|jobs/s|requests/s)\b|\d+(\.\d+)? times (faster|slower)")


@pytest.mark.parametrize("name", MANUAL)
def test_no_measured_figure_goes_stale_in_a_page(name: str) -> None:
    """Pages hold no measured figures; `bench/run` makes them where they are wanted."""
    assert FIGURE.search((ROOT / name).read_text(encoding="utf-8")) is None


def test_the_check_of_figures_sees_one() -> None:
    """Control."""
    assert (
        FIGURE.search("a job costs 120 ms") and FIGURE.search("at 80 MB/s") and not FIGURE.search("60 s, 72 h, 1 GiB")
    )
