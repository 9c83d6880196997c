"""`misrc site retire`. A record stays, and no key."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Mint, eventually, job_processes
from faultpoints import check_all_struck
from lives import (
    accept,
    add,
    add_words,
    ask_json,
    check_one_line,
    declared,
    fault_points,
    house,
    keys_folder,
    kill_at,
    private_key,
    run_noop,
    tree,
)

__all__ = ["house"]


def retired(house: Mint) -> Path:
    return house.root / "retired" / house.site.name


def check_retired(house: Mint, private: bytes) -> dict[str, Any]:
    """The record is there, the declaration and the public key beside it, and the private key nowhere."""
    record: dict[str, Any] = json.loads((retired(house) / "record.json").read_text())
    assert not declared(house).exists() and (retired(house) / f"{house.site.name}.yml").exists()
    assert (retired(house) / f"{house.site.name}.pub").exists()
    assert not [path for path in house.root.parent.rglob("*") if path.is_file() and path.read_bytes() == private]
    assert not [path for path in keys_folder(house).iterdir() if not path.name.endswith(".lock")]
    return record


def begin_sleeper(house: Mint) -> str:
    """A job that runs for long, and that no process at MInt waits for."""
    variables = yaml.safe_load(declared(house).read_text())
    variables["misrc_site"]["programs"]["sleep"] = {
        "arguments": {"seconds": {"pattern": "[0-9]{1,4}"}},
        "outputs": {"out.dat": "optional"},
    }
    declared(house).write_text(yaml.safe_dump(variables))
    process = house.spawn("run", house.site.name, "sleep", "--arg", "seconds=600", "--results", "long")
    found: list[dict[str, str]] = eventually(
        lambda: [record for record in house.jobs() if record["state"] == "running"], 60
    )
    process.kill()
    process.communicate()
    return found[0]["job"]


def test_retire_leaves_a_record_and_no_key(house: Mint) -> None:
    """The ledger's last line, why and when; afterwards no job, and never that id again."""
    add(house)
    assert run_noop(house).returncode == 0
    private = private_key(house).read_bytes()
    public = private_key(house, ".pub").read_text()
    told = ask_json(house, "site", "retire", house.site.name, "--reason", "契約終了")
    record = check_retired(house, private)
    last = house.site.ledger()[-1]
    assert record["checkpoint"]["seq"] == last["seq"] and record["heard"] and record["reason"] == "契約終了"
    assert record["jobs"] == 1 and told["folder"] == str(retired(house))
    assert (retired(house) / f"{house.site.name}.pub").read_text() == public
    check_one_line(run_noop(house), 2, house.site.name)
    check_one_line(house.command(*add_words(house)), 2, "never used again")
    assert house.command("site", "retire", house.site.name).returncode == 0


def test_retire_waits_for_jobs(house: Mint) -> None:
    """An unfinished job is named and stops the retirement; --force cancels it first."""
    add(house)
    job = begin_sleeper(house)
    private = private_key(house).read_bytes()
    before = tree(house.root / "inventory")
    check_one_line(house.command("site", "retire", house.site.name), 2, job, "running")
    assert tree(house.root / "inventory") == before and private_key(house).read_bytes() == private
    done = house.command("site", "retire", house.site.name, "--force")
    assert done.returncode == 0, done.stderr
    check_retired(house, private)
    assert [(record["state"], record["outcome"]) for record in house.jobs()] == [("closed", "cancelled")]


def test_a_site_that_is_gone_can_be_retired(house: Mint) -> None:
    """Its last line is then the one that a job told, and the record says so."""
    add(house)
    assert run_noop(house).returncode == 0
    told = house.jobs()[-1]["checkpoint"]
    private = private_key(house).read_bytes()
    house.site.stop_sshd()
    assert house.command("site", "retire", house.site.name).returncode == 0
    record = check_retired(house, private)
    assert record["checkpoint"] == told and not record["heard"]


def test_by_force_also_jobs_that_nobody_can_end_let_a_site_go(house: Mint) -> None:
    """Where the site is gone, its job's record stays unfinished and is named: nothing becomes final by absence."""
    add(house)
    job = begin_sleeper(house)
    private = private_key(house).read_bytes()
    house.site.stop_sshd()
    check_one_line(house.command("site", "retire", house.site.name), 2, job, "running")
    done = house.command("site", "retire", house.site.name, "--force")
    assert done.returncode == 0 and job in done.stdout, done
    assert check_retired(house, private)["left"] == [job]
    assert [record["state"] for record in house.jobs()] == ["running"]
    while left := job_processes(job):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.full
def test_retirement_killed_anywhere_goes_on(house: Mint, tmp_path: Path) -> None:
    """After a kill at each step the same call finishes it, and no private key is left."""
    words = ["site", "retire", house.site.name]
    entry = add(house)["policy_entry"]

    def again() -> bytes:
        """As if it had never been: only a test may forget that an id was used."""
        for path in sorted(retired(house).rglob("*")) if retired(house).exists() else []:
            path.unlink()
        if retired(house).exists():
            retired(house).rmdir()
        for path in keys_folder(house).iterdir():
            path.unlink()
        declared(house).unlink(missing_ok=True)
        accept(house, ask_json(house, *add_words(house))["policy_entry"])
        assert house.command("site", "rotate", house.site.name).returncode == 0
        return private_key(house).read_bytes()

    again()
    points = fault_points(house, tmp_path, words)
    assert len(points) >= 10 and entry
    check_all_struck("life-retire", points)
    for point in points:
        private = again()
        kill_at(house, tmp_path, words, point)
        done = house.command(*words)
        assert done.returncode == 0, (point, done.stderr)
        assert len(check_retired(house, private)["fingerprints"]) == 2, point
