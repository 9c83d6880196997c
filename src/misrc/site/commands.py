"""What the people of the site do: install, read the ledger, release held results, freeze, delete old jobs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from typing import Iterator, List, Optional, Tuple

from .. import __version__
from ..job.ledger import LedgerBroken, verify_lines
from ..job.names import is_job_id
from ..job.policy import MAX_POLICY_BYTES, Policy, parse_policy
from ..job.states import JobState, Outcome
from ..wire.refusals import Denied
from . import contract, files
from .agent import command as agent_command
from .contract import Contract
from .home import Home, open_work_root, read_policy, read_site
from .install import command as install_command
from .install.installer import InstallError
from .install.resources import HostError
from .jobs import JobRecord, find_job, read_jobs
from .ledger import Ledger, read_lines
from .runner import monitor
from .runner.freezing import Switch
from .runner.program import check_program
from .runner.release import RELEASED, Releaser, judge
from .runner.runner import Runner
from .runner.service import HostRunner
from .runner.sweep import due, sweep, unclosed_after

MAX_REASON = 500


def main(words: List[str], prefix: Optional[str]) -> int:
    """Run one command for people; a mistake is one line and exit status 2."""
    options = _parser().parse_args(words)
    options.prefix = prefix
    home = Home.locate(prefix)
    try:
        return int(options.run(home, options))
    except (InstallError, HostError, LedgerBroken, ValueError) as error:
        print(f"misrc-site: {error}", file=sys.stderr)
    except OSError as error:
        print(f"misrc-site: {error.filename or options.command}: {files.reason(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("misrc-site: interrupted; repeat the command to go on", file=sys.stderr)
    except Denied as denied:
        print(f"misrc-site: {denied.note or denied.refusal.value}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    usage = "misrc-site.pyz [--prefix DIR] COMMAND …   (DIR: keep everything below one folder)"
    parser = argparse.ArgumentParser(prog="misrc-site.pyz", usage=usage, description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command", prog=parser.prog)

    install_command.add_to(commands)
    agent_command.add_to(commands)
    policy = commands.add_parser("policy", help="the policy").add_subparsers(required=True, metavar="check")
    check = policy.add_parser("check", help="read a policy as the gate would, and say what is wrong with it")
    check.add_argument("file", metavar="FILE")
    check.set_defaults(run=_check_policy)

    ledger = commands.add_parser("ledger", help="the record of all requests")
    shows = ledger.add_subparsers(required=True, metavar="show")
    show = shows.add_parser("show", help="print the ledger and verify its chain")
    show.add_argument("--job", help="only this job's records")
    show.add_argument("--left", action="store_true", help="only the files that left")
    show.add_argument("--json", action="store_true", help="the records as JSON lines")
    show.set_defaults(run=_show_ledger)

    listing = commands.add_parser("jobs", help="the jobs at this site")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_list_jobs)

    release = commands.add_parser("release", help="let a held job's results leave, or refuse them")
    release.add_argument("job")
    release.add_argument("--refuse", action="store_true", help="they do not leave")
    release.set_defaults(run=_release)
    _add_contract(commands)
    return parser


def _add_contract(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    freeze = commands.add_parser("freeze", help="take and start no jobs until `thaw`; running ones go on")
    freeze.add_argument("--stop", action="store_true", help="end the running ones too")
    freeze.add_argument("--reason", default="", metavar="TEXT", help="for the ledger; it stays at this site")
    freeze.set_defaults(run=_freeze)

    thaw = commands.add_parser("thaw", help="take and start jobs again")
    thaw.add_argument("--reason", default="", metavar="TEXT", help="for the ledger; it stays at this site")
    thaw.set_defaults(run=_thaw)

    sweeping = commands.add_parser("sweep", help="delete closed jobs that are older than keep_days")
    sweeping.add_argument("--unclosed", action="store_true", help="also those that MInt never closed, see the page")
    sweeping.add_argument("--json", action="store_true")
    sweeping.set_defaults(run=_sweep)


def _check_policy(home: Home, options: argparse.Namespace) -> int:
    with open(options.file, "rb") as file:
        policy = parse_policy(file.read(MAX_POLICY_BYTES + 1))
    print(f"The policy can be read. Programs: {len(policy.programs)}, keys: {len(policy.job_keys)}")
    for name, rule in policy.programs.items():
        try:
            check_program(rule)
        except Denied as denied:
            print(f"misrc-site: programs.{name} would not run ({denied.refusal.value}): {denied.note}", file=sys.stderr)
    return 0


def _show_ledger(home: Home, options: argparse.Namespace) -> int:
    broken = ""
    records = verify_lines(read_lines(home.state))
    while True:
        try:
            record = next(records, None)
        except LedgerBroken as error:
            broken = str(error)
            break
        if record is None:
            break
        if options.job and record.get("job") != options.job:
            continue
        if options.left and record["event"] != "leave":
            continue
        print(json.dumps(record, sort_keys=True) if options.json else _format_record(record))
    if broken:
        print(f"misrc-site: the ledger does not verify: {broken}", file=sys.stderr)
        return 1
    if not options.json:
        print("The chain verifies.")
    return 0


def _format_record(record: "dict[str, object]") -> str:
    hidden = {"v", "seq", "prev", "utc", "boot", "uptime", "event", "job", "site", "key", "peer", "files"}
    head = f"{record['seq']:>6} {record['utc']} {record['event']:<8} {record.get('job') or '-'}"
    rest = " ".join(f"{key}={value}" for key, value in record.items() if key not in hidden and value is not None)
    lines = [f"{head} {rest}".rstrip()]
    listed = record.get("files")
    for file in listed if isinstance(listed, list) else []:
        lines.append(f"         left: {file['name']}  {file['size']} bytes  sha256 {file['sha256']}")
    return "\n".join(lines)


def _list_jobs(home: Home, options: argparse.Namespace) -> int:
    policy = read_policy(home)
    with files.opened(open_work_root(policy)) as root:
        for folder, record in read_jobs(root, policy.work_root):
            plain = {
                "job": record.job,
                "program": folder.spec().program,
                "state": record.state.value,
                "outcome": record.outcome.value if record.outcome else None,
                "since": record.since,
                "goes": due(record, policy),
            }
            text = f"{record.job} {plain['program']:<24} {record.state.value:<9} {plain['outcome'] or '-':<9} "
            text += _format_time(record.since) + _say_rest(record, policy)
            print(json.dumps(plain) if options.json else text)
    if contract.is_frozen(home.state):
        print("misrc-site: this site is frozen: it takes and starts no jobs", file=sys.stderr)
    return 0


def _say_rest(record: JobRecord, policy: Policy) -> str:
    """When a closed job will go, or why a job waits."""
    end = due(record, policy)
    if end is not None:
        return f"  goes {_format_time(end)}"
    return f"  {record.reason}" if record.reason and not record.state.final else ""


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _release(home: Home, options: argparse.Namespace) -> int:
    if not is_job_id(options.job):
        raise ValueError("that is not a job id")
    policy, site = read_policy(home), read_site(home)
    with files.opened(open_work_root(policy)) as root:
        job = find_job(root, policy.work_root, options.job)
        if job.read().state is not JobState.HELD:
            raise ValueError("this job is not held")
        ledger = Ledger(home.state, site=site, key="-", peer="local")
        rule = policy.programs.get(job.spec().program)
        if rule is None:
            raise ValueError("the program left the policy: put it back, or let MInt cancel the job")
        ledger.append("decide", job=job.job, decision="refuse" if options.refuse else "release", uid=os.getuid())
        if not options.refuse:
            # Only now: whatever interrupts a refusal, a later cancel finds nothing that was let go.
            files.write_record(job.folder, RELEASED, b"")
        end = monitor.read_end(job.folder)
        outcome, reason = judge(end, rule)
        if options.refuse:
            outcome, reason = Outcome.REFUSED, "the site did not release the results"
        releaser = Releaser(site, policy, home.key, ledger)
        releaser.finish(job, rule, end, outcome, reason, nothing_leaves=options.refuse)
    print("Refused: nothing of this job leaves." if options.refuse else "Released: its results may leave.")
    return 0


@contextlib.contextmanager
def _opened_site(home: Home) -> Iterator[Tuple[Policy, int, Ledger, str]]:
    """The site as a command for people needs it: policy, work root, ledger, site id."""
    policy, site = read_policy(home), read_site(home)
    ledger = Ledger(home.state, site=site, key="-", peer="local")
    ledger.contract = Contract(policy)
    with files.opened(open_work_root(policy)) as root:
        yield policy, root, ledger, site


def _switch(home: Home, policy: Policy, root: int, ledger: Ledger, site: str) -> Switch:
    releaser = Releaser(site, policy, home.key, ledger)
    runner = HostRunner(policy, root, ledger, releaser) if home.of_host else Runner(policy, root, ledger, releaser)
    return Switch(policy, root, runner)


def _freeze(home: Home, options: argparse.Namespace) -> int:
    with _opened_site(home) as (policy, root, ledger, site):
        remaining = _switch(home, policy, root, ledger, site).freeze(options.stop, _check_reason(options.reason))
    print("Frozen: no job is taken or started until `thaw`.")
    for job in remaining:
        print(f"misrc-site: job {job} has not ended yet; repeat the command to go on", file=sys.stderr)
    return 1 if remaining else 0


def _thaw(home: Home, options: argparse.Namespace) -> int:
    with _opened_site(home) as (policy, root, ledger, site):
        _switch(home, policy, root, ledger, site).thaw(_check_reason(options.reason))
    print("Thawed: jobs are taken and started again.")
    return 0


def _check_reason(text: str) -> str:
    if len(text) > MAX_REASON or not text.isprintable():
        raise ValueError(f"the reason must be one line of at most {MAX_REASON} characters")
    return text


def _sweep(home: Home, options: argparse.Namespace) -> int:
    with _opened_site(home) as (policy, root, ledger, _):
        done = sweep(policy, root, ledger, options.unclosed)
    if options.json:
        print(json.dumps({"deleted": done.deleted, "unclosed": dict(done.unclosed), "failed": dict(done.failed)}))
        return 1 if done.failed else 0
    for job in done.deleted:
        print(f"deleted {job}")
    for job, state in done.unclosed:
        print(f"not closed for {unclosed_after(policy)} days, kept: {job} {state}", file=sys.stderr)
    for job, why in done.failed:
        print(f"misrc-site: {job} could not be deleted: {why}", file=sys.stderr)
    return 1 if done.failed else 0
