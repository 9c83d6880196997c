"""`misrc site rotate`. No job is ever without a key, wherever it is killed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Mint, eventually
from faultpoints import check_all_struck
from lives import (
    accept,
    add,
    ask_json,
    check_one_line,
    declared,
    fault_points,
    findings,
    house,
    kill_at,
    only_key,
    private_key,
    run_noop,
)

__all__ = ["house"]


@pytest.mark.full
def test_rotation_killed_anywhere_goes_on(house: Mint, tmp_path: Path) -> None:
    """Each step of begin, finish and abort may be the last one: repeated, it ends well, and a key always works."""
    add(house)
    name = house.site.name
    begin, finish, abort = (["site", "rotate", name, *more] for more in ([], ["--finish"], ["--abort"]))
    fault_points(house, tmp_path, begin)
    seen = begin_points = fault_points_of_begin(house, tmp_path, begin, abort)
    for point in begin_points:
        kill_at(house, tmp_path, begin, point)
        told = ask_json(house, *begin)
        assert told["state"] == "begun" and private_key(house, ".next").exists(), point
        assert house.command(*abort).returncode == 0 and only_key(house), point
    for closing, wanted in ((abort, "old"), (finish, "new")):
        told = begun(house, begin)
        accept(house, *told["job_keys"])
        points = fault_points(house, tmp_path, closing)
        seen = [*seen, *points]
        for point in points:
            told = begun(house, begin)
            accept(house, *told["job_keys"])
            kill_at(house, tmp_path, closing, point)
            assert run_hello(house), point
            assert house.command(*closing).returncode == 0, point
            assert only_key(house), point
            listed = subprocess.check_output(["ssh-keygen", "-lf", private_key(house)], text=True).split()[1]
            assert listed == told["fingerprints"][wanted], point
            assert run_hello(house), point
    check_all_struck("life-rotate", seen)


def fault_points_of_begin(house: Mint, tmp_path: Path, begin: list[str], abort: list[str]) -> list[str]:
    assert house.command(*abort).returncode == 0
    points = fault_points(house, tmp_path, begin)
    assert house.command(*abort).returncode == 0
    assert len(points) >= 6
    return points


def begun(house: Mint, begin: list[str]) -> dict[str, Any]:
    return ask_json(house, *begin)


def run_hello(house: Mint) -> bool:
    """Whether the site would take a job now."""
    return house.command("run", house.site.name, "noop", "--dry-run").returncode == 0


def test_rotation_never_leaves_a_job_without_a_key(house: Mint) -> None:
    """Before, during and after the site's change jobs run; the old key is gone here when it is finished."""
    told = add(house)
    name = house.site.name
    old_bytes = private_key(house).read_bytes()
    begun_now = ask_json(house, "site", "rotate", name, "--overlap", "30")
    new, old = begun_now["job_keys"]
    assert old["key"] == told["policy_entry"]["key"] and old["until"] == begun_now["until"] and "until" not in new
    assert run_noop(house).returncode == 0, "the site knows only the old key"
    check_one_line(house.command("site", "rotate", name, "--finish"), 4, "does not accept the new key yet")
    assert private_key(house).read_bytes() == old_bytes and private_key(house, ".next").exists()
    accept(house, new, old)
    found = findings(house)
    assert found["job_key"]["verdict"] == "ok" and "--finish" in found["job_key"]["note"]
    assert run_noop(house).returncode == 0
    accept(house, new)
    assert run_noop(house).returncode == 0, "the site knows only the new key"
    done = ask_json(house, "site", "rotate", name, "--finish")
    assert done["state"] == "finished" and done["new"] == begun_now["fingerprints"]["new"]
    assert only_key(house) and private_key(house).read_bytes() != old_bytes
    assert run_noop(house).returncode == 0
    assert ask_json(house, "site", "rotate", name, "--finish")["state"] == "none"


def test_a_job_that_runs_while_keys_change_ends_well(house: Mint) -> None:
    """A job begun under the old key is fetched after the change, though the site has forgotten the old key."""
    told = add(house)
    variables = yaml.safe_load(declared(house).read_text())
    variables["misrc_site"]["programs"]["sleep"] = {
        "arguments": {"seconds": {"pattern": "[0-9]{1,4}", "default": "1"}},
        "outputs": {"out.dat": "required"},
    }
    variables["misrc_site"]["retry"] = {"count": 20, "interval": 0.3}
    declared(house).write_text(yaml.safe_dump(variables))
    process = house.spawn("run", house.site.name, "sleep", "--arg", "seconds=600", "--results", "long")
    job = eventually(lambda: [record for record in house.jobs() if record["state"] == "running"], 60)[0]["job"]
    new = ask_json(house, "site", "rotate", house.site.name)["job_keys"][0]
    accept(house, new, told["policy_entry"])
    assert house.command("site", "rotate", house.site.name, "--finish").returncode == 0
    accept(house, new)
    house.site.stop_sshd()
    house.site.start_sshd()
    for pid in house_sleepers(job):
        os.kill(pid, 15)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "does not accept" not in errors, (output, errors)
    assert [record["state"] for record in house.jobs()] == ["closed"]


def house_sleepers(job: str) -> list[int]:
    from conftest import job_processes

    return [pid for pid in job_processes(job) if Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"]


def test_two_changes_at_a_time_are_refused(house: Mint) -> None:
    """While one command changes the keys of a site, another one is told so; afterwards it works."""
    import fcntl

    add(house)
    with private_key(house).with_name(f".{house.site.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check_one_line(house.command("site", "rotate", house.site.name), 2, "another command")
    assert house.command("site", "rotate", house.site.name).returncode == 0
