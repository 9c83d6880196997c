"""What MInt tells of a job when it opens it: the spec, and where the site wants it MInt's signature over it.

The spec is kept beside the record: the site's receipt must name it, and a call made again sends the same signed words.
Where the site finds those too old, they are forgotten, and the next call signs anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from dataclasses import dataclass

from ..job.codec import CodecError, decode, dump_json, encode, parse_json
from ..job.interface import Interface
from ..job.records import write_json
from ..job.spec import JobSpec, parse_spec, render_spec
from . import keys
from .jobs import JobStore, MintJob
from .signing import sign_spec, signing_key

FILE = "announced.json"


@dataclass(frozen=True)
class Announcement:
    """The spec's text, and the armoured signature over it."""

    text: str
    signature: str | None = None

    @property
    def spec(self) -> JobSpec:
        """The spec."""
        return parse_spec(self.text.encode())


def announce(site: Interface, record: MintJob, manifest: str | None, store: JobStore | None = None) -> Announcement:
    """The announcement of a job; BadRequest where it is to be signed and there is no key."""
    spec = JobSpec(record.job, record.site, record.program, record.arguments, record.files, record.bytes, manifest)
    kept = load(store) if store is not None else None
    if kept is not None and kept.spec.is_same_job(spec) and bool(kept.signature) == site.signed:
        return kept
    if site.signed:
        text = render_spec(_date(spec))
        made = Announcement(text.decode(), sign_spec(signing_key(), text))
    else:
        made = Announcement(render_spec(spec).decode())
    if store is not None:
        _keep(store, made)
    return made


def load(store: JobStore) -> Announcement | None:
    """What was told of a job, if that is known here."""
    data = store.load(FILE)
    try:
        kept = None if data is None else decode(Announcement, parse_json(data))
        return kept if kept and kept.spec else None
    except (CodecError, ValueError):
        return None


def digest_spec(told: Announcement) -> str:
    """The spec as a site's receipt names it: sha256 of its text with a line end, in hex."""
    return hashlib.sha256(told.text.encode() + b"\n").hexdigest()


def _keep(store: JobStore, made: Announcement) -> None:
    """Durable where it could not be made again word for word."""
    if made.signature is None:
        (store.path / FILE).write_bytes(dump_json(encode(made)))
        return
    with keys.folder(store.path) as folder:
        write_json(folder, FILE, made)


def _date(spec: JobSpec) -> JobSpec:
    return dataclasses.replace(spec, issued=int(time.time()))
