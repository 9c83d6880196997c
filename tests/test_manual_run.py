"""The manual works: blocks marked `run` are run against a real site, and it builds into pages without dead links."""

from __future__ import annotations

import fcntl
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from conftest import MISRC, Mint, Site, default_policy, make_mint, make_program
from pages import DOCS, ROOT, read_page

from misrc.job.policy import parse_policy
from misrc.mint.packaging.zipapp import write

# What stands in the pages for things that the reader has, and what it is here.
INPUTS = {"reduction_area.dat": "ra.dat", "tensile_strength.dat": "ts.dat", "yield_strength.dat": "ys.dat"}
ARGUMENTS: dict[str, dict[str, object]] = {
    "mesh": {"choices": ["small", "medium", "large"], "default": "medium"},
    "analysis": {"choices": ["elastic", "cyclic"], "default": "cyclic"},
    "amplitude": {"pattern": "[0-9]{1,4}", "default": "400"},
}


class Reader:
    """Somebody who has a site, MInt's side and the files that the pages speak of, and types what they say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        host = root / "host"
        (host / "programs").mkdir(parents=True)
        body = 'cat reduction_area.dat tensile_strength.dat yield_strength.dat > XX.dat; echo "$*" > XX.inp\n'
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host / "job_key")], check=True)
        key = (host / "job_key.pub").read_text(encoding="ascii").strip()
        path = str(make_program(host / "programs/stress", body))
        arguments = {name: dict(rule) for name, rule in ARGUMENTS.items()}
        program = {"path": path, "returns": ["XX.*"], "network": "allow", "arguments": arguments}
        policy = {**default_policy(host), "programs": {"stress_distribution": program}}
        policy["job_keys"] = [{"key": key, "from": ["127.0.0.0/8"]}]
        self.site = Site(host, "univ-a", policy)
        self.site.install()
        self.site.start_sshd()
        self.mint = self.make_mint()
        self.work = root / "work"
        self.work.mkdir()
        self._prepare()
        self.job = self.compute()

    def make_mint(self) -> Mint:
        program: dict[str, Any] = {
            "inputs": dict.fromkeys(INPUTS, "required"),
            "outputs": {"XX.dat": "required", "XX.inp": "optional"},
            "arguments": ARGUMENTS,
        }
        return make_mint(self.root / "mint", self.site, programs={"stress_distribution": program})

    def _prepare(self) -> None:
        for number, short in enumerate(INPUTS.values()):
            (self.work / short).write_text(f"{number}\n", encoding="utf-8")
        (self.work / "inputs.txt").write_text("".join(f"{n}={s}\n" for n, s in INPUTS.items()), encoding="utf-8")
        (self.work / "old").mkdir()
        (self.work / "old/XX.dat").write_text("0\n1\n2\n", encoding="utf-8")
        write(self.work / "misrc-site.pyz")

    def compute(self) -> str:
        """A job that has ended well, as the auditor finds it; its id."""
        inputs = [word for name, short in INPUTS.items() for word in ("--in", f"{name}={self.work / short}")]
        words = ["run", "univ-a", "stress_distribution", *inputs, "--results", str(self.root / "results"), "--json"]
        done = self.mint.command(*words)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["job"])

    def type(self, text: str) -> subprocess.CompletedProcess[str]:
        """Type one block. Only what the page leaves to the reader is filled in."""
        text = text.replace("misrc-site.pyz ", f"misrc-site.pyz --prefix {self.site.prefix} ")
        text = re.sub(r"(sha256sum misrc-site.pyz|zipfile -l misrc-site.pyz) --prefix \S+", r"\1", text)
        text = re.sub(r"--job JOB\b", f"--job {self.job}", text)
        environment = self.mint.env() | {
            "PATH": f"{Path(MISRC).parent}:/usr/bin:/bin",
            "JOB": self.job,
            "STATE": str(self.mint.state),
            "RESULTS": str(self.root / "results"),
            "SITE_KEY": str(self.site.prefix / "config/site_key.pub"),
            "LEDGER": str(self.site.prefix / "state/ledger.jsonl"),
            "RESULT_PORT": str(self.work / "port.dat"),
        }
        ports = [str(self.work / name) for name in (*INPUTS.values(), "out-port.dat")]
        command = ["bash", "-euo", "pipefail", "-c", text, "module", *ports]
        return subprocess.run(
            command, cwd=self.work, env=environment, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """One reader for all pages."""
    made = Reader(tmp_path_factory.mktemp("reader"))
    yield made
    made.site.stop_sshd()


RUNNABLE = [
    (path.relative_to(DOCS), block.line)
    for path in sorted(DOCS.rglob("*.md"))
    for block in read_page(path).blocks
    if "run" in block.marks
]
EXPECTED = {
    "ssh-keygen -Y verify": 'Good "misrc-receipt" signature',
    "inputs:inputs.jsonl": "inputs: same\noutputs: same\n",
    "sha256sum --check": "XX.dat: OK",
    "ledger show": "The chain verifies.",
    "misrc-site.pyz thaw": "Thawed",
    "--dry-run": "",
}


@pytest.mark.parametrize(("path", "line"), RUNNABLE, ids=str)
def test_a_block_that_is_marked_works(reader: Reader, path: Path, line: int) -> None:
    """Typed as it stands, each command of it ends well, and shows what the page says."""
    block = next(block for block in read_page(DOCS / path).blocks if block.line == line)
    shutil.rmtree(reader.work / "new", ignore_errors=True)
    done = reader.type(block.text)
    assert done.returncode == 0, (block.text, done.stdout, done.stderr)
    for part, shown in EXPECTED.items():
        if part in block.text:
            assert shown in done.stdout, (part, done.stdout)


def test_enough_is_run() -> None:
    """The marks are where they belong: both languages of four pages, the same number in each."""
    count = {str(path): sum(1 for other, _ in RUNNABLE if other == path) for path, _ in RUNNABLE}
    for name in ("operations", "site", "auditors", "predecessor"):
        assert count[f"{name}.md"] == count[f"ja/{name}.md"] >= 2


def audit(reader: Reader, part: str) -> subprocess.CompletedProcess[str]:
    block = next(block for block in read_page(DOCS / "auditors.md").blocks if part in block.text)
    return reader.type(block.text)


def test_the_auditors_commands_see_what_was_changed(reader: Reader) -> None:
    """Control: after a change of receipt, manifest, result or ledger the page's commands say so."""
    folder = reader.mint.state / "jobs" / reader.job
    ledger = reader.site.prefix / "state/ledger.jsonl"
    changes = [
        ("ssh-keygen -Y verify", folder / "receipt.json", b'"succeeded"', b'"failed"'),
        ("inputs:inputs.jsonl", folder / "manifest.jsonl", b"XX.dat", b"XY.dat"),
        ("sha256sum --check", reader.root / "results/XX.dat", b"0", b"9"),
        ("hashlib.sha256", ledger, b'"program":"stress_distribution"', b'"program":"stress_distributiox"'),
    ]
    for part, path, old, new in changes:
        kept, mode = path.read_bytes(), path.stat().st_mode
        assert audit(reader, part).returncode == 0
        assert old in kept
        path.chmod(0o600)
        path.write_bytes(kept.replace(old, new, 1))
        assert audit(reader, part).returncode != 0, part
        path.write_bytes(kept)
        path.chmod(mode)


def test_the_checkpoint_is_in_the_ledger(reader: Reader) -> None:
    """What the page tells auditors to compare is really there: number and hash of MInt's checkpoint."""
    told = json.loads((reader.mint.state / "jobs" / reader.job / "job.json").read_bytes())["checkpoint"]
    assert f"{told['seq']} {told['hash']}" in audit(reader, "hashlib.sha256").stdout.splitlines()


@pytest.mark.parametrize("path", ["predecessor.md", "ja/predecessor.md"])
def test_the_policy_of_the_move_is_one(path: str) -> None:
    """What people copy is accepted as it stands."""
    block = next(block for block in read_page(DOCS / path).blocks if block.language == "json")
    assert parse_policy(block.text.encode()).programs["stress_distribution"].returns == ("**",)


# -- the build ------------------------------------------------------------------------------------------------------


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "MISRC_PYTHON_BIN": str(Path(sys.executable).parent)}
    command = ["bash", str(source / "tools/manual.sh"), str(target)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


class Links(html.parser.HTMLParser):
    """Ids and addresses of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.language = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("link", "script", "img", "iframe"):
            self.loaded += [values[name] for name in ("href", "src") if name in values]
        elif tag == "html":
            self.language = values.get("lang", "")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manual as HTML, built once for all workers of this run."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    target = tmp_path_factory.getbasetemp().parent / f"manual-{run}"
    with open(f"{target}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            done = build(ROOT, target)
            assert done.returncode == 0, done.stderr
    return target


def test_japanese_lines_are_joined_without_a_space(built: Path) -> None:
    """A line that ends within a Japanese sentence leaves no gap in the page; in English the words stay apart."""
    gap = re.compile("[ぁ-んァ-ヶ一-龠]\\n[ぁ-んァ-ヶ一-龠]")
    pages = [path.read_text(encoding="utf-8") for path in (built / "ja").glob("*.html")]
    paragraphs = [text for page in pages for text in re.findall(r"(?s)<p>(.*?)</p>", page)]
    assert len(paragraphs) > 100 and [text for text in paragraphs if gap.search(text)] == []
    assert any(gap.search(path.read_text(encoding="utf-8")) for path in (DOCS / "ja").glob("*.md")), "sources have such"
    assert re.search(r"(?s)<p>[^<]*[a-z]\n[a-z]", (built / "en/index.html").read_text(encoding="utf-8"))


def test_built_pages_lead_nowhere_but_to_each_other(built: Path) -> None:
    """Every link and anchor of every page leads somewhere; nothing is loaded from a network."""
    pages = {path: Links(path) for path in built.rglob("*.html")}
    assert {path.parts[-2] for path in pages} == {"en", "ja"}
    dead = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                dead += [] if link in page.links and link.startswith("http") else [(path.name, link)]
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            ids = pages[target].ids if target in pages else set()
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in ids):
                dead.append((f"{path.parts[-2]}/{path.name}", link))
    assert dead == []


def test_styles_and_scripts_load_nothing_from_a_network(built: Path) -> None:
    """No style sheet imports, and no script fetches, from an address."""
    found = []
    for path in [*built.rglob("*.css"), *built.rglob("*.js")]:
        text = path.read_text(encoding="utf-8")
        if re.search(r"""@import|url\(['"]?(https?:)?//|fetch\(['"]http""", text):
            found.append(path.name)
    assert found == []


def test_each_page_is_built_in_both_languages(built: Path) -> None:
    """Every page of the manual has its HTML, in its language, with a link to the other language."""
    for path in DOCS.glob("*.md"):
        if not (DOCS / "ja" / path.name).exists():
            continue
        for language, other in (("en", "ja"), ("ja", "en")):
            page = Links(built / language / f"{path.stem}.html")
            assert page.language == language
            assert f"../{other}/{path.stem}.html" in page.links


def test_a_dead_link_stops_the_build(tmp_path: Path) -> None:
    """Control: links to a heading, a page and a translation that are gone are errors of the build, each named."""
    for name in ("docs", "tools", "roles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    page = tmp_path / "docs/troubleshooting.md"
    text = page.read_text(encoding="utf-8")
    for old, new in (
        ("(site.md#refusal-codes)", "(site.md#lost)"),
        ("(operations.md#", "(gone.md#"),
        ("(ja/", "(ja/un"),
    ):
        assert old in text
        text = text.replace(old, new)
    page.write_text(text, encoding="utf-8")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    assert all(name in done.stderr for name in ("'lost'", "gone.md", "ja/untroubleshooting.md")), done.stderr


def test_the_build_needs_no_home_and_leaves_the_sources_alone(built: Path) -> None:
    """Only the target folder is written."""
    assert not [name for name in os.listdir(DOCS) if name.startswith(("_", "."))]
