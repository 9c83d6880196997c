"""The pages that people read, as the tests of the manual see them: headings, blocks, code, links and tables."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools/manual"))
sys.path.insert(0, str(ROOT / "tools"))
DOCS = ROOT / "docs"
_MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass
class Block:
    """A fenced block: its language, its marks (`run`), its text, and the line at which it begins."""

    language: str
    marks: tuple[str, ...]
    text: str
    line: int


@dataclass
class Page:
    """One Markdown file."""

    path: Path
    headings: list[tuple[int, str]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    codes: list[tuple[str, int]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)
    tables: list[tuple[int, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    def anchors(self) -> set[str]:
        """What a link may point to: headings as GitHub and MyST name them."""
        found: list[str] = []
        for _, text in self.headings:
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
        return set(found)


def read_page(path: Path) -> Page:
    """Parse one page."""
    page = Page(path)
    heading = 0
    table: list[int] | None = None
    for token in _MARKDOWN.parse(path.read_text(encoding="utf-8")):
        if token.type == "fence":
            words = token.info.split() or [""]
            page.blocks.append(Block(words[0], tuple(words[1:]), token.content, _line(token)))
        elif token.type == "inline":
            _collect(page, token, heading, table is not None)
        elif token.type.startswith("heading_"):
            heading = int(token.tag[1]) if token.nesting == 1 else 0
        elif token.type == "table_open":
            table = [0, 0]
        elif token.type == "table_close" and table:
            page.tables.append((table[0], table[1] // table[0]))
            table = None
        elif table and token.nesting == 1:
            table[0] += token.type == "tr_open"
            table[1] += token.type in ("td_open", "th_open")
    return page


def _collect(page: Page, token: Token, heading: int, in_table: bool) -> None:
    if heading:
        page.headings.append((heading, _plain(token)))
    elif not in_table:
        page.prose.append(_words(token))
    for child in token.children or []:
        if child.type == "code_inline":
            page.codes.append((child.content, _line(token)))
        elif child.type == "link_open":
            page.links.append(str(child.attrs["href"]))


def _line(token: Token) -> int:
    return (token.map or [0])[0] + 1


def _plain(token: Token) -> str:
    return "".join(child.content for child in token.children or [] if child.type in ("text", "code_inline"))


def _words(token: Token) -> str:
    """The sentences of a paragraph: without code and without what is printed bold."""
    words, bold = [], 0
    for child in token.children or []:
        bold += {"strong_open": 1, "strong_close": -1}.get(child.type, 0)
        if child.type in ("text", "softbreak") and not bold:
            words.append(child.content)
        elif child.type == "code_inline":
            words.append("`")
    return "".join(words)


def english_pages() -> list[Path]:
    """The manual's pages in English; the pages for developers are no part of the translated manual."""
    from pages_of_manual import DEVELOPERS

    return sorted(path for path in DOCS.glob("*.md") if path.stem not in DEVELOPERS)


def manual() -> list[Path]:
    """Every page of the manual in both languages, and the other pages that tell people what to type."""
    others = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "scripts/README.md"]
    return [*english_pages(), *sorted((DOCS / "ja").glob("*.md")), *others, *sorted(ROOT.glob("roles/*/README.md"))]


def all_pages() -> list[Path]:
    """Every Markdown page of the repository that a reader may come to."""
    return sorted({*manual(), *DOCS.glob("*.md")})


def logical_lines(text: str) -> Iterator[str]:
    """The commands of a shell block: continued lines and open quotations joined, here-documents left out."""
    end, kept = None, ""
    for line in text.splitlines():
        if end is not None:
            end = None if line.strip() == end else end
            continue
        kept += line
        if kept.endswith("\\"):
            kept = kept[:-1]
            continue
        if _is_open(kept):
            kept += "\n"
            continue
        match = re.search(r"<<-?'?(\w+)'?", kept)
        if match:
            end = match[1]
        yield kept
        kept = ""


def _is_open(line: str) -> bool:
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return True
    return False
