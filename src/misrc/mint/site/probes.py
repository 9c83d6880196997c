"""What must be refused, tried over a real connection: each probe does the forbidden thing and looks at what came back.

A probe ends in one of three ways: the thing was granted (FAIL); it was refused, and the same connection still serves
`hello` (ok); anything else is unknown, and unknown is never ok.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence

from ...job.codec import dump_json, encode
from ...job.errors import MisrcError, Refused
from ...job.manifest import Entry, digest_manifest
from ...job.spec import JobSpec, OpenRequest, render_open
from ...wire.refusals import Refusal
from ..link.link import last_line
from ..messages.catalog import say
from .findings import Finding, Verdict, fail, refused, skipped
from .trial import Attempt, Trial, alone, empty_agent

# What a shell makes of `echo misrc-$((40+2))`, and nothing else would print.
_SUM = b"misrc-42"
_ECHO = "echo misrc-$((40+2))"
_SFTP_INIT = b"\0\0\0\5\1\0\0\0\3"
_PROHIBITED = "administratively prohibited"
# What ssh notes when the other side says no to a request on a channel (SSH_MSG_CHANNEL_FAILURE).
_REQUEST_FAILED = re.compile(r"channel_input_status_confirm: type 100 ")
_KEY_OPTIONS = re.compile(r"key options:([^\r\n]*)")

Probe = Callable[[Trial], Finding]


def _judge_session(trial: Trial, name: str, attempt: Attempt, codes: Sequence[str], mark: bytes = _SUM) -> Finding:
    """A session that the gate must refuse with one of `codes`."""
    if mark in attempt.output:
        return fail(name, say("note.carried_out"))
    if attempt.denial in codes and not attempt.output.strip(b"\n"):
        return refused(name, trial.alive(), say("note.refused", how=attempt.denial))
    if attempt.status in (None, 255):
        return skipped(name, say("note.no_answer", why=last_line(attempt.errors) or "-"))
    return fail(name, say("note.not_the_gate", status=attempt.status, why=last_line(attempt.errors) or "-"))


def try_shell(trial: Trial) -> Finding:
    """A login without a command, and words for a shell on its standard input."""
    return _judge_session(trial, "shell", trial.session(data=_ECHO.encode() + b"\nexit\n"), ["E01"])


def try_command(trial: Trial) -> Finding:
    """Another command."""
    return _judge_session(trial, "command", trial.session(_ECHO), ["E02"])


def try_sftp(trial: Trial) -> Finding:
    """The sftp subsystem, greeted as a client does."""
    offset = trial.mark()
    attempt = trial.session("sftp", _SFTP_INIT, ["-s"])
    # sshd passes on no error text of a subsystem: the gate shows by its status alone.
    by_gate = attempt.status == 64 and not attempt.output
    by_sshd = attempt.status == 255 and _REQUEST_FAILED.search(trial.log(offset)) is not None
    if by_gate or by_sshd:
        return refused("sftp", trial.alive(), say("note.refused", how="E02" if by_gate else "sshd"))
    return _judge_session(trial, "sftp", attempt, [], b"\0\0\0")


def try_scp(trial: Trial) -> Finding:
    """The old copy protocol, asked for a file that every host has."""
    return _judge_session(trial, "scp", trial.session("scp -f /etc/passwd", b"\0\0\0\0"), ["E02"], b"C0")


def try_environment(trial: Trial) -> Finding:
    """SSH_ORIGINAL_COMMAND out of the client's environment: a gate would take it for the request."""
    # A shared connection would not pass the variable on.
    attempt = trial.session(options=["-o", "SetEnv=SSH_ORIGINAL_COMMAND=hello", *alone("DEBUG1")])
    if "setting env SSH_ORIGINAL_COMMAND" not in attempt.errors:
        return skipped("environment", say("note.not_tried"))
    if b'"hello"' in attempt.output:
        return fail("environment", say("note.accept_env"))
    return _judge_session(trial, "environment", attempt, ["E01"])


def try_locale(trial: Trial) -> Finding:
    """LC_*: sshd never says whether it took a variable, so only a site that runs our command can be caught."""
    options = ["-o", "SetEnv=LC_MISRC_PROBE=misrc-42", *alone()]
    attempt = trial.session("printenv LC_MISRC_PROBE", options=options)
    if _SUM in attempt.output:
        return fail("locale", say("note.accept_env"))
    return skipped("locale", say("note.locale"))


# -- forwarding -------------------------------------------------------------------------------------------------------


def _judge_channel(trial: Trial, name: str, offset: int) -> Finding:
    """Whether sshd refused to open the channel that a connection to our end of the forwarding asked for."""
    answer = trial.await_log(offset, r"open failed: [^\r\n]*|: open confirm ")
    if _PROHIBITED in answer:
        return refused(name, trial.alive(), say("note.refused", how="sshd"))
    opened = "open failed" not in answer
    return fail(name, say("note.forwarded", why=say("note.channel_open") if opened else answer))


def _try_outward(trial: Trial, name: str, target: str) -> Finding:
    """A forwarding that begins here, at a socket in the private folder."""
    path = trial.folder / "l"
    path.unlink(missing_ok=True)
    asked = f"{path}:{target}"
    if trial.control("forward", "-L", asked).status != 0:
        return skipped(name, say("note.not_tried"))
    offset = trial.mark()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            return _judge_channel(trial, name, offset)
    finally:
        trial.control("cancel", "-L", asked)


def try_local(trial: Trial) -> Finding:
    """A connection from here to a port at the site."""
    return _try_outward(trial, "local", f"127.0.0.1:{trial.connection.site.port}")


def try_stream_local(trial: Trial) -> Finding:
    """A connection from here to a Unix socket at the site, one that many hosts have.

    Where there is none, sshd gives the same answer as for a refusal. Then what it says of the key's line decides.
    """
    finding = _try_outward(trial, "stream_local", "/run/dbus/system_bus_socket")
    if "connect failed" not in finding.note:
        return finding
    allowed = _key_options(trial.log())
    if allowed is None:
        return skipped("stream_local", say("note.silent"))
    if "port-forwarding" in allowed:
        return fail("stream_local", say("note.line_allows"))
    return refused("stream_local", trial.alive(), say("note.refused", how="sshd"))


def try_dynamic(trial: Trial) -> Finding:
    """A SOCKS proxy here that connects at the site."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        local = listener.getsockname()[1]
    asked = f"127.0.0.1:{local}"
    if trial.control("forward", "-D", asked).status != 0:
        return skipped("dynamic", say("note.not_tried"))
    offset = trial.mark()
    try:
        with socket.create_connection(("127.0.0.1", local), timeout=5) as client:
            port = trial.connection.site.port.to_bytes(2, "big")
            client.sendall(b"\4\1" + port + b"\x7f\0\0\1" + b"misrc\0")
            return _judge_channel(trial, "dynamic", offset)
    finally:
        trial.control("cancel", "-D", asked)


def _try_inward(trial: Trial, name: str, listen: str) -> Finding:
    """A forwarding that begins at the site: what sshd answers is the whole of it."""
    asked = f"{listen}:127.0.0.1:9"
    attempt = trial.control("forward", "-R", asked)
    if attempt.status == 0:
        trial.control("cancel", "-R", asked)
        return fail(name, say("note.forwarded", why=listen))
    if "forwarding failed" in attempt.errors or "forwarding request failed" in attempt.errors:
        return refused(name, trial.alive(), say("note.refused", how="sshd"))
    return skipped(name, say("note.no_answer", why=last_line(attempt.errors) or "-"))


def try_remote(trial: Trial) -> Finding:
    """A port at the site that leads here."""
    return _try_inward(trial, "remote", "127.0.0.1:0")


def try_stream_remote(trial: Trial) -> Finding:
    """A Unix socket at the site that leads here."""
    return _try_inward(trial, "stream_remote", f"/tmp/misrc-probe-{uuid.uuid4()}")


# -- what goes with a session: tried together with `hello` on a connection of its own --------------------------------


def _served(attempt: Attempt) -> bool:
    return b'"hello"' in attempt.output


def _judge_beside(name: str, attempt: Attempt, asked: bool, denied: bool) -> Finding:
    """Something that was asked for beside `hello`; `hello` itself is the positive control."""
    if not asked:
        return skipped(name, say("note.not_tried"))
    if denied:
        return refused(name, _served(attempt), say("note.refused", how="sshd"))
    if attempt.status in (None, 255):
        return skipped(name, say("note.no_answer", why=last_line(attempt.errors) or "-"))
    return fail(name, say("note.granted"))


def try_pty(trial: Trial) -> Finding:
    """A terminal."""
    attempt = trial.session("hello", options=["-tt", "-o", "LogLevel=INFO"])
    if "PTY allocation request failed" in attempt.errors:
        return refused("pty", trial.alive(), say("note.refused", how="sshd"))
    # An sshd that cannot make one although it may cuts the connection.
    if _served(attempt) or "pty" in (_key_options(trial.log()) or ()):
        return fail("pty", say("note.granted"))
    return skipped("pty", say("note.no_answer", why=last_line(attempt.errors) or "-"))


def try_x11(trial: Trial) -> Finding:
    """X11 forwarding."""
    options = ["-o", "ForwardX11=yes", "-o", "ForwardX11Trusted=yes", *alone("DEBUG1")]
    attempt = trial.session("hello", options=options, environment={"DISPLAY": "127.0.0.1:99"})
    asked = "Requesting X11 forwarding" in attempt.errors
    return _judge_beside("x11", attempt, asked, "X11 forwarding request failed" in attempt.errors)


def try_tunnel(trial: Trial) -> Finding:
    """A network device, which needs one here too: only root has it."""
    attempt = trial.session("hello", options=["-w", "any:any", "-o", "ClearAllForwardings=no", *alone("DEBUG1")])
    if "Tunnel device open failed" in attempt.errors or "Requesting tun" not in attempt.errors:
        return skipped("tunnel", say("note.no_device"))
    if "Tunnel forwarding failed" in attempt.errors:
        return refused("tunnel", _served(attempt), say("note.refused", how="sshd"))
    # One that was granted keeps the session open until time is up.
    if _served(attempt):
        return fail("tunnel", say("note.granted"))
    return skipped("tunnel", say("note.no_answer", why=last_line(attempt.errors) or "-"))


def _key_options(text: str) -> list[str] | None:
    """What sshd says that the key's line allows; None where it says nothing."""
    found = _KEY_OPTIONS.findall(text)
    return found[-1].split() if found else None


def try_agent(trial: Trial) -> Finding:
    """Our agent lent to the site. sshd does not answer the request; it does say what the key's line allows."""
    with empty_agent(trial.folder) as path:
        options = ["-o", "ForwardAgent=yes", "-o", "IdentityAgent=SSH_AUTH_SOCK", *alone("DEBUG1")]
        attempt = trial.session("hello", options=options, environment={"SSH_AUTH_SOCK": path})
    asked = "Requesting authentication agent forwarding" in attempt.errors
    allowed = _key_options(attempt.errors)
    if allowed is None:
        return skipped("agent", say("note.silent"))
    return _judge_beside("agent", attempt, asked, "agent-forwarding" not in allowed)


def try_rc(trial: Trial) -> Finding:
    """The account's own ~/.ssh/rc, which would run before the gate."""
    allowed = _key_options(trial.log())
    if allowed is None:
        return skipped("rc", say("note.silent"))
    if "user-rc" in allowed:
        return fail("rc", say("note.granted"))
    return refused("rc", trial.alive(), say("note.refused", how="sshd"))


# -- what only the gate can refuse ------------------------------------------------------------------------------------


def _judge_request(trial: Trial, name: str, command: str, data: bytes, codes: Sequence[Refusal]) -> Finding:
    try:
        trial.connection.ask(command, data, seconds=30)
    except Refused as error:
        if error.code in {code.value for code in codes}:
            return refused(name, trial.alive(), say("note.refused", how=error.code))
        return skipped(name, say("note.otherwise", code=error.code or "-"))
    except MisrcError as error:
        return skipped(name, say("note.no_answer", why=error))
    return fail(name, say("note.granted"))


def _spec(trial: Trial, program: str) -> JobSpec:
    manifest = digest_manifest(())
    return JobSpec(str(uuid.uuid4()), trial.connection.site.id, program, {}, 0, 0, manifest)


def try_program(trial: Trial) -> Finding:
    """A program that nobody agreed on."""
    spec = _spec(trial, f"misrc_probe_{uuid.uuid4().hex}")
    data = render_open(OpenRequest(spec, dry_run=True, inline=()))
    return _judge_request(trial, "program", f"open {spec.job}", data, [Refusal.PROGRAM])


def try_other_job(trial: Trial) -> Finding:
    """The state, log and results of a job that is not ours."""
    return _judge_request(trial, "other_job", f"wait {uuid.uuid4()} 0 0", b"", [Refusal.UNKNOWN_JOB])


def try_traversal(trial: Trial) -> Finding:
    """An input whose name leads out of the job's folder; only a rehearsal, so nothing is written if it is taken."""
    entry = Entry("../../.ssh/authorized_keys", 0, hashlib.sha256(b"").hexdigest())
    program = next(iter(trial.connection.site.programs))
    spec = dataclasses.replace(_spec(trial, program), files=1, manifest=digest_manifest((entry,)))
    # Not by way of OpenRequest: our own side would refuse the name before it is sent.
    plain = {"spec": encode(spec), "dry_run": True, "inline": [encode(entry)]}
    codes = [Refusal.SPEC, Refusal.NAME]
    return _judge_request(trial, "traversal", f"open {spec.job}", dump_json(plain) + b"\n", codes)


PROBES: tuple[tuple[str, Probe], ...] = (
    ("shell", try_shell),
    ("command", try_command),
    ("sftp", try_sftp),
    ("scp", try_scp),
    ("local", try_local),
    ("remote", try_remote),
    ("dynamic", try_dynamic),
    ("stream_local", try_stream_local),
    ("stream_remote", try_stream_remote),
    ("agent", try_agent),
    ("x11", try_x11),
    ("tunnel", try_tunnel),
    ("pty", try_pty),
    ("environment", try_environment),
    ("locale", try_locale),
    ("rc", try_rc),
    ("program", try_program),
    ("other_job", try_other_job),
    ("traversal", try_traversal),
)


def run_probes(trial: Trial) -> Iterator[Finding]:
    """Every probe, one after the other; one that breaks is skipped, with what broke.

    A connection that did not survive a probe is made anew for the next one.
    """
    for name, probe in PROBES:
        if not trial.connected and not trial.open():
            yield skipped(name, say("note.not_connected"))
            continue
        finding = _run_probe(trial, name, probe)
        if finding.verdict is Verdict.SKIPPED and not trial.connected and trial.open():
            # It may have died of the probe before, and only now been noticed; of this one it will die again.
            finding = _run_probe(trial, name, probe)
        yield finding


def _run_probe(trial: Trial, name: str, probe: Probe) -> Finding:
    try:
        return probe(trial)
    except OSError as error:
        return skipped(name, say("note.no_answer", why=error.strerror or error))
