"""The token that tells MInt's API server who asks: from a file that only its owner reads, or from the environment.

It is never a word of a command line, and no message repeats it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...job.errors import BadRequest
from ...job.interface import Interface
from ..messages.catalog import say
from ..places import config_folders

VARIABLE = "MISRC_TOKEN"
_NAME = "token"
_MAX_BYTES = 4096


def read_token(site: Interface, folder: Path) -> str:
    """The token of a job whose private folder is `folder`: the one that was kept there, else the site's file."""
    kept = folder / _NAME
    return _read(kept if kept.is_file() else token_file(site))


def keep_token(site: Interface, folder: Path) -> None:
    """Keep a token of the environment for the job's other processes; else see that there is a file."""
    given = os.environ.get(VARIABLE)
    if given is None:
        _read(token_file(site))
        return
    _check(given, VARIABLE)
    with open(os.open(folder / _NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(given)


def token_file(site: Interface) -> Path:
    """Where the site's token lies; BadRequest where it is not there."""
    place = token_place(site)
    if not place.is_file():
        raise BadRequest(say("token.missing", site=site.id, path=place, variable=VARIABLE))
    return place


def token_place(site: Interface) -> Path:
    """Where the site's token lies, or would be looked for last."""
    if site.api_token:
        return Path(site.api_token)
    places = [folder / "keys" / f"{site.id}.token" for folder in config_folders()]
    return next((place for place in places if place.is_file()), places[-1])


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BadRequest(say("token.unusable", path=path, why=error.strerror)) from None
    with open(descriptor, "rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise BadRequest(say("token.open", path=path))
        text = file.read(_MAX_BYTES + 1).decode("latin-1").strip()
    _check(text, str(path))
    return text


def _check(token: str, where: str) -> None:
    if not re.fullmatch(r"[\x21-\x7e]{1,4096}", token):
        raise BadRequest(say("token.unusable", path=where, why="not one word of printable ASCII"))
