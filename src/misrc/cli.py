"""The command line: words in, one call, an exit status out. No logic."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable

from . import __version__
from .job import faults
from .job.errors import BadRequest, MisrcError
from .job.secrecy import leave_no_core
from .mint.messages.translation import Parser, in_words
from .mint.module.words import add_module_commands
from .mint.stopping import end_quietly
from .mint.streams import complain, discard_output, open_standard_streams


def main(words: list[str] | None = None) -> int:
    """Run one command; every error is one line on standard error."""
    end_quietly()
    open_standard_streams()
    options = _parser().parse_args(words)
    faults.arm_from_environment()
    leave_no_core()
    try:
        _require_folder()
        status = int(options.run(options) or 0)
        sys.stdout.flush()
    except MisrcError as error:
        complain(f"misrc: {in_words(error)}")
        return error.exit_code
    except ModuleNotFoundError as error:
        from .mint.messages.catalog import say

        complain(f"misrc: {say('extra.missing', module=error.name)}")
        return BadRequest.exit_code
    except BrokenPipeError:
        discard_output()
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if os.environ.get("MISRC_DEBUG"):
            raise
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            complain(in_words(f"misrc: {where}{error.strerror}"))
            return BadRequest.exit_code
        complain(f"misrc: {type(error).__name__}: {error} (MISRC_DEBUG=1 shows where)")
        return MisrcError.exit_code
    return status


def _require_folder() -> None:
    """A shell may stand in a folder that was removed: no relative path means anything there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        from .mint.messages.catalog import say

        raise BadRequest(say("folder.gone")) from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="misrc", description="Run agreed programs at remote compute sites.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    for name, function, text in (
        ("status", _status, "ask the site how a job stands"),
        ("logs", _logs, "show a job's log as far as the site lets it leave"),
        ("cancel", _cancel, "stop a job and everything it started"),
        ("fetch", _fetch, "go on with a job until its results are here"),
    ):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        command.add_argument("job", metavar="JOB")
        command.add_argument("--json", action="store_true", help="one JSON object on standard output")
        command.set_defaults(run=function)
        if name == "logs":
            command.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    for name, function, text in (
        ("jobs", _jobs, "the jobs known here"),
        ("tend", _tend, "finish what killed module scripts left: cancels, results, closing"),
    ):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        command.add_argument("--json", action="store_true", help="JSON lines on standard output")
        command.set_defaults(run=function)
    _add_site(commands)
    add_module_commands(commands)
    _add_provision(commands)
    signing = commands.add_parser(
        "signing-key",
        help="the key that signs jobs for sites that ask for it; prints its public half",
        allow_abbrev=False,
    )
    signing.add_argument(
        "step",
        nargs="?",
        choices=("show", "make", "next", "finish", "abort"),
        default="show",
        help="make it; make the one that follows; let that one take its place, or destroy it",
    )
    signing.set_defaults(run=_signing_key)
    _add_api(commands)
    bundle = commands.add_parser(
        "bundle", help="write all that a host without a package index needs to install misrc", allow_abbrev=False
    )
    bundle.add_argument("--output", required=True, metavar="DIR|FILE.tar")
    bundle.add_argument("--api", action="store_true", help="also what the host of the API server needs")
    bundle.set_defaults(run=_bundle)
    return parser


def _add_run(commands: "argparse._SubParsersAction[Parser]") -> None:
    command = commands.add_parser("run", help="run a program at a site and wait for its results", allow_abbrev=False)
    command.add_argument("site", metavar="SITE")
    command.add_argument("program", metavar="PROGRAM")
    command.add_argument("--in", dest="inputs", action="append", default=[], metavar="NAME=FILE", help="an input file")
    command.add_argument(
        "--in-list",
        dest="input_lists",
        action="append",
        default=[],
        metavar="FILE",
        help="a file with one NAME=FILE per line",
    )
    command.add_argument(
        "--arg", dest="arguments", action="append", default=[], metavar="NAME=VALUE", help="an argument"
    )
    command.add_argument(
        "--out", dest="outputs", action="append", default=[], metavar="NAME=FILE", help="also copy this result"
    )
    command.add_argument("--results", default=".", metavar="DIR", help="where results go (default: here)")
    command.add_argument("--job", metavar="ID", help="this job id, made by the caller")
    command.add_argument("--new", action="store_true", help="compute again what the same call has computed")
    command.add_argument("--dry-run", action="store_true", help="only ask whether the site would take the job")
    command.add_argument("--inventory", metavar="DIR", help="the declarations (default: MISRC_INVENTORY)")
    command.add_argument("--json", action="store_true", help="one JSON object on standard output")
    command.set_defaults(run=_run)


def _add_site(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("site", help="a site's life, from add to retire; and what it installs")
    site = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_site_life(site)
    build = site.add_parser("build", help="write misrc-site.pyz, the one file that a site installs")
    build.add_argument("--output", default="misrc-site.pyz", metavar="FILE")
    build.set_defaults(run=_site_build)
    policy = site.add_parser("policy", help="the misrc_policy of a host_vars file as the JSON that a site installs")
    policy.add_argument("file", metavar="FILE")
    policy.set_defaults(run=_site_policy)


def _add_site_life(site: "argparse._SubParsersAction[Parser]") -> None:
    def add(name: str, text: str, function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        command = site.add_parser(name, help=text, allow_abbrev=False)
        command.add_argument("site", metavar="SITE")
        command.add_argument("--inventory", metavar="DIR", help="the declarations (default: MISRC_INVENTORY)")
        command.add_argument("--json", action="store_true", help="one JSON object on standard output")
        command.set_defaults(run=function)
        return command

    _add_site_options(add("add", "declare a site and make its job key; asks for what is missing", _site_add))
    show = add("show", "every file that the declaration implies; no host is touched", _site_show)
    show.add_argument("--policy", metavar="FILE", help="the site's policy, where it is at hand")
    survey = add("survey", "the survey sheet: all that is declared, to be signed by both parties", _site_survey)
    survey.add_argument("--lang", choices=("ja", "en"), help="its language (default: the locale's)")
    survey.add_argument("--format", choices=("html", "md"), default="html", help="HTML, or Markdown")
    survey.add_argument("--output", metavar="FILE", help="write it there (default: standard output)")
    add("check", "log in, compare, and try what must be refused", _site_check)
    rotate = add("rotate", "make the next job key; both are used until --finish", _site_rotate)
    step = rotate.add_mutually_exclusive_group()
    for word, text in (
        ("finish", "the new key works: remove the old one here"),
        ("abort", "keep the old key, destroy the new one"),
    ):
        step.add_argument(f"--{word}", dest="step", action="store_const", const=word, default="begin", help=text)
    rotate.add_argument("--overlap", type=int, default=14, metavar="DAYS", help="how long both are valid (14)")
    retire = add("retire", "end with a site: destroy its key, keep a record", _site_retire)
    retire.add_argument("--reason", default="", metavar="TEXT", help="why, for the record")
    retire.add_argument("--force", action="store_true", help="cancel unfinished jobs first")


def _add_site_options(command: argparse.ArgumentParser) -> None:
    for word, name, text in (
        ("--address", "HOST", "host name or address"),
        ("--user", "NAME", "the account that holds the gate (misrc)"),
        ("--host-key", "FILE", "its host keys, one per line; - is standard input"),
        ("--key", "FILE", "take this private job key instead of making one"),
        ("--receipt-key", "FILE", "the site's site_key.pub"),
        ("--proxy-jump", "HOST", "a jump host: [user@]host[:port]"),
        ("--jump-host-key", "FILE", "the jump host's own host keys"),
        ("--socks4", "HOST:PORT", "a SOCKS4 proxy"),
        (
            "--api-url",
            "URL",
            "for a site that opens no port: MInt's API server, instead of all of the above but --receipt-key",
        ),
        ("--api-user", "NAME", "whose jobs that site's agent takes (the site's id)"),
        ("--api-ca", "FILE", "the CA that signed the API server's certificate"),
        ("--valid-until", "DAY", "no new jobs after this day (YYYY-MM-DD)"),
        ("--contact-site", "TEXT", "whom to ask there"),
        ("--contact-mint", "TEXT", "whom to ask here"),
    ):
        command.add_argument(word, metavar=name, help=text)
    command.add_argument("--port", type=int, metavar="PORT", help="the port of its sshd (22)")
    for word, to, name, text in (
        ("--program", "programs", "NAME[=FILE]", "a program; FILE has its inputs, arguments and outputs (YAML)"),
        ("--from", "sources", "NET", "the address or network that MInt comes from"),
    ):
        command.add_argument(word, dest=to, metavar=name, action="append", default=[], help=text)
    command.add_argument("--signed", action="store_true", help="sign its jobs: its policy has require_signature")
    command.add_argument("--dry-run", action="store_true", help="show everything, write nothing")


def _add_provision(commands: "argparse._SubParsersAction[Parser]") -> None:
    command = commands.add_parser(
        "provision", help="bring MInt's node and the sites to what is declared", allow_abbrev=False
    )
    command.add_argument("--inventory", metavar="DIR", help="the inventory (default: MISRC_INVENTORY)")
    command.add_argument("--check", action="store_true", help="change nothing; say what would change")
    command.add_argument("--diff", action="store_true", help="show how files change")
    command.add_argument("--limit", metavar="HOSTS", help="only these hosts or groups")
    command.add_argument("--user", metavar="NAME", help="the administrator's account on the hosts")
    command.add_argument("-K", "--ask-become-pass", action="store_true", help="ask for the password of sudo")
    command.add_argument(
        "-e", "--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="an option of a role"
    )
    command.set_defaults(run=_provision)


def _add_api(commands: "argparse._SubParsersAction[Parser]") -> None:
    serve = commands.add_parser("serve", help="run MInt's API server", allow_abbrev=False)
    serve.add_argument("--config", required=True, metavar="FILE", help="the server's declaration (YAML)")
    serve.add_argument("--check", action="store_true", help="only say whether the declaration and its files are fine")
    serve.set_defaults(run=_serve)
    _add_store(commands)
    token = commands.add_parser("token", help="who may use the API server").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for name, function, text in (
        ("add", _token_add, "make a token, and print it this once"),
        ("list", _token_list, "all tokens, without their secrets"),
        ("revoke", _token_revoke, "a token counts no longer, from now on"),
    ):
        command = token.add_parser(name, help=text, allow_abbrev=False)
        command.add_argument("--config", required=True, metavar="FILE", help="the server's declaration (YAML)")
        command.set_defaults(run=function)
        if name == "list":
            command.add_argument("--json", action="store_true", help="JSON lines on standard output")
            continue
        command.add_argument("name", metavar="NAME", help="what it is called in lists and logs")
        if name == "add":
            _add_token_options(command)


def _add_store(commands: "argparse._SubParsersAction[Parser]") -> None:
    store = commands.add_parser("store", help="back up and restore the API server's jobs").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for name, function, text in (
        ("backup", _store_backup, "write a backup below DIR, beside a server that runs or not"),
        ("restore", _store_restore, "put the backup DIR in place; refused where anything is there"),
    ):
        command = store.add_parser(name, help=text, allow_abbrev=False)
        command.add_argument("--config", required=True, metavar="FILE", help="the server's declaration (YAML)")
        command.add_argument("folder", metavar="DIR")
        command.set_defaults(run=function)
        if name == "backup":
            command.add_argument("--keep", type=int, default=7, metavar="N", help="how many stay (7)")


def _add_token_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--user", required=True, metavar="NAME", help="whose jobs it is about")
    command.add_argument(
        "--scope", dest="scopes", action="append", required=True, choices=["workflow", "agent", "operator"],
        help="what it may do; may stand more than once",
    )  # fmt: skip
    command.add_argument("--site", dest="sites", action="append", default=[], metavar="ID", help="an agent's sites")
    command.add_argument("--expires", metavar="TIME", help="it counts so long, as 90d")
    command.add_argument("--take", action="store_true", help="read one that exists already from standard input")


def _serve(options: argparse.Namespace) -> int:
    from pathlib import Path

    from .api.serving import check, serve

    return (check if options.check else serve)(Path(options.config))


def _store_backup(options: argparse.Namespace) -> int:
    from .api.commands import back_up

    return back_up(options.config, options.folder, options.keep)


def _store_restore(options: argparse.Namespace) -> int:
    from .api.commands import restore

    return restore(options.config, options.folder)


def _token_add(options: argparse.Namespace) -> int:
    from .api.commands import add

    return add(options.config, options.name, options.user, options.scopes, options.sites, options.expires, options.take)


def _token_list(options: argparse.Namespace) -> int:
    from .api.commands import show

    return show(options.config, options.json)


def _token_revoke(options: argparse.Namespace) -> int:
    from .api.commands import revoke

    return revoke(options.config, options.name)


def _provision(options: argparse.Namespace) -> int:
    from .mint.places import inventory_folder
    from .mint.site.provision import make_words, run_playbook

    words = make_words(
        options.check, options.diff, options.limit, options.user, options.ask_become_pass, options.settings
    )
    return run_playbook("provision", inventory_folder(options.inventory), words)


def _signing_key(options: argparse.Namespace) -> int:
    from .mint.signing import change, key_folder

    print("\n".join(change(options.step, key_folder())))
    return 0


def _bundle(options: argparse.Namespace) -> int:
    from pathlib import Path

    from .mint.packaging.bundle import write_bundle

    print(f"{write_bundle(Path(options.output), options.api)}  SHA256SUMS of {options.output}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from .mint.launch import Play

    # Made before the rest is loaded: both processors work from the first moment.
    play = None if options.dry_run else Play()
    from .mint.commands import run_job
    from .mint.request import RunRequest

    request = RunRequest(
        options.site,
        options.program,
        options.inputs,
        options.input_lists,
        options.arguments,
        options.outputs,
        options.results,
        options.inventory,
    )
    return run_job(request, options.job, options.new, play, options.json)


def _status(options: argparse.Namespace) -> int:
    from .mint.commands import show_status

    return show_status(options.job, options.json)


def _logs(options: argparse.Namespace) -> int:
    from .mint.commands import show_logs

    return show_logs(options.job, options.follow, options.json)


def _cancel(options: argparse.Namespace) -> int:
    from .mint.commands import cancel

    return cancel(options.job, options.json)


def _fetch(options: argparse.Namespace) -> int:
    from .mint.commands import fetch

    return fetch(options.job, options.json)


def _jobs(options: argparse.Namespace) -> int:
    from .mint.commands import show_jobs

    return show_jobs(options.json)


def _tend(options: argparse.Namespace) -> int:
    from .mint.commands import tend

    return tend(options.json)


def _site_build(options: argparse.Namespace) -> int:
    from pathlib import Path

    from .mint.packaging.zipapp import write

    print(f"{write(Path(options.output))}  {options.output}")
    return 0


def _site_policy(options: argparse.Namespace) -> int:
    from pathlib import Path

    from .declare.inventory import render_policy

    sys.stdout.buffer.write(render_policy(Path(options.file)))
    return 0


def _site_add(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from .mint.site.onboarding import AddRequest, add_site

    request = AddRequest(**{field.name: getattr(options, field.name) for field in fields(AddRequest)})
    return add_site(request, options.dry_run, options.json)


def _site_show(options: argparse.Namespace) -> int:
    from .mint.site.preview import show_site

    return show_site(options.site, options.inventory, options.policy, options.json)


def _site_survey(options: argparse.Namespace) -> int:
    from .mint.site.survey import write_survey

    return write_survey(options.site, options.inventory, options.lang, options.format, options.output, options.json)


def _site_check(options: argparse.Namespace) -> int:
    from .mint.site.inspection import check_site

    return check_site(options.site, options.inventory, options.json)


def _site_rotate(options: argparse.Namespace) -> int:
    from .mint.site.rotation import rotate_keys

    return rotate_keys(options.site, options.inventory, options.step, options.overlap, options.json)


def _site_retire(options: argparse.Namespace) -> int:
    from .mint.site.retirement import retire_site

    return retire_site(options.site, options.inventory, options.reason, options.force, options.json)


if __name__ == "__main__":
    sys.exit(main())
