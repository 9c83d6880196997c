"""What MInt tells of a job when it opens it: the spec, and where the site wants it MInt's signature over it.

A signed spec is kept beside the record, so that a call made again sends the same words. Where the site finds it too
old, it is forgotten, and the next call signs anew.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..job.codec import CodecError, decode, parse_json
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
    spec = JobSpec(
        record.job,
        record.site,
        record.program,
        record.arguments,
        record.files,
        record.bytes,
        manifest,
        origin=record.origin or None,
    )
    if not site.signed:
        return Announcement(render_spec(spec).decode())
    kept = _load(store) if store is not None else None
    if kept is not None and kept.spec.is_same_job(spec):
        return kept
    text = render_spec(_date(spec))
    made = Announcement(text.decode(), sign_spec(signing_key(), text))
    if store is not None:
        with keys.folder(store.path) as folder:
            write_json(folder, FILE, made)
    return made


def _date(spec: JobSpec) -> JobSpec:
    import dataclasses

    return dataclasses.replace(spec, issued=int(time.time()))


def _load(store: JobStore) -> Announcement | None:
    data = store.load(FILE)
    try:
        kept = None if data is None else decode(Announcement, parse_json(data))
        return kept if kept and kept.spec else None
    except (CodecError, ValueError):
        return None
