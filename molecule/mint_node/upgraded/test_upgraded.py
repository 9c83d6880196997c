"""MInt's node after an upgrade from an earlier version."""

from __future__ import annotations

import os
import re

import testinfra

HOST = testinfra.get_host(f"podman://{os.environ.get('MISRC_HOSTS', 'misrc')}-node01")


def test_a_waiting_process_keeps_the_code_it_began_with() -> None:
    """A process of the earlier version that loads more code after the upgrade gets its own version's, not a mixture."""
    HOST.run("touch /run/upgraded; for i in $(seq 300); do [ -s /run/waiting.log ] && break; sleep 0.1; done")
    log = HOST.check_output("cat /run/waiting.log")
    assert re.match(r"loaded 0\.0\.9 /opt/misrc/versions/0\.0\.9/", log), log


def test_the_current_version_is_another_one() -> None:
    """Positive control: what is started now is not the earlier version."""
    assert HOST.check_output("/usr/local/bin/misrc --version") == os.environ.get("MISRC_VERSION", "0.1.0")
