"""What a translation or a rename could leave stale: words of code, figures, and what only one language says."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
import spelling
from pages import DOCS, ROOT, Page, all_pages, english_pages, manual, read_page

from misrc.job.interface import Retry
from misrc.mint import jobs
from misrc.mint.messages.catalog import MESSAGES
from misrc.mint.module import checking, player
from misrc.mint.site import inspection
from misrc.site.runner import release, sweep
from misrc.wire.grammar import Verb
from misrc.wire.refusals import Refusal

pytestmark = pytest.mark.quick

PAGES = {str(path.relative_to(ROOT)): read_page(path) for path in all_pages()}
MANUAL = [str(path.relative_to(ROOT)) for path in manual()]
# Pages of both languages whose words are compared; the reference is made by a program.
PAIRS = [path.stem for path in english_pages() if path.stem != "reference"]


# -- two languages, one content -------------------------------------------------------------------------------------


def sections(text: str) -> list[str]:
    """The text between the headings, without blocks of code and comments of HTML."""
    text = re.sub(r"^ *```.*?^ *```", "", re.sub(r"<!--.*?-->", "", text, flags=re.S), flags=re.M | re.S)
    return re.split(r"^#+ .*$", text, flags=re.M)


def code_words(text: str) -> set[str]:
    """What stands in code, but messages, which each language has its own of."""
    found = set(re.findall(r"`([^`\n]+)`", text))
    return {word for word in found if word.isascii() and not is_message(word)}


def is_message(words: str) -> bool:
    """Whether the words are a message of ours in English, `…` standing for anything."""
    pattern = ".*".join(map(re.escape, words.split("…")))
    return " " in words and any(re.search(pattern, english) for english, _ in MESSAGES.values())


def numbers(text: str) -> set[str]:
    """Numbers in running text, outside code and links."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)
    return set(re.findall(r"(?<![A-Za-z0-9.])\d+(?:\.\d+)*(?![A-Za-z0-9])", text))


SPELT = dict(
    zip(["four", "five", "six", "seven", "eight", "nine", "ten", "day"], ["4", "5", "6", "7", "8", "9", "10", "24"])
)


def differences(english: str, japanese: str) -> list[str]:
    """What one language names and the other does not, section by section."""
    found = []
    for number, (ours, theirs) in enumerate(zip(sections(english), sections(japanese))):
        odd = code_words(ours) ^ code_words(theirs)
        # Japanese writes small numbers as digits where English has a word.
        spelt = {digits for word, digits in SPELT.items() if re.search(rf"\b{word}\b", ours, re.I)} | {"1", "2", "3"}
        odd |= numbers(ours) - numbers(theirs) | numbers(theirs) - numbers(ours) - spelt
        found += [f"section {number}: {word}" for word in sorted(odd)]
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_both_languages_name_the_same_things(name: str) -> None:
    """Each section has the same words of code and the same figures in both languages."""
    pair = [(DOCS / folder / f"{name}.md").read_text(encoding="utf-8") for folder in ("", "ja")]
    assert differences(*pair) == []


def test_a_difference_between_languages_is_seen() -> None:
    """Control: another key, another figure and a missing option are found; the same in other words is not."""
    english = "# A\n\nThe key `retry` has eight values, up to 30 s. See `--new`.\n"
    assert differences(english, "# ア\n\n`retry` の値は8個、30秒までです。`--new` を参照。\n") == []
    wrong = differences(english, "# ア\n\n`retries` の値は9個、20秒までです。\n")
    assert [line.split(": ")[1] for line in wrong] == ["--new", "20", "30", "9", "retries", "retry"]


def untranslated(text: str) -> list[str]:
    """Paragraphs, items and cells of a Japanese page with a sentence in English and nothing in Japanese."""
    found = []
    for section in sections(text):
        plain = re.sub(r"`[^`]*`|\]\([^)]*\)|\*\*", "", section)
        lines = [cell for line in plain.splitlines() if line.startswith("|") for cell in line.split("|")]
        lines += re.split(r"\n\n|\n(?=[-|*] |\d+\. )", re.sub(r"^\|.*$", "", plain, flags=re.M))
        found += [line.strip() for line in lines if is_english(line)]
    return found


def is_english(text: str) -> bool:
    """At least four words, and no Japanese."""
    return not re.search("[ぁ-んァ-ヶ一-龠]", text) and len(re.findall(r"\b[a-z]{2,}\b", text)) >= 4


@pytest.mark.parametrize("name", PAIRS)
def test_nothing_is_left_in_english(name: str) -> None:
    """Each paragraph, item of a list and cell of a Japanese page is Japanese."""
    assert untranslated((DOCS / "ja" / f"{name}.md").read_text(encoding="utf-8")) == []


def test_what_is_left_in_english_is_seen() -> None:
    """Control: a paragraph, an item and a cell; commands, names and Japanese are none."""
    text = "# 題\n\nThis was not translated yet.\n\n- nor was this one here\n- これは `a b c d e f` です\n\n"
    text += "| キー | 意味 |\n|---|---|\n| `a` | what nobody has translated |\n| SSH | OpenSSH 8.1 |\n"
    assert untranslated(text) == [
        "what nobody has translated", "This was not translated yet.", "- nor was this one here"
    ]  # fmt: skip


# -- words of code --------------------------------------------------------------------------------------------------


@functools.cache
def sources() -> str:
    """Everything that the words of code come from; not the tests, not the pages."""
    folders = ("src", "roles", "playbooks", "plugins", "scripts", "inventories", "tools", "molecule", "bench")
    kinds = {".py", ".yml", ".j2", ".sh", ".xml", ".xsd", ""}
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    files = [path for path in paths if path.is_file() and "__pycache__" not in path.parts]
    files += [ROOT / name for name in ("test", "demo", "pyproject.toml", "galaxy.yml")]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


@functools.cache
def known_words() -> set[str]:
    return set(re.findall(r"[A-Za-z][A-Za-z0-9_]*", sources()))


# Words that pages name and that are not ours, each with whose.
FOREIGN = {
    "root_squash": "NFS",
    "host_vars": "Ansible",
    "group_vars": "Ansible",
    "ansible_host": "Ansible",
    "authorized_keys": "OpenSSH",
    "known_hosts": "OpenSSH",
    "sshd_config": "OpenSSH",
    "ssh_config": "OpenSSH",
    "HTTPS_PROXY": "a convention, which has no say",
    "miwf_userid": "MInt's own library; module/identity.py puts the name together",
    "miwf_runid": "as above",
    "miwf_workflowid": "as above",
    "SITE_KEY": "a variable of the page's own commands",
}


def strange_words(page: Page) -> list[str]:
    """Keys, options of roles, variables and refusal codes in running text that no source knows."""
    codes = {refusal.value for refusal in Refusal}
    found = []
    for code, line in page.codes:
        words = set(re.findall(r"(?<![\w./-])[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)+(?![\w/-])", code))
        strange = {word for word in words if word not in known_words() and word not in FOREIGN}
        strange |= {word for word in re.findall(r"\bE\d\d\b", code) if word not in codes}
        found += [f"{page.path.name}:{line}: {word}" for word in sorted(strange)]
    return found


@pytest.mark.parametrize("name", MANUAL)
def test_words_of_code_are_known_to_the_code(name: str) -> None:
    """A key, a role's option, a variable of the environment or a refusal code that was renamed is found."""
    page = PAGES[name]
    if page.path.stem == "predecessor":
        page = Page(page.path, codes=[pair for pair in page.codes if not any(pair[0] in p for p in spelling.OLD_PATHS)])
    assert strange_words(page) == []


def test_strange_words_are_seen(tmp_path: Path) -> None:
    """Control: a misspelt key, option, variable and code; and their neighbours that are right."""
    path = tmp_path / "page.md"
    good = "`keep_days` `mint_node_user` `MISRC_INVENTORY` `E13` `execute_remote_command.sh` `retry: {count: 5}`\n"
    path.write_text(
        good + "`keep_day_s` `mint_node_usr` `MISRC_INVENTRY=x` `E99` `give_up_afer: 72h`\n", encoding="utf-8"
    )
    assert [line.split(": ")[1] for line in strange_words(read_page(path))] == [
        *("keep_day_s", "mint_node_usr", "MISRC_INVENTRY", "E99", "give_up_afer")
    ]


# Folders of ours on a host, and units: named as the code or a role names them.
HOST_PATH = re.compile(r"(?:/etc|/var/lib|/var/log|/opt|/usr/libexec|/usr/local/s?bin|/run)/[\w./-]*misrc[\w./-]*")
UNIT = re.compile(r"misrc-[\w-]+\.(?:service|timer|socket)")


def strange_places(page: Page) -> list[str]:
    found = []
    texts = [*page.codes, *((block.text, block.line) for block in page.blocks)]
    for text, line in texts:
        # What a reader names for himself stands in capitals, or follows one of these.
        names = [name.rstrip("/.") for name in HOST_PATH.findall(text)] + UNIT.findall(text)
        found += [f"{page.path.name}:{line}: {name}" for name in names if not known_place(name)]
    return found


# Examples of what the reader chooses, and where.
CHOSEN = ("/opt/misrc-checkout", "/etc/misrc/tls/", "/etc/misrc/server.yml", "/etc/misrc/proxy.secret")


def known_place(name: str) -> bool:
    """Whether a source has this path, or the folder above it and the name by themselves."""
    if name in sources() or name.startswith(CHOSEN):
        return True
    if name.startswith("misrc-"):
        return re.search(rf"[\"/ ,\[]{re.escape(name.rpartition('.')[0])}\b", sources()) is not None
    folder, _, last = name.rpartition("/")
    words = [part for part in re.split(r"[A-Z]{3,}", last) if part.strip(".")]
    return folder.count("/") > 1 and known_place(folder) and all(part in sources() for part in words)


@pytest.mark.parametrize("name", MANUAL)
def test_places_on_a_host_are_those_of_the_code(name: str) -> None:
    """Each path of ours below /etc, /var, /opt, /usr, and each unit, is one that the code or a role makes."""
    assert strange_places(PAGES[name]) == []


def test_strange_places_are_seen(tmp_path: Path) -> None:
    """Control: misspelt folders and a unit; and their neighbours that are right."""
    path = tmp_path / "page.md"
    good = "`/etc/misrc/inventory` `/var/lib/misrc/mint` `/etc/misrc/ssh/SITE.conf` `misrc-tend.timer`\n\n"
    path.write_text(good + "`/etc/misrc/invntory` `/var/lib/misrk-misrc` `misrc-tned.timer`\n", encoding="utf-8")
    assert [line.split(": ")[1] for line in strange_places(read_page(path))] == [
        *("/etc/misrc/invntory", "/var/lib/misrk-misrc", "misrc-tned.timer")
    ]


# -- commands outside of sh blocks ----------------------------------------------------------------------------------


def loose_commands(page: Page) -> list[str]:
    """What is wrong with commands of ours in blocks that are not marked as a shell's."""
    found = []
    for block in page.blocks:
        if block.language in ("", "text"):
            for line in block.text.replace("\\\n", " ").splitlines():
                match = re.match(r"(?:\$ )?(misrc(?:-site\.pyz)?) +([a-z].*)$", line)
                if match and "──" not in line:
                    ours = match[1] == "misrc"
                    parser = spelling.misrc_parser() if ours else spelling.site_parser()
                    wrong = spelling.mention(parser, re.split(r" --[^ -~]", match[2])[0])
                    found += [f"{page.path.name}:{block.line}: {line}: {wrong}"] if wrong else []
    return found


@pytest.mark.parametrize("name", MANUAL)
def test_commands_in_other_blocks_exist(name: str) -> None:
    """A command of ours in a block without a language is one, with options that it has."""
    assert loose_commands(PAGES[name]) == []


def test_wrong_commands_in_other_blocks_are_seen(tmp_path: Path) -> None:
    """Control."""
    path = tmp_path / "page.md"
    path.write_text(
        "```\nmisrc module plai x\nmisrc run SITE PROGRAM --nwe\nmisrc jobs --json\n```\n", encoding="utf-8"
    )
    assert len(loose_commands(read_page(path))) == 2


# -- figures --------------------------------------------------------------------------------------------------------


def count_variables() -> int:
    """How many variables a program gets: the keys of the dictionary that site/runner/program.py makes."""
    tree = ast.parse((ROOT / "src/misrc/site/runner/program.py").read_text(encoding="utf-8"))
    tables = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    (table,) = [node for node in tables if any(getattr(key, "value", "") == "CALC_DIR" for key in node.keys)]
    return len(table.keys)


WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
# A sentence of an English page, and what the code says instead of `#`. The other language is held by the test above.
FIGURES = {
    r"grammar of (#) verbs": WORDS[len(Verb)],
    r"gate knows (#) requests": WORDS[len(Verb)],
    r"answers to the (#) requests": WORDS[len(Verb)],
    r"program gets (#) variables": WORDS[count_variables()],
    r"clock \((#) s\)": f"{inspection.CLOCK_SECONDS:.0f}",
    r"free space \((#) GiB\)": str(inspection.MIN_FREE >> 30),
    r"by content up to (#) MiB": str(jobs._HASHED_BELOW >> 20),
    r"the last (#) KiB, at the end": str(release.TAIL_BYTES >> 10),
    r"for at least (#) days, `sweep`": str(sweep.UNCLOSED_DAYS),
    r"entities, more than (#) MiB": str(checking.MAX_FILE_BYTES >> 20),
    r"SIGKILL after (#)\.": {60: "a minute"}.get(player.KILL_SECONDS, "?"),
    r"`retry: \{count: (#),": str(Retry().count),
    r"fits a curve, in (#) commands": "ten",  # counted by test_modules_manual.py
}


@pytest.mark.parametrize("sentence", FIGURES)
def test_figures_are_those_of_the_code(sentence: str) -> None:
    """Each figure stands in some page, and wherever it stands it is the code's."""
    pattern = sentence.replace("#", r"\w+(?: \w+)?" if "SIGKILL" in sentence else r"\w+")
    found = [
        match
        for name in MANUAL
        if not name.startswith("docs/ja/")
        for match in re.findall(pattern, " ".join((ROOT / name).read_text(encoding="utf-8").split()))
    ]
    assert set(found) == {FIGURES[sentence]}, found


# -- lists of files -------------------------------------------------------------------------------------------------


def test_every_script_has_its_row() -> None:
    """scripts/README.md names each program of the folder, `{sh,py}` standing for both."""
    text = (ROOT / "scripts/README.md").read_text(encoding="utf-8")
    text = re.sub(r"([\w.-]+)\.\{sh,py\}", r"\1.sh \1.py", text)
    names = [path.name for path in (ROOT / "scripts").rglob("*") if path.suffix in (".py", ".sh")]
    assert [name for name in names if name not in text] == [] and len(names) > 10


def test_nothing_that_is_here_is_declared_elsewhere() -> None:
    """No entry of spelling.ELSEWHERE hides a file of the repository from the check of files."""
    places = ("", "src/misrc", "docs", "scripts")
    assert [name for name in spelling.ELSEWHERE if any((ROOT / place / name).exists() for place in places)] == []


def test_the_role_readmes_are_pages_of_the_manual() -> None:
    """Every role has a README, and all of them are checked as pages."""
    roles = [path for path in (ROOT / "roles").iterdir() if path.is_dir()]
    assert {f"roles/{path.name}/README.md" for path in roles} <= set(MANUAL) and len(roles) > 5
