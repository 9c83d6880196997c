"""`misrc site rotate`: another job key for a site, without a moment in which no key works.

While both keys are here, ssh offers the new one first and the present one where the site does not take it yet. So a
job never notices on which day the site's administrator changes the policy.

The new key exists from the moment in which it has its name. What lies around it can be told apart and mended after a
kill: no new key, and the present one is the recorded new one: it was finished; otherwise nothing has begun.
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ...job.codec import CodecError, decode, parse_json
from ...job.errors import BadRequest, MisrcError
from ...job.faults import reach
from ...job.interface import WEBAPI
from ...job.public_keys import parse_public_key
from ...job.records import write_json
from .. import keys
from ..link.api_token import token_place
from ..link.connection import Connection
from ..link.link import KeyRefused, Untrusted
from ..messages.catalog import say
from ..places import next_identity
from .declarations import Declaration, find_declaration

OVERLAP_DAYS = 14


@dataclass(frozen=True)
class Rotation:
    """A change of keys that is under way: both public halves, and the old key's last day (YYYY-MM-DD)."""

    old: str
    new: str
    until: str


class Change:
    """The keys of one site while they change; `keys.locked` is held."""

    def __init__(self, declaration: Declaration) -> None:
        self.site = declaration.site
        self.identity = declaration.identity()
        self.following = next_identity(self.identity)
        self.record = self.identity.with_name(f"{self.identity.name}.rotation.json")

    def read(self) -> Rotation | None:
        """The change that is under way, after mending what a kill left; None where there is none."""
        rotation = self._load()
        if self.following.is_file():
            return rotation or self._adopt()
        if rotation is not None and keys.read_public(self.identity) == rotation.new:
            self._settle(rotation.new)
        else:
            self._forget()
        return None

    def begin(self, days: int) -> Rotation:
        """Make the new key, and write down how long the old one stays valid."""
        old = keys.read_public(self.identity)
        keys.make_key(self.following, self.site.id)
        reach("rotate.made")
        return self._note(Rotation(old, keys.read_public(self.following), _day(days)))

    def finish(self, rotation: Rotation) -> None:
        """The new key takes the old one's place, which is gone with that. The public halves go first.

        ssh would offer a public half whose private one is not there any more.
        """
        self._note(rotation)
        keys.public_file(self.identity).unlink(missing_ok=True)
        keys.public_file(self.following).unlink(missing_ok=True)
        reach("rotate.bare")
        with self.identity.open("r+b") as old:
            self.following.rename(self.identity)
            reach("rotate.renamed")
            old.write(b"\0" * os.fstat(old.fileno()).st_size)
        self._settle(rotation.new)

    def abort(self) -> None:
        """The old key stays, and the new one is destroyed."""
        keys.destroy(self.following)
        reach("rotate.destroyed")
        self._forget()

    def _settle(self, public: str) -> None:
        keys.write_public(self.identity, public, self.site.id)
        self._forget()

    def _forget(self) -> None:
        """The record goes last: whoever finds it repeats what is before it."""
        keys.public_file(self.following).unlink(missing_ok=True)
        reach("rotate.forgetting")
        self.record.unlink(missing_ok=True)

    def _adopt(self) -> Rotation:
        """Killed after the key and before the record: nobody was told of a day yet."""
        rotation = Rotation(keys.read_public(self.identity), keys.read_public(self.following), _day(OVERLAP_DAYS))
        keys.write_public(self.following, rotation.new, self.site.id)
        return self._note(rotation)

    def _load(self) -> Rotation | None:
        try:
            rotation = decode(Rotation, parse_json(self.record.read_bytes()))
            return replace(rotation, old=parse_public_key(rotation.old), new=parse_public_key(rotation.new))
        except FileNotFoundError:
            return None
        except (CodecError, ValueError) as error:
            raise MisrcError(f"{self.record}: {error}") from None

    def _note(self, rotation: Rotation) -> Rotation:
        with keys.folder(self.record.parent) as folder:
            write_json(folder, self.record.name, rotation)
        reach("rotate.noted")
        return rotation


def _day(days: int) -> str:
    return (datetime.date.today() + datetime.timedelta(days=days)).isoformat()


def rotate_keys(site: str, inventory: str | None, step: str, days: int, as_json: bool) -> int:
    """`misrc site rotate`; `step` is begin, finish or abort."""
    declaration = find_declaration(site, inventory)
    if declaration.site.method == WEBAPI:
        raise BadRequest(say("rotate.webapi", site=site, path=token_place(declaration.site)))
    if not 1 <= days <= 366:
        raise BadRequest(say("option.value", option="--overlap", why="1-366"))
    with keys.locked(declaration.identity()):
        change = Change(declaration)
        rotation = change.read()
        if step == "begin":
            _tell_begun(declaration, rotation or change.begin(days), as_json)
        elif step == "finish":
            _finish(declaration, change, rotation, as_json)
        else:
            _abort(declaration, change, rotation, as_json)
    return 0


def _tell_begun(declaration: Declaration, rotation: Rotation, as_json: bool) -> None:
    site = declaration.site.id
    entries = [{"key": rotation.new}, {"key": rotation.old, "until": rotation.until}]
    if as_json:
        plain = {"site": site, "state": "begun", "until": rotation.until, "job_keys": entries}
        fingerprints = {"old": keys.fingerprint(rotation.old), "new": keys.fingerprint(rotation.new)}
        print(json.dumps({**plain, "fingerprints": fingerprints}))
        return
    print(say("rotate.begun", site=site, until=rotation.until))
    print(say("rotate.policy"))
    print("\n".join(f"  {json.dumps(entry)}," for entry in entries).rstrip(","))
    print(say("rotate.next", site=site))


def _finish(declaration: Declaration, change: Change, rotation: Rotation | None, as_json: bool) -> None:
    site = declaration.site.id
    if rotation is None:
        # Also where an earlier call was killed behind its last step that counts.
        _tell(site, "none", "rotate.none", as_json, present=keys.fingerprint(keys.read_public(change.identity)))
        return
    _require_taken(declaration, change.following)
    change.finish(rotation)
    _tell(
        site,
        "finished",
        "rotate.finished",
        as_json,
        new=keys.fingerprint(rotation.new),
        old=keys.fingerprint(rotation.old),
    )


def _abort(declaration: Declaration, change: Change, rotation: Rotation | None, as_json: bool) -> None:
    site = declaration.site.id
    if rotation is None:
        _tell(site, "none", "rotate.none", as_json, present=keys.fingerprint(keys.read_public(change.identity)))
        return
    change.abort()
    _tell(site, "aborted", "rotate.aborted", as_json, new=keys.fingerprint(rotation.new))


def _require_taken(declaration: Declaration, following: Path) -> None:
    """The site must serve `hello` to the new key alone; otherwise the errors of a connection."""
    connection = Connection.make(replace(declaration.site, identity=str(following)))
    try:
        if connection.ask("hello", seconds=60)[0].hello is None:
            raise MisrcError(say("note.silent"))
    except KeyRefused:
        raise Untrusted(say("rotate.not_taken", site=declaration.site.id)) from None
    finally:
        connection.close()


def _tell(site: str, state: str, key: str, as_json: bool, **values: str) -> None:
    if as_json:
        print(json.dumps({"site": site, "state": state, **values}))
    else:
        print(say(key, site=site, **values))
