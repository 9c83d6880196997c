"""Section A of docs/attacks.md: the request line, at the real gate, and the grammar against a second reading of it."""

from __future__ import annotations

import random
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Oracle, bounded_gate, check_answer, escaped, ledger
from second_reading import TABLE, Reading, read_again

from misrc.wire.grammar import parse_command, render_command


def read_by_gate(data: bytes) -> Reading | None:
    command = parse_command(data)
    return None if command is None else (command.verb.value, command.job, command.seconds, command.offset)


def agree(data: bytes) -> bool:
    """Both readings say the same; whether it is legal."""
    first, second = read_by_gate(data), read_again(data)
    assert first == second, data
    return first is not None


# -- the stage: a site with two ended jobs ----------------------------------------------------------------------------


@dataclass
class Stage:
    oracle: Oracle
    site: Site
    u: bytes
    v: bytes

    def denied(self, *commands: str | bytes) -> None:
        """Each request, with U and V filled in, is refused as not in the grammar."""
        raw = [command.encode() if isinstance(command, str) else command for command in commands]
        self.oracle.all_denied("E02", *(self.fill(command) for command in raw))

    def fill(self, raw: bytes) -> bytes:
        return raw.replace(b"UU", self.u).replace(b"VV", self.v)

    def controls(self) -> None:
        """The section's legal requests."""
        self.oracle.allowed(b"hello")
        self.oracle.allowed(b"wait " + self.u + b" 0 0")


@pytest.fixture(scope="module")
def stage(shared_site: Site) -> Stage:
    jobs = [shared_site.submit("noop") for _ in range(2)]
    for job in jobs:
        shared_site.wait(job)
    first, second = (job.encode() for job in jobs)
    return Stage(Oracle(shared_site, b"wait " + first + b" 0 0"), shared_site, first, second)


def shell_falls_for(command: bytes, marker: Path) -> bool:
    """The premise: a forced command that gives the request to a shell is led astray by these bytes."""
    marker.unlink(missing_ok=True)
    script = b"close() { :; }; wait() { :; }\n" + command
    subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=False, timeout=10)
    return marker.exists()


def test_g01_no_command_is_no_shell(stage: Stage) -> None:
    """Without SSH_ORIGINAL_COMMAND there is no shell, no default verb and no usage text."""
    stage.oracle.denied(None, "E01")
    stage.controls()


def test_g02_an_empty_command_is_no_command(stage: Stage) -> None:
    """An empty command is refused like none at all."""
    stage.oracle.denied(b"", "E01")
    stage.controls()


def test_g03_harmless_probes_are_refused(stage: Stage) -> None:
    """`true`, `echo ok`, `id` and their like run nothing; `hello` is the one health check."""
    stage.denied("true", "echo ok", "id", "exit", ":", "help", "--help", "--version", "/bin/true", "env")
    stage.controls()


def test_g04_a_newline_never_ends_a_command(stage: Stage, tmp_path: Path) -> None:
    """The end of a request is the end of its bytes: no line break in or after it makes it two requests."""
    stage.denied(
        "wait UU 0 0\nid",
        "wait UU 0 0\r\nid",
        "wait UU 0 0\n",
        "hello\n",
        "hello\r",
        "hello\r\n",
        "\nhello",
        "close UU\n",
        "close\nUU",
        "close UU\x0b",
        "close UU\x0c",
        "close UU\x85",
        "close UU\u2028",
    )
    assert shell_falls_for(stage.fill(b"wait UU 0 0\ntouch %s" % bytes(tmp_path / "m")), tmp_path / "m")
    stage.controls()


@pytest.mark.parametrize("glue", [b"; ", b" && ", b" || false; ", b" | ", b" & ", b"\n", b" > /dev/null; ", b";"])
def test_g05_a_second_command_is_refused(stage: Stage, tmp_path: Path, glue: bytes) -> None:
    """No separator of a shell adds a second command; with a shell in between each of them would."""
    marker = tmp_path / "m"
    attack = stage.fill(b"close UU%stouch %s" % (glue, bytes(marker)))
    assert shell_falls_for(attack, marker)
    marker.unlink()
    stage.denied(attack)
    assert not marker.exists()


def test_g06_nothing_is_expanded(stage: Stage, tmp_path: Path) -> None:
    """No expansion takes place anywhere; a shell would have run the inner commands."""
    marker = tmp_path / "m"
    touch = b"touch %s" % bytes(marker)
    for attack in (
        b"close `%s`" % touch,
        b"close $(%s)" % touch,
        b'close "$(%s)"' % touch,
        b"close ${X:-`%s`}" % touch,
    ):
        assert shell_falls_for(attack, marker)
        marker.unlink()
        stage.denied(attack)
        assert not marker.exists()
    stage.denied("close ${IFS}UU", "close $U", "close {UU,VV}", "close ~", "close *", "close $'UU'", 'close "UU"')
    stage.controls()


def test_g07_words_glued_on_are_refused(stage: Stage) -> None:
    """The whole request must match, not its beginning or its end."""
    stage.denied(
        "xclose UU",
        "closeUU",
        "close UUx",
        "close UU x",
        "wait UU 0 0 x",
        "wait UU 0 0x",
        "hellox",
        "hello x",
        "hello UU",
        "wait UU 0",
        "wait UU",
        "close",
        "wait",
        "put UU",
        "get UU",
        "openUU",
    )
    stage.controls()


def test_g09_only_one_ascii_space_separates(stage: Stage) -> None:
    """Other blanks, two blanks, and blanks at either end are refused; exactly one ASCII space is legal."""
    for blank in ("\u00a0", "\u3000", "\u2003", "\x1c", "\t", "  ", "\x0b", "+", "%20", ",", "\\ "):
        stage.denied(f"close{blank}UU", f"wait UU{blank}0 0")
    stage.denied(" close UU", "close UU ", "\tclose UU", "hello ", " hello", "\ufeffhello")
    stage.controls()


def test_g12_other_spellings_are_refused(stage: Stage) -> None:
    """Case, full-width letters and digits, signs, leading zeros and other bases are not the grammar."""
    stage.denied(
        "CLOSE UU",
        "Close UU",
        "HELLO",
        "\uff43\uff4c\uff4f\uff53\uff45 UU",
        "wait UU \uff10 0",
        "wait UU +0 0",
        "wait UU -0 0",
        "wait UU 0 -1",
        "wait UU 00 0",
        "wait UU 0 007",
        "wait UU 0x1 0",
        "wait UU 1e1 0",
        "wait UU 1_0 0",
        "wait UU 1.0 0",
        "wait UU 0 \u0661",
        "wait UU 0 1000000000000000000",
        "wait UU 9999 0",
    )
    stage.denied(b"close " + stage.u.upper())
    stage.controls()


def test_g13_a_nul_cannot_arrive_and_what_is_left_is_judged(stage: Stage) -> None:
    """An environment cannot carry NUL, so sshd refuses the request or cuts it; what is left is judged as it stands.

    No client here can send the byte over SSH; shown are the premise and each cut.
    """
    with pytest.raises(ValueError, match="null"):
        bounded_gate(stage.site, b"close\0" + stage.u)
    assert not agree(b"close\0" + stage.u) and not agree(b"hello\0")
    stage.denied("close", "close ")
    stage.controls()


def test_g14_bytes_that_are_no_text_are_refused_and_recorded(stage: Stage) -> None:
    """Bytes that are not UTF-8 are no decoding error; the ledger shows them escaped."""
    for attack in (b"close \xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", bytes(range(1, 256))):
        stage.oracle.denied(attack, "E02")
        assert any(record.get("input") == escaped(attack) for record in ledger(stage.site)[-4:])
    stage.controls()


def test_g17_naming_the_gate_or_a_shell_is_refused(stage: Stage) -> None:
    """The gate's own path, its name, or a shell in front of a legal request are not the grammar."""
    path = str(stage.site.code)
    stage.denied(
        f"{path} close UU",
        f"/usr/bin/python3 {path} gate test-site key-1",
        "gate close UU",
        "misrc close UU",
        "sh -c 'close UU'",
        "bash -lc hello",
        "exec hello",
        "sudo hello",
        "./hello",
        "command hello",
        "install",
        "ledger show",
        "release UU --site test-site",
        "--prefix / gate test-site key-1",
    )
    stage.controls()


def test_g19_no_verb_has_a_short_form_or_options(stage: Stage) -> None:
    """Abbreviations and options are refused."""
    stage.denied(
        "clo UU",
        "can UU",
        "h",
        "hell",
        "sta UU",
        "--job=UU",
        "close --job=UU",
        "close -- UU",
        "-h",
        "hello -v",
        "close UU --force",
        "wait --help",
        "status UU",
        "log UU",
        "submit UU",
        "cleanup UU",
    )
    stage.controls()


def test_g20_an_assignment_in_front_is_refused(stage: Stage, tmp_path: Path) -> None:
    """An assignment in front is never understood as one; a shell would obey it."""
    stage.denied(
        "FOO=bar close UU", "LD_PRELOAD=/x close UU", "X=1 rsync --server .", "PATH=/tmp hello", "env A=1 hello"
    )
    marker = tmp_path / "m"
    assert shell_falls_for(b"M=%s; touch $M" % bytes(marker), marker)
    stage.controls()


def test_g21_a_change_of_directory_is_refused(stage: Stage, tmp_path: Path) -> None:
    """`cd` in front, as a shell would understand it, is refused."""
    assert shell_falls_for(stage.fill(b"cd %s; close UU; touch m" % bytes(tmp_path)), tmp_path / "m")
    stage.denied("cd /tmp; close UU", "cd /tmp && hello", "pushd / ; hello")
    stage.controls()


def test_g22_terminal_escapes_are_refused_and_shown_escaped(stage: Stage) -> None:
    """Escape sequences, BEL and bidirectional overrides never reach a reader of the ledger raw."""
    attacks = ["\x1b[2J\x1b]0;owned\x07", "close UU\x1b[1A", "\x07", "close \u202eUU", "\u2066hello\u2069", "\x9b31m"]
    stage.denied(*attacks)
    shown = stage.site.people("ledger", "show").stdout
    assert all(character.isprintable() or character == "\n" for character in shown)
    stage.controls()


def test_g24_ids_that_only_look_like_one_are_refused(stage: Stage) -> None:
    """Nil, all-ones, time-based and otherwise impossible ids are not the grammar; random and derived ones are."""
    u = stage.u.decode()
    bad = [
        str(uuid.UUID(int=0)),
        str(uuid.UUID(int=2**128 - 1)),
        str(uuid.uuid1()),
        u[:14] + "0" + u[15:],
        u[:14] + "9" + u[15:],
        u[:19] + "0" + u[20:],
        u[:19] + "f" + u[20:],
        u.upper(),
        "{" + u + "}",
        "urn:uuid:" + u,
        u.replace("-", ""),
        u[:-1],
        u + "0",
        u[:-1] + "g",
        u[:8] + "_" + u[9:],
        u[:-1] + "\u0661",
        u[:-1] + "\uff41",
    ]
    stage.denied(*(f"close {job}" for job in bad), *(f"wait {job} 0 0" for job in bad[:5]))
    derived = uuid.uuid5(uuid.NAMESPACE_URL, "run/module/program/inputs")
    version8 = uuid.UUID(str(derived)[:14] + "8" + str(derived)[15:])
    for job in (uuid.uuid4(), derived, version8):
        stage.oracle.denied(f"close {job}".encode(), "E03")  # the grammar takes it; there is no such job


@pytest.mark.parametrize(
    "verb",
    [
        "put {} --server --daemon .",
        "get {} --server --daemon .",
        "start {}",
        "wait {} 0 0",
        "wait {} 3600 5",
        "cancel {}",
        "close {}",
    ],
)
def test_g25_an_unknown_job_is_one_answer(stage: Stage, verb: str) -> None:
    """Every verb answers E03 for a job that does not exist, with the same bytes, whatever the id."""
    answers = {stage.oracle.denied(verb.format(uuid.uuid4()).encode(), "E03").stdout for _ in range(2)}
    assert len(answers) == 1
    stage.controls()


def test_g26_paths_and_dashes_are_no_ids(stage: Stage) -> None:
    """A path or an option in place of the id is refused, whether it leads to a job or not."""
    stage.denied(
        "close ../UU",
        "close UU/../VV",
        "close -UU",
        "close .",
        "close ..",
        "close /",
        "close UU/",
        "close ./UU",
        "close UU/.",
        f"close {stage.site.work_root}/UU",
        "close ~/UU",
        "close -",
        "close --",
        "close .gone",
    )
    stage.controls()


def test_g27_two_ids_are_refused(stage: Stage) -> None:
    """A request names one job."""
    stage.denied("close UU VV", "close UU UU", "wait UU VV 0", "wait UU 0 VV", "close UU,VV", "close UUVV")
    stage.controls()


# -- G28: a million strings -------------------------------------------------------------------------------------------

WORDS = [*TABLE, b"--server", b"--daemon", b".", b"0", b"3600", b"3601", b"id", b"--", b"sh", b"-c", b"rsync", b""]
SPACES = [b" ", b"  ", b"\t", b"\n", b"\0", b"\xc2\xa0", b""]


def legal(rng: random.Random) -> bytes:
    """A legal request."""
    verb = rng.choice(list(TABLE))
    job = str(uuid.UUID(int=rng.getrandbits(128), version=rng.choice((4, 5)))).encode()
    words: dict[int, list[bytes]] = {0: [], 1: [job], 4: [job, b"--server", b"--daemon", b"."]}
    numbers = [job, str(rng.randrange(3601)).encode(), str(rng.randrange(10 ** rng.randrange(1, 19))).encode()]
    return b" ".join([verb, *words.get(len(TABLE[verb]), numbers)])


def mutate(rng: random.Random, data: bytes) -> bytes:
    """One small change, which may by chance be a legal one."""
    place = rng.randrange(len(data) + 1)
    kind = rng.randrange(8)
    if kind == 0:
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + bytes([rng.randrange(256)]) + data[place:]
    if kind == 2:
        return data[:place] + data[place + rng.randrange(1, 4) :]
    if kind == 3:
        return data.replace(b" ", rng.choice(SPACES), 1)
    if kind == 4:
        return data + rng.choice([b"\n", b" ", b";id", b"\0", b" x", b"0", b"&", b"\r"])
    if kind == 5:
        words = data.split(b" ")
        words[rng.randrange(len(words))] = rng.choice(WORDS)
        return b" ".join(words)
    if kind == 6:
        return data[:place] + bytes([rng.choice(b"0123456789abcdef- .")]) + data[place + 1 :]
    return data[:place] + legal(rng)[place:]


def strings(seed: int, count: int) -> Iterator[bytes]:
    """Random and mutated requests; the same ones for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < 0.05:
            yield rng.randbytes(rng.randrange(64))
            continue
        data = legal(rng)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
            data = mutate(rng, data)
        yield data


def compare(seed: int, count: int) -> None:
    share = sum(agree(data) for data in strings(seed, count)) / count
    assert 0.2 <= share <= 0.5, share


def test_g28_a_hundred_thousand_strings_are_read_alike() -> None:
    """The gate's grammar and an independent reading of it agree on 10^5 strings of which 20 to 50 % are legal."""
    compare(28, 100_000)


@pytest.mark.full
def test_g28_a_million_strings_are_read_alike() -> None:
    """The same for 10^6 other strings."""
    compare(281, 1_000_000)


def test_g28_random_strings_reach_no_other_path_of_the_gate(stage: Stage) -> None:
    """At the real gate a random string is refused as syntax, or, where it is legal, as an unknown job."""
    seen = set()
    for data in strings(282, 80):
        if b"\0" in data or data == b"hello" or data.startswith(b"open "):
            continue
        code = "E03" if agree(data) else "E02" if data else "E01"
        check_answer(bounded_gate(stage.site, data), code)
        seen.add(code)
    assert {"E02", "E03"} <= seen
    stage.controls()


ids = st.uuids(version=4).map(lambda job: str(job).encode()) | st.sampled_from([b"", b"U", b"..", b"0" * 36])
digits = st.integers(-1, 10**19).map(lambda number: str(number).encode()) | st.sampled_from([b"00", b"3600", b"3601"])
loose = st.lists(st.sampled_from(WORDS) | ids | digits | st.binary(max_size=4), max_size=6).flatmap(
    lambda words: st.sampled_from(SPACES[:2]).map(lambda blank: blank.join(words))
)
shaped = st.builds(lambda seed: legal(random.Random(seed)), st.integers(0, 2**32))
mutated = st.builds(lambda seed, data: mutate(random.Random(seed), data), st.integers(0, 2**32), shaped)


@settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=80), loose, shaped, mutated))
def test_g28_both_readings_agree_on_whatever_hypothesis_finds(data: bytes) -> None:
    """The two readings agree, and whatever is legal is rendered back to the same bytes."""
    if agree(data):
        command = parse_command(data)
        assert command is not None
        moved = b" --server --daemon ." if data[:4] in (b"put ", b"get ") else b""
        assert render_command(command).encode() + moved == data
