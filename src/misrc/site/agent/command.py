"""`misrc-site.pyz agent`: run the agent in the foreground (a terminal, or a unit), or say whether it could run."""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from typing import Callable, List

from ...job.agent import AgentConfig
from ...job.secrecy import leave_no_core
from ...wire.api import Poll, Work
from ...wire.refusals import Denied
from .. import files, kernel
from ..home import Home, read_site
from ..premises import Premises
from .api_client import ApiRefusal, SiteClient, clock_skew
from .credentials import CredentialError, Token
from .http_channel import Channel, ChannelError
from .settings import ENVIRONMENT, KEY, make_endpoint, open_state, read_config, take_proxy_credential

_SKEW_SECONDS = 120.0


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Its words, for the list of commands; `main` below is what runs."""
    agent = commands.add_parser("agent", help="ask MInt's API server for work, for ever")
    agent.add_argument("--check", action="store_true", help="say whether server, token, clock and policy are fine")


def main(words: List[str], home: Home) -> int:
    """Run it; what keeps it from running is one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="misrc-site.pyz agent", description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="say whether server, token, clock and policy are fine")
    options = parser.parse_args(words)
    leave_no_core()
    try:
        if os.getuid() == 0 or os.geteuid() == 0:
            raise ValueError("the agent does not run as root")
        os.umask(0o077)
        config = read_config(home)
        token = Token.find(config, dict(os.environ))
        config = take_proxy_credential(config, dict(os.environ))
        os.environ.clear()
        os.environ.update(ENVIRONMENT)
        if config.protocol == "legacy":
            from .legacy_command import check, run

            return check(home, config, token) if options.check else run(home, config, token)
        return _check(home, config, token) if options.check else _run(home, config, token)
    except Denied as denied:
        print(f"misrc-agent: {denied.note or denied.refusal.value}", file=sys.stderr)
    except (CredentialError, OSError, ValueError) as error:
        print(f"misrc-agent: {error}", file=sys.stderr)
    return 2


def make_clients(config: AgentConfig, token: Token, site: str) -> Callable[[], SiteClient]:
    """Makes connections, each its own."""
    endpoint = make_endpoint(config)
    return lambda: SiteClient(Channel(endpoint, token.read), site)


def _run(home: Home, config: AgentConfig, token: Token) -> int:
    from .agent import Agent

    site, server = read_site(home), config.server.shown
    with open_state(home) as folder:
        lock = files.try_lock(folder, "agent.lock")
        if lock is None:
            raise ValueError("another agent of this site runs already")
        with files.opened(lock):
            for text in kernel.weaknesses():
                print(f"misrc-agent: weaker here: {text}", file=sys.stderr)
            agent = Agent(
                _name(folder), server, Premises(home, site, key=KEY, peer=server), make_clients(config, token, site)
            )
            return agent.run()


def _name(folder: int) -> str:
    """This installation's own id, made once."""
    plain = files.read_json(folder, "agent.json")
    if isinstance(plain, dict) and isinstance(plain.get("agent"), str):
        return str(plain["agent"])
    name = str(uuid.uuid4())
    files.write_json(folder, "agent.json", {"agent": name})
    return name


def _check(home: Home, config: AgentConfig, token: Token) -> int:
    """Each line is one thing and how it is."""
    site = read_site(home)
    operations = Premises(home, site, key=KEY, peer=config.server.shown).operations()
    print(f"policy   fine: {len(operations.policy.programs)} programs, {operations.free()} bytes free")
    print("site     frozen: no job is taken" if operations.ledger.is_frozen() else f"site     {site}")
    for text in kernel.weaknesses():
        print(f"here     weaker: {text}")
    client = make_clients(config, token, site)()
    try:
        # Another name than the agent's own: asking for nothing must not look like its having lost what it holds.
        client.ask(Poll(str(uuid.uuid4()), 0, 0))
        answer = client.channel.receive()
        skew = clock_skew(answer)
        client.decode(Work, answer)
    except ApiRefusal as refusal:
        print(f"server   answers, and says {refusal.code.value}: see the token and whose jobs this site takes")
        return 1
    except (ChannelError, OSError) as error:
        print(f"server   cannot be asked: {getattr(error, 'strerror', None) or error}")
        return 1
    print(f"server   {config.server.shown} takes the token")
    if skew is not None and abs(skew) > _SKEW_SECONDS:
        print(f"clock    differs from the server's by {abs(skew):.0f} s: certificates and signatures need it right")
        return 1
    print("clock    fine" if skew is not None else "clock    the server does not tell its own")
    return 0
