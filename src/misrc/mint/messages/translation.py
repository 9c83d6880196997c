"""English sentences of other rooms in the user's language, where `catalog` has no say over their making.

A user with a Japanese locale gets a message that is Japanese as a whole, down to the reason at its end. What has no
Japanese stays as it is: a message is never lost.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import NoReturn

from ..streams import complain
from .languages import language

_LABELS = {
    "usage: ": "使い方: ",
    "positional arguments:": "引数:",
    "options:": "オプション:",
    "show this help message and exit": "この説明を表示して終了する",
    "show program's version number and exit": "版を表示して終了する",
}
_MORE = r"(?=$|; | \(|[、。]| \[)"


def in_words(text: object) -> str:
    """The text in the user's language."""
    said = str(text)
    return _translate(said) if language() == "ja" else said


def _translate(text: str) -> str:
    for english, japanese in _sentences():
        found = re.search(_pattern(english), text, re.DOTALL)
        if found:
            values = [*map(_translate, found.groups()), ""]
            parts = japanese.split("{}")
            said = "".join(part + value for part, value in zip(parts, values, strict=True))
            return text[: found.start()] + said + text[found.end() :]
    return text


def _sentences() -> Iterator[tuple[str, str]]:
    """The longest first: a short one may be a part of it."""
    # Only now: a command that ends well needs none of them.
    from .sentences import SENTENCES

    return iter(sorted(SENTENCES.items(), key=lambda pair: -len(pair[0].replace("{}", ""))))


def _pattern(english: str) -> str:
    """A sentence begins the text, or follows a colon or a space, and ends it or a part of it.

    A single word counts as one only by itself or behind a colon: it could be a name.
    """
    before = "(?:^|(?<=: ))" if " " not in english.replace("{}", "").strip() else "(?:^|(?<=: )|(?<= ))"
    first, *rest = english.split("{}")
    pattern = before + re.escape(first)
    for index, part in enumerate(rest):
        # A value at the front is one word, or stands in quotes; elsewhere it ends where the sentence goes on.
        value = r"('[^']*'|\"[^\"]*\"|[^\s:]+)" if index == 0 and not first else "(.+?)"
        pattern += value + re.escape(part)
    return pattern + _MORE


class Parser(argparse.ArgumentParser):
    """A command's parser that speaks the user's language; parsers of subcommands are of the same kind."""

    def format_help(self) -> str:
        """The help, its words taken from the table of the manual's reference."""
        if language() == "ja":
            self._translate_help()
        return _label(super().format_help())

    def format_usage(self) -> str:
        """The usage line."""
        return _label(super().format_usage())

    def error(self, message: str) -> NoReturn:
        """One line on what is wrong with the words, and status 2."""
        complain(f"{self.prog}: {in_words(message)} ({self.prog} --help)")
        self.exit(2)

    def _translate_help(self) -> None:
        words = _read_words()
        self.description = words.get(str(self.description), self.description)
        for action in self._actions:
            if action.help:
                action.help = words.get(action.help, action.help)
            for choice in getattr(action, "_choices_actions", ()):
                choice.help = words.get(str(choice.help), choice.help)


def _read_words() -> dict[str, str]:
    """English words of the commands with their Japanese: the manual's own table, which came with the wheel."""
    from importlib.resources import files

    import yaml

    path = files("misrc") / "mint/reference_ja.yml"
    words: dict[str, str] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return words | _LABELS


def _label(text: str) -> str:
    """argparse's own headings."""
    if language() == "ja":
        for english, japanese in _LABELS.items():
            text = text.replace(english, japanese)
    return text
