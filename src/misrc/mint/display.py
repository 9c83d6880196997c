"""What a waiting person sees: a bar on a terminal, plain dated lines in a log, nothing twice."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..job.quantities import format_size
from .messages.catalog import say
from .reasons import explain_waiting
from .streams import complain


def format_elapsed(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Display:
    """Shows a job's way on standard error; standard output stays for results."""

    LINE_SECONDS = 60.0
    # A log does not need to know that a short job was queued for a moment.
    QUIET_SECONDS = 2.0

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._last = ("", 0.0)
        self._why = ("", 0.0)
        self._terminal = sys.stderr.isatty() and not quiet

    def say(self, key: str, **values: object) -> None:
        """One line."""
        self.line(say(key, **values))

    def line(self, text: str) -> None:
        """One line, dated where nobody sits in front of it."""
        if self._quiet:
            return
        self._drop_bar()
        stamp = "" if self._terminal else time.strftime("%Y-%m-%d %H:%M:%S ")
        # Whoever read our lines may be gone: the job goes on all the same.
        complain(stamp + text)

    def transfer(self, phase: str, done: float, total: float) -> None:
        """Bytes that have moved in a step."""
        if self._terminal:
            self._draw(say(f"phase.{phase}"), done, total, transfer=True)
        elif total:
            size = f"{format_size(done)} / {format_size(total)}"
            self._sometimes(phase, f"{say(f'phase.{phase}')}: {size}", 10.0)

    def waiting(self, state: str, since: float, progress: Any = None, reason: str | None = None) -> None:
        """The program's own progress where it reports any; otherwise state, elapsed time, and why the job waits."""
        elapsed = format_elapsed(max(0.0, time.time() - since))
        why = explain_waiting(reason)
        text = say("job.waiting", state=state, elapsed=elapsed)
        if why:
            text = say("job.held_back", state=state, elapsed=elapsed, why=why)
        if progress is not None:
            detail = f"{progress.done:g}/{progress.total:g} {progress.unit} {progress.text}".strip()
            if self._terminal:
                self._draw(f"{state} {detail}", progress.done, progress.total, transfer=False)
                return
            self._sometimes(state + detail, f"{text}: {detail}", 5.0)
            return
        if self._terminal:
            self._draw(text, 0, 0, transfer=False)
            return
        if time.time() - since >= self.QUIET_SECONDS:
            self._sometimes(state + why, text, self.LINE_SECONDS)

    def paused(self, why: str) -> None:
        """The other side asked for patience, and why."""
        if why != self._why[0] or time.monotonic() - self._why[1] >= self.LINE_SECONDS:
            self._why = (why, time.monotonic())
            self.line(why)

    def close(self) -> None:
        """Leave the terminal clean."""
        self._drop_bar()

    def _sometimes(self, what: str, text: str, seconds: float) -> None:
        if what != self._last[0] or time.monotonic() - self._last[1] >= seconds:
            self._last = (what, time.monotonic())
            self.line(text)

    def _draw(self, text: str, done: float, total: float, transfer: bool) -> None:
        if self._bar is None:
            self._bar = _make_bar(transfer)
            self._bar.start()
            self._task = self._bar.add_task(text, total=total or None)
        self._bar.update(self._task, description=text, completed=done, total=total or None)

    def _drop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _make_bar(transfer: bool) -> Any:
    """rich is only loaded where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [DownloadColumn(binary_units=True), TransferSpeedColumn()] if transfer else [TimeElapsedColumn()]
    return Progress(*columns, console=Console(stderr=True), transient=True)
