"""Jobs that a client of the predecessor registered or takes: what is kept, and how old and new words correspond."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from ...job.arguments import ArgumentRule
from ...job.codec import CodecError, decode, dump_json, encode, parse_json
from ...job.interface import ProgramInterface
from ...job.manifest import Entry, digest_manifest, make_manifest, render_manifest, total_bytes
from ...job.spec import JobSpec
from ...job.states import JobState, Outcome
from ...wire.api import ApiError
from ...wire.content import MAX_TEXT, text_length
from ...wire.legacy import STDERR_NAME, STDOUT_NAME, split_parameters
from ...wire.legacy_progress import Delivery, Face, face_of
from .. import records
from ..database import Transaction
from ..problems import Refused
from ..records import INPUT, RESULT, FileRecord, Record
from ..sites import DeclaredSite

LOG_NAMES = (STDOUT_NAME, STDERR_NAME)
NO_RESULTS = "the site told the end and never sent the results"


@dataclass(frozen=True)
class OldInput:
    """An input as it was registered: its own name, the name here (empty: it was missing), and its two type words."""

    name: str
    here: str
    mime: str
    charset: str


@dataclass(frozen=True)
class Registered:
    """The registration without its files' bytes."""

    command: str
    remote_site: str
    parameters: str
    inputs: tuple[OldInput, ...] = ()
    results: tuple[str, ...] = ()


def dump(registered: Registered) -> str:
    """As the store keeps it."""
    return dump_json(encode(registered)).decode()


def load(text: str) -> Registered:
    """What `dump` wrote."""
    return decode(Registered, parse_json(text.encode()))


def registered_results(text: str) -> frozenset[str]:
    """The names of results that may come back."""
    return frozenset((*load(text).results, *LOG_NAMES))


def old_agent(user: str, site: str, token: str, address: str) -> str:
    """The holder of a claim by a client of the predecessor: whose, and with which token and address it came."""
    return f"{records.OLD_AGENT}{user}:{site}:{token}@{address}"


def is_old_agent(agent: str | None, user: str, site: str) -> bool:
    """Whether a claim is held by a client of the predecessor at this site. Its token may have changed meanwhile."""
    return agent is not None and agent.startswith(f"{records.OLD_AGENT}{user}:{site}:")


# -- one job in both words ---------------------------------------------------------------------------------------------


def select_program(site: DeclaredSite, command: str) -> tuple[str, ProgramInterface]:
    """The program that a command stands for, word for word."""
    name = site.commands.get(command)
    program = None if name is None else site.programs.get(name)
    if name is None or program is None:
        raise Refused(ApiError.FORBIDDEN, "the command is not declared for this site")
    return name, program


def fill_words(rules: dict[str, ArgumentRule], parameters: str) -> dict[str, str]:
    """The declared arguments, in order, out of the free string."""
    try:
        words = split_parameters(parameters)
    except ValueError as error:
        raise Refused(ApiError.REFUSED, str(error)) from None
    if len(words) > len(rules):
        raise Refused(ApiError.REFUSED, "there are more parameters than the program declares")
    filled = dict(zip(rules, words, strict=False))
    if not all(rules[name].allows(value) for name, value in filled.items()):
        raise Refused(ApiError.REFUSED, "a parameter is not as the program's declaration says")
    if any(rule.default is None for name, rule in rules.items() if name not in filled):
        raise Refused(ApiError.REFUSED, "a parameter is missing")
    return filled


def make_spec(
    job: str, site: DeclaredSite, command: str, parameters: str, files: list[FileRecord]
) -> tuple[str, str, str]:
    """Program, spec text and inputs' manifest of a registration.

    The spec is empty where it cannot be said in the new words (free parameters of a command that only the ini file
    names): such a job goes to clients of the predecessor alone.
    """
    name, program = select_program(site, command)
    manifest = make_manifest(Entry(file.name, file.size, file.sha256) for file in files)
    text = render_manifest(manifest).decode()
    if parameters and not program.arguments and name.startswith("ini_"):
        return name, "", text
    arguments = fill_words(dict(program.arguments), parameters)
    spec = JobSpec(job, site.id, name, arguments, len(manifest), total_bytes(manifest), digest_manifest(manifest))
    plain = {key: value for key, value in encode(spec).items() if value is not None}
    return name, dump_json(plain).decode(), text


def offered(connection: Connection, record: Record, site: DeclaredSite, asked: str) -> Registered | None:
    """The job as a client of the predecessor gets it; None where the old form cannot hold it."""
    if record.old is not None:
        return load(record.old)
    program = site.programs.get(record.program)
    if program is None or program.command is None:
        return None
    try:
        given = decode(JobSpec, parse_json(record.spec.encode())).arguments
    except CodecError:
        return None
    words = [given.get(name) or rule.default or "" for name, rule in program.arguments.items()]
    if any(not word or " " in word for word in words):
        return None
    files = records.list_files(connection, record.job, INPUT)
    if any(text_length(file.size) > MAX_TEXT for file in files):
        return None
    inputs = tuple(OldInput(file.name, file.name, "application/octet-stream;", "charset=binary") for file in files)
    plain = tuple(name for name in program.outputs if not set("*?") & set(name))
    return Registered(program.command, asked, " ".join(words), inputs, (*plain, *LOG_NAMES))


def end(tx: Transaction, record: Record, returnable: Callable[[str], bool], log_bytes: int = 0) -> None:
    """The end that the site has told, with the results that are here; where it sent none it is no success."""
    here = [file for file in records.list_files(tx.connection, record.job, RESULT) if file.whole]
    if record.old is None:  # v2 has its own place for what the program printed
        records.drop_files(tx, record.job, RESULT, [f.name for f in here if f.failed or not returnable(f.name)])
    returned = [file for file in here if not file.failed and returnable(file.name)]
    text = render_manifest(make_manifest(Entry(f.name, f.size, f.sha256) for f in returned)).decode()
    outcome, reason = record.ending or Outcome.FAILED, record.ending_reason
    if record.delivery is not Delivery.RESULTS_ARRIVING:
        outcome = Outcome.FAILED if outcome is Outcome.SUCCEEDED else outcome
        reason = reason or NO_RESULTS
    records.end(tx, record, outcome, reason, out_manifest=text, log_bytes=log_bytes)


def face(record: Record) -> Face | None:
    """What old clients see; None for an id that they do not know."""
    if record.ending is not None and not record.state.final:
        delivery = record.delivery if record.delivery is Delivery.RESULTS_ARRIVING else Delivery.NOTHING
        return face_of(JobState.ENDED, delivery, record.ending)
    if record.state is JobState.ENDED:
        return face_of(record.state, Delivery.RESULTS_HERE, record.outcome)
    if record.agent is None:
        return face_of(record.state, Delivery.NOTHING)
    return face_of(record.state, record.delivery or _delivery_of_claim(record))


def _delivery_of_claim(record: Record) -> Delivery:
    return Delivery.INPUTS_CONFIRMED if record.confirmed else Delivery.INPUTS_SENT
