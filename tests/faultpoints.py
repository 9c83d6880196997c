"""Every fault point of `misrc.job.faults`, by the test that strikes it: `fault_points.json`, read once.

A name's group says who strikes it, and a name may be in several. `tests/test_fault_points.py` compares the list with
the source: a point that no test strikes, or a test without its point, is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

GROUPS: dict[str, list[str]] = json.loads(Path(__file__).with_name("fault_points.json").read_text(encoding="ascii"))

# Who strikes each group: the file, and the test that takes its points from here.
STRIKERS = {
    "api": "test_api_claims.py::test_h58_a_killed_server_loses_nothing",
    "api-cancel": "test_api_claims.py::test_h58_a_killed_server_cancels_once",
    "api-housekeeping": "test_api_claims.py::test_h58_a_killed_server_keeps_house",
    "api-old": "test_chain_faults.py::test_h58_a_killed_server_serves_old_clients_on",
    "chain": "test_chain_faults.py::test_h58_a_kill_of_the_server_at_each_point",
    "agent-small": "test_agent_faults.py::test_p42_a_kill_at_each_step_of_a_small_job",
    "agent-large": "test_agent_faults.py::test_p42_a_kill_at_each_step_of_a_large_job",
    "agent-cancel": "test_agent_faults.py::test_p42_a_kill_at_each_step_of_a_cancel",
    "supervisor": "test_agent_faults.py::test_p42_a_kill_of_what_looks_after_the_program",
    "supervisor-stop": "test_agent_faults.py::test_p42_a_kill_of_what_stops_the_program",
    "legacy-agent": "test_agent_legacy.py::test_p42_a_kill_at_each_step_of_an_old_job",
    "mint-api": "test_webapi_resilience.py::test_p26_a_kill_at_each_step_of_mint",
    "gate": "test_resilience_faults.py::test_each_point_of_the_gate",
    "gate-cancel": "test_resilience_faults.py::test_each_point_of_a_cancel_at_the_gate",
    "gate-hello": "test_resilience_faults.py::test_each_point_of_a_hello",
    "gate-large": "test_resilience_faults.py::test_transfers_die_at_the_site",
    "sweep": "test_site_sweep.py::test_a_killed_sweep_is_finished_by_the_next",
    "life-add": "test_site_add.py::test_add_killed_anywhere_goes_on",
    "life-rotate": "test_site_rotation.py::test_rotation_killed_anywhere_goes_on",
    "life-retire": "test_site_retirement.py::test_retirement_killed_anywhere_goes_on",
}


def points(group: str) -> tuple[str, ...]:
    """The points of a group, for `parametrize`."""
    return tuple(GROUPS[group])


def check_all_struck(group: str, struck: Iterable[str]) -> None:
    """For tests that find the points by a run: every one of the list was among those that they struck."""
    missed = set(GROUPS[group]) - {point.partition(" ")[0] for point in struck}
    assert not missed, f"no longer struck: {sorted(missed)}"
