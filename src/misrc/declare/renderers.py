"""Every file that a declaration, and a site's policy where it is at hand, imply. Pure: no host is touched.

`RENDERERS` is the one place where a new kind of file is added.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..job.authorized_keys import render_key_file
from ..job.codec import encode
from ..job.interface import WEBAPI, Interface
from ..job.policy import JobKey, Policy
from ..job.sshd import CODE, DROP_IN, Gatehouse, forced_command, render_drop_in
from ..job.units import GATE_ACCOUNT, render_units
from .ssh import render_config, render_known_hosts

# `misrc` makes a private folder of this form for each connection, and removes it afterwards.
CONNECTION_FOLDER = "/tmp/misrc-XXXXXXXX"


@dataclass(frozen=True)
class Subject:
    """What is rendered. `public` is MInt's own job key where it is at hand; `next_public` the one that follows it."""

    site: Interface
    identity: str
    next_identity: str | None = None
    jump_identity: str | None = None
    public: str | None = None
    next_public: str | None = None
    policy: Policy | None = None

    @property
    def account_home(self) -> str:
        """Where the site's account is taken to live: only the site knows."""
        return f"/home/{self.site.user}"


@dataclass(frozen=True)
class File:
    """One file: on whose side (`mint` or `site`), where, with which permissions, and what is in it."""

    side: str
    path: str
    mode: str
    text: str


Renderer = Callable[[Subject], Iterator[File]]


def render_mint_ssh(subject: Subject) -> Iterator[File]:
    """MInt's ssh_config."""
    if subject.site.method == WEBAPI:
        return
    text = render_config(
        subject.site,
        f"{CONNECTION_FOLDER}/known_hosts",
        subject.identity,
        f"{CONNECTION_FOLDER}/c",
        subject.next_identity,
        subject.jump_identity,
    )
    yield File("mint", f"{CONNECTION_FOLDER}/config", "0600", text)


def render_mint_known_hosts(subject: Subject) -> Iterator[File]:
    """MInt's pinned host keys."""
    if subject.site.method == WEBAPI:
        return
    yield File("mint", f"{CONNECTION_FOLDER}/known_hosts", "0600", render_known_hosts(subject.site))


def render_authorized_keys(subject: Subject) -> Iterator[File]:
    """The gate's lines at the site: the policy's keys, or MInt's own where there is no policy at hand."""
    if subject.site.method == WEBAPI:
        return
    if subject.policy is not None:
        job_keys = subject.policy.job_keys
    else:
        job_keys = tuple(JobKey(key) for key in (subject.public, subject.next_public) if key)
    home = subject.account_home
    code = f"{home}/.local/share/misrc/current"
    text = render_key_file(job_keys, lambda name: forced_command(subject.site.id, name, code))
    if text and (subject.policy is None or subject.policy.install == "user"):
        yield File("site", f"{home}/.ssh/authorized_keys", "0600", text)


def render_policy_file(subject: Subject) -> Iterator[File]:
    """The policy with every default written out."""
    if subject.policy is None:
        return
    plain = encode(subject.policy)
    for key in plain["job_keys"]:
        key["from"] = key.pop("from_")
    text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
    if subject.policy.install == "root":
        yield File("site", "/etc/misrc/policy.json", "0640", text)
    else:
        yield File("site", f"{subject.account_home}/.config/misrc/policy.json", "0600", text)


def render_host_sshd(subject: Subject) -> Iterator[File]:
    """A root install's drop-in for sshd and its key file; the drop-in as OpenSSH 9.2 takes it; newer add a line."""
    policy, site = subject.policy, subject.site
    if policy is None or policy.install != "root" or site.method == WEBAPI:
        return
    sources = tuple(dict.fromkeys(source for key in policy.job_keys for source in key.from_))
    house = Gatehouse(site.id, GATE_ACCOUNT, (9, 2), sources if all(key.from_ for key in policy.job_keys) else ())
    yield File("site", DROP_IN, "0644", render_drop_in(house))
    text = render_key_file(policy.job_keys, lambda name: forced_command(site.id, name))
    yield File("site", house.keys_file, "0644", text)


def render_host_units(subject: Subject) -> Iterator[File]:
    """A root install's systemd units: what a job may do stands in them."""
    if subject.policy is not None and subject.policy.install == "root":
        for name, text in sorted(render_units(subject.policy, CODE).items()):
            yield File("site", f"/etc/systemd/system/{name}", "0644", text)


RENDERERS: tuple[Renderer, ...] = (
    render_mint_ssh,
    render_mint_known_hosts,
    render_authorized_keys,
    render_policy_file,
    render_host_sshd,
    render_host_units,
)


def render_all(subject: Subject) -> list[File]:
    """Every file, MInt's side first."""
    return [file for renderer in RENDERERS for file in renderer(subject)]
