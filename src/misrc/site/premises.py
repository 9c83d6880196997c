"""What every door finds at its site: ledger, policy, work root and runner, as the kind of installation gives them."""

from __future__ import annotations

import os
from typing import Optional, Tuple

from ..job.policy import Policy
from ..wire.refusals import Denied, Refusal
from .contract import Contract
from .home import Home, open_work_root, read_policy
from .ledger import Ledger
from .operations import Operations
from .runner.release import Releaser
from .runner.runner import Runner


def open_ledger(home: Home, **actor: str) -> Ledger:
    """The ledger itself, or in a root install the service that alone writes it."""
    if home.of_host:
        from .runner.client import RemoteLedger

        return RemoteLedger(home.state, **actor)
    return Ledger(home.state, **actor)


def open_operations(home: Home, site: str, policy: Policy, root: int, ledger: Ledger) -> Operations:
    """The operations of this site; `root` is its work root, open."""
    ledger.contract = Contract(policy)
    runner: Runner
    if home.of_host:
        from .runner.client import ServiceRunner

        runner = ServiceRunner(policy, ledger)
    else:
        runner = Runner(policy, root, ledger, Releaser(site, policy, home.key, ledger))
    return Operations(site, policy, root, runner)


class Premises:
    """A site for a door that stays: it sees when the policy has changed."""

    def __init__(self, home: Home, site: str, **actor: str) -> None:
        self._home = home
        self._site = site
        self._actor = actor
        self._operations: Optional[Operations] = None
        self._stamp: Tuple[int, ...] = ()

    def operations(self) -> Operations:
        """The operations under the policy as it is now; Denied where that cannot be trusted."""
        stamp = self._look()
        if self._operations is None or stamp != self._stamp:
            policy = read_policy(self._home)
            root = open_work_root(policy)
            if self._operations is not None:
                os.close(self._operations.root)
            ledger = open_ledger(self._home, site=self._site, **self._actor)
            self._operations = open_operations(self._home, self._site, policy, root, ledger)
            self._stamp = stamp
        return self._operations

    def _look(self) -> Tuple[int, ...]:
        try:
            status = os.stat(self._home.policy, follow_symlinks=False)
        except OSError as error:
            raise Denied(Refusal.CONFIG, f"{self._home.policy}: {error.strerror}") from None
        return status.st_mtime_ns, status.st_ino, status.st_size
