"""The parts of a site's own contract that need no processes: counts of a day, the policy's keys, reasons, removal."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misrc.job.arguments import ArgumentRule
from misrc.job.codec import CodecError
from misrc.job.descriptions import describe
from misrc.job.ledger import verify_lines
from misrc.job.policy import JobKey, Limits, Policy, ProgramRule, parse_policy
from misrc.mint.reasons import explain_waiting
from misrc.site import contract, daily_usage
from misrc.site.contract import Contract
from misrc.site.files import open_folder, opened
from misrc.site.ledger import Ledger, create_ledger, read_lines
from misrc.site.removal import remove_tree
from misrc.wire.reasons import Waiting, parse_waiting, render_waiting
from misrc.wire.refusals import Denied, Refusal

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[1]
DAY = 86400
NOON = 1_795_431_600  # 2026-11-23 11:00 UTC


class Clock:
    """The host's clock, as the ledger and the count see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = float(NOON)
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "gmtime", lambda seconds=None, gmtime=time.gmtime: gmtime(seconds or self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that a test turns."""
    return Clock(monkeypatch)


def policy(**limits: Any) -> Policy:
    return parse_policy(json.dumps({"work_root": "/var/x", "programs": {}, "limits": limits}).encode())


def make_ledger(folder: Path, **limits: Any) -> Ledger:
    """A ledger below `folder`, with a contract."""
    folder.mkdir(exist_ok=True)
    create_ledger(str(folder))
    ledger = Ledger(str(folder), site="s", key="k")
    ledger.contract = Contract(policy(**limits))
    return ledger


def opens(ledger: Ledger, job: str) -> bool:
    """Whether a new job is taken."""
    try:
        ledger.append("open", decision="allow", job=job)
    except Denied as denied:
        assert denied.refusal is Refusal.JOBS_PER_DAY
        return False
    return True


def leaves(ledger: Ledger, job: str, size: int) -> bool:
    """Whether results may leave."""
    try:
        ledger.append_all("leave", [{"job": job, "out": size, "files": []}, {"job": job, "files": []}])
    except Denied as denied:
        assert denied.refusal is Refusal.BYTES_OUT
        return False
    return True


def test_a_day_takes_so_many_jobs(tmp_path: Path, clock: Clock) -> None:
    """Distinct new jobs count; a repeated open, a dry run and a start do not; the next local day begins at none."""
    ledger = make_ledger(tmp_path / "state", jobs_per_day=2)
    assert opens(ledger, "a") and opens(ledger, "a")
    ledger.append("open", decision="allow", job="a", already=True)
    ledger.append("open", decision="allow", job="dry", dry_run=True)
    ledger.append("start", decision="allow", job="a")
    assert opens(ledger, "b") and not opens(ledger, "c")
    with pytest.raises(Denied):
        ledger.append("open", decision="allow", job="dry", dry_run=True)
    assert opens(ledger, "b"), "a job that came today may be opened again"
    clock.now += DAY
    assert opens(ledger, "c") and opens(ledger, "d") and not opens(ledger, "e")
    assert len(list(verify_lines(read_lines(ledger.folder)))) == 9


def test_a_day_lets_so_many_bytes_leave(tmp_path: Path, clock: Clock) -> None:
    """A job's bytes count once a day, in full; what goes above the limit stays; another day another amount."""
    ledger = make_ledger(tmp_path / "state", bytes_out_per_day=100)
    assert leaves(ledger, "a", 60) and leaves(ledger, "a", 60), "a cut transfer goes on"
    assert not leaves(ledger, "b", 41) and leaves(ledger, "c", 40) and not leaves(ledger, "d", 1)
    assert leaves(ledger, "a", 60) and leaves(ledger, "e", 0)
    assert not ledger.allows("leave", job="b", out=41) and ledger.allows("leave", job="a", out=60)
    clock.now += DAY
    assert leaves(ledger, "b", 41) and leaves(ledger, "d", 1) and not leaves(ledger, "a", 60)
    assert not leaves(ledger, "huge", 101)


def test_a_clock_that_is_set_back_does_not_reset_a_day(tmp_path: Path, clock: Clock, monkeypatch: Any) -> None:
    """Tomorrow's records by a wrong clock do not hide today's; today's still count when the clock is right again."""
    monkeypatch.setattr(daily_usage, "REFRESH_BYTES", 0)
    ledger = make_ledger(tmp_path / "state", jobs_per_day=2)
    assert opens(ledger, "a") and opens(ledger, "b")
    clock.now += DAY
    assert opens(ledger, "c")
    clock.now -= DAY
    assert not opens(ledger, "d")
    clock.now += DAY
    assert opens(ledger, "d") and not opens(ledger, "e")


@pytest.mark.parametrize("spoil", ["missing", "empty", "garbage", "other hash", "beyond the end", "a lie", "a folder"])
def test_a_count_that_does_not_fit_the_ledger_is_counted_anew(tmp_path: Path, spoil: str, monkeypatch: Any) -> None:
    """Whatever happens to the kept counts, the ledger's count holds; a lie in counts that fit is the control."""
    monkeypatch.setattr(daily_usage, "REFRESH_BYTES", 0)
    ledger = make_ledger(tmp_path / "state", jobs_per_day=3)
    assert opens(ledger, "a") and opens(ledger, "b") and opens(ledger, "c") and not opens(ledger, "d")
    path = tmp_path / "state/tally.json"
    plain = json.loads(path.read_bytes())
    day = daily_usage.local_day(time.time())
    if spoil == "missing":
        path.unlink()
    elif spoil == "a folder":
        path.unlink()
        path.mkdir()
    else:
        forged = {**plain, "days": {day: {"jobs": [], "out": {}}}}
        forged["last"] = "0" * 64 if spoil == "other hash" else plain["last"]
        forged["size"] = plain["size"] + (10**6 if spoil == "beyond the end" else 0)
        text = {"empty": b"", "garbage": b"\xff{"}.get(spoil, json.dumps(forged).encode())
        path.write_bytes(text)
    assert opens(ledger, "d") is (spoil == "a lie")


def test_a_ledger_with_a_cut_tail_is_counted_anew(tmp_path: Path, monkeypatch: Any) -> None:
    """A count that saw more than the ledger has now does not speak for it."""
    monkeypatch.setattr(daily_usage, "REFRESH_BYTES", 0)
    ledger = make_ledger(tmp_path / "state", jobs_per_day=2)
    path = tmp_path / "state/ledger.jsonl"
    assert opens(ledger, "a")
    short = path.read_bytes()
    assert opens(ledger, "b") and not opens(ledger, "c")
    path.write_bytes(short)
    assert opens(ledger, "c") and not opens(ledger, "d")


def test_a_long_ledger_is_not_read_again_and_again(tmp_path: Path, monkeypatch: Any) -> None:
    """Of a ledger of many megabytes a question reads no more than what is new since the counts were written."""
    ledger = make_ledger(tmp_path / "state", jobs_per_day=10**6)
    for number in range(20):
        note = "x" * 1000
        ledger.append_all("wait", [{"job": str(number), "note": note} for _ in range(300)])
        assert opens(ledger, f"job-{number}")
    size = (tmp_path / "state/ledger.jsonl").stat().st_size
    assert size > 20 * daily_usage.REFRESH_BYTES
    read = []
    catch_up = daily_usage._catch_up

    def noted(usage: daily_usage.DailyUsage, ledger: int) -> int:
        read.append(catch_up(usage, ledger))
        return read[-1]

    monkeypatch.setattr(daily_usage, "_catch_up", noted)
    with opened(open_folder(ledger.folder)) as folder, opened(os.open(f"{ledger.folder}/ledger.jsonl", 0)) as file:
        assert daily_usage.count_today(folder, file).jobs == {f"job-{number}" for number in range(20)}
    assert read and read[0] <= 2 * daily_usage.REFRESH_BYTES


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 60), st.booleans()), max_size=25))
def test_the_count_is_what_a_reader_of_the_ledger_finds(
    tmp_path_factory: Any, steps: list[tuple[str, int, bool]]
) -> None:
    """Any order of opening and leaving: never above the limits, and what is refused would have gone above them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daily_usage, "REFRESH_BYTES", 500)
        ledger = make_ledger(tmp_path_factory.mktemp("t") / "state", jobs_per_day=3, bytes_out_per_day=100)
        jobs: set[str] = set()
        out: dict[str, int] = {}
        for job, size, opening in steps:
            if opening:
                assert opens(ledger, job) is (job in jobs or len(jobs) < 3)
                jobs = jobs | {job} if len(jobs) < 3 else jobs
            else:
                fits = job in out or sum(out.values()) + size <= 100
                assert leaves(ledger, job, size) is fits
                out = {**out, job: max(size, out.get(job, 0))} if fits else out


def test_a_frozen_ledger_takes_no_start_and_no_new_job(tmp_path: Path) -> None:
    """Frozen: `open` of a new job and `run` are refused, all else goes on; thawed: both are taken again."""
    ledger = make_ledger(tmp_path / "state")
    ledger.switch("freeze", lambda folder: contract.freeze(folder, False), stop=False)
    assert contract.is_frozen(ledger.folder) and not contract.is_stopping(ledger.folder)
    for event in ("open", "run"):
        with pytest.raises(Denied) as denied:
            ledger.append(event, job="a")
        assert denied.value.refusal is Refusal.FROZEN
    ledger.append("open", job="a", already=True)
    ledger.append("close", job="a")
    ledger.switch("freeze", lambda folder: contract.freeze(folder, True), stop=True)
    assert contract.is_stopping(ledger.folder)
    ledger.switch("thaw", contract.thaw)
    ledger.switch("thaw", contract.thaw)
    assert not contract.is_frozen(ledger.folder) and not contract.is_stopping(ledger.folder)
    ledger.append("run", job="a")


# -- the policy's words -----------------------------------------------------------------------------------------------

TABLES = {
    "key": Policy,
    "job_keys[].": JobKey,
    "limits.": Limits,
    "programs.NAME.": ProgramRule,
    "arguments.NAME.": ArgumentRule,
}
JAPANESE = {"needed": "必須", "none": "なし", "no limit": "制限なし", "not checked": "検査しない", "any": "すべて"}
JAPANESE |= {"no end": "期限なし", "always": "いつでも", "as below": "以下のとおり"}


def read_tables(path: Path) -> dict[str, list[tuple[str, str, str]]]:
    """The tables of keys in a page: what stands in the rows of each."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    rows: list[tuple[str, str, str]] | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 3:
            rows = None
        elif rows is None:
            rows = found.setdefault(cells[0].strip("`"), [])
        elif not set(cells[0]) <= {"-"}:
            rows.append((cells[0].strip("`"), cells[1], cells[2]))
    return found


@pytest.mark.parametrize("name", TABLES)
def test_the_page_says_of_each_key_what_the_code_says(name: str) -> None:
    """docs/site.md has exactly the policy's keys, in their order, with the same meanings and defaults."""
    rows = read_tables(ROOT / "docs/site.md")[name]
    assert rows == describe(TABLES[name])
    assert all(meaning and shown for _, meaning, shown in rows), "every key is described"


@pytest.mark.parametrize("name", TABLES)
def test_the_japanese_page_has_the_same_keys_and_defaults(name: str) -> None:
    """docs/ja/site.md has the same keys in the same order, with the same defaults in Japanese."""
    rows = read_tables(ROOT / "docs/ja/site.md")["キー" if name == "key" else name]
    wanted = [(key, JAPANESE.get(shown, shown)) for key, _, shown in describe(TABLES[name])]
    assert [(key, shown) for key, _, shown in rows] == wanted


@pytest.mark.parametrize("page", ["site.md", "ja/site.md"])
def test_the_example_policy_is_one(page: str) -> None:
    """What people copy is accepted as it stands."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    example = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert example and parse_policy(example[1].encode()).limits.jobs_per_day == 50


BASE: dict[str, Any] = {"work_root": "/var/x", "programs": {"p": {"path": "/opt/p", "returns": ["*"]}}}


@pytest.mark.parametrize(
    ("change", "place", "reason"),
    [
        ({"work_root": "jobs"}, "work_root", "absolute"),
        ({"keep_days": -1}, "keep_days", "negative"),
        ({"keep_day": 1}, "keep_day", "unknown key"),
        ({"windows": ["mon-fri 18:00-08:00", "sun 26:00-27:00"]}, "windows[1]", "26:00"),
        ({"windows": "mon"}, "windows", "list"),
        ({"limits": {"jobs": 0}}, "limits.jobs", "1 or more"),
        ({"limits": {"jobs_per_day": 0}}, "limits.jobs_per_day", "1 or more"),
        ({"limits": {"jobs_per_day": "3"}}, "limits.jobs_per_day", "int"),
        ({"limits": {"bytes_out_per_day": 0}}, "limits.bytes_out_per_day", "1 or more"),
        ({"limits": {"bytes_out_per_day": "1GB"}}, "limits.bytes_out_per_day", "size"),
        ({"limits": {"job_bytes": -1}}, "limits.job_bytes", "negative"),
        ({"limits": {"hours": "48"}}, "limits.hours", "unit"),
        ({"limits": {"hours": "2 weeks"}}, "limits.hours", "duration"),
        ({"limits": {"hours": 0}}, "limits.hours", "more than nothing"),
        ({"limits": {"hours": True}}, "limits.hours", "int"),
        ({"install": "both"}, "install", "root, user"),
        ({"require_signature": ["k"]}, "require_signature[0]", "ssh-ed25519"),
        ({"signature_days": 0}, "signature_days", "1 or more"),
        ({"batch": "slurm"}, "batch", "not available"),
        ({"programs": {"p": {"path": "p", "returns": []}}}, "programs.p.path", "absolute"),
        ({"programs": {"p": {"path": "/p", "returns": [], "logs": "x"}}}, "programs.p.logs", "full"),
        ({"programs": {"p": {"path": "/p", "returns": [], "sha256": "x"}}}, "programs.p.sha256", "hex"),
        ({"job_keys": [{"key": "k", "to": []}]}, "job_keys[0]", "'to'"),
    ],
)
def test_each_error_names_key_and_reason(change: dict[str, Any], place: str, reason: str) -> None:
    """A policy that is not right says which key, and why; without the change it is taken."""
    with pytest.raises(CodecError) as error:
        parse_policy(json.dumps({**BASE, **change}).encode())
    assert place in str(error.value) and reason in str(error.value)
    assert parse_policy(json.dumps(BASE).encode())


def test_hours_are_hours_or_have_a_unit() -> None:
    """A number means hours; a text has its unit."""
    assert [policy(hours=value).limits.run_seconds for value in (48, "48h", "90s", "30m", "2d")] == [
        172800, 172800, 90, 1800, 172800,
    ]  # fmt: skip


# -- reasons ----------------------------------------------------------------------------------------------------------


@given(st.one_of(st.none(), st.integers(0, 4_000_000_000)))
def test_a_reason_reads_back(opening: int | None) -> None:
    """What one side renders the other parses."""
    assert parse_waiting(render_waiting(Waiting(opening))) == Waiting(opening)


@pytest.mark.parametrize(
    "text",
    [None, "", "waits:", "waits:window", "waits:window 2026-13-01T00:00:00Z", "cancelled", "waits:frozen "],
)
def test_other_reasons_are_not_waiting(text: str | None) -> None:
    """Sentences, codes and hostile near misses give no words."""
    assert parse_waiting(text) is None and explain_waiting(text) == ""


def test_a_reason_is_worded_in_the_user_s_language_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment is shown by MInt's own clock, in English and in Japanese."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    reason = render_waiting(Waiting(NOON))
    monkeypatch.setenv("MISRC_LANG", "en")
    assert explain_waiting(reason) == "waits for the site's next window, 2026-11-23 (Mon) 20:00"
    monkeypatch.setenv("MISRC_LANG", "ja")
    assert "2026-11-23 (月) 20:00" in explain_waiting(reason) and "待機" in explain_waiting(reason)
    assert "凍結" in explain_waiting(render_waiting(Waiting()))
    monkeypatch.undo()
    time.tzset()


# -- removal ----------------------------------------------------------------------------------------------------------


def test_a_tree_goes_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    """Deep beyond all descriptors, closed by its modes, with links out of it: it goes, what they point to stays."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    tree = tmp_path / "tree"
    (tree / "closed/inner").mkdir(parents=True)
    (tree / "closed/inner/file").write_text("x")
    (tree / "link").symlink_to(kept)
    (tree / "closed/up").symlink_to("../../kept")
    (tree / "broken").symlink_to("nowhere")
    os.link(kept / "file", tree / "second name")
    os.mkfifo(tree / "pipe")
    here = os.getcwd()
    os.chdir(tree)
    for _ in range(1500):
        os.mkdir("d" * 50)
        os.chdir("d" * 50)
    Path("bottom").write_text("x")
    os.chdir(here)
    (tree / "closed/inner").chmod(0)
    (tree / "closed").chmod(0o500)
    with opened(open_folder(str(tmp_path))) as folder:
        remove_tree(folder, "tree")
        remove_tree(folder, "tree")
        assert os.listdir(folder) == ["kept"] and os.listdir(kept) == ["file"]
        (tmp_path / "tree").symlink_to(kept)
        with pytest.raises(OSError):
            remove_tree(folder, "tree")
    assert os.listdir(kept) == ["file"]
