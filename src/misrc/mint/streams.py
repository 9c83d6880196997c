"""Standard streams that somebody closed, or does not read any more: they decide neither a job nor an exit status."""

from __future__ import annotations

import contextlib
import os
import sys


def open_standard_streams() -> None:
    """Put the null device where a stream was closed, so that no file or socket of ours ever takes its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def complain(text: str) -> None:
    """One line on standard error for people, if anybody reads it; what a terminal would act upon is shown escaped."""
    try:
        print("".join(map(_show, text)), file=sys.stderr, flush=True)
    except OSError:
        _discard(2)


def _show(character: str) -> str:
    # The wide space of Japanese text is one.
    plain = character.isprintable() or character == "\u3000"
    return character if plain else character.encode("unicode_escape").decode("ascii")


def discard_output() -> None:
    """Nobody reads standard output: what is still buffered goes nowhere, without another error at the exit."""
    _discard(1)


def _discard(number: int) -> None:
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
