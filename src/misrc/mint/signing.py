"""MInt's signing key: what it signs, a site knows as MInt's own wish, whatever carried it there.

It lies beside the job keys and never leaves this node. While keys change, the one that follows lies beside it: a site
takes several, so it learns the new one before anything is signed with it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ..job.errors import BadRequest, MisrcError
from ..job.spec import NAMESPACE
from . import keys
from .link.link import last_line
from .messages.catalog import say
from .places import config_folders, next_identity

# No site can have this name: a site's id has no underscore.
NAME = "spec_key"


def signing_key() -> Path:
    """The private signing key; BadRequest where there is none."""
    places = [folder / "keys" / NAME for folder in config_folders()]
    for place in places:
        if place.is_file():
            return place
    raise BadRequest(say("signing.missing", path=places[-1]))


def key_folder() -> Path:
    """Where the key lies, or would be made: where it is found, else the machine's folder if we may write there."""
    user, machine = (folder / "keys" for folder in config_folders())
    for folder in (user, machine):
        if (folder / NAME).is_file():
            return folder
    return machine if os.access(machine, os.W_OK) else user


def sign_spec(private: Path, text: bytes) -> str:
    """An armoured OpenSSH signature over a job spec's text."""
    done = subprocess.run(
        [keys.KEYGEN, "-q", "-Y", "sign", "-f", str(private), "-n", NAMESPACE],
        input=text,
        capture_output=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    if done.returncode != 0:
        why = last_line(done.stderr.decode("utf-8", "replace")) or "?"
        raise MisrcError(say("key.unusable", path=private, why=why))
    return done.stdout.decode("ascii")


def change(step: str, folder: Path) -> list[str]:
    """Carry out one step in a key's life (`show`, `make`, `next`, `finish`, `abort`); the public keys afterwards."""
    private = folder / NAME
    following = next_identity(private)
    if step != "show":
        with keys.locked(private):
            _STEPS[step](private, following)
    if not private.is_file():
        raise BadRequest(say("signing.missing", path=private))
    return [keys.public_line(keys.read_public(path), NAME) for path in (private, following) if path.is_file()]


def _make(private: Path, following: Path) -> None:
    keys.make_key(private, NAME)


def _next(private: Path, following: Path) -> None:
    if not private.is_file():
        raise BadRequest(say("signing.missing", path=private))
    keys.make_key(following, NAME)


def _finish(private: Path, following: Path) -> None:
    if not following.is_file():
        raise BadRequest(say("signing.no_next", path=following))
    keys.replace(private, following, NAME)


def _abort(private: Path, following: Path) -> None:
    keys.destroy(following)


_STEPS = {"make": _make, "next": _next, "finish": _finish, "abort": _abort}
