"""sshd's drop-in of a root install: written only where sshd can read it, and believed only when sshd holds it.

It exists because a file in the right place proves nothing: another may be read before it, and the first value counts.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import List

from ...job.policy import Policy
from ...job.sshd import DROP_IN, Gatehouse, compare, expected_values, parse_sshd_version, render_drop_in
from ...job.units import GATE_ACCOUNT
from .. import files
from .resources import HostError, Resource

SSHD = "/usr/sbin/sshd"
_STRANGER = "192.0.2.1"
_SERVICES = ("ssh.service", "sshd.service")


def drop_in(site: str, policy: Policy) -> Resource:
    """The drop-in as a resource that shall be so; it counts as so only when sshd says that every value holds."""
    sources = [source for key in policy.job_keys for source in key.from_]
    whole = all(key.from_ for key in policy.job_keys)
    house = Gatehouse(site, GATE_ACCOUNT, _version(), tuple(dict.fromkeys(sources)) if whole else ())

    def make() -> None:
        _write(render_drop_in(house))
        wrong = _wrong(house)
        if wrong:
            raise HostError(f"another part of sshd's configuration is read before {DROP_IN}: {wrong[0]}")
        _reload()

    return Resource(f"file {DROP_IN}", lambda: _is_written(house) and not _wrong(house), make)


def _version() -> "tuple[int, int]":
    try:
        done = subprocess.run(["/usr/bin/ssh", "-V"], capture_output=True, text=True, check=False)
        return parse_sshd_version(done.stderr)
    except (OSError, ValueError) as error:
        raise HostError(f"OpenSSH is needed: {error}") from None


def _is_written(house: Gatehouse) -> bool:
    try:
        with open(DROP_IN, encoding="ascii") as file:
            return file.read() == render_drop_in(house)
    except OSError:
        return False


def _wrong(house: Gatehouse) -> List[str]:
    """What the configuration as it lies there does not hold for the account, from inside and from outside."""
    found = []
    declared = [source.split("/")[0] for source in house.sources]
    for address in [*declared, _STRANGER]:
        place = f"user={house.account},host={address},addr={address},laddr=127.0.0.1,lport=22"
        done = subprocess.run([SSHD, "-T", "-C", place], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise HostError(f"sshd cannot read its configuration: {(done.stderr.strip() or 'no reason given')[-500:]}")
        found += [wrong.describe() for wrong in compare(expected_values(house), done.stdout, house.account)]
    return found


def _write(text: str) -> None:
    """In place only if sshd can read it, alone and with the rest; otherwise what was there before comes back."""
    folder, name = os.path.split(DROP_IN)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    with files.opened(files.open_folder(folder)) as place:
        before = files.read_record(place, name)
        files.write_record(place, name, text.encode("ascii"))
        os.chmod(name, 0o644, dir_fd=place)
        done = subprocess.run([SSHD, "-t"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if before is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=place)
        else:
            files.write_record(place, name, before)
            os.chmod(name, 0o644, dir_fd=place)
    raise HostError(f"sshd refuses its configuration with {DROP_IN}: {done.stderr.strip()[-500:]}")


def _reload() -> None:
    """Make the running sshd read it; connections that are open stay."""
    for service in _SERVICES:
        if subprocess.run(["systemctl", "is-active", "--quiet", service], check=False).returncode == 0:
            done = subprocess.run(["systemctl", "reload", service], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise HostError(f"{service} could not be reloaded: {done.stderr.strip()[-300:]}")
            return
