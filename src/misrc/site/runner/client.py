"""The door's side of the runner's socket: one JSON line out, one JSON line back, nothing believed beyond its form."""

from __future__ import annotations

import json
import socket
from typing import Any, Mapping, Sequence

from ...job.codec import CodecError, parse_json
from ...job.ledger import Checkpoint
from ...job.manifest import Manifest
from ...job.policy import Policy
from ...job.states import JobState
from ...job.units import RUNNER_SOCKET
from ...wire.refusals import Denied, Refusal
from ..jobs import JobFolder
from ..ledger import Ledger
from .observation import Watch
from .runner import Runner
from .supervisor import alive

MAX_LINE = 1 << 16
ANSWER_SECONDS = 60.0


def ask(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """One request; Denied with the runner's own code, or INTERNAL where it cannot be asked."""
    line = json.dumps(request).encode("ascii") + b"\n"
    if len(line) > MAX_LINE:
        raise Denied(Refusal.INTERNAL, "the request to the runner is too long")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(ANSWER_SECONDS)
            link.connect(RUNNER_SOCKET)
            link.sendall(line)
            answer = parse_json(_read_line(link))
    except (OSError, CodecError) as error:
        raise Denied(Refusal.LEDGER, f"the runner cannot be asked: {error}") from None
    if not isinstance(answer, dict):
        raise Denied(Refusal.INTERNAL, "the runner's answer is not an object")
    if "denied" in answer:
        raise Denied(Refusal(answer["denied"]), str(answer.get("note", "")))
    return answer


def _read_line(link: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        chunk = link.recv(MAX_LINE)
        if not chunk or len(data) > MAX_LINE:
            raise OSError(0, "the answer is cut")
        data += chunk
    return data[:-1]


class RemoteLedger(Ledger):
    """The ledger as a door sees it: it can add what it was asked, and read or change nothing."""

    _frozen = False

    def append_all(self, event: str, records: Sequence[Mapping[str, Any]], essential: bool = False) -> Checkpoint:
        """Have records of the door's own kinds added."""
        for fields in records:
            claimed = {**self._actor, **fields}
            answer = ask({"do": "record", "event": event, "essential": essential, "fields": claimed})
            self.checkpoint = Checkpoint(int(answer["seq"]), str(answer["hash"]))
            self._frozen = bool(answer.get("frozen"))
        assert self.checkpoint is not None
        return self.checkpoint

    def is_frozen(self) -> bool:
        """What the service said with its last answer."""
        return self._frozen

    def allows(self, event: str, **fields: Any) -> bool:
        """Whether the service would record this now."""
        return bool(ask({"do": "allows", "event": event, "fields": fields}).get("allows"))


class ServiceRunner(Runner):
    """The root install's: each wish goes to the service as a verb and a job id."""

    def __init__(self, policy: Policy, ledger: Ledger) -> None:
        self.policy = policy
        self.ledger = ledger

    def run(self, job: JobFolder, pipe: int = -1) -> int:
        """See to it that somebody looks after the job."""
        ask({"do": "run", "job": job.job})
        return 0

    def revive(self, job: JobFolder, state: JobState, pipe: int = -1) -> int:
        """Ask only where nobody looks after the job: the question costs a process. The service holds no `pipe`."""
        if state in (JobState.QUEUED, JobState.RUNNING) and not alive(job):
            self.run(job)
        return 0

    def cancel(self, job: JobFolder) -> None:
        """Stop whatever the job started."""
        ask({"do": "cancel", "job": job.job})

    def wait_for_end(self, job: JobFolder, seconds: float) -> None:
        """Until the job's program cannot run any more, or the time is over."""
        Watch(job, None, self.revive).until_final(seconds)

    def close(self, job: JobFolder) -> None:
        """MInt has what it needs."""
        ask({"do": "close", "job": job.job})

    def after_close(self, job: JobFolder) -> None:
        """The service deletes at once where the site keeps nothing; a timer sees to the rest."""
        if self.policy.keep_days == 0:
            ask({"do": "delete", "job": job.job})

    def leave(self, job: JobFolder, manifest: Manifest) -> None:
        """The service records what it attested, whatever the door read, and opens the results to the door."""
        ask({"do": "leave", "job": job.job})
