"""Secrets of the agent: read from where the site put them, never from a command line, never shown.

A token comes from systemd's credential, from the variable MISRC_TOKEN, or from a private file. A file is read again
when it has changed, so that a token can be replaced without a restart.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Mapping, Optional, Tuple

from ...job.agent import CREDENTIAL, TOKEN, AgentConfig

VARIABLE = "MISRC_TOKEN"
_MAX_BYTES = 8192


class CredentialError(Exception):
    """A secret that cannot be had; the message names the place and holds nothing of its content."""


class Token:
    """The agent's token."""

    def __init__(self, given: str = "", path: Optional[str] = None, of_systemd: bool = False) -> None:
        self._path = path
        self._of_systemd = of_systemd
        self._seen: Tuple[int, ...] = ()
        self._text = given

    @classmethod
    def find(cls, config: AgentConfig, environment: Mapping[str, str]) -> Token:
        """The token that a start with this environment means; CredentialError where there is none."""
        folder = environment.get("CREDENTIALS_DIRECTORY", "")
        if folder.startswith("/") and os.path.exists(f"{folder}/{CREDENTIAL}"):
            token = cls(path=f"{folder}/{CREDENTIAL}", of_systemd=True)
        elif environment.get(VARIABLE):
            token = cls(given=check_token(environment[VARIABLE], VARIABLE))
        elif config.token is not None:
            token = cls(path=config.token)
        else:
            raise CredentialError(f"no token: name its file in agent.json (`token`), or set {VARIABLE}")
        token.read()
        return token

    def read(self) -> str:
        """The token as it is now."""
        if self._path is not None:
            status = os.stat(self._path) if os.path.exists(self._path) else None
            seen = (status.st_mtime_ns, status.st_ino, status.st_size) if status else ()
            if not seen or seen != self._seen:
                self._text = check_token(read_secret(self._path, self._of_systemd), self._path)
                self._seen = seen
        return self._text


def check_token(text: str, where: str) -> str:
    """A token that a header can carry, or CredentialError."""
    if not re.fullmatch(TOKEN, text.strip()):
        raise CredentialError(f"{where}: this is not a token")
    return text.strip()


def read_secret(path: str, of_systemd: bool = False) -> str:
    """The text of a file that nobody but its owner can read; CredentialError otherwise.

    systemd's own are root's and 0440: the group's bits stand for the one account that it lets in by an ACL.
    """
    try:
        # A credential of systemd may be reached by a link: the folder is named by the site itself.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CredentialError(f"{path}: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.getuid()):
            raise CredentialError(f"{path}: must be a file of this account or of root")
        if stat.S_IMODE(status.st_mode) & (0o037 if of_systemd and status.st_uid == 0 else 0o077):
            raise CredentialError(f"{path}: others can read it; chmod 600")
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES or not data.isascii():
        raise CredentialError(f"{path}: this is not a secret of ours")
    return data.decode("ascii")
