"""The two ways to run against a server of the predecessor: `protocol: legacy`, and the predecessor's own command line.

mi-system-remote.py SITE-ID BASE-URL TOKEN|login [debug] [retry:COUNT,SECONDS] [no_auth:CAFILE] [port:N] [calc_base:DIR]
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from dataclasses import dataclass, replace
from typing import Callable, Iterator, List, Optional

from ...job.agent import AgentConfig, RetryRule
from ...job.secrecy import hide_word, leave_no_core
from ...wire.legacy import DEFAULT_PORT
from ...wire.refusals import Denied
from .. import files
from ..home import Home, read_site
from ..premises import Premises
from .credentials import CredentialError, Token, check_token
from .http_channel import Channel
from .legacy_agent import LegacyAgent
from .legacy_client import GaveUp, LegacyClient
from .settings import ENVIRONMENT, KEY, make_endpoint, open_state

OPERATOR = "AUTHENTICATION_OPERATOR"
LOGIN = "login"


class UsageError(ValueError):
    """The command line cannot be carried out; the message says what to do."""


def run(home: Home, config: AgentConfig, token: Token) -> int:
    """As `misrc-site.pyz agent` with `protocol: legacy`: for ever."""
    return _run(home, config, token.read, count=None)


def check(home: Home, config: AgentConfig, token: Token) -> int:
    """One question to the server, tried once."""
    site = read_site(home)
    operations = Premises(home, site, key=KEY, peer=config.server.shown).operations()
    named = sum(rule.command is not None for rule in operations.policy.programs.values())
    print(f"policy   fine: {len(operations.policy.programs)} programs, {named} of them with a command of old clients")
    client = LegacyClient(Channel(make_endpoint(config), token.read), 0, 0.0, lambda text: None)
    try:
        client.find_work(config.known_as or site)
    except GaveUp as error:
        print(f"server   cannot be asked: {error}")
        return 1
    if client.trouble:
        print(f"server   {config.server.shown}: {client.trouble}")
        return 1
    print(f"server   {config.server.shown} answers in the predecessor's way")
    return 0


def _run(home: Home, config: AgentConfig, token: Callable[[], str], count: Optional[int]) -> int:
    site, server = read_site(home), config.server.shown

    def say(text: str) -> None:
        print(f"misrc-agent: {text}", file=sys.stderr, flush=True)

    client = LegacyClient(Channel(make_endpoint(config), token), count, config.retry.seconds, say)
    premises = Premises(home, site, key=KEY, peer=server)
    with open_state(home) as folder:
        lock = files.try_lock(folder, "agent.lock")
        if lock is None:
            raise ValueError("another agent of this site runs already")
        with files.opened(lock):
            return LegacyAgent(premises, client, config.known_as or site, server, config.poll, folder).run()


# -- the predecessor's command line -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OldWords:
    """The predecessor's arguments."""

    site_id: str
    base_url: str
    token: str
    retry: RetryRule
    ca: Optional[str]
    port: int

    @property
    def url(self) -> str:
        """The server's address as it is printed and used."""
        return f"{self.base_url}:{self.port}"


def parse_words(words: List[str]) -> OldWords:
    """Read them; UsageError where one of them cannot be kept."""
    if len(words) < 3:
        raise UsageError("needed: SITE-ID BASE-URL TOKEN|login [debug] [retry:COUNT,SECONDS] [no_auth:CAFILE] [port:N]")
    if not re.fullmatch("[A-Za-z0-9._-]{1,128}", words[0], re.ASCII):
        raise UsageError("the site id must be letters and digits")
    found = OldWords(words[0], words[1].rstrip("/"), words[2], RetryRule(5, 60), None, DEFAULT_PORT)
    for word in words[3:]:
        found = _apply(found, word)
    return found


def _apply(found: OldWords, word: str) -> OldWords:
    name, _, value = word.partition(":")
    if word == "debug" or (name == "calc_base" and value):
        # Jobs lie where the site's policy says, whatever the command line wishes.
        return found
    if word == "no_auth":
        raise UsageError("no_auth would let anybody on the way give orders here: name the CA instead, no_auth:CAFILE")
    if name == "no_auth":
        return replace(found, ca=os.path.abspath(value))
    if name == "port" and re.fullmatch("[0-9]{1,5}", value, re.ASCII):
        return replace(found, port=int(value))
    retry = re.fullmatch(r"retry:([0-9]{1,4}),([0-9]{1,6}(?:\.[0-9]{1,6})?)", word, re.ASCII)
    if retry:
        return replace(found, retry=RetryRule(int(retry[1]), float(retry[2])))
    raise UsageError(f"{word!a} is not an option of this command")


def main(words: List[str], home: Home, poll: int = 30) -> int:
    """Run as the predecessor's poller does: until the retries are used up (exit status 1), or a signal."""
    leave_no_core()
    if len(words) > 2 and words[2] != LOGIN:
        hide_word(words[2])
    try:
        if os.getuid() == 0:
            raise UsageError("this command does not run as root")
        os.umask(0o077)
        old = parse_words(words)
        config = AgentConfig(old.url, old.ca, known_as=old.site_id, retry=old.retry, protocol="legacy", poll=poll)
        print(f"site id = {old.site_id}")
        print(f"base url = {old.url}", flush=True)
        token = _log_in(config.server.host) if old.token == LOGIN else check_token(old.token, "the token")
        os.environ.clear()
        os.environ.update(ENVIRONMENT)
        return _run(home, config, lambda: token, old.retry.count)
    except GaveUp as error:
        print(f"mi-system-remote: {error}", file=sys.stderr)
        return 1
    except Denied as denied:
        print(f"mi-system-remote: {denied.note or denied.refusal.value}", file=sys.stderr)
    except (CredentialError, OSError, ValueError) as error:
        print(f"mi-system-remote: {error}", file=sys.stderr)
    return 2


def _log_in(host: str) -> str:
    """The token that the site's own login package gives for a person's name and password."""
    folder = os.environ.get(OPERATOR, "")
    if not os.path.isdir(folder):
        raise CredentialError(f"login needs {OPERATOR}, the folder that holds the package openam_operator")
    with _importable(os.path.abspath(folder)):
        operator = importlib.import_module("openam_operator.openam_operator")
    user, token = operator.miLogin(host)
    if user is None or token is None:
        raise CredentialError("the login failed")
    return check_token(str(token), "the token of the login")


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
