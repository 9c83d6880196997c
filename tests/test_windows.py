"""Windows, held against a second reading of the same words: a list of all the minutes of a week that they name."""

from __future__ import annotations

import datetime
import time
import zoneinfo
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misrc.job.windows import DAYS, is_open, next_opening, parse_window

pytestmark = pytest.mark.quick

WEEK = 7 * 24 * 60
# With summer time by an hour and by half an hour, without it, with odd offsets, and with a day that never was.
ZONES = ["UTC", "Asia/Tokyo", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
ZONES += ["Pacific/Apia", "America/Sao_Paulo", "Africa/Casablanca"]
# Summer time begins or ends, in one of these zones; and Samoa's 30 December 2011, which was left out.
CHANGES = [
    datetime.datetime(2026, 3, 29, 1), datetime.datetime(2026, 10, 25, 1), datetime.datetime(2026, 3, 8, 7),
    datetime.datetime(2026, 11, 1, 6), datetime.datetime(2026, 4, 4, 15), datetime.datetime(2026, 10, 3, 15, 30),
    datetime.datetime(2011, 12, 30, 10), datetime.datetime(2026, 2, 15, 2),
]  # fmt: skip


def minutes_named(text: str) -> set[int]:
    """Every minute of the week, from Monday 00:00, that a window's words name."""
    days, hours = text.split()[:2]
    first, last = ((int(part[:2]) * 60 + int(part[3:])) for part in hours.split("-"))
    length = last - first if last > first else last - first + 24 * 60
    found: set[int] = set()
    for part in days.split(","):
        names = part.split("-")
        day = DAYS.index(names[0])
        while True:
            found |= {(day * 24 * 60 + first + minute) % WEEK for minute in range(length)}
            if DAYS[day] == names[-1]:
                break
            day = (day + 1) % 7
    return found


def wall_minute(minute: int, zone: zoneinfo.ZoneInfo) -> int:
    """The minute of the week on the wall, `minute` minutes after the epoch."""
    there = datetime.datetime.fromtimestamp(minute * 60, zone)
    return there.weekday() * 24 * 60 + there.hour * 60 + there.minute


@st.composite
def hours(draw: st.DrawFn) -> str:
    start = draw(st.integers(0, 24 * 60 - 1))
    end = draw(st.integers(0, 24 * 60).filter(lambda value: value != start))
    return f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"


parts = st.one_of(st.sampled_from(DAYS), st.builds("{}-{}".format, st.sampled_from(DAYS), st.sampled_from(DAYS)))
texts = st.builds("{} {}".format, st.lists(parts, min_size=1, max_size=3).map(",".join), hours())
near = st.builds(
    lambda change, minutes: int(change.replace(tzinfo=datetime.timezone.utc).timestamp()) // 60 + minutes,
    st.sampled_from(CHANGES),
    st.integers(-3000, 3000),
)
far = st.integers(1_000_000_000 // 60, 2_000_000_000 // 60)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(texts, st.sampled_from(ZONES)), min_size=1, max_size=3), st.one_of(near, far))
def test_a_moment_is_inside_exactly_when_the_wall_clock_is(named: list[tuple[str, str]], begin: int) -> None:
    """At each minute of two days `is_open` says what the list of minutes says."""
    windows = [parse_window(f"{text} {zone}") for text, zone in named]
    reading = [(minutes_named(text), zoneinfo.ZoneInfo(zone)) for text, zone in named]
    for minute in range(begin, begin + 2 * 24 * 60, 7):
        wanted = any(wall_minute(minute, zone) in named_minutes for named_minutes, zone in reading)
        assert is_open(windows, minute * 60) is wanted
        assert is_open(windows, minute * 60 + 59.9) is wanted


@settings(max_examples=150, deadline=None)
@given(texts, st.sampled_from(ZONES), st.one_of(near, far))
def test_the_next_opening_is_the_first_moment_inside(text: str, zone: str, begin: int) -> None:
    """Looking at every minute from now on finds the same moment, also over a change of summer time."""
    window, named, place = parse_window(f"{text} {zone}"), minutes_named(text), zoneinfo.ZoneInfo(zone)
    found = next(minute for minute in range(begin, begin + 15 * 24 * 60) if wall_minute(minute, place) in named)
    assert next_opening([window], begin * 60) == found * 60
    assert next_opening([window], begin * 60 + 30) == (begin * 60 + 30 if found == begin else found * 60)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host whose local time is Berlin's."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
@settings(max_examples=100, deadline=None)
@given(texts, st.one_of(near, far))
def test_without_a_zone_the_host_s_own_time_counts(text: str, minute: int) -> None:
    """A window without a zone says what the same window says with the host's zone named."""
    local, named = parse_window(text), parse_window(f"{text} Europe/Berlin")
    assert local.contains(minute * 60) is named.contains(minute * 60)
    assert local.next_opening(minute * 60) == named.next_opening(minute * 60)


def test_the_first_of_several_openings_counts_and_no_windows_mean_always() -> None:
    """The earliest window opens the site; a site without windows is open."""
    noon = int(datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.timezone.utc).timestamp())  # a Monday
    late, early = parse_window("mon-sun 18:00-08:00 UTC"), parse_window("mon 13:00-14:00 UTC")
    assert not is_open([late, early], noon)
    assert next_opening([late, early], noon) == noon + 3600
    assert next_opening([late], noon) == noon + 6 * 3600
    assert is_open([], noon) and next_opening([], noon) == noon
    assert parse_window("fri-mon 00:00-24:00").days == {4, 5, 6, 0}


@pytest.mark.parametrize(
    "text",
    [
        "", "mon", "mon 08:00", "mon 8:00-9:00", "Mon 08:00-09:00", "mon 08:00-09:00 ", " mon 08:00-09:00",
        "mon  08:00-09:00", "mon 08:00-08:00", "mon 24:00-08:00", "mon 08:00-24:01", "mon 08:60-09:00",
        "mon 25:00-26:00", "mo 08:00-09:00", "mon- 08:00-09:00", "mon-tue-wed 08:00-09:00", "mon,, 08:00-09:00",
        "monday 08:00-09:00", "mon 08:00-09:00 Nowhere/Land", "mon 08:00-09:00 ../etc", "mon 08:00-09:00 /etc",
        "mon 08:00-09:00 Asia/Tokyo x", "mon 08:00-09:00\n", "mon 0８:00-09:00",
    ],
)  # fmt: skip
def test_what_is_not_a_window_is_refused(text: str) -> None:
    """Near misses are errors with words for people; the legal neighbour is not."""
    with pytest.raises(ValueError, match=r"window|time|end|zone"):
        parse_window(text)
    assert parse_window("mon,wed-fri 08:00-24:00 Asia/Tokyo")
