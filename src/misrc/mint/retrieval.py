"""Retrieve: fetch what the site released, check every byte against the manifest and the receipt, deliver, close.

Results arrive in a private, empty folder of their own; only declared names are taken out of it. Exit codes of
transfer tools decide nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..job.codec import CodecError
from ..job.errors import BadRequest, MisrcError, Refused
from ..job.faults import reach
from ..job.following import Found
from ..job.interface import REQUIRED
from ..job.manifest import Manifest, hash_descriptor, identify, parse_manifest, total_bytes
from ..job.names import NameSet, check_result_name
from ..job.quantities import format_size
from ..job.receipt import NAMESPACE, parse_receipt
from ..job.spec import MAX_INLINE_BYTES
from ..job.states import JobState, Outcome
from . import announcement
from .answers import INPUTS, MANIFEST, RECEIPT, SIGNATURE
from .jobs import LOG, JobStore, MintJob, disk_failed
from .link.link import Link
from .messages.catalog import say
from .sites import find_program

MAX_FILES = 10**6
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def retrieve(store: JobStore, link: Link) -> MintJob:
    """Bring an ended job to `closed`, with its results delivered."""
    reach("retrieve.enter")
    record = store.read()
    if record.state is JobState.ENDED:
        manifest = link.list_offered(record.program, _read_manifest(store, link))
        _check_receipt(store, link)
        record = _deliver_all(store, link, record, manifest)
    if record.state is JobState.RETRIEVED:
        close(store, link)
    reach("retrieve.leave")
    return store.read()


def close(store: JobStore, link: Link) -> None:
    """Tell the site that MInt has what it needs."""
    record = store.read()
    told = {}
    with contextlib.suppress(Refused):
        reply, _ = link.retrying(lambda: link.finish(record.job))
        told = {"checkpoint": reply.checkpoint}
    store.advance(JobState.CLOSED, **told)


def _read_manifest(store: JobStore, link: Link) -> Manifest:
    document = store.load(MANIFEST)
    if document is None:
        return ()
    try:
        return parse_manifest(document, check_result_name, MAX_FILES)
    except CodecError:
        raise _mismatch(store, link) from None


def _mismatch(store: JobStore, link: Link) -> MisrcError:
    site = link.site
    return MisrcError(say("results.mismatch", site=site.id, job=store.job, contact=site.contact_site or site.id))


def _deliver_all(store: JobStore, link: Link, record: MintJob, manifest: Manifest) -> MintJob:
    arriving = _choose_folder(Path(record.results), f".misrc-{record.job}")
    try:
        arriving.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_space(arriving, manifest)
        _receive(store, link, arriving, manifest)
        reach("retrieve.received")
        names = _deliver(link, record, arriving, manifest)
        shutil.rmtree(arriving, ignore_errors=True)
    except OSError as error:
        raise disk_failed(record.job, error) from None
    return store.advance(JobState.RETRIEVED, delivered=tuple(names))


def _choose_folder(results: Path, name: str) -> Path:
    """Where results arrive: beside a results folder that is still to be made, so that it can become it; else inside."""
    beside = results.parent / name
    return results / name if results.exists() and not beside.exists() else beside


def _check_space(arriving: Path, manifest: Manifest) -> None:
    needed = total_bytes(manifest) - sum(path.stat().st_size for path in arriving.rglob("*") if path.is_file())
    free = shutil.disk_usage(arriving).free
    if needed > free:
        raise BadRequest(say("results.space", path=arriving.parent, needed=format_size(needed), free=format_size(free)))


def _receive(store: JobStore, link: Link, arriving: Path, manifest: Manifest) -> None:
    found: Mapping[str, Found] = {}
    if not _take_small(store, arriving, manifest):
        tell = functools.partial(store.tell_progress, phase="retrieve", total=total_bytes(manifest))
        found = link.get(store.job, manifest, arriving, lambda done: tell(done=done))
    _verify(store, link, arriving, manifest, found)


def _take_small(store: JobStore, arriving: Path, manifest: Manifest) -> bool:
    """Use what came along with the last answer, if that was everything."""
    if total_bytes(manifest) > MAX_INLINE_BYTES:
        return False
    found = {entry.name: store.small(entry.name) for entry in manifest}
    for name, data in found.items():
        if data is None:
            return False
        _write_new(arriving / name, data)
    return True


def _write_new(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
        file.write(data)


def _verify(store: JobStore, link: Link, arriving: Path, manifest: Manifest, found: Mapping[str, Found]) -> None:
    """Exactly the manifest's files, with the manifest's content; anything else discards the whole."""
    arrived = _list_arrived(arriving)
    if arrived.keys() != {entry.name for entry in manifest}:
        raise _discard(store, link, arriving)
    for entry in manifest:
        if _measure(arrived[entry.name], entry.size, found.get(entry.name)) != (entry.size, entry.sha256):
            raise _discard(store, link, arriving)


def _list_arrived(arriving: Path) -> dict[str, os.DirEntry[str]]:
    """Everything below the folder that is not itself a folder, by its relative name; links are not followed."""
    arrived = {}
    folders = [("", str(arriving))]
    while folders:
        prefix, folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append((f"{prefix}{entry.name}/", entry.path))
                else:
                    arrived[prefix + entry.name] = entry
    return arrived


def _discard(store: JobStore, link: Link, arriving: Path) -> MisrcError:
    shutil.rmtree(arriving, ignore_errors=True)
    return _mismatch(store, link)


def _measure(file: os.DirEntry[str], size: int, found: Found | None) -> tuple[int, str]:
    """Size and sha256 of what arrived; a file that was hashed on its way and is still the same is not read again."""
    try:
        if found is not None and found.identity == identify(file.stat(follow_symlinks=False)):
            return found.size, found.sha256
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return hash_descriptor(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError:
        return -1, ""


def _deliver(link: Link, record: MintJob, arriving: Path, manifest: Manifest) -> list[str]:
    """Move declared files into the results folder, each whole or not at all; the names that were taken."""
    declared = NameSet([*find_program(link.site, record.program).outputs, LOG])
    taken = [entry.name for entry in manifest if entry.name in declared]
    for name in record.copies.keys() & set(taken):
        copy_whole(arriving / name, Path(record.copies[name]))
    results = Path(record.results)
    results.mkdir(parents=True, exist_ok=True)
    if len(taken) < len(manifest) or not _replace_empty(results, arriving):
        _move_each(taken, arriving, results)
    return taken


def _replace_empty(results: Path, arriving: Path) -> bool:
    """Let the folder of arrived files become the results folder: one rename. False: it cannot, or holds folders."""
    with os.scandir(arriving) as entries:
        if arriving.parent == results or any(entry.is_dir(follow_symlinks=False) for entry in entries):
            return False
    arriving.chmod(stat.S_IMODE(results.stat().st_mode))
    try:
        arriving.rename(results)
    except OSError as error:
        # Somebody put something there meanwhile.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _move_each(names: Sequence[str], arriving: Path, results: Path) -> None:
    for folder in {os.path.dirname(name) for name in names}:
        (results / folder).mkdir(parents=True, exist_ok=True)
    source, target = os.open(arriving, _FOLDER), os.open(results, _FOLDER)
    try:
        for name in names:
            os.replace(name, name, src_dir_fd=source, dst_dir_fd=target)
    finally:
        os.close(source)
        os.close(target)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that nobody ever sees a part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".misrc-{secrets.token_hex(8)}"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _check_receipt(store: JobStore, link: Link) -> None:
    """Both sides must agree on what went in and what came out; where the site's key is declared, its signature too."""
    document, signature = store.load(RECEIPT), store.load(SIGNATURE)
    record = store.read()
    if document is None:
        if record.outcome in (None, Outcome.SUCCEEDED, Outcome.FAILED):
            raise _wrong(store, link, "it is missing")
        return
    try:
        receipt = parse_receipt(document)
    except (CodecError, ValueError) as error:
        raise _wrong(store, link, str(error)) from None
    ours, results = (hashlib.sha256(store.load(name) or b"").hexdigest() for name in (INPUTS, MANIFEST))
    told = announcement.load(store)
    checks = {
        # Who stands in between could have asked the site for something else.
        "spec": told is None or receipt.spec == announcement.digest_spec(told),
        "job": receipt.job == record.job,
        "site": receipt.site == record.site,
        "outcome": receipt.outcome is record.outcome,
        "inputs": receipt.inputs == ours,
        "results": receipt.outputs == results,
    }
    for what, right in checks.items():
        if not right:
            raise _wrong(store, link, what)
    if link.site.receipt_keys and not _signed(link.site.receipt_keys, document, signature or b""):
        raise _wrong(store, link, "its signature")


def _wrong(store: JobStore, link: Link, why: str) -> MisrcError:
    contact = link.site.contact_site or link.site.id
    return MisrcError(say("receipt.wrong", job=store.job, why=why, contact=contact))


def _signed(keys: tuple[str, ...], document: bytes, signature: bytes) -> bool:
    with tempfile.TemporaryDirectory(prefix="misrc-") as folder:
        Path(folder, "signers").write_text("".join(f"site {key}\n" for key in keys), encoding="ascii")
        Path(folder, "signature").write_bytes(signature)
        done = subprocess.run(
            [
                "/usr/bin/ssh-keygen",
                "-Y",
                "verify",
                "-f",
                f"{folder}/signers",
                "-I",
                "site",
                "-n",
                NAMESPACE,
                "-s",
                f"{folder}/signature",
            ],
            input=document,
            capture_output=True,
            check=False,
            env={"PATH": "/usr/bin:/bin"},
        )
    return done.returncode == 0


def missing_outputs(connection_outputs: Mapping[str, str], delivered: tuple[str, ...]) -> list[str]:
    """Required outputs that did not come."""
    return [name for name, need in connection_outputs.items() if need == REQUIRED and name not in delivered]
