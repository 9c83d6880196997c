"""The manual's reference, rendered from the code: tools/reference.py [--check]

Writes docs/reference.md and docs/ja/reference.md: commands from their parsers, keys of the declaration and the policy
from their descriptions, exit codes, verbs and refusal codes. A test holds both files equal to what the code says.
Japanese words for the code's English ones stand in tools/manual/reference_ja.yml; the policy's in docs/ja/site.md.
"""

from __future__ import annotations

import argparse
import enum
import json
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from misrc import cli
from misrc.declare.interface import Site
from misrc.declare.server import Server
from misrc.job import errors
from misrc.job.agent import AgentConfig, RetryRule
from misrc.job.arguments import ArgumentRule
from misrc.job.descriptions import describe
from misrc.job.policy import JobKey, Limits, Policy, ProgramRule
from misrc.job.states import JobState, Outcome
from misrc.mint.messages.catalog import MESSAGES
from misrc.site import commands
from misrc.wire.api import ApiError
from misrc.wire.grammar import MAX_WAIT_SECONDS, Verb
from misrc.wire.refusals import Refusal

ROOT = Path(__file__).resolve().parents[1]
PATHS = {"en": ROOT / "docs/reference.md", "ja": ROOT / "docs/ja/reference.md"}
WORDS = ROOT / "tools/manual/reference_ja.yml"
POLICY = {
    "key": Policy,
    "job_keys[].": JobKey,
    "limits.": Limits,
    "programs.NAME.": ProgramRule,
    "arguments.NAME.": ArgumentRule,
}
JOB = "UUID"
FORMS = {
    Verb.HELLO: "hello",
    Verb.OPEN: f"open {JOB}",
    Verb.PUT: f"put {JOB} --server --daemon .",
    Verb.START: f"start {JOB}",
    Verb.WAIT: f"wait {JOB} SECONDS OFFSET",
    Verb.GET: f"get {JOB} --server --daemon .",
    Verb.CANCEL: f"cancel {JOB}",
    Verb.CLOSE: f"close {JOB}",
}


AGENT = "Keys of the agent's configuration: agent.json"


class Writer:
    """One language of the reference. `missing` collects words that have no Japanese yet."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.missing: list[str] = []
        known = yaml.safe_load(WORDS.read_text(encoding="utf-8")) or {}
        self._japanese: dict[str, str] = {" ".join(key.split()): value for key, value in known.items()}
        self.policy = _read_policy_tables(ROOT / "docs/ja/site.md") if language == "ja" else {}

    def say(self, english: str) -> str:
        """Words of the code in this language."""
        english = " ".join(english.split())
        if self.language == "en" or not re.search(r"[a-z]", re.sub(r"`[^`]*`|\d+[A-Za-z]*", "", english)):
            return english
        if english not in self._japanese:
            self.missing.append(english)
        return self._japanese.get(english, english)

    def render(self) -> str:
        """The whole page."""
        parts = [
            [f"# {self.say('Reference')}", "", "<!-- tools/reference.py writes this page. -->", ""],
            [self.say("This page is made from the code of misrc by a program."), ""],
            self._commands("misrc", cli._parser(), self.say("Commands at MInt: misrc")),
            self._commands("misrc-site.pyz", commands._parser(), self.say("Commands at the site: misrc-site.pyz")),
            self._exit_codes(),
            self._declaration("Keys of the declaration: misrc_site", "misrc_site", Site),
            self._declaration("Keys of the API server's declaration", "server", Server),
            self._policy_keys(),
            self._agent_keys(),
            self._grammar(),
            self._refusals(),
            self._states(),
            self._api(),
        ]
        return "\n".join(line for part in parts for line in part).rstrip("\n") + "\n"

    def _table(self, *head: str, rows: Iterator[tuple[str, ...]]) -> list[str]:
        names = " | ".join(self.say(name) for name in head)
        lines = [f"| {names} |", "|" + "---|" * len(head)]
        return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows), ""]

    # -- commands -----------------------------------------------------------------------------------------------

    def _commands(self, program: str, parser: argparse.ArgumentParser, title: str) -> list[str]:
        lines = [f"## {title}", ""]
        if program == "misrc-site.pyz":
            text = "`--prefix DIR`, right after the file's name, keeps everything below one folder."
            lines += [self.say(text), ""]
        for name, leaf, text in walk(parser):
            lines += [f"### {program} {name}", "", _sentence(self.say(text)), "", "```text"]
            lines += [usage(f"{program} {name}", leaf), "```", ""]
            options = [action for action in leaf._actions if action.dest != "help" and action.help]
            if options:
                rows = ((_all_names(action), self._meaning(action)) for action in options)
                lines += self._table("word", "meaning", rows=rows)
        return lines

    def _meaning(self, action: argparse.Action) -> str:
        text = self.say(str(action.help))
        if action.choices:
            text += f" ({', '.join(f'`{choice}`' for choice in action.choices)})"
        return text

    # -- tables of the code -------------------------------------------------------------------------------------

    def _exit_codes(self) -> list[str]:
        kinds: list[type[errors.MisrcError]] = [errors.MisrcError, *errors.MisrcError.__subclasses__()]
        codes = {kind.exit_code: (kind.__doc__ or "").strip() for kind in kinds}
        rows = ((f"{code}", self.say(codes[code])) for code in sorted(codes))
        done = (("0", self.say("Done: results are verified and delivered.")),)
        return [
            f"## {self.say('Exit codes of misrc')}",
            "",
            *self._table("code", "meaning", rows=iter([*done, *rows])),
        ]

    def _declaration(self, title: str, name: str, model: type[BaseModel]) -> list[str]:
        lines = [f"## {self.say(title)}", ""]
        for place, part in models(model):
            lines += [f"### {name}{place}", ""]
            rows = (
                (f"`{field.alias or key}`", self.say(field.description or ""), _default(self, field))
                for key, field in part.model_fields.items()
            )
            lines += self._table("key", "meaning", "default", rows=rows)
        return lines

    def _policy_keys(self) -> list[str]:
        lines = [f"## {self.say('Keys of the policy: policy.json')}", ""]
        for place, model in POLICY.items():
            lines += [f"### {self.say('Policy') if place == 'key' else place.rstrip('.')}", ""]
            rows = ((f"`{key}`", *self._policy_words(place, key, text, shown)) for key, text, shown in describe(model))
            lines += self._table("key", "meaning", "default", rows=rows)
        return lines

    def _agent_keys(self) -> list[str]:
        lines = [f"## {self.say(AGENT)}", ""]
        for place, model in (("agent", AgentConfig), ("agent.retry", RetryRule)):
            rows = ((f"`{key}`", self.say(text), self.say(shown)) for key, text, shown in describe(model))
            lines += [f"### {place}", "", *self._table("key", "meaning", "default", rows=rows)]
        return lines

    def _policy_words(self, place: str, key: str, text: str, shown: str) -> tuple[str, str]:
        if self.language == "en":
            return text, shown
        found = self.policy.get(("キー" if place == "key" else place, key))
        if found is None:
            self.missing.append(f"docs/ja/site.md: {place}{key}")
        return found or (text, shown)

    def _grammar(self) -> list[str]:
        rows = ((f"`{FORMS[verb]}`", self.say(f"verb {verb.value}")) for verb in Verb)
        text = (
            "One space between words, no other byte anywhere. UUID is the job's id in lower case; "
            "numbers have no leading zeros. SECONDS is at most {seconds}."
        )
        sentence = self.say(text).replace("{seconds}", str(MAX_WAIT_SECONDS))
        table = self._table("request", "meaning", rows=rows)
        if self.language == "en":
            meanings = _verbs_of_design()
            table = self._table("request", "meaning", rows=((f"`{FORMS[v]}`", meanings[FORMS[v]]) for v in Verb))
        return [f"## {self.say('Requests that the gate knows')}", "", sentence, "", *table]

    def _refusals(self) -> list[str]:
        index = 0 if self.language == "en" else 1
        silent = self.say("The request is not in the grammar; MInt's own commands never send such.")
        rows = (
            (
                refusal.value,
                f"`{refusal.name}`",
                str(refusal.exit_status),
                MESSAGES[refusal.value][index].replace("{contact}", "…") if refusal.value in MESSAGES else silent,
            )
            for refusal in Refusal
        )
        return [
            f"## {self.say('Refusal codes')}",
            "",
            *self._table("code", "name", "exit status of the gate", "what people at MInt read", rows=rows),
        ]

    def _states(self) -> list[str]:
        lines = [f"## {self.say('States and outcomes')}", ""]
        kinds: tuple[type[enum.Enum], ...] = (JobState, Outcome)
        for kind in kinds:
            lines += [f"{self.say((kind.__doc__ or '').strip())}", ""]
            lines += [" → ".join(f"`{item.value}`" for item in kind) if kind is JobState else _list(kind), ""]
        text = "[operations.md](operations.md) says what each means and what to do."
        return [*lines, self.say(text), ""]

    def _api(self) -> list[str]:
        document = json.loads((ROOT / "docs/openapi.json").read_text(encoding="utf-8"))
        calls = (
            (f"`{method.upper()} {path}`", self.say(call["summary"]), _scope(call))
            for path, methods in document["paths"].items()
            for method, call in methods.items()
        )
        errors = ((f"`{error.value}`", f"{error.status}", self._yes(error.transient)) for error in ApiError)
        return [
            f"## {self.say('Calls of the API')}",
            "",
            *self._table("call", "meaning", "scope", rows=calls),
            *self._table("error", "HTTP status", "may pass by itself", rows=errors),
        ]

    def _yes(self, value: bool) -> str:
        return self.say("yes") if value else "–"


def _scope(call: dict[str, Any]) -> str:
    return ", ".join(re.findall(r"`[a-z]+`", call["description"]))


def _list(kind: type[enum.Enum]) -> str:
    return ", ".join(f"`{item.value}`" for item in kind)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "。")) else "。" if not text.isascii() else ".")


def walk(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Every command below a parser: its words, its own parser, and its help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: str(choice.help or "") for choice in action._choices_actions}
            for word, below in action.choices.items():
                path = f"{name} {word}".strip()
                inner = list(walk(below, path))
                yield from inner or [(path, below, helps.get(word, ""))]


def usage(name: str, parser: argparse.ArgumentParser) -> str:
    """One line, the same on every version of Python."""
    words = [name]
    exclusive = {id(a): group for group in parser._mutually_exclusive_groups for a in group._group_actions}
    done: set[int] = set()
    for action in parser._actions:
        group = exclusive.get(id(action))
        if action.dest == "help" or id(group) in done:
            continue
        if group is not None:
            done.add(id(group))
            words.append("[" + " | ".join(_usage_of(a).strip("[]") for a in group._group_actions) + "]")
        else:
            words.append(_usage_of(action))
    return " ".join(words)


def _usage_of(action: argparse.Action) -> str:
    text = _name(action)
    repeated = isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*", argparse.REMAINDER)
    text += " …" if repeated else ""
    return text if action.required else f"[{text}]"


def _name(action: argparse.Action) -> str:
    metavar = action.metavar or (("|".join(map(str, action.choices))) if action.choices else action.dest.upper())
    if not action.option_strings:
        return str(metavar)
    option = action.option_strings[-1]
    return option if action.nargs == 0 else f"{option} {metavar}"


def _all_names(action: argparse.Action) -> str:
    return ", ".join(f"`{name}`" for name in [*action.option_strings[:-1], _name(action)])


def models(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A model of the declaration and those below it, each with the place where it stands."""
    yield place, model
    for name, field in model.model_fields.items():
        for inner, suffix in _inner(field.annotation):
            yield from models(inner, f"{place}.{name}{suffix}")


def _inner(kind: Any, suffix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind, suffix
    origin, below = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        name = ".SIDE" if typing.get_origin(below[0]) is typing.Literal else ".NAME"
        yield from _inner(below[1], suffix + name)
    elif origin is tuple:
        yield from _inner(below[0], suffix + "[]")
    elif origin is not None:
        for part in below:
            yield from _inner(part, suffix)


def _default(writer: Writer, field: FieldInfo) -> str:
    value = field.default
    if field.is_required():
        return writer.say("needed")
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (int, float)):
        return f"{value:.15g}"
    if isinstance(value, str):
        return f"`{value}`" if value else writer.say("none")
    if isinstance(value, tuple) and value:
        return ", ".join(f"`{item}`" for item in value)
    return writer.say("none") if not isinstance(value, BaseModel) else writer.say("see below")


def _verbs_of_design() -> dict[str, str]:
    """The meanings of the verbs stand in the design, and nowhere else."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `((?:hello|[a-z]+ UUID)[^`]*)` \| (.*) \|$", text, re.MULTILINE)
    return dict(found)


def _read_policy_tables(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(table, key) → meaning and default, out of the site's page."""
    found, table = {}, None
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 3:
            table = None
        elif table is None:
            table = cells[0].strip("`")
        else:
            found[table, cells[0].strip("`")] = (cells[1], cells[2])
    return found


def main() -> int:
    """Write both pages, or with --check only say whether they are as the code says."""
    check, status = "--check" in sys.argv[1:], 0
    for language, path in PATHS.items():
        writer = Writer(language)
        text = writer.render()
        if writer.missing:
            print("no Japanese yet; add it to tools/manual/reference_ja.yml:", *dict.fromkeys(writer.missing), sep="\n")
            status = 1
        if not check:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            print(f"{path.relative_to(ROOT)} is not what the code says; run tools/reference.py")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
