"""Identifiers and file names: patterns first, paths after. Everything here refuses; nothing repairs.

Not covered: names that only one file system folds together (beyond case and Unicode normalisation).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Callable, Iterable, Pattern, Set, Tuple

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1024
MAX_COMPONENTS = 16

# Versions 4 (random), 5 and 8 (derived from names): the nil, the all-ones and time-based ids are refused.
JOB_ID = "[0-9a-f]{8}-[0-9a-f]{4}-[458][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
SITE_ID = "[a-z][a-z0-9-]{0,31}"
PROGRAM_NAME = "[a-z][a-z0-9_]{0,63}"
ARGUMENT_NAME = "[a-z][a-z0-9_]{0,63}"
SHA256 = "[0-9a-f]{64}"
# In a forced command that serves all keys: the one that sshd says was used. Elsewhere a line names its own, as `key-1`.
ANY_KEY = "key-of-sshd"

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
# The names of nearly all files, known to be harmless at a glance.
_PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.+-]{0,200}[A-Za-z0-9_+-])?", re.ASCII)
_FORBIDDEN = frozenset('/\\:*?"<>|')


class NameRefused(ValueError):
    """A name that misrc does not carry; the message says why, without the name."""


def is_job_id(text: str) -> bool:
    """Whether `text` is a canonical lower-case UUID as misrc makes them."""
    return re.fullmatch(JOB_ID, text, re.ASCII) is not None


def check_component(name: str) -> None:
    """Refuse one path component that is unsafe on any system that a job may meet."""
    if _PLAIN.fullmatch(name) and not _RESERVED.fullmatch(name):
        return
    try:
        raw = name.encode("utf-8")
    except UnicodeEncodeError:
        raise NameRefused("is not UTF-8") from None
    if not 1 <= len(raw) <= MAX_NAME_BYTES:
        raise NameRefused("is empty, or longer than 255 bytes")
    if name[0] in "-.~ " or name[-1] in ". ":
        raise NameRefused("begins with '-', '.', '~' or a space, or ends with '.' or a space")
    if _FORBIDDEN & set(name):
        raise NameRefused('has one of / \\ : * ? " < > |')
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn") for c in name):
        raise NameRefused("has an invisible or control character")
    if unicodedata.normalize("NFC", name) != name:
        raise NameRefused("is not in Unicode form NFC")
    if _RESERVED.fullmatch(name):
        raise NameRefused("is reserved on some systems")


def check_input_name(name: str) -> None:
    """Inputs are flat: one component."""
    check_component(name)


def check_result_name(name: str) -> None:
    """Results may lie in folders: a relative path of safe components."""
    if len(name.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise NameRefused("is longer than 1024 bytes")
    components = name.split("/")
    if len(components) > MAX_COMPONENTS:
        raise NameRefused("is nested deeper than 16 folders")
    for component in components:
        check_component(component)


def fold_name(name: str) -> str:
    """What stays of a name where neither case nor Unicode normalisation counts."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name.casefold())


def check_distinct(names: Iterable[str]) -> None:
    """Refuse names that fall together on a file system that ignores case, and a file that is also a folder."""
    seen: Set[str] = set()
    folders: Set[str] = set()
    for name in names:
        key = fold_name(name)
        if key in seen:
            raise NameRefused("two names differ only in case, or are the same")
        seen.add(key)
        if "/" not in key:
            continue
        parts = key.split("/")
        folders.update("/".join(parts[:i]) for i in range(1, len(parts)))
    if seen & folders:
        raise NameRefused("a name is both a file and a folder")


def compile_glob(pattern: str) -> Pattern[str]:
    """`*` and `?` stay within one component, `**` crosses folders; everything else is literal."""
    out = []
    i = 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out.append("(?:.*/)?")
            i += 3
        elif pattern.startswith("**", i):
            out.append(".*")
            i += 2
        elif pattern[i] == "*":
            out.append("[^/]*")
            i += 1
        elif pattern[i] == "?":
            out.append("[^/]")
            i += 1
        else:
            out.append(re.escape(pattern[i]))
            i += 1
    return re.compile("".join(out), re.DOTALL)


class NameSet:
    """The names that match any of some glob patterns, however an editor composed the patterns' characters.

    With `fold` neither case nor normalisation of the names counts: for what forbids, where a near miss must not pass.
    """

    def __init__(self, patterns: Iterable[str], fold: bool = False) -> None:
        form: Callable[[str], str] = fold_name if fold else _compose
        self._fold = fold
        self._patterns: Tuple[Pattern[str], ...] = tuple(compile_glob(form(p)) for p in patterns)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        name = fold_name(name) if self._fold else name
        return any(p.fullmatch(name) for p in self._patterns)


def _compose(pattern: str) -> str:
    return unicodedata.normalize("NFC", pattern)
