"""The survey sheet: everything that MInt declares of a site, on paper that both parties can sign.

Without it two parties sign what each believes was agreed. Every declared fact stands in the sheet, entries that are
new to this page included; what a complete sheet needs and the declaration does not say is marked and listed. The
site's policy is no input of this module, so nothing of it can get into a sheet.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from ..job.public_keys import fingerprint
from .agreements import Expectation
from .interface import Argument, Program, Site
from .survey_words import Language, word

Format = Literal["html", "md"]
TEMPLATES = Path(__file__).parent / "templates"
# Within a line, and what begins a list, a heading or a rule at its start. `_` between letters is plain text.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])|^[-+=#]|^\d+(?=[.)])")
# What has a place of its own in the sheet; every other entry is shown by its description.
_PLACED_SITE = frozenset((
    *("id", "legacy_ids", "method", "address", "port", "user", "host_keys", "via", "retry", "give_up_after"),
    *("valid_until", "receipt_keys", "contacts", "agreements", "survey", "programs", "reason"),
))  # fmt: skip
_PLACED_PROGRAM = frozenset(("title", "command", "inputs", "arguments", "outputs", "ports", "reason"))


@dataclass(frozen=True)
class Cell:
    """One field of the sheet: lines of text, or an open question."""

    lines: tuple[str, ...]
    open: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under a heading; the first cell of a row names it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Sheet:
    """The whole sheet, ready for a template."""

    language: Language
    site: str
    digest: str
    tables: tuple[Table, ...]
    questions: tuple[str, ...]

    def say(self, key: str, **values: object) -> str:
        """Words of the sheet's language, for the templates."""
        return word(key, self.language, **values)


def render_survey(sheet: Sheet, form: Format) -> str:
    """The sheet as one HTML page that needs nothing else, or as Markdown. All text is escaped."""
    if form == "html":
        environment = Environment(autoescape=True, finalize=_printable, **_LOADING)
    else:
        environment = Environment(autoescape=False, finalize=_escape_markdown, **_LOADING)
    return environment.get_template(f"survey.{form}.j2").render(sheet=sheet)


_LOADING: dict[str, Any] = {
    "loader": FileSystemLoader(TEMPLATES),
    "undefined": StrictUndefined,
    "trim_blocks": True,
    "lstrip_blocks": True,
    "keep_trailing_newline": True,
}


def _printable(value: object) -> object:
    """Text whose unprintable characters, such as marks that turn the direction of writing, can be seen."""
    text = str(value)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _escape_markdown(value: object) -> str:
    text = str(_printable(value))
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}" if not found[0].isdigit() else f"{found[0]}\\", text)


def describe_site(site: Site, job_key: str | None, language: Language, today: datetime.date) -> Sheet:
    """Everything that is declared of `site`; `job_key` is the public half of MInt's key, where it is at hand."""
    return _Writer(site, job_key, language, today).write()


class _Writer:
    """Collects the tables of one sheet, and on the way what is open."""

    def __init__(self, site: Site, job_key: str | None, language: Language, today: datetime.date) -> None:
        self.site, self.job_key, self.language, self.today = site, job_key, language, today
        self.tables: list[Table] = []
        self.questions: list[str] = []

    def write(self) -> Sheet:
        self._write_parties()
        self._write_connection()
        self._write_failure()
        for name, program in self.site.programs.items():
            self._write_program(name, program)
        self._write_duties()
        self._write_agreements()
        self._write_measures()
        self._write_others()
        plain = json.dumps(self.site.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(plain.encode()).hexdigest()
        return Sheet(self.language, self.site.id, digest, tuple(self.tables), tuple(self.questions))

    # -- parts of a table ---------------------------------------------------------------------------------------

    def _say(self, key: str, **values: object) -> str:
        return word(key, self.language, **values)

    def _fact(self, key: str, *lines: str | None, section: str = "") -> tuple[Cell, Cell]:
        """A row whose value must be known; without one it is open."""
        known = tuple(line for line in lines if line)
        label = self._say(f"fact.{key}")
        if known:
            return Cell((label,)), Cell(known)
        self.questions.append(self._say("ask.fact", section=section, what=label))
        return Cell((label,)), self._open()

    def _may(self, key: str, *lines: str | None) -> tuple[Cell, Cell]:
        """A row whose value may be missing."""
        known = tuple(line for line in lines if line)
        return Cell((self._say(key),)), Cell(known or (self._say("none"),))

    def _open(self) -> Cell:
        return Cell((self._say("open"),), open=True)

    def _add(self, title: str, rows: Iterable[tuple[Cell, ...]], *head: str) -> None:
        """A table; without a row it is open as a whole."""
        rows = tuple(rows)
        if not rows:
            self.questions.append(self._say("ask.empty", section=title))
            rows = ((self._open(), *(Cell(("",)) for _ in head[1:])),)
        self.tables.append(Table(title, tuple(self._say(word) for word in head), rows))

    def _row_fact(self, section: str, item: str, key: str, value: str | None) -> Cell:
        if value:
            return Cell((value,))
        self.questions.append(self._say("ask.row", section=section, item=item, what=self._say(key)))
        return self._open()

    def _review(self, section: str, item: str, day: str | None) -> Cell:
        if day is not None and datetime.date.fromisoformat(day) < self.today:
            what = self._say("ask.overdue", day=day)
            self.questions.append(self._say("ask.row", section=section, item=item, what=f" {what}"))
            return Cell((self._say("overdue", day=day),), open=True)
        return self._row_fact(section, item, "next_review", day)

    # -- the tables ---------------------------------------------------------------------------------------------

    def _write_parties(self) -> None:
        site, title = self.site, self._say("section.parties")
        reviews = [entry.next_review for entry in site.agreements]
        reviews += [entry.next_review for entries in site.survey.measures.values() for entry in entries]
        rows = [
            self._fact("id", site.id),
            self._may("fact.legacy_ids", *site.legacy_ids),
            self._fact("method", self._say(f"method.{site.method}")),
            self._fact("contact_site", site.contacts.get("site"), section=title),
            self._fact("contact_mint", site.contacts.get("mint"), section=title),
            self._fact("valid_until", site.valid_until, section=title),
            self._fact("review", min((day for day in reviews if day), default=None), section=title),
            self._may("reason", site.reason),
        ]
        self._add(title, rows, "item", "value")

    def _write_connection(self) -> None:
        site, title = self.site, self._say("section.connection")
        rows = [
            self._fact("account", site.survey.account, section=title),
            self._fact("sources", *site.survey.sources, section=title),
            *(self._list_ssh(title) if site.method == "ssh" else [self._fact("token", self._say("token"))]),
            self._fact("receipt_keys", *_show_keys(site.receipt_keys), section=title),
        ]
        self._add(title, rows, "item", "value")

    def _list_ssh(self, title: str) -> list[tuple[Cell, Cell]]:
        site = self.site
        return [
            self._fact("address", site.address),
            self._fact("port", str(site.port)),
            self._fact("user", site.user),
            self._fact("via", *self._ways()),
            *([self._fact("jump_keys", *_show_keys(site.via.host_keys))] if site.via.host_keys else []),
            self._fact("host_keys", *_show_keys(site.host_keys)),
            self._fact("job_key", *_show_keys([self.job_key] if self.job_key else []), section=title),
        ]

    def _ways(self) -> list[str]:
        via = self.site.via
        if via.proxy_jump:
            return [self._say("via.jump", host=via.proxy_jump)]
        return [self._say("via.socks", host=via.socks4) if via.socks4 else self._say("via.direct")]

    def _write_failure(self) -> None:
        retry, silence = self.site.retry, int(self.site.give_up_after)
        words = self._say("seconds", seconds=silence)
        if silence % 3600 == 0:
            words = self._say("hours", hours=silence // 3600)
        rows = [
            self._fact("retry", self._say("retry", count=retry.count, interval=f"{retry.interval:g}")),
            self._fact("give_up_after", words),
        ]
        self._add(self._say("section.failure"), rows, "item", "value")

    def _write_program(self, name: str, program: Program) -> None:
        title = self._say("section.program", name=name)
        expected = self.site.survey.programs.get(name, Expectation())
        rows = [
            self._fact("title_ja", program.title.get("ja"), section=title),
            self._fact("title_en", program.title.get("en"), section=title),
            self._may("fact.command", program.command),
            self._fact("run_time", expected.run_time, section=title),
            self._fact("result_size", expected.result_size, section=title),
            self._fact("before", expected.before, *_show_steps(program, "before"), section=title),
            self._fact("after", expected.after, *_show_steps(program, "after"), section=title),
            self._may("reason", program.reason),
            *_show_others(program, _PLACED_PROGRAM),
        ]
        self._add(title, rows, "item", "value")
        ports = dict(program.ports)
        for key, files in (("inputs", program.inputs), ("outputs", program.outputs)):
            self._add(self._say(f"section.{key}", name=name), self._files(files, ports), "name", "need", "port")
        if program.arguments:
            arguments = (self._argument(*item) for item in program.arguments.items())
            self._add(self._say("section.arguments", name=name), arguments, "name", "allowed", "default", "reason")
        if ports:
            rest = ((Cell((port,)), Cell((file,))) for port, file in ports.items())
            self._add(self._say("section.ports", name=name), rest, "port", "file")

    def _files(self, files: Mapping[str, str], ports: dict[str, str]) -> list[tuple[Cell, ...]]:
        """The rows of declared files; ports that have found their place are taken out."""
        rows: list[tuple[Cell, ...]] = []
        for name, need in files.items():
            own = [port for port, file in ports.items() if file == name]
            for port in own:
                del ports[port]
            rows.append((Cell((name,)), Cell((self._say(need),)), Cell(tuple(own) or (self._say("none"),))))
        return rows

    def _argument(self, name: str, argument: Argument) -> tuple[Cell, ...]:
        allowed = tuple(argument.choices or ())
        if argument.pattern is not None:
            allowed = (self._say("pattern", pattern=argument.pattern),)
        default = self._say("must") if argument.default is None else argument.default
        return Cell((name,)), Cell(allowed), Cell((default,)), Cell((argument.reason or "",))

    def _write_duties(self) -> None:
        rows = ((Cell((duty.what,)), Cell((duty.who,))) for duty in self.site.survey.duties)
        self._add(self._say("section.duties"), rows, "what", "who")

    def _write_agreements(self) -> None:
        title = self._say("section.agreements")
        rows = (
            (
                Cell((entry.what,)),
                self._row_fact(title, entry.what, "date", entry.date),
                self._row_fact(title, entry.what, "reference", entry.reference),
                self._review(title, entry.what, entry.next_review),
            )
            for entry in self.site.agreements
        )
        self._add(title, rows, "what", "date", "reference", "next_review")

    def _write_measures(self) -> None:
        title, rows = self._say("section.measures"), []
        sides: tuple[Literal["site", "mint"], ...] = ("mint", "site")
        for side in sides:
            name, entries = self._say(f"side.{side}"), self.site.survey.measures.get(side, ())
            rows += [
                (Cell((name,)), Cell((entry.what,)), self._review(title, entry.what, entry.next_review))
                for entry in entries
            ]
            if not entries:
                self.questions.append(self._say("ask.measures", section=title, side=name))
                rows.append((Cell((name,)), self._open(), Cell(("",))))
        self._add(title, rows, "side", "what", "next_review")

    def _write_others(self) -> None:
        rows = _show_others(self.site, _PLACED_SITE)
        if rows:
            self._add(self._say("section.others"), rows, "item", "value")


def _show_steps(program: Program, key: str) -> list[str]:
    """The commands that the module's script runs around the call, as they are declared."""
    steps = getattr(program.module, key) if program.module else ()
    return [" ".join(words) for words in steps]


def _show_keys(keys: Iterable[str]) -> list[str]:
    return [line for key in keys for line in (key, fingerprint(key))]


def _show_others(model: BaseModel, placed: frozenset[str]) -> list[tuple[Cell, Cell]]:
    """Entries without a place of their own, by what their key says of itself."""
    fields = type(model).model_fields
    return [
        (Cell((f"{fields[name].description or name} ({name})",)), Cell(tuple(_flatten(value))))
        for name, value in model.model_dump(mode="json", exclude_defaults=True).items()
        if name not in placed
    ]


def _flatten(value: Any, place: str = "") -> list[str]:
    if isinstance(value, dict):
        return [line for key, part in value.items() for line in _flatten(part, f"{place}{key}: ")]
    if isinstance(value, list):
        return [line for part in value for line in _flatten(part, place)]
    return [f"{place}{value}"]
