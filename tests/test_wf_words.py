"""What our workflow client takes: words, settings, certificates, files to send, and results that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from predecessor.calls import STDERR_NAME, STDOUT_NAME
from predecessor.scene import TOKEN, certificate, program, write_ini
from predecessor.server import Server
from wf_scene import Run, clean, entry, words
from wf_scene import authority as authority
from wf_scene import folder as folder
from wf_scene import server as server

from misrc.job.errors import BadRequest, MisrcError
from misrc.job.interface import Retry
from misrc.mint.legacy.workflow import Timing, parse_timing, parse_words
from misrc.mint.legacy.workflow_files import describe
from misrc.wire.legacy_progress import Status


def test_h81_a_certificate_that_nobody_trusts(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing is sent, the token least of all; the same server is believed with the right authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path_factory.mktemp("x"), "other")))
    with pytest.raises(MisrcError, match="certificate"):
        Run(server.port, folder)()
    assert server.store.calls == []


@pytest.mark.parametrize(
    "place, word",
    [(0, "http://h"), (0, "http://localhost"), (0, "https://"), (0, "https://u:p@h"), (0, "https://h/x"), (0, "https://h?x"),
     (0, "https://h:x"), (0, "127.0.0.1"), (0, "https://例え"), (1, "a b"), (1, ""), (2, ""), (2, "a b"), (2, "a\r\nb"),
     (2, "トークン"), (2, "x" * 513), (2, "env:NOT_SET"), (2, "file:/nonexistent")],
)  # fmt: skip
def test_words_that_are_refused(folder: Path, place: int, word: str) -> None:
    """Each wrong word is a bad request before anything is sent; the same words without it are fine."""
    given = words(1, folder)
    assert parse_words(given, {}).results == ("out.txt", STDOUT_NAME, STDERR_NAME)
    given[place] = word
    with pytest.raises(BadRequest):
        parse_words(given, {})
    for count in (0, 5, 8):
        with pytest.raises(BadRequest):
            parse_words([*words(1, folder), "", ""][:count], {})


def test_a_loopback_address_may_do_without_tls(folder: Path) -> None:
    """The predecessor's server speaks plain HTTP: beside it, and nowhere else, its client needs no gateway."""
    with Server(write_ini(folder, program(folder)), {TOKEN}) as plain:
        run = Run(plain.port, folder, base=f"http://127.0.0.1:{plain.port}")
        run.workflow._sleep = finished(plain, {"out.txt": entry("b2s=")})
        assert run() is Status.COMPLETED
    assert (folder / "out.txt").read_bytes() == b"ok"


def test_the_port_is_50443_unless_another_is_named(folder: Path) -> None:
    """As ever: `https://HOST` means port 50443."""
    named = (("https://h:443", 443), ("http://[::1]:8082/", 8082))
    for url, port in (("https://h", 50443), ("https://h/", 50443), ("https://[::1]", 50443), *named):
        assert parse_words([url, *words(1, folder)[1:]], {}).address.port == port


def test_the_token_may_stay_off_the_command_line(folder: Path) -> None:
    """From the environment, or from a file."""
    (folder / "token").write_text("abc\n")
    given = words(1, folder)
    for word in ("env:HERE", f"file:{folder}/token"):
        given[2] = word
        assert parse_words(given, {"HERE": "abc"}).token == "abc"


@pytest.mark.parametrize("name, value", [("RETRY", "x"), ("RETRY", "5"), ("INTERVAL", "-1"), ("GRACE", "inf")])
def test_settings_that_are_refused(name: str, value: str) -> None:
    """What is no number is refused; the default is the predecessor's."""
    with pytest.raises(BadRequest):
        parse_timing({f"MISRC_WF_{name}": value})
    assert parse_timing({}) == Timing(10.0, 600.0, Retry(5, 60.0))


@pytest.mark.parametrize(
    "inputs, results",
    [("dir", "o"), ("big", "o"), ("..", "o"), ("x/..", "o"), ("a:b/a", "o"), ("a", "../o"), ("a", "/o"), ("a", "o:O")],
)
def test_files_that_cannot_be_sent_or_received(server: Server, folder: Path, inputs: str, results: str) -> None:
    """A folder, 1.5 GiB and more, names that are no names, names that fall together: nothing is registered."""
    (folder / "dir").mkdir()
    (folder / "b").mkdir()
    for name in ("a", "b/a"):
        (folder / name).touch()
    with open(folder / "big", "wb") as stream:
        stream.truncate(3 << 29)
    with pytest.raises(BadRequest):
        Run(server.port, folder, inputs, results)()
    assert server.store.calls == []


def finished(server: Server, results: Any) -> Any:
    """A sleep in which the site's side finishes the job at once, with these results."""

    def finish(seconds: float) -> None:
        for job in server.store.jobs.values():
            job.progress, job.status, job.info["result_files"] = "got return", "completed", results

    return finish


def test_only_what_was_asked_for_is_written(server: Server, folder: Path) -> None:
    """Other names, and names that would lead out, are left aside; a missing one is told with its reason, escaped."""
    results = {
        "out.txt": entry("b2s="), "../evil": entry("eA=="), "/tmp/evil": entry("eA=="), "run.sh": entry("eA=="),
        STDOUT_NAME: entry("", "Error", "gone\n\x1b[31m"),
    }  # fmt: skip
    run = Run(server.port, folder)
    run.workflow._sleep = finished(server, results)
    before = (folder / "run.sh").read_bytes()
    assert run() is Status.COMPLETED
    assert (folder / "out.txt").read_bytes() == b"ok" and (folder / "run.sh").read_bytes() == before
    assert not (folder.parent / "evil").exists() and not (folder / STDOUT_NAME).exists() and clean(folder)
    assert sum("not asked for" in line for line in run.said) == 3
    assert not any("\x1b" in line or "\n" in line for line in run.said)


def test_a_result_that_is_not_base64_touches_nothing(server: Server, folder: Path) -> None:
    """One bad result among good ones: an error, and the old file stays as it was."""
    (folder / "out.txt").write_text("old")
    run = Run(server.port, folder)
    run.workflow._sleep = finished(server, {"out.txt": entry("b2s="), STDOUT_NAME: entry("b2s")})
    with pytest.raises(MisrcError):
        run()
    assert (folder / "out.txt").read_text() == "old" and clean(folder)


@pytest.mark.parametrize("data, words", [
    (b"", ("inode/x-empty;", "charset=binary")), (b"a\n", ("text/plain;", "charset=us-ascii")),
    ("計".encode(), ("text/plain;", "charset=utf-8")), (b"\xff\xfe", ("application/octet-stream;", "charset=binary")),
    (b"a" * (65 << 10) + b"\x82\xa0", ("application/octet-stream;", "charset=binary")),
    (b"a" * (2 << 20), ("application/octet-stream;", "charset=binary")),
])  # fmt: skip
def test_the_two_words_of_file(data: bytes, words: tuple[str, str]) -> None:
    """Empty, ASCII, UTF-8 and other bytes are told apart; a text that is too long to be looked at whole is bytes."""
    assert describe(data) == words
