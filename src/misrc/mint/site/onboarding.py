"""`misrc site add`: a site becomes known here. Its key first, its declaration last and whole: the file is what counts.

Killed between the two, the same call goes on with the key that was made. Nothing that exists is ever written over.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...declare.inventory import load_declarations, parse_site, parse_variables, read_variables, render_variables
from ...job.errors import BadRequest, MisrcError
from ...job.faults import reach
from ...job.interface import WEBAPI, Interface
from ...job.names import SITE_ID
from .. import keys
from ..messages.catalog import say
from ..places import config_folders, inventory_folder, keys_folder, retired_folder
from .questions import ask

# What a program is allowed to move when nothing else is said of it: the site's policy narrows it.
OPEN_PROGRAM: dict[str, Any] = {"inputs": {"*": "optional"}, "outputs": {"**": "optional"}}


@dataclass(frozen=True)
class AddRequest:
    """The words of the command line; None is asked for on a terminal where it is needed."""

    site: str
    address: str | None = None
    port: int | None = None
    user: str | None = None
    programs: Sequence[str] = ()
    host_key: str | None = None
    key: str | None = None
    receipt_key: str | None = None
    proxy_jump: str | None = None
    jump_host_key: str | None = None
    socks4: str | None = None
    valid_until: str | None = None
    contact_site: str | None = None
    contact_mint: str | None = None
    sources: Sequence[str] = ()
    inventory: str | None = None
    api_url: str | None = None
    api_user: str | None = None
    api_ca: str | None = None
    signed: bool = False

    @property
    def for_ssh(self) -> dict[str, object]:
        """What only an ssh site has, by option."""
        words = ("address", "port", "user", "host_key", "key", "proxy_jump", "jump_host_key", "socks4")
        return {f"--{word.replace('_', '-')}": getattr(self, word) for word in words} | {"--from": self.sources or None}


@dataclass(frozen=True)
class Plan:
    """What will be written, all of it checked. `public` is empty while the key is still to be made."""

    site: Interface
    declaration: Path
    text: str
    identity: Path
    public: str
    given: bytes | None
    sources: tuple[str, ...]

    def policy_entry(self) -> str:
        """The entry for `job_keys` in the site's policy."""
        entry: dict[str, Any] = {"key": self.public or "ssh-ed25519 …"}
        if self.sources:
            entry["from"] = list(self.sources)
        return json.dumps(entry, ensure_ascii=False)

    def install_command(self) -> str:
        """What the site's administrator runs."""
        agent = " --agent agent.json" if self.site.method == WEBAPI else ""
        return f"python3 misrc-site.pyz install --site {self.site.id} --policy policy.json{agent}"

    def token_commands(self) -> list[str]:
        """What makes the tokens of a webapi site: for its agent, and for MInt's own calls."""
        site, user = self.site.id, self.site.api_user
        scope = f"misrc-api token add {{}} --user {user} --scope"
        return [
            scope.format(f"{site}-agent") + f" agent --site {site}",
            scope.format(f"{site}-mint") + f" workflow   > {self.identity}   (0600)",
        ]


def add_site(request: AddRequest, dry: bool, as_json: bool) -> int:
    """`misrc site add`."""
    plan = make_plan(request)
    if not dry:
        plan = apply(plan)
    if as_json:
        print(json.dumps(_as_plain(plan, written=not dry), ensure_ascii=False))
    else:
        print(_describe(plan, dry))
    return 0


def make_plan(request: AddRequest) -> Plan:
    """Check everything before anything is written; BadRequest names the option or the key."""
    inventory = _choose_inventory(request.inventory)
    if not re.fullmatch(SITE_ID, request.site, re.ASCII):
        raise BadRequest(say("add.id", site=request.site))
    declaration = inventory / "host_vars" / f"{request.site}.yml"
    _refuse_known(inventory, request.site, declaration)
    sources = _parse_sources(request.sources)
    declared = _collect(request)
    if sources:
        declared["survey"] = {"sources": list(sources)}
    variables = {"misrc_site": declared}
    text = "---\n" + render_variables(variables)
    if parse_variables(text.encode(), declaration) != variables:
        raise MisrcError(f"{declaration}: what would be written does not read back")
    site = parse_site(variables, declaration)
    if site.method == WEBAPI:
        place = Path(site.api_token or keys_folder(inventory) / f"{request.site}.token")
        return Plan(site, declaration, text, place, "", None, ())
    identity = keys_folder(inventory) / request.site
    given = keys.read_key_file(request.key, "--key") if request.key else None
    if identity.exists():
        if given is not None:
            raise BadRequest(say("key.exists", path=identity))
        public = keys.read_public(identity)
    else:
        public = keys.read_public_of(given, request.key or "") if given is not None else ""
    return Plan(site, declaration, text, identity, public, given, sources)


def apply(plan: Plan) -> Plan:
    """Make the key where there is none, then write the declaration; the plan with the key's public half."""
    from dataclasses import replace

    if plan.site.method == WEBAPI:
        plan.declaration.parent.mkdir(parents=True, exist_ok=True)
        _write_new(plan.declaration, plan.text.encode())
        return plan
    with keys.locked(plan.identity):
        if plan.identity.exists():
            public = keys.read_public(plan.identity)
            keys.write_public(plan.identity, public, plan.site.id)
        else:
            public = keys.make_key(plan.identity, plan.site.id, plan.given)
        reach("add.key")
        plan.declaration.parent.mkdir(parents=True, exist_ok=True)
        _write_new(plan.declaration, plan.text.encode())
        reach("add.declared")
    return replace(plan, public=public)


def _write_new(path: Path, data: bytes) -> None:
    """A whole file or none, and never over another one."""
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        reach("add.written")
        os.link(temporary, path)
    except FileExistsError:
        raise BadRequest(say("add.declared", site=path.stem, path=path)) from None
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    with keys.folder(path.parent) as descriptor:
        os.fsync(descriptor)


def _choose_inventory(given: str | None) -> Path:
    """The inventory in use; for the very first site one that is still to be made."""
    try:
        return inventory_folder(given)
    except BadRequest:
        wanted = given or os.environ.get("MISRC_INVENTORY")
        user, machine = config_folders()
        return Path(wanted).absolute() if wanted else (machine if os.getuid() == 0 else user) / "inventory"


def _refuse_known(inventory: Path, site: str, declaration: Path) -> None:
    """An id is given once, and never again."""
    found = load_declarations(inventory)
    if site in found or declaration.exists():
        raise BadRequest(say("add.declared", site=site, path=found[site][0] if site in found else declaration))
    if (retired_folder(inventory) / site).exists():
        raise BadRequest(say("add.retired", site=site, path=retired_folder(inventory) / site))


def _parse_sources(words: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(word)) for word in words)
    except ValueError as error:
        raise BadRequest(say("option.value", option="--from", why=error)) from None


def _collect(request: AddRequest) -> dict[str, Any]:
    """The declaration as plain values; what is missing and needed is asked for."""
    site = _collect_api(request) if request.api_url else _collect_ssh(request)
    if request.receipt_key:
        data = keys.read_key_file(request.receipt_key, "--receipt-key")
        site["receipt_keys"] = list(keys.parse_public_lines(data, "--receipt-key"))
    if request.signed:
        site["signed"] = True
    if request.valid_until:
        site["valid_until"] = request.valid_until
    contacts = {"site": request.contact_site, "mint": request.contact_mint}
    if any(contacts.values()):
        site["contacts"] = {who: text for who, text in contacts.items() if text}
    site["programs"] = _collect_programs(request.programs or ask("ask.programs", "--program").split())
    return site


def _collect_api(request: AddRequest) -> dict[str, Any]:
    for option, value in request.for_ssh.items():
        if value is not None:
            raise BadRequest(say("option.value", option=option, why="--api-url"))
    api = {"url": request.api_url, "user": request.api_user or ask("ask.api_user", "--api-user", request.site)}
    if request.api_ca:
        api["ca"] = str(Path(request.api_ca).absolute())
    return {"id": request.site, "method": WEBAPI, "api": api}


def _collect_ssh(request: AddRequest) -> dict[str, Any]:
    for option, value in (("--api-user", request.api_user), ("--api-ca", request.api_ca)):
        if value is not None:
            raise BadRequest(say("option.value", option=option, why="no --api-url"))
    site: dict[str, Any] = {"id": request.site, "method": "ssh"}
    site["address"] = request.address or ask("ask.address", "--address")
    site["port"] = request.port if request.port is not None else _parse_port(ask("ask.port", "--port", "22"))
    site["user"] = request.user or ask("ask.user", "--user", "misrc")
    given = keys.read_key_file(request.host_key, "--host-key") if request.host_key else None
    site["host_keys"] = list(keys.parse_public_lines(given or ask("ask.host_key", "--host-key").encode(), "--host-key"))
    via = _collect_via(request)
    if via:
        site["via"] = via
    return site


def _parse_port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text, re.ASCII):
        raise BadRequest(say("option.value", option="--port", why=text))
    return int(text)


def _collect_via(request: AddRequest) -> dict[str, Any]:
    via: dict[str, Any] = {}
    if request.proxy_jump:
        via["proxy_jump"] = request.proxy_jump
        given = keys.read_key_file(request.jump_host_key, "--jump-host-key") if request.jump_host_key else None
        data = given or ask("ask.jump_host_key", "--jump-host-key").encode()
        via["host_keys"] = list(keys.parse_public_lines(data, "--jump-host-key"))
    elif request.jump_host_key:
        raise BadRequest(say("option.value", option="--jump-host-key", why="no --proxy-jump"))
    if request.socks4:
        via["socks4"] = request.socks4
    return via


def _collect_programs(words: Sequence[str]) -> dict[str, Any]:
    """`NAME`, or `NAME=FILE` where FILE has the program's inputs, arguments and outputs in YAML."""
    programs: dict[str, Any] = {}
    for word in words:
        name, sign, file = word.partition("=")
        if name in programs:
            raise BadRequest(say("pair.twice", option="--program", name=name))
        programs[name] = read_variables(Path(file)) if sign else OPEN_PROGRAM
    return programs


def _as_plain(plan: Plan, written: bool) -> dict[str, Any]:
    return {
        "site": plan.site.id,
        "written": written,
        "declaration": str(plan.declaration),
        "identity": str(plan.identity),
        "public_key": keys.public_line(plan.public, plan.site.id) if plan.public else None,
        "fingerprint": keys.fingerprint(plan.public) if plan.public else None,
        "from": list(plan.sources),
        "policy_entry": json.loads(plan.policy_entry()) if plan.public else None,
        "tokens": plan.token_commands() if plan.site.method == WEBAPI else None,
        "interface": plan.text,
        "install": plan.install_command(),
    }


def _describe(plan: Plan, dry: bool) -> str:
    """What was done here, and what the other party needs."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    parts = _describe_api(plan, dry) if plan.site.method == WEBAPI else _describe_ssh(plan, dry)
    if any(program.outputs == {"**": "optional"} for program in plan.site.programs.values()):
        parts += ["", say("add.open_program")]
    return "\n".join(parts)


def _describe_api(plan: Plan, dry: bool) -> list[str]:
    return [
        say("add.dry_api" if dry else "add.done_api", path=plan.declaration),
        "",
        say("add.tokens"),
        *(f"  {line}" for line in plan.token_commands()),
        "",
        say("add.interface"),
        "",
        plan.text,
        say("add.install"),
        f"  {plan.install_command()}",
    ]


def _describe_ssh(plan: Plan, dry: bool) -> list[str]:
    public = keys.public_line(plan.public, plan.site.id) if plan.public else say("add.key_later")
    head = say("add.dry" if dry else "add.done", path=plan.declaration, identity=plan.identity)
    sources = ", ".join(plan.sources) or say("add.no_source")
    return [
        head,
        "",
        say("add.send"),
        f"  {public}",
        "",
        say("add.policy_entry"),
        f"  {plan.policy_entry()}",
        "",
        say("add.sources", sources=sources),
        "",
        say("add.interface"),
        "",
        plan.text,
        say("add.install"),
        f"  {plan.install_command()}",
    ]
