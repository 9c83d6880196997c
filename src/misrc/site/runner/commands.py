"""What the units of a root install call. People have no use for these commands."""

from __future__ import annotations

import os
import stat
import sys
from typing import List

from ...job.names import is_job_id
from ...wire.refusals import Denied
from .. import files, jobs
from ..contract import Contract
from ..home import Home, open_work_root, read_policy, read_site
from ..ledger import Ledger
from .release import Releaser
from .supervisor import LOCK


def main(words: List[str], home: Home) -> int:
    """Run one; what goes wrong is one line in the unit's log."""
    try:
        return _run(words, home)
    except Denied as denied:
        print(f"misrc: {denied.refusal.value} {denied.note}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"misrc: {error}", file=sys.stderr)
    return 1


def _run(words: List[str], home: Home) -> int:
    if words == ["runner"]:
        from .service import Service

        return Service(home).serve()
    if words == ["recover"]:
        from .service import recover

        return recover(home)
    if len(words) != 2 or not is_job_id(words[1]):
        raise ValueError("a job id is needed")
    if words[0] == "keep":
        from .unit_supervisor import keep

        return keep(words[1])
    return _at_job(words[0], words[1], home)


def _at_job(what: str, name: str, home: Home) -> int:
    from .service import TAKEN
    from .unit_supervisor import UnitSupervisor, take_marker

    if os.geteuid() != 0:
        raise ValueError("only systemd calls this, as root")
    policy = read_policy(home)
    if what == "mark":
        # Inside the job's unit the work root is an empty place with the job's own folders in it.
        with files.opened(files.open_folder(f"{policy.work_root}/{name}")) as folder:
            take_marker(folder)
        return 0
    with files.opened(open_work_root(policy)) as root:
        job = jobs.find_job(root, policy.work_root, name)
        if stat.S_IMODE(os.fstat(job.folder).st_mode) != TAKEN:
            raise ValueError("the job's folder has not been taken over")
        lock = files.try_lock(job.folder, LOCK)
        if lock is None:
            return 0
        site = read_site(home)
        ledger = Ledger(home.state, site=site, key="-", peer="runner")
        ledger.contract = Contract(policy)
        UnitSupervisor(job, policy, ledger, Releaser(site, policy, home.key, ledger), lock).run()
    return 0
