"""What sshd must be told about the gate's account, why, and whether a running sshd really holds it.

It exists because one forgotten switch opens a way around the gate. General switches have missed single kinds of
forwarding before, so every kind is named. Pure data and text: the roles, the installer and auditors use the same list.

Not covered: who else may log in to the host. `AllowUsers` and the settings of other accounts stay the site's own.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from .names import ANY_KEY, SITE_ID

ACCOUNT = "[a-z_][a-z0-9_-]{0,30}"
CODE = "/usr/libexec/misrc/current"
KEYS_FOLDER = "/etc/ssh/misrc/authorized_keys.d"
DROP_IN = "/etc/ssh/sshd_config.d/10-misrc.conf"
PYTHON = "/usr/bin/python3"

Version = Tuple[int, int]

_PATH = re.compile(r"/[A-Za-z0-9._/+-]+", re.ASCII)
_VERSION = re.compile(r"OpenSSH_([0-9]{1,3})\.([0-9]{1,3})")

# The first sshd that knows each name. Left out: NIST curves, SHA-1, CBC, and MACs that authenticate the plain text.
_KEY_EXCHANGES: Tuple[Tuple[str, Version], ...] = (
    ("mlkem768x25519-sha256", (9, 9)),
    ("sntrup761x25519-sha512", (9, 9)),
    ("sntrup761x25519-sha512@openssh.com", (8, 5)),
    ("curve25519-sha256", (7, 4)),
    ("curve25519-sha256@libssh.org", (6, 5)),
    ("diffie-hellman-group16-sha512", (7, 3)),
    ("diffie-hellman-group18-sha512", (7, 3)),
)
_CIPHERS = (
    "aes256-gcm@openssh.com,aes128-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr,aes192-ctr,aes128-ctr"
)
_MACS = "hmac-sha2-512-etm@openssh.com,hmac-sha2-256-etm@openssh.com,umac-128-etm@openssh.com"
_HOST_KEYS = "ssh-ed25519,rsa-sha2-512,rsa-sha2-256"
_PENALTIES_SINCE: Version = (9, 8)


@dataclass(frozen=True)
class Setting:
    """One line of the drop-in: its keyword and value as sshd reads them, and why it stands there."""

    keyword: str
    value: str
    reason: str

    def render(self) -> str:
        """The line itself."""
        return f"{self.keyword} {self.value}"


@dataclass(frozen=True)
class Deviation:
    """A value that a running sshd does not hold: `found` is empty where sshd does not know the keyword."""

    keyword: str
    expected: str
    found: str
    reason: str

    def describe(self) -> str:
        """One line for people."""
        return f"{self.keyword}: {self.expected!r} is needed, sshd has {self.found!r} ({self.reason})"


@dataclass(frozen=True)
class Gatehouse:
    """What the drop-in depends on. `sources` are the networks that the job keys come from; `version` is sshd's.

    `algorithms` may be off where the site's own hardening names them: then sshd's own list stays.
    """

    site: str
    account: str
    version: Version
    sources: Tuple[str, ...] = ()
    algorithms: bool = True
    sessions: int = 4

    def __post_init__(self) -> None:
        if not re.fullmatch(SITE_ID, self.site, re.ASCII):
            raise ValueError("the site id is not well formed")
        if not re.fullmatch(ACCOUNT, self.account, re.ASCII) or self.account == "root":
            raise ValueError("the gate's account must be an ordinary account's name")
        if not 2 <= self.sessions <= 100:
            raise ValueError("sessions must be 2 to 100")
        object.__setattr__(self, "sources", tuple(str(ipaddress.ip_network(source)) for source in self.sources))

    @property
    def keys_file(self) -> str:
        """The key file: outside the home, in a folder of root."""
        return f"{KEYS_FOLDER}/{self.account}"


def parse_sshd_version(text: str) -> Version:
    """The version in what `ssh -V` prints; ValueError where there is none."""
    match = _VERSION.search(text)
    if match is None:
        raise ValueError("this is not OpenSSH: no version was found")
    return int(match[1]), int(match[2])


def forced_command(site: str, key: str, code: str = CODE, prefix: Optional[str] = None) -> str:
    """The gate's command line. Every word is matched, so that nothing needs quoting."""
    for path in (code, *([] if prefix is None else [prefix])):
        if not _PATH.fullmatch(path) or ".." in path:
            raise ValueError("a path of the gate has a character that sshd's configuration cannot carry")
    if not re.fullmatch(SITE_ID, site, re.ASCII) or not re.fullmatch(SITE_ID, key, re.ASCII):
        raise ValueError("the site id or the key id is not well formed")
    where = "" if prefix is None else f" --prefix {prefix}"
    return f"{PYTHON} -I -S {code}{where} gate {site} {key}"


def global_settings(gatehouse: Gatehouse) -> List[Setting]:
    """The lines that sshd takes only outside `Match`: they hold for the whole host."""
    found = [
        Setting("PermitUserEnvironment", "no", "no file of an account sets variables before the gate starts"),
        Setting("StrictModes", "yes", "key files that others can write are not trusted"),
        Setting("UsePAM", "yes", "logins stay visible to the host's own accounting"),
        Setting("Compression", "no", "nothing is decompressed that a client made"),
        Setting("LoginGraceTime", "30", "a connection that never logs in does not hold a place"),
    ]
    if gatehouse.algorithms:
        exchanges = ",".join(name for name, since in _KEY_EXCHANGES if gatehouse.version >= since)
        found += [
            Setting("KexAlgorithms", exchanges, "no NIST curves, no SHA-1; post-quantum first"),
            Setting("Ciphers", _CIPHERS, "authenticated modes first, no CBC"),
            Setting("MACs", _MACS, "encrypt-then-MAC only"),
            Setting("HostKeyAlgorithms", _HOST_KEYS, "MInt pins Ed25519; no ECDSA, no SHA-1"),
        ]
    if gatehouse.sources and gatehouse.version >= _PENALTIES_SINCE:
        exempt = Setting(
            "PerSourcePenaltyExemptList",
            ",".join(gatehouse.sources),
            "many reconnects after an outage do not lock MInt out",
        )
        found.append(exempt)
    return found


def account_settings(gatehouse: Gatehouse, command: str) -> List[Setting]:
    """The lines of the `Match` block. `command` is what runs whatever a key's own line says."""
    return [
        Setting("ForceCommand", command, "the gate runs, whatever was asked and whatever a key's line says"),
        Setting("ExposeAuthInfo", "yes", "the gate learns from sshd which key it was"),
        Setting("AuthorizedKeysFile", gatehouse.keys_file, "keys lie where the account cannot write"),
        Setting("AuthorizedKeysCommand", "none", "no program adds keys"),
        Setting("TrustedUserCAKeys", "none", "no certificate opens the gate"),
        Setting("AuthorizedPrincipalsFile", "none", "no certificate opens the gate"),
        Setting("AuthorizedPrincipalsCommand", "none", "no certificate opens the gate"),
        Setting("AuthenticationMethods", "publickey", "no password, keyboard-interactive, host-based, Kerberos login"),
        Setting("PubkeyAuthentication", "yes", "the only way in"),
        Setting("PubkeyAcceptedAlgorithms", "ssh-ed25519", "one kind of key, no certificates"),
        Setting("PasswordAuthentication", "no", "not even offered"),
        Setting("KbdInteractiveAuthentication", "no", "not even offered"),
        Setting("HostbasedAuthentication", "no", "not even offered"),
        Setting("PermitEmptyPasswords", "no", "not even offered"),
        Setting("DisableForwarding", "yes", "the general switch; each kind is switched off below as well"),
        Setting("AllowTcpForwarding", "no", "no way through to other hosts"),
        Setting("AllowStreamLocalForwarding", "no", "no way to Unix sockets"),
        Setting("AllowAgentForwarding", "no", "no use of MInt's agent from here"),
        Setting("X11Forwarding", "no", "no xauth, no display"),
        Setting("PermitTunnel", "no", "general switches have missed tunnels before"),
        Setting("GatewayPorts", "no", "no listening for others"),
        Setting("PermitTTY", "no", "the gate talks to programs, not to people"),
        Setting("PermitUserRC", "no", "no file of the account runs before the gate"),
        Setting("MaxSessions", str(gatehouse.sessions), "one job shares one connection"),
        Setting("ClientAliveInterval", "30", "a dead connection ends"),
        Setting("ClientAliveCountMax", "3", "after 90 seconds"),
        Setting("LogLevel", "VERBOSE", "the host's log names the key's fingerprint"),
        Setting("AcceptEnv", "MISRC_NONE", "replaces the list of the distribution: no variable of a client arrives"),
        Setting("Banner", "none", "only the gate speaks to MInt"),
    ]


def render_drop_in(gatehouse: Gatehouse, command: Optional[str] = None) -> str:
    """The whole drop-in file. It must be read before other settings of the host: the first value counts."""
    command = command or forced_command(gatehouse.site, ANY_KEY)
    lines = ["# Written by misrc from the site's policy. Changes made here are lost.", ""]
    lines += [line for setting in global_settings(gatehouse) for line in _render(setting, "")]
    lines += ["", f"Match User {gatehouse.account}"]
    lines += [line for setting in account_settings(gatehouse, command) for line in _render(setting, "    ")]
    return "\n".join([*lines, "Match all", ""])


def _render(setting: Setting, indent: str) -> List[str]:
    return [f"{indent}# {setting.reason}", f"{indent}{setting.render()}"]


def expected_values(gatehouse: Gatehouse, command: Optional[str] = None) -> List[Setting]:
    """What `sshd -T -C user=ACCOUNT,addr=…` must say, from whatever address: keywords in lower case, as sshd prints."""
    command = command or forced_command(gatehouse.site, ANY_KEY)
    wanted = [*global_settings(gatehouse), *account_settings(gatehouse, command)]
    return [Setting(setting.keyword.lower(), setting.value, setting.reason) for setting in wanted]


def parse_effective(text: str) -> Dict[str, Tuple[str, ...]]:
    """What `sshd -T` printed: every keyword, in lower case, with its values in order."""
    found: Dict[str, Tuple[str, ...]] = {}
    for line in text.splitlines():
        keyword, _, value = line.strip().partition(" ")
        if keyword:
            found[keyword.lower()] = (*found.get(keyword.lower(), ()), value)
    return found


def compare(expected: Sequence[Setting], text: str, account: str) -> List[Deviation]:
    """Every setting that sshd does not hold; empty when all is as declared. `text` is what `sshd -T -C …` printed."""
    found = parse_effective(text)
    wrong = []
    for setting in expected:
        value = "\n".join(found.get(setting.keyword, ()))
        if value != setting.value:
            wrong.append(Deviation(setting.keyword, setting.value, value, setting.reason))
    return [*wrong, *_shut_out(found, account)]


def _shut_out(found: Dict[str, Tuple[str, ...]], account: str) -> List[Deviation]:
    """The host's own list of who may log in is not touched; that it leaves the gate out is said before MInt fails."""
    listed = [word for value in found.get("allowusers", ()) for word in value.split()]
    if listed and not any(fnmatch.fnmatchcase(account, word.split("@")[0]) for word in listed):
        reason = "the host's own list leaves the gate's account out; it is not touched here: add the account to it"
        return [Deviation("allowusers", account, " ".join(listed), reason)]
    return []
