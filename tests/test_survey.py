"""The survey sheet: complete, honest about what is open, escaped, and without a word of the site's policy."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import MISRC
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import BaseModel, ValidationError

from misrc.declare import survey
from misrc.declare.agreements import Agreement, Duty, Expectation, Measure, Survey
from misrc.declare.interface import Argument, Program, RetryRule, Site, Via
from misrc.declare.survey_words import WORDS
from misrc.job.public_keys import fingerprint

ROOT = Path(__file__).resolve().parents[1]
TODAY = datetime.date(2026, 11, 21)
KEYS = [
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHKhN+V0UtDJ9Y/uZ0LtnYA2Rb5gYL528Wm0hyFlDqBX",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO6vB3pWYYtVpZoGTGz79KqklrHFNtwGYiEorpkrMfyw",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBp54sJrSzNA7MrngzcCdRSSf81IHK5vxd830dKerB8b",
]
# Every key of the declaration with a value that is found nowhere else.
FULL: dict[str, Any] = {
    "id": "univ-full",
    "legacy_ids": ["Legacy_Lab"],
    "method": "ssh",
    "address": "gw.full.example",
    "port": 50023,
    "user": "gatekeeper",
    "host_keys": [KEYS[0]],
    "via": {"proxy_jump": "hop@jump.full.example:2222", "host_keys": [KEYS[1]]},
    "retry": {"count": 37, "interval": 61.5},
    "give_up_after": "83h",
    "valid_until": "2029-03-30",
    "receipt_keys": [KEYS[2]],
    "contacts": {"site": "asksite@full.example", "mint": "askmint@full.example"},
    "agreements": [
        {"what": "consortium rules", "date": "2026-04-02", "reference": "REF-77", "next_review": "2027-01-03"}
    ],
    "survey": {
        "account": "mintcaller",
        "sources": ["198.51.100.0/28"],
        "duties": [{"what": "keeping the licence", "who": "Ms. Licence"}],
        "measures": {
            "site": [{"what": "locked room", "next_review": "2027-01-04"}],
            "mint": [{"what": "weekly updates", "next_review": "2027-01-05"}],
        },
        "programs": {
            "solve": {"run_time": "19 minutes", "result_size": "23 MB", "before": "meshing", "after": "plotting"}
        },
    },
    "programs": {
        "solve": {
            "title": {"ja": "計算題", "en": "solving title"},
            "command": "/old/solve.sh",
            "inputs": {"first.dat": "required", "extra*.dat": "optional"},
            "arguments": {
                "mesh": {"choices": ["coarsest", "finest"], "default": "coarsest", "reason": "mesh reason"},
                "steps": {"pattern": "[1-7]{1,4}"},
            },
            "outputs": {"last.dat": "required"},
            "ports": {"断面": "first.dat", "結末": "last.dat", "余り": "elsewhere.dat"},
            "module": {
                "model": "M000000000000003",
                "version": "1.2.3",
                "date": "2026-11-20",
                "creator": {"name": "Taro Zairyo"},
                "path": "/solve/solve.sh",
                "before": [["/opt/prepare", "first-step"]],
                "ports": {"余り": {"direction": "in"}},
            },
            "reason": "program reason",
        }
    },
    "reason": "site reason",
}
BARE: dict[str, Any] = {key: FULL[key] for key in ("id", "method", "address", "host_keys")} | {
    "programs": {"solve": {}}
}


def sheet_of(declared: dict[str, Any], language: str = "en", job_key: str | None = KEYS[3]) -> survey.Sheet:
    return survey.describe_site(Site.model_validate(declared), job_key, language, TODAY)  # type: ignore[arg-type]


def render(declared: dict[str, Any], language: str = "en", form: str = "html") -> str:
    return survey.render_survey(sheet_of(declared, language), form)  # type: ignore[arg-type]


def parse(page: str) -> ET.Element:
    """The page as a tree: it is well-formed XML too, so that a stray tag or quotation mark is an error."""
    assert page.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(page.partition("\n")[2])


def text_of(page: str) -> str:
    return "\n".join(parse(page).itertext())


def unescape(text: str) -> str:
    return re.sub(r"\\([^\w\s])", r"\1", text)


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part)
            if not key.isascii():
                yield key
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    else:
        yield str(value)


def names(model: type[BaseModel], declared: dict[str, Any]) -> None:
    assert set(model.model_fields) - {"socks4", "choices", "pattern", "default"} <= set(declared), model


def test_the_fixture_uses_every_key_with_a_place() -> None:
    """A key that gets a place in the sheet must come into these tests; one without is shown by its description."""
    first = FULL["programs"]["solve"]
    assert set(Site.model_fields) >= survey._PLACED_SITE <= set(FULL)
    assert set(Program.model_fields) >= survey._PLACED_PROGRAM <= set(first)
    names(Argument, first["arguments"]["mesh"])
    names(Via, FULL["via"])
    names(RetryRule, FULL["retry"])
    names(Agreement, FULL["agreements"][0])
    names(Survey, FULL["survey"])
    names(Duty, FULL["survey"]["duties"][0])
    names(Measure, FULL["survey"]["measures"]["site"][0])
    names(Expectation, FULL["survey"]["programs"]["solve"])


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("form", ["html", "md"])
def test_every_declared_fact_stands_in_the_sheet(language: str, form: str) -> None:
    """In both languages and forms: each value, each name, the keys' fingerprints, and nothing open."""
    page = render(FULL, language, form)
    text = text_of(page) if form == "html" else unescape(page)
    words = {"ssh": "SSH", "required": WORDS["required"][language == "ja"]}
    words["optional"] = WORDS["optional"][language == "ja"]
    wanted = [words.get(leaf, leaf) for leaf in leaves(FULL)] + ["extra*.dat", "mesh", "steps", "solve"]
    wanted += [fingerprint(key) for key in KEYS] + ["mintcaller"]
    missing = [leaf for leaf in wanted if leaf.removesuffix("h") not in text]
    assert missing == []
    assert sheet_of(FULL, language).questions == ()
    assert WORDS["open.none"][language == "ja"] in text


def test_a_new_key_is_shown_before_anybody_writes_a_place_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry without a place of its own stands among the further entries, by its description."""
    monkeypatch.setattr(survey, "_PLACED_SITE", survey._PLACED_SITE - {"legacy_ids", "contacts"})
    text = text_of(render(FULL))
    assert WORDS["section.others"][0] in text
    assert "Names that old clients use. (legacy_ids)" in text
    assert "site: asksite@full.example" in text


@pytest.mark.parametrize("language", ["en", "ja"])
def test_what_is_not_declared_is_marked_and_listed(language: str) -> None:
    """A bare declaration: each missing fact is an open cell, and the list at the end names each of them."""
    tree = parse(survey.render_survey(sheet_of(BARE, language, None), "html"))
    cells = [cell for cell in tree.iter("td") if cell.get("class") == "open"]
    questions = ["".join(item.itertext()) for item in tree.iter("li")]
    assert {"".join(cell.itertext()) for cell in cells} == {WORDS["open"][language == "ja"]}
    assert len(cells) == len(questions) == len(set(questions)) > 15
    for key in ("contact_site", "contact_mint", "valid_until", "account", "sources", "job_key", "receipt_keys"):
        assert any(WORDS[f"fact.{key}"][language == "ja"] in question for question in questions), key
    for key in ("title_ja", "title_en", "run_time", "result_size", "before", "after", "review"):
        assert any(WORDS[f"fact.{key}"][language == "ja"] in question for question in questions), key
    for key in ("duties", "agreements", "measures"):
        assert any(WORDS[f"section.{key}"][language == "ja"] in question for question in questions), key


def test_each_fact_that_is_taken_away_becomes_a_question() -> None:
    """One question for one fact, and none for anything else."""
    declared = json.loads(json.dumps(FULL))
    declared["agreements"][0]["reference"] = None
    declared["contacts"].pop("mint")
    assert sheet_of(declared).questions == (
        "Parties and term: Contact at MInt",
        "Agreements in force: Reference of “consortium rules”",
    )


def test_declared_steps_of_the_module_answer_the_question() -> None:
    """What the module's script runs before the call stands in the sheet; no words of a person are needed for it."""
    declared = json.loads(json.dumps(FULL))
    declared["survey"]["programs"]["solve"].pop("before")
    assert sheet_of(declared).questions == ()
    assert "/opt/prepare first-step" in text_of(render(declared))
    declared["programs"]["solve"]["module"].pop("before")
    assert sheet_of(declared).questions == ("Program solve: Before the call, at MInt",)


def test_a_site_that_opens_no_port_has_no_host_in_its_sheet() -> None:
    """For WebAPI the sheet has the API's address and user, and a line for the token, which itself is never written."""
    declared = {"id": "b", "method": "webapi", "api": {"url": "https://mint.example", "user": "b-user"}}
    text = text_of(render(declared | {"programs": {"solve": {}}}))
    assert all(word in text for word in ("https://mint.example", "b-user", WORDS["token"][0]))
    assert not any(WORDS[f"fact.{key}"][0] in text.splitlines() for key in ("address", "host_keys", "job_key"))


def test_an_overdue_review_is_a_question() -> None:
    """A day that has passed is marked; the day itself, and a later one, are not."""
    declared = json.loads(json.dumps(FULL))
    declared["agreements"][0]["next_review"] = "2026-11-20"
    assert "2026-11-20 (overdue)" in text_of(render(declared))
    assert len(sheet_of(declared).questions) == 1
    declared["agreements"][0]["next_review"] = "2026-11-21"
    assert sheet_of(declared).questions == ()


HOSTILE = "<script>alert(1)</script>\"'&lt; --> {{ 7*7 }} {% x %} |a|b| [x](javascript:y) `c` **d** <img src=x>"


def hostile(text: str) -> dict[str, Any]:
    declared: dict[str, Any] = json.loads(json.dumps(FULL))
    declared["contacts"] = {"site": text, "mint": text}
    declared["reason"] = declared["programs"]["solve"]["reason"] = text
    declared["programs"]["solve"]["command"] = text
    declared["programs"]["solve"]["title"] = {"ja": text, "en": text}
    declared["programs"]["solve"]["arguments"]["mesh"] = {"choices": [text], "default": text, "reason": text}
    return declared


def shape(page: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(element.tag, tuple(sorted(element.keys()))) for element in parse(page).iter()]


def test_hostile_text_stays_text_in_html() -> None:
    """The page has the same elements and attributes with hostile text as with plain, and shows the text as it is."""
    page = render(hostile(HOSTILE))
    assert shape(page) == shape(render(hostile("plain")))
    assert text_of(page).count(HOSTILE) >= 10
    assert "default-src 'none'" in page


def test_hostile_text_stays_text_in_markdown() -> None:
    """As CommonMark with tables and raw HTML read it: no element but those of the sheet, and the text as it is."""
    markdown = MarkdownIt("commonmark").enable("table")

    def read(text: str) -> tuple[list[str], str]:
        page = markdown.render(render(hostile(text), form="md"))
        tree = ET.fromstring(f"<body>{page.replace('<br>', '<br/>')}</body>")
        return [element.tag for element in tree.iter()], "".join(tree.itertext())

    tags, text = read(HOSTILE)
    assert tags == read("plain")[0]
    assert text.count(HOSTILE) >= 10


# No declaration may hold a NUL.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_any_text_keeps_the_page_well_formed(text: str) -> None:
    """Whatever stands in the declaration, both forms keep their structure; unprintable characters become visible."""
    page = render(hostile(text))
    assert shape(page) == shape(render(hostile("plain")))
    assert all(c.isprintable() or c == "\n" for c in page)
    plain, strange = (render(hostile(t), form="md").splitlines() for t in ("plain", text))
    assert len(plain) == len(strange)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"agreements": ["by word of mouth"]}, "agreements"),
        ({"agreements": [{"date": "2026-04-01"}]}, "what"),
        ({"agreements": [{"what": "x", "date": "April"}]}, "date"),
        ({"agreements": [{"what": "x", "next_review": "2027-02-30"}]}, "next_review"),
        ({"agreements": [{"what": "two\nlines"}]}, "what"),
        ({"agreements": [{"what": "x", "who": "y"}]}, "who"),
        ({"survey": {"sources": ["somewhere"]}}, "sources"),
        ({"survey": {"programs": {"other": {}}}}, "other"),
        ({"survey": {"measures": {"others": []}}}, "measures"),
    ],
)
def test_entries_are_typed(change: dict[str, Any], place: str) -> None:
    """What is not an entry of the sheet is refused, and the message names the place; FULL itself is accepted."""
    Site.model_validate(FULL)
    with pytest.raises(ValidationError) as caught:
        Site.model_validate(FULL | change)
    assert place in str(caught.value)


@pytest.mark.parametrize("key", sorted(WORDS))
def test_both_languages_have_words(key: str) -> None:
    """Each word of the sheet exists in both, with the same values in it, and the Japanese is Japanese."""
    english, japanese = WORDS[key]
    fields = [sorted(re.findall(r"\{(\w+)\}", words)) for words in (english, japanese)]
    assert fields[0] == fields[1]
    assert any(ord(c) > 0x3000 for c in japanese) or not re.sub(r"\{\w+\}", "", japanese).strip(": ")


# -- the command ----------------------------------------------------------------------------------------------------


POLICY = {
    "work_root": "/var/lib/policyroot",
    "job_keys": [{"key": KEYS[3], "from": ["192.0.2.77/32"]}],
    "programs": {
        "solve": {
            "path": "/opt/policypath/run.sh",
            "sha256": "ab" * 32,
            "returns": ["policyreturned.dat"],
            "withhold": ["policywithheld/**"],
            "reason": "policyreason",
        },
        "policyonly": {"path": "/opt/other", "returns": ["**"]},
    },
}


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """An inventory that holds the policy too, as where one party plays both sides."""
    folder = tmp_path / "inventory/host_vars"
    folder.mkdir(parents=True)
    text = yaml.safe_dump({"misrc_site": FULL, "misrc_policy": POLICY}, allow_unicode=True)
    (folder / "univ-full.yml").write_text(text, encoding="utf-8")
    return folder.parent


def run(inventory: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": os.environ["PATH"], "HOME": str(inventory.parent), "LANG": "C.UTF-8"} | environment
    command = [MISRC, "site", "survey", "univ-full", "--inventory", str(inventory), *words]
    return subprocess.run(command, capture_output=True, text=True, env=clean, check=False)


@pytest.mark.parametrize("form", ["html", "md"])
def test_nothing_of_the_policy_is_in_the_sheet(inventory: Path, form: str) -> None:
    """Though the policy lies in the same file, none of its values is printed; a declared one is."""
    done = run(inventory, "--format", form)
    assert done.returncode == 0, done.stderr
    text = unescape(done.stdout)
    secret = [value for value in leaves(POLICY) if value not in ("**", KEYS[3])] + ["policyonly"]
    assert [value for value in secret if value in text] == []
    assert "gw.full.example" in text


def test_the_command_speaks_the_language_of_its_user(inventory: Path) -> None:
    """--lang decides, then the locale; --json lists what is open, here the job key that was never made."""
    assert '<html lang="ja">' in run(inventory, MISRC_LANG="ja").stdout
    assert '<html lang="en">' in run(inventory, "--lang", "en", MISRC_LANG="ja").stdout
    answer = json.loads(run(inventory, "--json", "--format", "md").stdout)
    assert answer["open"] == ["Connection: MInt's job key"]
    assert answer["text"].startswith("# Survey sheet")


def test_the_sheet_shows_the_public_half_of_the_job_key(inventory: Path) -> None:
    """The public half beside the private key is taken; the private one is not even there."""
    keys = inventory.parent / ".config/misrc/keys"
    keys.mkdir(parents=True)
    (keys / "univ-full.pub").write_text(f"{KEYS[3]} misrc-univ-full\n", encoding="utf-8")
    done = run(inventory, "--output", str(inventory.parent / "sheet.html"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert fingerprint(KEYS[3]) in (inventory.parent / "sheet.html").read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_is_one_line(inventory: Path) -> None:
    """Exit status 2 and one line."""
    done = run(inventory, "--output", str(inventory.parent / "missing/sheet.html"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "missing/sheet.html" in done.stderr


def test_the_fingerprint_is_the_one_of_openssh(tmp_path: Path) -> None:
    """What two people compare by telephone is what ssh-keygen shows."""
    path = tmp_path / "key.pub"
    path.write_text(KEYS[0] + "\n", encoding="ascii")
    done = subprocess.run(["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True)
    assert fingerprint(KEYS[0]) == done.stdout.split()[1]


def test_the_example_needs_nothing_but_keys() -> None:
    """The sheet of `inventories/example` is complete but for the keys that are made later."""
    declared = yaml.load((ROOT / "inventories/example/host_vars/univ-a.yml").read_text("utf-8"), yaml.BaseLoader)
    declared["misrc_site"]["retry"] = {"count": 5, "interval": 60}
    declared["misrc_site"]["port"] = 50022
    questions = sheet_of(declared["misrc_site"], "en", None).questions
    assert questions == ("Connection: MInt's job key", "Connection: Keys that sign the site's receipts")
