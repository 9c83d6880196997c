"""The supervisor: one detached process per job, from the accepted start to the signed receipt.

What it guards: a job's program starts exactly once, whatever is killed or repeated. The child that becomes the
program takes an exclusive marker right before it does; a new supervisor (started by any later verb that finds the
old one gone) therefore knows whether it may start, must adopt, or can only say "lost".

    gate → supervisor (subreaper, limits, cancel) → monitor (output, exit status) → the program
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import List, Optional, Tuple

from ...job.arguments import ArgumentRefused, argument_words, fill_arguments
from ...job.faults import reach
from ...job.policy import Policy, ProgramRule
from ...job.states import JobState, Outcome
from ...wire.reasons import STOPPED_FROZEN
from ...wire.refusals import Denied, Refusal
from .. import contract, files, kernel
from ..jobs import CONTROL, JobFolder
from ..ledger import Ledger
from . import monitor, program, release, workspace
from .start_queue import HeldBack, StartQueue

LOCK = "supervisor.lock"
MONITOR_LOCK = "keeper.lock"
CANCEL = "cancel"
STOPPED = "cancel.frozen"
STOPPING = "stopping"
GRACE_SECONDS = 5.0
ADOPTED_POLL = 0.5


class Cancelled(Exception):
    """The job is to be stopped."""


class Overdue(Exception):
    """The program ran longer than the site allows."""


class Vanished(Exception):
    """The program is gone and nobody saw how it ended."""


def spawn(job: JobFolder, policy: Policy, ledger: Ledger, release_to: release.Releaser, pipe: int = -1) -> int:
    """Start a supervisor for the job, detached from the door, unless one lives; it holds `pipe` open while it does.

    With a pipe its process id is returned, and the caller waits for it in the end; else 0.
    """
    lock = files.try_lock(job.folder, LOCK)
    for _ in range(5):
        if lock is None:
            # Perhaps only a look at the lock (`alive`), which is over in a moment.
            time.sleep(0.01)
            lock = files.try_lock(job.folder, LOCK)
    if lock is None:
        return 0
    child = os.fork()
    if child == 0:
        os.setsid()
        # A door that stays (it has a pipe) collects its supervisors itself; one that goes leaves them to nobody.
        if pipe >= 0 or os.fork() == 0:
            _detach(lock, job, pipe)
            status = 1
            try:
                made = Supervisor(job, policy, ledger, release_to, lock)
                made.pipe = pipe
                made.run()
                status = 0
            finally:
                os._exit(status)
        os._exit(0)
    os.close(lock)
    if pipe >= 0:
        return child
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    return 0


def alive(job: JobFolder) -> bool:
    """Whether a supervisor looks after the job. Several may look at once: that takes the lock only as shared."""
    return files.is_locked(job.folder, LOCK)


def _competes(job: JobFolder) -> bool:
    return not files.exists(job.folder, CANCEL) and alive(job)


def request_cancel(job: JobFolder) -> None:
    """Note the wish durably, then wake the supervisor."""
    if not files.exists(job.folder, CANCEL):
        files.write_record(job.folder, CANCEL, b"")
    wake(job)


def request_stop(job: JobFolder) -> None:
    """The site itself ends the job: as `request_cancel`, and the job's end says who it was."""
    if not files.exists(job.folder, STOPPED):
        files.write_record(job.folder, STOPPED, b"")
    request_cancel(job)


def wake(job: JobFolder) -> None:
    """Let the job's supervisor look around now."""
    with contextlib.suppress(OSError):
        with files.opened(os.open(CONTROL, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=job.folder)) as pipe:
            os.write(pipe, b"!")


def _detach(lock: int, job: JobFolder, pipe: int) -> None:
    """Let go of everything that belongs to the door."""
    signal.set_wakeup_fd(-1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    keep = {0, 1, 2, lock, job.folder, job.root, pipe}
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else map(str, range(256)):
        if int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(0)
    os.chdir("/")


class Supervisor:
    """One run of a supervisor; everything that must outlive it is in the job's folder."""

    # Where the marker lies that lets a job's program start only once.
    started = program.STARTED
    # Whether all that the job ever started is below this process.
    sees_all = False
    # The pipe whose closing tells the door that this process has ended; -1 where nobody listens.
    pipe = -1

    def __init__(self, job: JobFolder, policy: Policy, ledger: Ledger, release_to: release.Releaser, lock: int) -> None:
        self.job = job
        self.policy = policy
        self.ledger = ledger
        self.release_to = release_to
        self.lock = lock
        self.spec = job.spec()
        # A program that left the policy since the start was accepted neither starts nor returns anything.
        self.rule = policy.programs.get(self.spec.program) or ProgramRule("/nonexistent", returns=(), logs="none")
        self.streams: Tuple[int, int] = (-1, -1)
        self.monitor_pid = 0
        self.deadline = float("inf")
        self.start_queue = StartQueue(job, policy, ledger.folder, self._check_cancel, self._sleep, _competes)
        self.control = os.open(CONTROL, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=job.folder)

    def run(self) -> None:
        """From wherever the job stands to its end."""
        reach("supervisor.enter")
        # Where somebody ran the job before us, what was started then need not be below us.
        traces = [name for name in (MONITOR_LOCK, self.started) if files.exists(self.job.folder, name)]
        self.sees_all = kernel.become_subreaper() and not traces
        try:
            end = self._reach_end()
            self._sweep_leftovers()
            outcome, reason = release.judge(end, self.rule)
        except Cancelled:
            self._stop_everything(b"cancelled")
            end, outcome, reason = monitor.read_end(self.job.folder), Outcome.CANCELLED, self._say_who_stopped()
        except Overdue:
            self._stop_everything(b"overdue")
            end, outcome, reason = None, Outcome.FAILED, "the program ran longer than the site allows"
        except Vanished:
            self._stop_everything()
            end, outcome, reason = None, Outcome.LOST, "the program is gone and its exit status was not seen"
        except Denied as denied:
            end, outcome, reason = None, Outcome.REFUSED, denied.refusal.value
        except workspace.InputsChanged:
            end, outcome, reason = None, Outcome.FAILED, "the inputs are not those of the manifest any more"
        except OSError as error:
            self._stop_everything()
            end, outcome, reason = None, Outcome.FAILED, f"the site could not run the job: {error.strerror}"
        reach("supervisor.finish")
        self.release_to.finish(self.job, self.rule, end, outcome, reason)
        reach("supervisor.leave")

    def _reach_end(self) -> Optional[monitor.ProgramEnd]:
        folder = self.job.folder
        decided = files.read_record(folder, STOPPING)
        if decided is not None:
            # An earlier supervisor began to stop the job: that stands, however the program took it.
            raise Cancelled if decided == b"cancelled" else Overdue
        end = monitor.read_end(folder)
        if end is not None:
            return end
        if files.exists(folder, self.started) or self._monitor_alive():
            return self._adopt()
        return self._start_in_turn()

    # -- a fresh start ------------------------------------------------------------------------------------------

    def _start_in_turn(self) -> Optional[monitor.ProgramEnd]:
        """Start when the site lets jobs start and there is a place."""
        while True:
            with self.start_queue.take(), contextlib.suppress(HeldBack):
                return self._start()

    def _start(self) -> Optional[monitor.ProgramEnd]:
        if self.spec.program not in self.policy.programs:
            raise Denied(Refusal.PROGRAM)
        digest = program.check_program(self.rule)
        try:
            words = argument_words(fill_arguments(self.rule.arguments, self.spec.arguments))
        except ArgumentRefused as error:
            raise Denied(Refusal.ARGUMENT, str(error)) from None
        self._prepare()
        self._check_cancel()
        self._record_run(digest, words)
        with self.job.lock():
            if self.job.read().state is JobState.QUEUED:
                self.job.advance(JobState.RUNNING, started=time.time(), program=digest, reason="")
        # Frozen between the record and the line above: `freeze --stop` may have seen this job as waiting.
        self._check_stop()
        self._check_cancel()
        reach("supervisor.running")
        self.deadline = kernel.uptime() + self.policy.limits.run_seconds
        return self._launch(words)

    def _prepare(self) -> None:
        workspace.prepare(self.job)

    def _launch(self, words: List[str]) -> Optional[monitor.ProgramEnd]:
        """Start the program in a child of ours and see it to its end."""
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        self.streams = (out, err)
        self.monitor_pid = os.fork()
        if self.monitor_pid == 0:
            self._keep(words, (out, err), (out_end, err_end))
        os.close(out_end)
        os.close(err_end)
        reach("supervisor.forked")
        self._wait_for(self.monitor_pid)
        # It is reaped: its number may soon be another process's.
        self.monitor_pid = 0
        return monitor.read_end(self.job.folder) or self._take_over_from_monitor()

    def _record_run(self, digest: str, words: List[str]) -> None:
        """The ledger has the last word on whether the site is frozen."""
        self.start_queue.check_opening()
        try:
            self.ledger.append("run", job=self.job.job, program=self.spec.program, sha256=digest, arguments=words)
        except Denied as denied:
            if denied.refusal is Refusal.FROZEN:
                raise HeldBack from None
            raise

    def _keep(self, words: List[str], streams: Tuple[int, int], ends: Tuple[int, int]) -> None:
        """The monitor's whole life, in its own process."""
        status = 1
        try:
            self._take_monitor_lock()
            if self.pipe >= 0:
                # It outlives a supervisor that is killed, and the door must hear of that now.
                os.close(self.pipe)
            kernel.become_subreaper()
            reach("monitor.enter")
            report, report_end = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.dup2(ends[0], 1)
                os.dup2(ends[1], 2)
                for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                program.become_program(
                    self.job.job, self.job.path, self.job.folder, self.rule, words, self.policy.limits, report_end
                )
            for descriptor in (report_end, *ends):
                os.close(descriptor)
            error = os.read(report, 500).decode("utf-8", "replace")
            reach("monitor.started")
            ended = monitor.attend(self.job.folder, pid, streams, self.policy.limits.size("log_bytes") or 0)
            monitor.write_end(self.job.folder, monitor.ProgramEnd(None if error else ended, error))
            status = 0
        finally:
            os._exit(status)

    def _take_monitor_lock(self) -> None:
        """Say who the monitor is; only then let the supervisor's own lock be free for another, should this one die."""
        lock = files.try_lock(self.job.folder, MONITOR_LOCK)
        if lock is None:
            raise OSError(0, "the job has a monitor")
        pid = os.getpid()
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.write(lock, f"{pid} {kernel.start_time(pid)}".encode())
        os.close(self.lock)

    def _take_over_from_monitor(self) -> Optional[monitor.ProgramEnd]:
        """The monitor was killed: its child, if there is one, is ours now, and so is its work."""
        folder = self.job.folder
        child = self._orphan()
        if child:
            log_bytes = self.policy.limits.size("log_bytes") or 0
            status = monitor.attend(folder, child, self.streams, log_bytes, self._check_bounds)
            if files.exists(folder, self.started):
                monitor.write_end(folder, monitor.ProgramEnd(status))
                return monitor.read_end(folder)
        if files.exists(folder, self.started):
            return self._adopt()
        return self._start()

    def _orphan(self) -> int:
        """The program, or what is about to become it, as a child of ours; 0 where the monitor saw its end."""
        marked = program.parse_marker(files.read_record(self.job.folder, self.started))[0]
        pid = marked or next(iter(kernel.find_processes([os.getpid()], b"\0", [])), 0)
        return pid if pid and kernel.is_child(pid) else 0

    # -- adoption -----------------------------------------------------------------------------------------------

    def _monitor_alive(self) -> bool:
        return files.is_locked(self.job.folder, MONITOR_LOCK)

    def _find_monitor(self) -> int:
        """The monitor of an earlier supervisor: all below it is the job's, whatever its environment says."""
        words = (files.read_record(self.job.folder, MONITOR_LOCK) or b"").split()
        pid, started = (int(words[0]), int(words[1])) if len(words) == 2 else (0, 0)
        return pid if started and kernel.start_time(pid) == started else 0

    def _program_alive(self) -> bool:
        """Whether the marked program lives; its start also says how long it may still run."""
        pid, started, boot = program.parse_marker(files.read_record(self.job.folder, self.started))
        if not pid or boot != kernel.boot_id() or kernel.start_time(pid) != started:
            return False
        if kernel.boot_id() or self.deadline == float("inf"):
            self.deadline = kernel.age_limit(started, self.policy.limits.run_seconds)
        return True

    def _adopt(self) -> Optional[monitor.ProgramEnd]:
        """A program started under an earlier supervisor: wait for its monitor, or for the program itself, to go."""
        with contextlib.suppress(Denied):
            # The program runs already: a ledger that cannot be written now does not make it refused.
            self.ledger.append("adopt", essential=True, job=self.job.job)
        self.monitor_pid = self._find_monitor()
        while self._program_alive() or self._monitor_alive():
            self._check_bounds()
            self._sleep(ADOPTED_POLL)
        self.monitor_pid = 0
        end = monitor.read_end(self.job.folder)
        if end is None and not files.exists(self.job.folder, self.started):
            return self._start_in_turn()
        if end is None and self.rule.restartable:
            self._stop_everything()
            self.ledger.append("restart", job=self.job.job)
            os.unlink(self.started, dir_fd=self.job.folder)
            return self._start_in_turn()
        if end is None:
            raise Vanished
        return end

    # -- waiting and stopping -----------------------------------------------------------------------------------

    def _wait_for(self, pid: int) -> None:
        """Until child `pid` has ended, or the job is cancelled or overdue."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        watched = kernel.watch_process(pid)
        if watched >= 0:
            poller.register(watched, select.POLLIN)
        while True:
            done, _ = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            self._check_bounds()
            left = max(0.0, self.deadline - kernel.uptime()) + 0.01
            poller.poll(1000 * min(left, 60.0 if watched >= 0 else 0.5))
            self._drain_control()
        if watched >= 0:
            os.close(watched)

    def _check_bounds(self) -> None:
        self._check_stop()
        self._check_cancel()
        if kernel.uptime() > self.deadline:
            raise Overdue

    def _check_stop(self) -> None:
        """The site ends what runs. Its mark is enough: on a full disk the job's own note of it may not be possible."""
        if contract.is_stopping(self.ledger.folder):
            with contextlib.suppress(OSError):
                request_stop(self.job)
            raise Cancelled

    def _say_who_stopped(self) -> str:
        folder = self.job.folder
        stopping = contract.is_stopping(self.ledger.folder) and not files.exists(folder, CANCEL)
        return STOPPED_FROZEN if stopping or files.exists(folder, STOPPED) else "cancelled by MInt"

    def _check_cancel(self) -> None:
        if files.exists(self.job.folder, CANCEL):
            raise Cancelled

    def _sleep(self, seconds: float) -> None:
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.poll(seconds * 1000)
        self._drain_control()

    def _drain_control(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.control, 4096)

    def _job_processes(self) -> List[int]:
        """What the job started and still lives. Looking through all of the machine's processes is the last resort."""
        if not self._reap() and self.sees_all:
            return []
        marker = program.marker_variable(self.job.job).encode()
        roots = [os.getpid()] + ([self.monitor_pid] if self.monitor_pid else [])
        return kernel.find_processes(roots, marker, [os.getpid(), self.monitor_pid])

    def _stop_everything(self, why: bytes = b"") -> None:
        """SIGTERM, a grace time, then SIGKILL until nothing that the job started is left."""
        self._note_stopping(why)
        self._signal_all(signal.SIGTERM)
        grace = time.monotonic() + GRACE_SECONDS
        while self._job_processes() and time.monotonic() < grace:
            time.sleep(0.05)
        self._sweep_leftovers()
        if self.monitor_pid:
            end = time.monotonic() + GRACE_SECONDS
            while kernel.start_time(self.monitor_pid) and time.monotonic() < end:
                self._reap()
                time.sleep(0.02)

    def _note_stopping(self, why: bytes) -> None:
        if why and not files.exists(self.job.folder, STOPPING):
            with contextlib.suppress(OSError):
                files.write_record(self.job.folder, STOPPING, why)
        reach("supervisor.stop")

    def _sweep_leftovers(self) -> None:
        for _ in range(500):
            if not self._signal_all(signal.SIGKILL):
                return
            time.sleep(0.02)

    def _signal_all(self, number: int) -> int:
        found = self._job_processes()
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        return len(found)

    def _reap(self) -> bool:
        """Collect the children that have ended; whether others live."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            return True
        return False
