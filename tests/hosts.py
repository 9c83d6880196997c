"""Two real hosts with systemd: a site that the roles provision, and MInt's. Only root can make them."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import eventually

BIN = Path(sys.executable).parent
IMAGE = "localhost/" + os.environ.get("MISRC_IMAGE_NAME", "misrc-test-debian")
RELEASE = os.environ.get("MISRC_RELEASE", "bookworm")
PREFIX = os.environ.get("MISRC_HOSTS", "misrc")
PYZ = "/usr/libexec/misrc/misrc-site.pyz"
# All that a refusal must leave as it is: names, kinds, modes, owners, sizes, and the times of what is not a folder.
_SCENE = (
    "find /etc /opt /root /home /srv /usr/libexec /var/lib/misrc /var/tmp /tmp -xdev "
    r"-not -path '/var/lib/misrc/ledger/*' -not -path '*/systemd-private-*' -not -path '*/.git/*' "
    r"\( -type d -printf '%p d %m %u %g\n' -o -printf '%p %y %m %u %g %s %T@ %l\n' \)"
)


def podman(*words: str, check: bool = True, text: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """One podman command."""
    done = subprocess.run(
        ["podman", *words], input=text or None, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0 or not check, (words, done.stdout, done.stderr)
    return done


@dataclass
class Host:
    """One container with systemd."""

    name: str
    address: str = ""

    def run(self, *words: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """A command as root inside."""
        return podman("exec", self.name, *words, check=check, timeout=timeout)

    def sh(self, script: str, check: bool = True) -> str:
        """What a shell script prints."""
        return self.run("sh", "-c", script, check=check).stdout

    def is_up(self) -> bool:
        """Whether systemd has come to rest; in a container a unit or two may not be able to start."""
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")

    def write(self, path: str, text: str, mode: str = "600") -> None:
        """A file of root inside."""
        podman("exec", "-i", self.name, "sh", "-c", f"cat >{path} && chmod {mode} {path}", text=text)


@dataclass
class Pair:
    """The two hosts, the declarations, and the keys: `admin` for the provisioner, `job` for MInt."""

    place: Path
    release: str
    label: str = "gate"
    stranger: str = ""
    policy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.site = Host(f"{PREFIX}-{self.label}-site")
        self.mint = Host(f"{PREFIX}-{self.label}-mint")
        self.network = f"{PREFIX}-{self.label}-net"

    # -- making and removing ------------------------------------------------------------------------------------

    def make(self) -> None:
        """Both hosts up, with the administrator's key at the site and two addresses at MInt's."""
        self.remove()
        podman("network", "create", self.network)
        subnet = json.loads(podman("network", "inspect", self.network).stdout)[0]["subnets"][0]["subnet"]
        base = subnet.rpartition(".")[0]
        for name in ("admin", "job", "other", "authority"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.place / name)], check=True)
        own = os.environ.get("MISRC_OWN_RELEASE", "bookworm")
        shown = ["-v", f"{BIN.parent}:{BIN.parent}:ro"]
        for host, release, words in ((self.site, self.release, []), (self.mint, own, shown)):
            # Namespaces of units inside need it; what is tried here is sshd and the gate, not the container.
            rights = ["--privileged"] if host is self.site else ["--cap-add", "NET_ADMIN", "--device", "/dev/net/tun"]
            # A host that reboots comes back at its own address.
            place = f"{base}.{10 if host is self.site else 11}"
            common = ["--systemd=always", "--network", self.network, "--ip", place]
            podman("run", "-d", "--name", host.name, *common, *rights, *words, f"{IMAGE}:{release}", "/sbin/init")
        for host in (self.site, self.mint):
            inspected = json.loads(podman("inspect", host.name).stdout)[0]
            host.address = inspected["NetworkSettings"]["Networks"][self.network]["IPAddress"]
            eventually(host.is_up, 60, "the host's start")
        eventually(lambda: self.site.run("pgrep", "-x", "sshd", check=False).returncode == 0, 60, "sshd")
        self.site.sh("install -d -m 700 /root/.ssh")
        self.site.write("/root/.ssh/authorized_keys", (self.place / "admin.pub").read_text())
        self.stranger = self.mint.address.rpartition(".")[0] + ".222"
        device = self.mint.sh(f"ip -o -4 route get {self.site.address}").partition(" dev ")[2].split()[0]
        self.mint.run("ip", "addr", "add", f"{self.stranger}/24", "dev", device)
        for name in ("job", "other"):
            self.mint.write(f"/root/{name}", (self.place / name).read_text())
        known = f"{self.site.address} {self.host_key()}\n"
        self.mint.write("/root/known_hosts", known)
        (self.place / "known_hosts").write_text(known)

    def restart_site(self) -> None:
        """Reboot the site at the same address."""
        podman("restart", "-t", "5", self.site.name)
        eventually(self.site.is_up, 60, "the host's start")

    def remove(self) -> None:
        """Nothing of ours is left, also of an earlier run that was killed."""
        for host in (self.site, self.mint):
            podman("rm", "-f", "-t", "0", host.name, check=False)
        podman("network", "rm", "-f", self.network, check=False)

    def host_key(self) -> str:
        """The site's host key, read at the site and not learned from the network."""
        return " ".join(self.site.sh("cat /etc/ssh/ssh_host_ed25519_key.pub").split()[:2])

    # -- provisioning -------------------------------------------------------------------------------------------

    def provision(self, *words: str, playbook: str = "provision", **variables: Any) -> subprocess.CompletedProcess[str]:
        """The site's part of a playbook over the administrator's SSH, from the collection of the installed wheel."""
        folder = self.place / "inventory"
        folder.mkdir(exist_ok=True)
        host = {
            "ansible_host": self.site.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.place / "admin"),
            "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={self.place}/known_hosts -o IdentitiesOnly=yes",
            "ansible_python_interpreter": "/usr/bin/python3",
            "misrc_site_id": "deployed",
            "misrc_policy": self.policy,
            **variables,
        }
        inventory = {"all": {"children": {"sites": {"hosts": {"site": host}}, "mint_node": {"hosts": {}}}}}
        (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        env = {
            "PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin",
            "HOME": str(self.place),
            "LANG": "C.UTF-8",
            "ANSIBLE_COLLECTIONS_PATH": str(files("misrc") / "collection"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_NOCOLOR": "1",
        }
        argv = [str(BIN / "ansible-playbook"), "-i", str(folder), *words, f"misrc.remote.{playbook}"]
        return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=600, check=False)

    # -- what is there ------------------------------------------------------------------------------------------

    def ledger(self) -> list[dict[str, Any]]:
        """All records; fails where the chain does not verify."""
        lines = self.site.run("/usr/bin/python3", PYZ, "ledger", "show", "--json").stdout.splitlines()
        return [json.loads(line) for line in lines]

    def scene(self) -> str:
        """What a refusal must leave as it is."""
        return "".join(sorted(self.site.sh(_SCENE, check=False).splitlines(keepends=True)))

    # -- MInt and whoever pretends to be ------------------------------------------------------------------------

    def ssh(
        self, *words: str, options: tuple[str, ...] = (), user: str = "misrc", key: str = "job", timeout: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """`ssh user@site WORDS` on MInt's host."""
        known = ["-o", "UserKnownHostsFile=/root/known_hosts", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
        own = ["-F", "none", "-i", f"/root/{key}", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=30", *known]
        argv = ["ssh", *own, *options, f"{user}@{self.site.address}", *words]
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.mint.run(*argv, check=False, timeout=timeout)
        raise AssertionError(f"ssh did not end: {words} {options}")

    def works(self) -> None:
        """The legal request."""
        done = self.ssh("hello")
        assert done.returncode == 0 and '"hello"' in done.stdout, done


def why_not() -> str:
    """Why these tests cannot run here, or nothing."""
    if getpass.getuser() != "root":
        return "needs root for containers with systemd: tools/host_tests.sh"
    if shutil.which("podman") is None:
        return "needs podman: tools/host_tests.sh"
    known = subprocess.run(["podman", "image", "exists", f"{IMAGE}:{RELEASE}"], check=False)
    return "" if known.returncode == 0 else f"needs the image {IMAGE}:{RELEASE}: tools/host_tests.sh"


def make_programs(pair: Pair) -> None:
    """A bare repository at the site with two commits; the second one is never pinned."""
    script = """set -e
export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example
mkdir -p /srv/tree && cd /srv/tree && git init -q
printf '#!/bin/sh\\nid -un; echo done >out.dat\\n' >noop; printf '#!/bin/sh\\nexec sleep 600\\n' >sleep
chmod 755 noop sleep
git add . && git commit -q -m one && git rev-parse HEAD >/srv/commit
echo evil >noop && git commit -q -a -m two && git clone -q --bare . /srv/programs.git"""
    pair.site.sh(script)


def tree_of(pair: Pair) -> dict[str, str]:
    return {
        "dest": "/opt/programs",
        "repository": "/srv/programs.git",
        "commit": pair.site.sh("cat /srv/commit").strip(),
    }


OUTPUTS = {"noop": {"outputs": {"out.dat": "required"}}, "sleep": {"outputs": {"out.dat": "optional"}}}


def declare(pair: Pair, programs: dict[str, Any] = OUTPUTS) -> str:
    """MInt's declaration of the site, on MInt's host; its inventory folder."""
    site = {
        "id": "deployed",
        "method": "ssh",
        "address": pair.site.address,
        "user": "misrc",
        "host_keys": [pair.host_key()],
        "retry": {"count": 60, "interval": 1},
        "programs": programs,
    }
    pair.mint.sh("mkdir -p /root/inventory/host_vars")
    text = yaml.safe_dump({"misrc_identity": "/root/job", "misrc_site": site})
    pair.mint.write("/root/inventory/host_vars/deployed.yml", text)
    return "/root/inventory"


def run_job(pair: Pair) -> str:
    """A whole `misrc run` from MInt's host: the word that the program wrote into its log."""
    results = f"/root/results-{uuid.uuid4()}"
    words = ["run", "deployed", "noop", "--results", results, "--new"]
    variables = ["env", f"MISRC_INVENTORY={declare(pair)}", "MISRC_LANG=en", "HOME=/root", "PATH=/usr/bin:/bin"]
    pair.mint.sh(f"mkdir {results}")
    done = pair.mint.run(*variables, str(BIN / "misrc"), *words, check=False, timeout=180)
    assert done.returncode == 0, done
    assert pair.mint.sh(f"cat {results}/out.dat") == "done\n"
    return pair.mint.sh(f"cat {results}/remote_program_exec.log").strip()


_SHARED: list[Pair] = []


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A site that the three roles made from a policy, and MInt's host."""
    if _SHARED:
        # Each module that imports a fixture has one of its own: they share what the first one made.
        yield _SHARED[0]
        return
    made = Pair(tmp_path_factory.mktemp("pair"), RELEASE)
    _SHARED.append(made)
    try:
        made.make()
        make_programs(made)
        made.policy = policy_of(made)
        done = made.provision(site_programs_trees=[tree_of(made)])
        assert done.returncode == 0, done.stdout + done.stderr
        yield made
    finally:
        if not os.environ.get("MISRC_KEEP_HOSTS"):
            made.remove()


def policy_of(pair: Pair) -> dict[str, Any]:
    """A root install with MInt's key from MInt's address alone."""
    key = " ".join((pair.place / "job.pub").read_text().split()[:2])
    return {
        "install": "root",
        "work_root": "/var/lib/misrc/jobs",
        "job_keys": [{"key": key, "from": [f"{pair.mint.address}/32"], "until": "2099-12-31"}],
        "programs": {
            "noop": {"path": "/opt/programs/noop", "returns": ["**"], "logs": "full"},
            "sleep": {"path": "/opt/programs/sleep", "returns": ["**"], "logs": "full"},
        },
    }
