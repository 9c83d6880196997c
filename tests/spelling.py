"""What a command or a file name in a page may be: checked against the real parsers and the repository."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from pages import ROOT, Page

from misrc import cli
from misrc.site import commands as site_commands

# Programs of the system that pages tell people to use.
SYSTEM = {
    *("sha256sum", "python3", "pip", "ssh", "ssh-keygen", "systemctl", "unshare", "ls", "cmp", "cp", "install", "ccx"),
    *("createuser", "createdb", "dropdb"),  # PostgreSQL's
    "misrc-api",  # on the API server's host, made by roles/dicomapi
    *("mkdir", "chmod", "cat", ".", "grep", "printf", "cut", "cd", "echo", "mktemp", "for", "do", "done", "exit"),
}
# Options in running text that are not ours, and whose they are.
FOREIGN = {
    "--prefix": "misrc-site.pyz, before its commands (site/main.py)",
    "--server": "rsync, in the gate's grammar",
    "--daemon": "rsync, in the gate's grammar",
    "--partial": "rsync",
    "--inplace": "rsync",
    "--clean": "./demo",
    "--owner": "createdb",
    "--encoding": "createdb",
    "--template": "createdb",
    "--faults": "the gate of a test's site (site/main.py)",
}
# Files that pages name and that are made elsewhere: on a host, by a job, or by the reader. Each with where.
ELSEWHERE = {
    "/mi-distcomp-api": "a path of the API server",
    "agent.json": "the site writes it",
    "keys/*": "beside the inventory",
    "workflow/SITE/*": "MInt's solver log",
    "docs/*NAME.md": "any page",
    "~/*": "a home directory",
    "/etc/*": "a host",
    "/opt/*": "a host",
    "/var/*": "a host",
    "/usr/*": "a host",
    "/tmp*": "a host",
    "misrc-site.pyz": "`misrc site build` makes it",
    "policy.json": "the site writes it",
    "stress.yml": "MInt's operator writes it for `misrc site add`",
    "site_key.pub": "the installation makes it",
    "XX.dat": "the sample program's output",
    "XX.inp": "the sample program's output",
    "remote_program_exec.log": "every job's log",
    "ledger.jsonl": "the site's ledger",
    "job.json": "a job's record",
    "record.json": "the record of a retired site",
    "play.log": "the log beside a job's record",
    "jobs/JOB/": "a job's folder at MInt",
    "retired/SITE": "beside the inventory",
    "return/": "a job's folder at the site",
    "in/": "a job's folder at the site",
    "SITE.known_hosts": "mint_node renders it",
    "SITE.pub": "the public half of a job key",
    "KEY.jump": "the key for a jump host",
    "*.key": "a pattern of the policy",
    "**/*.key": "a pattern of the policy",
    "secret/**": "a pattern of the policy",
    "secret/base_model.inp": "the sample program's own secret",
    "license.key": "the sample program's own secret",
    "sub/a.key": "an example of what a pattern covers",
    "host_vars/": "a folder of an inventory",
    "host_vars": "a folder of an inventory",
    "misrc-*.timer": "a role makes it",
    "misrc-*.service": "a role makes it",
    ".bashrc": "a home directory",
    "*/ssh_host_ed25519_key.pub": "a host",
    "execute_remote-side_program_ssh.sh": "the site's copy of the sample",
    "remote_workflow/": "the predecessor's checkout, under its other name",
    "misrc-api.service": "the role dicomapi makes it",
}
OLD_WORKFLOW, OLD_API = "misrc_remote_workflow/", "misrc_distributed_computing_assist_api/"
# Where the predecessor keeps things, as its manuals list them. Folders end with a slash.
_OLD_SCRIPTS = (
    *("abaqus", "create_inputdata.py", "execute_remote_command.sample.sh", "execute_remote_command.sample.py"),
    *("execute_remote_command.sh", "execute_remote_command_api.sh", "execute_remote-side_program_ssh.sample.sh"),
    *("execute_remote-side_program_api.sample.sh", "kousoku_abaqus_ssh.sh", "kousoku_abaqus_http.py"),
    *("kousoku_abaqus_ssh_version2.sh", "kousoku_abaqus_ssh_version2.py", "kousoku_abaqus_api_version2.sh"),
    *("kousoku_abaqus_api_version2.py", "input_data/", "remote-side_scripts/"),
)
OLD_PATHS = {
    *(OLD_WORKFLOW + "scripts/" + name for name in _OLD_SCRIPTS),
    *(OLD_WORKFLOW + name for name in ("modulesxml/", "inventories/", "sample_data/", "documents/")),
    OLD_WORKFLOW + "misrc_remote_workflow.json",
    *(OLD_API + name for name in ("mi_dicomapi.py", "mi_dicomapi_infomations.py")),
    *(OLD_API + name for name in ("mi_distributed_computing_assist.ini", "logging.cfg", "syslogs/", "distcomp_api")),
    *(OLD_API + "debug/" + name for name in ("api_status.py", "api_status_gui.py", "mi-system-side/mi-system-wf.py")),
    *(OLD_API + "debug/remote-side/" + name for name in ("mi-system-remote.py", "api-debug.py", "debug_gui.py")),
}

_PATH = re.compile(
    r"(?:~|\.{0,2}|[\w@*.{}<>-]+)?(?:/[\w@*.{}<>-]+)+/?|[\w*-][\w.*-]*/"
    r"|[\w*-][\w*.-]*\.(?:py|pyz|sh|md|yml|yaml|json|jsonl|dat|inp|log|pub|key|conf|ini|toml|timer|service|tar|xml|html)"
)


def misrc_parser() -> argparse.ArgumentParser:
    """The parser of `misrc`."""
    return cli._parser()


def site_parser() -> argparse.ArgumentParser:
    """The parser of `misrc-site.pyz`."""
    return site_commands._parser()


def parse(parser: argparse.ArgumentParser, words: list[str]) -> str:
    """What the parser says against these words; nothing if it takes them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(words)
    except SystemExit as end:
        return "" if end.code == 0 else said.getvalue().strip().splitlines()[-1]
    return ""


def strip_first_options(text: str) -> str:
    """The words of `misrc-site.pyz` without the options before its command, which site/main.py reads by itself."""
    known = re.findall(r"\"(--[a-z]+)\"", (ROOT / "src/misrc/site/main.py").read_text(encoding="utf-8"))
    while (match := re.match(r"(--[a-z]+) +", text)) and match[1] in known:
        text = re.sub(r"^DIR +", "", text[match.end() :])
    return text


def mention(parser: argparse.ArgumentParser, text: str) -> str:
    """What is wrong with a command as running text names it: `misrc site rotate SITE [--finish | --abort]`.

    Words in capitals, `…` and brackets stand for what differs; commands and options must exist.
    """
    words = re.sub(r"[\[\]|]", " ", text.replace("\\|", " ")).split()
    while words and (below := _subparsers(parser)) is not None:
        if words[0] not in below:
            return "" if words[0] in ("…", "COMMAND") else f"there is no command {words[0]!r}"
        parser, words = below[words[0]], words[1:]
    known = {option for action in parser._actions for option in action.option_strings}
    options = [word for word in words if re.match("--?[a-z]", word)]
    wrong = [option for option in options if option not in known]
    return f"unknown: {' '.join(wrong)}" if wrong else ""


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser] | None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return None


def all_options(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of a parser and of those below it."""
    found = {option for action in parser._actions for option in action.option_strings}
    for below in (_subparsers(parser) or {}).values():
        found |= all_options(below)
    return found


def commands(line: str) -> Iterator[list[str]]:
    """The simple commands of one line of shell."""
    reader = shlex.shlex(line, posix=True, punctuation_chars="|&;()<")
    reader.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in reader:
        if set(word) <= set("|&;()"):
            if words:
                yield words
            words = []
        elif not words and re.match(r"\w+=", word):
            continue
        elif word.startswith(("<", ">", "2>")):
            skip = word in ("<", ">", "2>", "<<")
        elif skip:
            skip = False
        else:
            words.append(word)
    if words:
        yield words


def check_command(words: list[str]) -> str:
    """What is wrong with one command of a block; nothing if it is known and, where it is ours, takes its words."""
    name = words[0]
    if name == "misrc":
        return parse(misrc_parser(), words[1:])
    if name == "python3" and words[1:2] == ["misrc-site.pyz"]:
        return parse(site_parser(), words[2:] if words[2:3] != ["--prefix"] else words[4:])
    if name == "ansible-playbook":
        playbook = words[1].removeprefix("misrc.remote.")
        return "" if (ROOT / f"playbooks/{playbook}.yml").is_file() else f"there is no playbook {words[1]!r}"
    if name.startswith(("/usr/bin/", "/bin/")):
        name = Path(name).name
    if "/" in name and not name.startswith(("/", "$")):
        path = ROOT / name
        return "" if path.is_file() and path.stat().st_mode & 0o100 else f"{name} is no command of this repository"
    return "" if name in SYSTEM else f"{name!r} is not among the programs that pages may name (spelling.SYSTEM)"


def looks_like_a_file(code: str) -> bool:
    """Whether a piece of code in running text names a file or a folder."""
    return bool(_PATH.fullmatch(code)) and not code.startswith(("//", "misrc.")) and "://" not in code


def find_file(page: Page, name: str) -> bool:
    """Whether the repository has it (from its root, the page, or a folder of the code), or it is known elsewhere."""
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in ELSEWHERE):
        return True
    # What the predecessor had is compared with its table by tests/test_old_names.py.
    tells_of_it = page.path.stem == "predecessor" or "old_names" in page.path.parts
    if tells_of_it and any(f"/{path}".endswith(f"/{name}") for path in (*OLD_PATHS, OLD_WORKFLOW, OLD_API)):
        return True
    near = ("", "src/misrc", "docs", "scripts", "scripts/remote-side_scripts", "roles/mint_node")
    return any((folder / name).exists() for folder in (page.path.parent, *(ROOT / place for place in near)))
