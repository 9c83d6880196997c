"""How Sphinx makes the manual: `tools/manual.sh` builds one folder per language out of docs/ and docs/ja/.

Nothing is taken from the network, and no page refers to it: scripts, styles and search lie beside the pages.
Pages are plain Markdown that reads well without this file too; what only HTML needs is added here.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parent))
from pages_of_manual import DEVELOPERS, PAGES, TITLES

ROOT = Path(__file__).resolve().parents[2]
language = os.environ["MISRC_MANUAL_LANGUAGE"]
OTHER = {"en": "ja", "ja": "en"}[language]

project = TITLES[language]
html_title = project
extensions = ["myst_parser"]
myst_heading_anchors = 4
myst_linkify_fuzzy_links = False
exclude_patterns = ["ja"]
templates_path = ["templates"]
html_static_path = ["static"]
html_css_files = ["manual.css"]
html_theme = "alabaster"
html_theme_options = {
    "font_family": "sans-serif",
    "head_font_family": "sans-serif",
    "fixed_sidebar": True,
    "page_width": "68rem",
    "show_powered_by": False,
}
html_context = {"other": OTHER, "other_name": {"en": "English", "ja": "日本語"}[OTHER]}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_last_updated_fmt = None


def setup(app: Sphinx) -> None:
    """Connect what follows."""
    app.connect("source-read", _adapt)
    app.connect("doctree-read", _join_lines)


def _adapt(app: Sphinx, name: str, source: list[str]) -> None:
    """The contents on the first page, and links to what is not a page of this language."""
    text = _LINK.sub(lambda match: _relink(name, match), source[0])
    if name == "index":
        pages = [page for page in PAGES if (Path(app.srcdir) / f"{page}.md").exists()]
        pages += [page for page in DEVELOPERS if language == "en"]
        text += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"
    source[0] = text


def _join_lines(app: Sphinx, page: nodes.document) -> None:
    """The end of a source's line within a Japanese sentence is no space: Japanese has none between its words."""
    for parent in page.findall(nodes.TextElement):
        around = zip(parent.children[:-2], parent.children[1:-1], parent.children[2:], strict=True)
        for before, end, after in list(around):
            if end.astext() == "\n" and not (before.astext()[-1:].isascii() or after.astext()[:1].isascii()):
                parent.children = [child for child in parent.children if child is not end]


_LINK = re.compile(r"\[([^\]\n]+)\]\((?!https?:)([^)#\s]+)(#[^)\s]+)?\)")


def _relink(name: str, match: re.Match[str]) -> str:
    """A page of the other language is beside this one's folder; any other file of the repository is only named."""
    text, target, anchor = match[1], match[2], match[3] or ""
    here = "docs/ja" if language == "ja" else "docs"
    path = posixpath.normpath(posixpath.join(here, posixpath.dirname(name), target))
    folder, page = posixpath.split(path)
    if folder == here and page.endswith(".md"):
        return match[0]
    if not (ROOT / path).exists():
        logging.getLogger(__name__).warning("%s: there is no %s", name, target)
    if folder in ("docs", "docs/ja") and page.endswith(".md"):
        other = "ja" if folder == "docs/ja" else "en"
        return f'<a href="../{other}/{page[:-3]}.html{anchor}">{text}</a>'
    return text if text == path else f"{text} (`{path}`)"
