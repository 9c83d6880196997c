"""What keeps tokens and keys of a running process where they belong: no core dump, no word in lists of processes.

Not covered: a system that hands dumps to a program (`kernel.core_pattern` with `|`) asks that program whether it minds
the limit; systemd-coredump does. A word of a command line was visible until it was hidden. What root wants to read of a
process, root can read.
"""

from __future__ import annotations

# Where /proc/PID/stat has the two ends of the command line's memory, counted behind the process's name.
_ARGUMENTS = slice(45, 47)


def leave_no_core() -> None:
    """From now on neither this process nor what it starts writes a core dump."""
    try:
        import resource
    except ImportError:  # a system without limits: nothing to set
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def hide_word(secret: str) -> None:
    """Overwrite a word of this process's command line; where that cannot be done, nothing happens."""
    try:
        with open("/proc/self/stat", "rb") as file:
            start, end = map(int, file.read().rpartition(b") ")[2].split()[_ARGUMENTS])
        word = secret.encode()
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            found = memory.read(end - start).find(b"\0" + word + b"\0")
            if word and found >= 0:
                memory.seek(start + found + 1)
                memory.write(b"*" * len(word))
    except (OSError, ValueError, UnicodeEncodeError):
        return
