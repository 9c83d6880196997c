"""The command `install`: as an ordinary account the user install, as root the root install."""

from __future__ import annotations

import argparse
import os
from typing import Any, Callable, List

from ...job.codec import dump_json
from ..home import Home
from .host import describe, plan_host
from .installer import Installation, InstallError
from .plan import list_changes


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Its words."""
    install = commands.add_parser("install", help="install or upgrade the gate (asks first), as root or not")
    install.add_argument("--site", required=True, help="the site id that MInt and you agreed on")
    install.add_argument("--policy", required=True, metavar="FILE", help="your policy, as JSON")
    install.add_argument("--agent", metavar="FILE", help="the agent's configuration, for a site that asks for work")
    install.add_argument("--authorized-keys", metavar="FILE", help="default: ~/.ssh/authorized_keys")
    install.add_argument("--leave-sshd", action="store_true", help="as root: sshd's drop-in is written by others")
    install.add_argument("--yes", action="store_true", help="do not ask")
    install.add_argument("--dry-run", action="store_true", help="only say what would change")
    install.add_argument("--json", action="store_true", help="one JSON object for machines; needs --yes or --dry-run")
    install.set_defaults(run=run)


def run(home: Home, options: argparse.Namespace) -> int:
    """Say what would change, ask, do it. What is as it shall be is left alone."""
    if options.json and not (options.yes or options.dry_run):
        raise InstallError("--json asks nobody: give --yes or --dry-run too")
    if os.getuid() == 0:
        host = plan_host(options.site, options.policy, options.leave_sshd, options.agent)
        return _carry_out(options, host.digest, describe([], host), host.changes(), host.apply)
    plan = Installation.plan(home, options.prefix, options.site, options.policy, options.authorized_keys, options.agent)
    changes = [change.describe() for change in list_changes(plan)]
    return _carry_out(options, plan.digest, plan.describe(), changes, plan.apply)


def _carry_out(
    options: argparse.Namespace, digest: str, text: str, changes: List[str], apply: Callable[[], object]
) -> int:
    if not options.json:
        print(text)
        print("\n".join(f"  to do: {change}" for change in changes) or "  Everything is as it shall be.")
    if options.dry_run:
        return _report(options, digest, changes, "Nothing was changed.")
    if not (options.yes or _is_wanted()):
        print("Nothing was changed.")
        return 1
    if changes:
        apply()
    return _report(options, digest, changes, "Installed." if changes else "Nothing was to be changed.")


def _is_wanted() -> bool:
    try:
        return input("Install this? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise InstallError("nothing was changed: nobody answers here; --yes does not ask") from None


def _report(options: argparse.Namespace, digest: str, changes: List[str], text: str) -> int:
    plain = {"changed": bool(changes), "changes": changes, "code": digest, "site": options.site}
    print(dump_json(plain).decode() if options.json else text)
    return 0
