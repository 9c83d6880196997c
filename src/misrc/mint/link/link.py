"""What MInt's side asks of a site, whichever way leads there: the verbs, two transfers, and what a failure means.

`connection` is the way over SSH, `api_link` the one through MInt's API server. Staging, execution, retrieval and the
commands know only what stands here, so a module script never needs to know which way its site has.
"""

from __future__ import annotations

import abc
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ...job.errors import MisrcError, Refused, Unreachable
from ...job.following import Found
from ...job.interface import Interface
from ...job.manifest import Manifest
from ...job.spec import OpenRequest
from ...wire.refusals import Refusal
from ...wire.replies import Reply
from ..hashing import Hashing
from ..jobs import InputFile
from ..messages.catalog import MESSAGES, say

T = TypeVar("T")
Answer = tuple[Reply, Mapping[str, bytes]]
OnProgress = Callable[[Reply], None]


class Untrusted(Unreachable):
    """The other side is not the declared one, or does not know us: trying again cannot help."""

    transient = False


class KeyRefused(Unreachable):
    """The site does not know our key; trying again helps only where that key has just got its place."""

    def __init__(self, message: str, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class Later(Unreachable):
    """The other side says when to ask again, in `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Link(abc.ABC):
    """One job's way to its site. `folder` is private, made for the job, and shared with the play's steps.

    Every verb may be repeated. Refused, Unreachable or MisrcError say why one was not done.
    """

    # Whether inputs are announced with their hashes, so that all must be hashed before the first byte moves.
    hashes_first = False

    def __init__(self, site: Interface, folder: Path) -> None:
        self.site = site
        self.folder = folder
        # Hears why the other side asked for patience; it may be told the same again and again.
        self.on_pause: Callable[[str], None] = lambda text: None

    # -- its life -----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def open(self) -> None:
        """Begin to connect, without waiting for it."""

    @abc.abstractmethod
    def look_after(self) -> None:
        """Notice what has ended by itself; for whoever watches a play."""

    @abc.abstractmethod
    def release(self) -> None:
        """Let go of what is connected now; what is asked later connects anew."""

    @abc.abstractmethod
    def close(self) -> None:
        """End it, and remove its folder."""

    # -- the verbs ----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def announce(self, request: OpenRequest, small: Mapping[str, bytes], on_progress: OnProgress | None) -> Answer:
        """`open`: the spec, and where wanted the `small` inputs and the wish to start."""

    @abc.abstractmethod
    def start(self, job: str, manifest: bytes) -> Answer:
        """`start`: all inputs are there, and `manifest` is their document."""

    @abc.abstractmethod
    def wait(self, job: str, seconds: int, offset: int | None = None, on_progress: OnProgress | None = None) -> Answer:
        """`wait`: how the job stands, at its end or after `seconds`, with its log from `offset` on if that is given."""

    @abc.abstractmethod
    def cancel(self, job: str) -> Answer:
        """`cancel`: stop it; comes back when it has ended, or after a little while."""

    @abc.abstractmethod
    def finish(self, job: str) -> Answer:
        """`close`: MInt has what it needs."""

    # -- transfers ----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def put(
        self, job: str, inputs: Sequence[InputFile], hashing: Hashing, room: Path, tell: Callable[[int], None]
    ) -> None:
        """Bring all inputs there, trying again as declared; `room` is a folder's name for what that needs here."""

    def list_offered(self, program: str, manifest: Manifest) -> Manifest:
        """What of the site's manifest comes this way: all of it, where nobody stands between."""
        return manifest

    @abc.abstractmethod
    def get(self, job: str, manifest: Manifest, target: Path, tell: Callable[[int], None]) -> Mapping[str, Found]:
        """Fetch the results into `target`, trying again as declared; what was hashed on the way, by name.

        A file that is there in part goes on where it stopped. What arrived is not checked here.
        """

    # -- what failures mean -------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def address(self) -> str:
        """Where it leads, for people."""

    def say(self, key: str, **values: object) -> str:
        """A message about the site."""
        contact = self.site.contact_site or self.site.contact_mint or say("contact.unknown")
        return say(key, site=self.site.id, address=self.address, contact=contact, **values)

    def explain_refusal(self, code: str) -> MisrcError:
        """What a refusal code means to whoever called."""
        code = code if re.fullmatch("E[0-9]{2}", code, re.ASCII) else "?"
        contact = self.site.contact_site or "the site"
        why = say(code if code in MESSAGES else "refusal.unknown", contact=contact)
        if code in (Refusal.BUSY.value, Refusal.INTERNAL.value):
            return Unreachable(self.say("ssh.unreachable", why=why))
        return Refused(f"{self.site.id}: {why} ({code})", code)

    def retrying(self, action: Callable[[], T]) -> T:
        """Do `action`, trying again as declared while the site cannot be reached."""
        interval = self.site.retry.interval
        for attempt in range(self.site.retry.count + 1):
            try:
                return action()
            except Unreachable as error:
                if not error.transient or attempt == self.site.retry.count:
                    raise
                pause = min(1.0, interval) if attempt == 0 else interval
                if isinstance(error, Later):
                    self.on_pause(str(error))
                    pause = min(error.seconds, interval)
                elif pause > 1:
                    left = self.site.retry.count - attempt
                    self.on_pause(say("retry.pause", why=error, seconds=f"{pause:g}", left=left))
                sleep_while_driven(pause * random.uniform(0.8, 1.2))
        raise AssertionError("unreachable")


def sleep_while_driven(seconds: float) -> None:
    """Sleep, unless the `misrc run` that this process works for is gone."""
    driver = os.environ.get("MISRC_DRIVER")
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if driver and not os.path.exists(f"/proc/{driver}"):
            raise MisrcError("misrc run is gone")
        time.sleep(min(left, 1.0))


def last_line(text: str) -> str:
    """The last line that another program said, safe to print."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"[^\x20-\x7e]", "?", lines[-1])[:200] if lines else ""
