"""What two parties agree on paper: nothing that runs needs it, and a signed survey sheet is not complete without it.

Only `survey` reads these entries. What is secret at the site has no key here: MInt need not know that it exists.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from .strict import Strict


def _check_day(value: str) -> str:
    if not re.fullmatch(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", value, re.ASCII):
        raise ValueError("a day is written YYYY-MM-DD")
    datetime.date.fromisoformat(value)
    return value


def _check_text(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("one line of plain text is needed")
    return value


Day = Annotated[str, AfterValidator(_check_day)]
Text = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_check_text)]


class Agreement(Strict):
    """One agreement that is in force: rules of a consortium, confidentiality, the use of a system."""

    what: Annotated[Text, Field(description="What was agreed, in one line.")]
    date: Annotated[Day | None, Field(description="The day since which it holds (YYYY-MM-DD).")] = None
    reference: Annotated[Text | None, Field(description="Where the signed text is: a number, a file, an address.")] = (
        None
    )
    next_review: Annotated[Day | None, Field(description="The day by which both look at it again.")] = None


class Measure(Strict):
    """One security measure of one side."""

    what: Annotated[Text, Field(description="What this side does, in one line.")]
    next_review: Annotated[Day | None, Field(description="The day by which it is looked at again.")] = None


class Duty(Strict):
    """Who answers for what."""

    what: Annotated[Text, Field(description="The task.")]
    who: Annotated[Text, Field(description="Who answers for it, with how to reach them.")]


class Expectation(Strict):
    """What both expect of one program's runs."""

    run_time: Annotated[Text | None, Field(description="How long a run takes, in words.")] = None
    result_size: Annotated[Text | None, Field(description="How large its results are, in words.")] = None
    before: Annotated[Text | None, Field(description="What MInt does before the call, or that it does nothing.")] = None
    after: Annotated[Text | None, Field(description="What MInt does with the results, or that it does nothing.")] = None


class Survey(Strict):
    """What the survey sheet says beyond what the software needs."""

    account: Annotated[Text | None, Field(description="The account at MInt that calls the site.")] = None
    sources: Annotated[tuple[str, ...], Field(description="Addresses or networks that MInt comes from.")] = ()
    duties: Annotated[tuple[Duty, ...], Field(description="Who answers for what.")] = ()
    measures: Annotated[
        dict[Literal["site", "mint"], tuple[Measure, ...]], Field(description="Security measures of each side.")
    ] = {}
    programs: Annotated[dict[str, Expectation], Field(description="What is expected of each program.")] = {}

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ipaddress.ip_network(source)) for source in value)
