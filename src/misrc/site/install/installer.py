"""Install without root: shows what it will do, then does it so that doing it again changes nothing more.

What a user install cannot promise: it protects the site from MInt, not from the account's own owner.
"""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import os
import py_compile
import re
import shutil
import ssl
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.util import cache_from_source, source_hash
from typing import Dict, List, Optional

from ...job.agent import MAX_CONFIG_BYTES, parse_agent_config
from ...job.authorized_keys import render_key_file
from ...job.codec import CodecError, dump_json
from ...job.names import SITE_ID
from ...job.policy import Policy, ProgramRule, parse_policy
from ...wire.refusals import Denied
from ..files import open_folder, opened, reason, write_record
from ..home import Home
from ..ledger import Ledger, create_ledger
from ..rsync import rsync_version
from ..runner.program import check_program

_UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


class InstallError(Exception):
    """Why the installation cannot be done; nothing was changed."""


@dataclass(frozen=True)
class Installation:
    """What will be installed where."""

    home: Home
    prefix: Optional[str]
    site: str
    policy: Policy
    policy_bytes: bytes
    authorized_keys: str
    sources: Dict[str, bytes]
    agent_bytes: Optional[bytes] = None

    @classmethod
    def plan(
        cls,
        home: Home,
        prefix: Optional[str],
        site: str,
        policy_file: str,
        authorized_keys: Optional[str],
        agent_file: Optional[str] = None,
    ) -> Installation:
        """Check everything that can be checked before anything changes."""
        if os.getuid() == 0:
            raise InstallError("a user install never runs as root: use the account that MInt will log in to")
        if not re.fullmatch(SITE_ID, site):
            raise InstallError("the site id must be lower-case letters, digits and '-', at most 32")
        try:
            with open(policy_file, "rb") as file:
                data = file.read((1 << 20) + 1)
            policy = parse_policy(data)
        except (OSError, CodecError, ValueError) as error:
            raise InstallError(f"{policy_file}: {reason(error)}") from None
        agent = None if agent_file is None else read_agent_config(agent_file)
        if policy.job_keys or agent is None:
            try:
                rsync_version()
            except Denied as denied:
                raise InstallError(f"{denied.note}; MInt's files travel by rsync, so install a newer one") from None
        keys = authorized_keys or os.path.expanduser("~/.ssh/authorized_keys")
        planned = cls(home, prefix, site, policy, data, os.path.abspath(keys), read_sources(), agent)
        try:
            planned.key_lines()
        except InstallError as error:
            raise InstallError(f"{policy_file}: {reason(error)}") from None
        return planned

    @property
    def digest(self) -> str:
        """sha256 over all source files of the program."""
        return digest_sources(self.sources)

    def key_lines(self) -> List[str]:
        """The lines for authorized_keys."""
        where = f" --prefix {self.prefix}" if self.prefix else ""
        gate = f"{sys.executable} -I -S {self.home.code}{where} gate {self.site}"
        try:
            return render_key_file(self.policy.job_keys, lambda name: f"{gate} {name}").splitlines()
        except ValueError as error:
            raise InstallError(str(error)) from None

    def key_file(self) -> bytes:
        """The key file as it shall be: our lines replace our earlier ones; lines of others stay as they are."""
        kept: List[str] = []
        with contextlib.suppress(FileNotFoundError), open(self.authorized_keys, encoding="utf-8") as file:
            kept = [line.rstrip("\n") for line in file if f" {self.home.code} " not in line]
        return "".join(line + "\n" for line in [*kept, *self.key_lines()]).encode()

    def records(self) -> Dict[str, bytes]:
        """What shall stand in the configuration folder, by name."""
        installed = dump_json({"code": self.digest, "site": self.site}) + b"\n"
        agent = {} if self.agent_bytes is None else {"agent.json": self.agent_bytes}
        return {"policy.json": self.policy_bytes, "installed.json": installed, **agent}

    @property
    def code_folder(self) -> str:
        """Where this version's sources lie; `home.code` is a link to it."""
        return f"{self.home.share}/code-{self.digest[:16]}"

    def describe(self) -> str:
        """What `apply` will do, for a person to read."""
        programs = "\n".join(f"    {name}: {_describe(rule)}" for name, rule in sorted(self.policy.programs.items()))
        keys = "\n".join(f"    {line}" for line in self.key_lines() or ["none: the policy names no job_keys"])
        return (
            f"misrc gate for site '{self.site}', account uid {os.getuid()}\n"
            f"  program   {self.home.code} (sources sha256 {self.digest})\n"
            f"  policy    {self.home.policy}\n"
            f"  ledger    {self.home.state}/ledger.jsonl\n"
            f"  jobs      {self.policy.work_root}\n"
            f"  MInt may run only:\n{programs}\n"
            f"  lines in  {self.authorized_keys}:\n{keys}\n"
            f"{self._describe_agent()}"
            "  A user install protects the site from MInt, not from this account's own user."
        )

    def _describe_agent(self) -> str:
        if self.agent_bytes is None:
            return ""
        config = parse_agent_config(self.agent_bytes)
        return f"  the agent asks {config.server.shown} for work, when you start it: {self.home.code} agent\n"

    def apply(self) -> None:
        """Carry it out."""
        os.umask(0o077)
        for folder in (self.home.config, self.home.state, self.home.share, self.policy.work_root):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        self._unpack()
        self._make_key()
        create_ledger(self.home.state)
        with opened(open_folder(self.home.config)) as config:
            for name, data in self.records().items():
                write_record(config, name, data)
        ledger = Ledger(self.home.state, site=self.site, key="-", peer="local")
        policy_hash = hashlib.sha256(self.policy_bytes).hexdigest()
        ledger.append("install", code=self.digest, policy=policy_hash, uid=os.getuid())
        self._write_keys()

    def _unpack(self) -> None:
        unpack(self.home.share, os.path.basename(self.code_folder), self.sources, 0o700)

    def _make_key(self) -> None:
        if not os.path.exists(self.home.key):
            make_key(self.home.key, self.site)

    def _write_keys(self) -> None:
        if not self.key_lines() and not os.path.exists(self.authorized_keys):
            return
        folder = os.path.dirname(self.authorized_keys)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with opened(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
            write_record(descriptor, os.path.basename(self.authorized_keys), self.key_file())


def _describe(rule: ProgramRule) -> str:
    try:
        check_program(rule)
    except Denied as denied:
        return f"{rule.path}   (does not run as it is: {denied.note})"
    return rule.path


def read_agent_config(path: str) -> bytes:
    """The agent's configuration, checked; InstallError where it is not one."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        config = parse_agent_config(data)
        if config.ca is not None:
            ssl.create_default_context(cafile=config.ca)
    except (OSError, CodecError, ValueError) as error:
        raise InstallError(f"{path}: {reason(error)}") from None
    return data


def is_unpacked(share: str, target: str, sources: Dict[str, bytes]) -> bool:
    """Whether `current` is this folder, and every source in it is as it should be and compiled."""
    try:
        return os.readlink(f"{share}/current") == target and _is_whole(f"{share}/{target}", sources)
    except OSError:
        return False


def unpack(share: str, target: str, sources: Dict[str, bytes], mode: int) -> None:
    """The sources as plain files, compiled by this site's own Python: a gate must start in milliseconds.

    One that starts meanwhile finds a whole program: the folder gets its name when all is in it.
    """
    folder, fresh = f"{share}/{target}", f"{share}/{target}.new"
    if not _is_whole(folder, sources):
        shutil.rmtree(fresh, ignore_errors=True)
        for name, data in sources.items():
            os.makedirs(os.path.dirname(f"{fresh}/{name}"), mode=mode, exist_ok=True)
            with open(f"{fresh}/{name}", "wb") as file:
                file.write(data)
        compileall.compile_dir(fresh, quiet=2, invalidation_mode=_UNCHECKED, stripdir=fresh, prependdir=folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(fresh, folder)
    temporary = f"{share}/current.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, f"{share}/current")


def _is_whole(folder: str, sources: Dict[str, bytes]) -> bool:
    try:
        for name, data in sources.items():
            with open(f"{folder}/{name}", "rb") as file:
                if file.read() != data:
                    return False
            with open(cache_from_source(f"{folder}/{name}"), "rb") as file:
                if file.read(16)[8:] != source_hash(data):
                    return False
    except OSError:
        return False
    return True


def make_key(path: str, site: str) -> None:
    """The key that signs receipts; it never leaves this host."""
    words = ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"misrc-site:{site}", "-f", path]
    subprocess.run(words, stdin=subprocess.DEVNULL, check=True)


def digest_sources(sources: Dict[str, bytes]) -> str:
    """One sha256 over names and contents, independent of how they are packed."""
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode() + b"\0" + hashlib.sha256(sources[name]).digest())
    return digest.hexdigest()


def read_sources() -> Dict[str, bytes]:
    """Our own source files: out of the zipapp that is running, or out of the folder it was unpacked to."""
    root = os.path.abspath(__file__).rsplit(os.sep, 4)[0]
    if os.path.isfile(root):
        with zipfile.ZipFile(root) as archive:
            return {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    found: Dict[str, bytes] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith(".py"):
                with open(path, "rb") as file:
                    found[os.path.relpath(path, root)] = file.read()
    return found
