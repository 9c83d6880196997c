"""What the people of the site do: install, read the ledger, release held results."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import List, Optional

from .. import __version__
from ..job.ledger import LedgerBroken, verify_lines
from ..job.names import is_job_id
from ..job.policy import MAX_POLICY_BYTES, parse_policy
from ..job.states import JobState, Outcome
from ..wire.refusals import Denied
from . import files, install_command, keeper
from .home import Home, open_work_root, read_policy, read_site
from .host import HostError
from .installer import InstallError
from .jobs import find_job, read_jobs
from .ledger import Ledger, read_lines
from .release import Releaser, judge


def main(words: List[str], prefix: Optional[str]) -> int:
    """Run one command for people; a mistake is one line and exit status 2."""
    options = _parser().parse_args(words)
    options.prefix = prefix
    home = Home.locate(prefix)
    try:
        return int(options.run(home, options))
    except (InstallError, HostError, LedgerBroken, OSError, ValueError) as error:
        print(f"misrc-site: {error}", file=sys.stderr)
    except Denied as denied:
        print(f"misrc-site: {denied.note or denied.refusal.value}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    usage = "misrc-site.pyz [--prefix DIR] COMMAND …   (DIR: keep everything below one folder)"
    parser = argparse.ArgumentParser(prog="misrc-site.pyz", usage=usage, description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    install_command.add_to(commands)
    policy = commands.add_parser("policy", help="the policy").add_subparsers(required=True)
    check = policy.add_parser("check", help="read a policy as the gate would, and say what is wrong with it")
    check.add_argument("file", metavar="FILE")
    check.set_defaults(run=_check_policy)

    ledger = commands.add_parser("ledger", help="the record of all requests").add_subparsers(required=True)
    show = ledger.add_parser("show", help="print the ledger and verify its chain")
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
    return parser


def _check_policy(home: Home, options: argparse.Namespace) -> int:
    with open(options.file, "rb") as file:
        policy = parse_policy(file.read(MAX_POLICY_BYTES + 1))
    print(f"The policy can be read: {len(policy.programs)} programs, {len(policy.job_keys)} keys.")
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
            }
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.since))
            text = f"{record.job} {plain['program']:<24} {record.state.value:<9} {plain['outcome'] or '-':<9} {since}"
            print(json.dumps(plain) if options.json else text)
    return 0


def _release(home: Home, options: argparse.Namespace) -> int:
    if not is_job_id(options.job):
        raise ValueError("that is not a job id")
    policy, site = read_policy(home), read_site(home)
    with files.opened(open_work_root(policy)) as root:
        job = find_job(root, policy.work_root, options.job)
        if job.read().state is not JobState.HELD:
            raise ValueError("this job is not held")
        ledger = Ledger(home.state, site=site, key="-", peer="local")
        ledger.append("decide", job=job.job, decision="refuse" if options.refuse else "release", uid=os.getuid())
        files.write_record(job.folder, "released", b"")
        rule = policy.programs[job.spec().program]
        end = keeper.read_end(job.folder)
        outcome, reason = judge(end, rule)
        if options.refuse:
            outcome, reason = Outcome.REFUSED, "the site did not release the results"
        releaser = Releaser(site, policy, home.key, ledger)
        releaser.finish(job, rule, end, outcome, reason, nothing_leaves=options.refuse)
    return 0
