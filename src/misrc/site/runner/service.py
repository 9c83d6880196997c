"""The root-owned runner: it serves one account, the gate's, over a socket, and trusts nothing from it but verb and job.

It takes a job's folder over before anything runs in it, starts the job's supervisor in a unit of its own, is the only
one that writes the ledger, and lets results be read only after their leaving is on record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import struct
import subprocess
from typing import Any, Dict, Mapping

from ...job.codec import CodecError, dump_json, encode, parse_json
from ...job.manifest import MAX_DOCUMENT_BYTES, Manifest, parse_manifest
from ...job.names import is_job_id
from ...job.policy import Policy
from ...job.spec import render_spec
from ...job.states import JobState
from ...job.units import GUARD, SUPERVISOR
from ...wire.refusals import Denied, Refusal
from .. import accounts, files, jobs
from ..contract import Contract
from ..home import Home, open_work_root, read_policy, read_site
from ..jobs import JobFolder
from ..ledger import Ledger
from ..signatures import check_signature
from . import monitor, program, workspace
from .client import MAX_LINE
from .release import MANIFEST, RECEIPT, RELEASED, SIGNATURE, Releaser
from .runner import Runner, list_leaving
from .supervisor import STOPPED, STOPPING

SYSTEMCTL = "/usr/bin/systemctl"
IDLE_SECONDS = 300.0
REQUEST_SECONDS = 5.0
_FIRST_SOCKET = 3
# What a door may say of itself; everything else in the ledger is the runner's own word.
_DOOR_EVENTS = frozenset({"hello", "open", "put", "start", "wait", "get", "cancel", "close", "refuse"})
_OWN_FIELDS = frozenset({"utc", "boot", "uptime", "event", "v", "seq", "prev"})
# A job's folder that was taken over: records in it are shared with the door's group (setgid), for reading.
TAKEN = 0o2751
_MADE_BY_RUNS = (monitor.EXIT, program.STARTED, RELEASED, MANIFEST, RECEIPT, SIGNATURE, STOPPING, STOPPED)


def systemctl(*words: str) -> str:
    """Run systemctl; OSError with its last line where it fails."""
    done = subprocess.run(
        [SYSTEMCTL, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False
    )
    if done.returncode != 0:
        raise OSError(0, (done.stderr.strip().splitlines() or ["systemctl failed"])[-1][:200])
    return done.stdout


class HostRunner(Runner):
    """What the service does for the door, as root."""

    def run(self, job: JobFolder, pipe: int = -1) -> int:
        """Take the folder over and start the job's supervisor, which may run already."""
        admit(job, self.policy)
        systemctl("start", "--no-block", f"{SUPERVISOR}@{job.job}.service")
        return 0

    def leave(self, job: JobFolder, manifest: Manifest = ()) -> None:
        """Record what was attested, then open it to the door's group."""
        if os.fstat(job.folder).st_uid != 0 or job.read().state not in (JobState.ENDED, JobState.RETRIEVED):
            raise Denied(Refusal.STATE, "there is nothing that may leave")
        document = files.read_record(job.folder, MANIFEST, MAX_DOCUMENT_BYTES)
        attested = () if document is None else parse_manifest(document, lambda name: None, 10**7)
        records = list_leaving(job.job, attested)
        if records:
            self.ledger.append_all("leave", records)
        _open_results(job)


def admit(job: JobFolder, policy: Policy) -> None:
    """From here on the door reads the job's records and changes none; doing it again changes nothing.

    Where the policy asks for signatures, the door's own check counts for nothing: the job is Denied unless MInt signed
    it and its inputs. What was checked is written anew, for the door may still hold the old files open for writing.
    """
    if _is_taken(job):
        return
    record = job.read()
    checked = {jobs.RECORD: dump_json(encode(record)) + b"\n"}
    if policy.require_signature:
        spec = job.spec()
        check_signature(policy, spec, job.signature())
        inputs = files.read_record(job.folder, workspace.INPUTS, MAX_DOCUMENT_BYTES) or b""
        if hashlib.sha256(inputs).hexdigest() != spec.manifest:
            raise Denied(Refusal.SIGNATURE, "the inputs are not those of the signed job spec")
        checked.update({jobs.SPEC: render_spec(spec) + b"\n", workspace.INPUTS: inputs})
    take_over(job, record, checked)


def _is_taken(job: JobFolder) -> bool:
    status = os.fstat(job.folder)
    return status.st_uid == 0 and stat.S_IMODE(status.st_mode) == TAKEN


def refuse_planted(job: JobFolder, record: jobs.JobRecord) -> None:
    """Denied where a job that has not run brings what only its run makes: an end, a release, results, a log."""
    told = (record.outcome, record.exit_status, record.started, record.program)
    planted = record.state.order > JobState.QUEUED.order or any(value is not None for value in told)
    planted = planted or any(files.exists(job.folder, name) for name in _MADE_BY_RUNS)
    for name in ("work", "return", "log"):
        with files.opened(job.sub(name)) as folder:
            planted = planted or bool(os.listdir(folder))
    if planted:
        raise Denied(Refusal.CONFIG, "the job's folder holds what no door makes")


def take_over(job: JobFolder, record: jobs.JobRecord, checked: Mapping[str, bytes]) -> None:
    """Make the folder and all in it root's, with `checked` instead of the files of these names."""
    status = os.fstat(job.folder)
    gate, runs = accounts.gate_account(), accounts.job_account()
    if status.st_uid not in (0, gate.uid):
        raise Denied(Refusal.CONFIG, "the job's folder belongs to somebody else")
    # First nobody else can change names in it; its mode comes last, and says that all is done.
    os.fchown(job.folder, 0, gate.gid)
    for name, data in checked.items():
        files.write_record(job.folder, name, data)
    for name in os.listdir(job.folder):
        if name == jobs.DOOR:
            continue
        with files.opened(os.open(name, files.READ, dir_fd=job.folder)) as descriptor:
            _take(descriptor, name, gate, runs)
    # Now nobody can add anything: what is not here will not be.
    refuse_planted(job, record)
    with contextlib.suppress(FileExistsError):
        os.mkdir(GUARD, files.PRIVATE_FOLDER, dir_fd=job.folder)
    os.fchmod(job.folder, TAKEN)


def _take(descriptor: int, name: str, gate: accounts.Account, program: accounts.Account) -> None:
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        owner, group, mode = {
            "work": (program.uid, program.gid, 0o700),
            "log": (program.uid, gate.gid, 0o2750),
        }.get(name, (0, gate.gid, 0o700))
    elif stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        owner, group, mode = 0, gate.gid, 0o640
    elif stat.S_ISFIFO(status.st_mode):
        owner, group, mode = 0, gate.gid, 0o600
    else:
        raise Denied(Refusal.CONFIG, "the job's folder holds what no door makes")
    os.fchown(descriptor, owner, group)
    os.fchmod(descriptor, mode)


def _open_results(job: JobFolder) -> None:
    """`return/` becomes readable, and stays unchangeable, for the door's group."""
    gate = accounts.gate_account()

    def open_one(path: str, parent: int, name: str, status: os.stat_result) -> None:
        with files.opened(files.open_regular(parent, name, single=True)) as descriptor:
            os.fchown(descriptor, 0, gate.gid)
            os.fchmod(descriptor, 0o640)

    with files.opened(job.sub("return")) as folder:
        _open_folder(folder, gate.gid)
        files.walk_folders(folder, lambda inner: _open_folder(inner, gate.gid))
        files.walk(folder, open_one)


def _open_folder(descriptor: int, group: int) -> None:
    os.fchown(descriptor, 0, group)
    os.fchmod(descriptor, 0o750)


class Service:
    """Answers one request at a time until nobody has asked for a while; systemd holds the socket meanwhile."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._site = read_site(home)
        self._gate = accounts.gate_account()

    def serve(self) -> int:
        """Serve the socket that systemd passed."""
        if os.environ.get("LISTEN_FDS") != "1":
            raise ValueError("the runner is started by its socket, misrc-runner.socket")
        listening = socket.socket(fileno=_FIRST_SOCKET)
        listening.settimeout(IDLE_SECONDS)
        while True:
            try:
                link, _ = listening.accept()
            except socket.timeout:
                return 0
            with link:
                link.settimeout(REQUEST_SECONDS)
                self._serve_one(link)

    def _serve_one(self, link: socket.socket) -> None:
        try:
            peer = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if peer[1] not in (0, self._gate.uid):
                return
            answer = self._answer(_read_request(link))
        except Denied as denied:
            answer = {"denied": denied.refusal.value, "note": denied.note}
        except (OSError, ValueError, KeyError) as error:
            answer = {"denied": Refusal.INTERNAL.value, "note": f"runner: {error}"}
        try:
            link.sendall(json.dumps(answer).encode("ascii") + b"\n")
        except OSError:
            return

    def _answer(self, request: Mapping[str, Any]) -> Dict[str, Any]:
        what = request.get("do")
        if what == "record":
            return self._record(request)
        if what == "allows":
            fields = request.get("fields")
            if not isinstance(fields, dict) or request.get("event") != "leave" or set(fields) - {"job", "out"}:
                raise Denied(Refusal.GRAMMAR, "a door may not ask that")
            return {"allows": self._ledger().allows("leave", **fields)}
        job = request.get("job")
        if not isinstance(job, str) or not is_job_id(job):
            raise Denied(Refusal.GRAMMAR, "the runner was asked for no job")
        policy = read_policy(self._home)
        with files.opened(open_work_root(policy)) as root:
            folder = jobs.find_job(root, policy.work_root, job)
            try:
                return self._act(what, folder, policy, root)
            finally:
                folder.close()

    def _act(self, what: object, job: JobFolder, policy: Policy, root: int) -> Dict[str, Any]:
        ledger = self._ledger(site=self._site, key="-", peer="runner")
        runner = HostRunner(policy, root, ledger, Releaser(self._site, policy, self._home.key, ledger))
        if what == "run":
            runner.run(job)
        elif what == "cancel":
            runner.cancel(job)
        elif what == "close":
            runner.close(job)
        elif what == "leave":
            runner.leave(job)
        elif what == "delete":
            if policy.keep_days or job.read().state is not JobState.CLOSED:
                raise Denied(Refusal.STATE, "the job stays")
            runner.after_close(job)
        else:
            raise Denied(Refusal.GRAMMAR, "the runner has no such verb")
        return {"done": what}

    def _record(self, request: Mapping[str, Any]) -> Dict[str, Any]:
        event, fields = request.get("event"), request.get("fields")
        if event not in _DOOR_EVENTS or not isinstance(fields, dict) or _OWN_FIELDS & set(fields):
            raise Denied(Refusal.LEDGER, "a door may not record that")
        ledger = self._ledger()
        checkpoint = ledger.append(str(event), bool(request.get("essential")), **{**fields, "site": self._site})
        return {"seq": checkpoint.seq, "hash": checkpoint.hash, "frozen": ledger.is_frozen()}

    def _ledger(self, **actor: str) -> Ledger:
        ledger = Ledger(self._home.state, **actor)
        ledger.contract = Contract(read_policy(self._home))
        return ledger


def _read_request(link: socket.socket) -> Mapping[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        chunk = link.recv(MAX_LINE)
        data += chunk
        if not chunk or len(data) > MAX_LINE:
            raise Denied(Refusal.GRAMMAR, "the request is cut or too long")
    try:
        request = parse_json(data[:-1])
    except CodecError as error:
        raise Denied(Refusal.GRAMMAR, str(error)) from None
    if not isinstance(request, dict):
        raise Denied(Refusal.GRAMMAR, "the request is not an object")
    return request


def recover(home: Home) -> int:
    """After a boot: every job that somebody should look after gets its supervisor back."""
    policy = read_policy(home)
    with files.opened(open_work_root(policy)) as root:
        for folder, record in jobs.read_jobs(root, policy.work_root):
            if record.state in (JobState.QUEUED, JobState.RUNNING):
                try:
                    admit(folder, policy)
                except Denied:
                    # A door left it that way; it is as if it had never been asked for.
                    continue
                systemctl("start", "--no-block", f"{SUPERVISOR}@{folder.job}.service")
    return 0
