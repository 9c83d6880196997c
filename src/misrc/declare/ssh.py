"""MInt's SSH configuration for one site: only what was declared, every other convenience off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..job.interface import Interface

# The first two are cheapest where the processor has AES instructions; all are authenticated modes.
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"

Value = str | int


def render_known_hosts(site: Interface) -> str:
    """The pinned keys of the site, and of its jump host, for the aliases that the configuration gives them."""
    own = [f"{_alias(site)} {key}\n" for key in site.host_keys]
    jump = [f"{_alias(site)}-jump {key}\n" for key in site.jump_keys]
    return "".join([*own, *jump])


def render_config(
    site: Interface,
    known_hosts: str,
    identity: str,
    control_path: str,
    next_identity: str | None = None,
    jump_identity: str | None = None,
) -> str:
    """An ssh_config whose only hosts are `site` and its jump host. Paths must not hold white space or quotes.

    `next_identity` is the key that will follow: it is offered first, and the present one where the site does not take
    it yet. Without `jump_identity` the account's own keys are offered to the jump host.
    """
    identities = [path for path in (next_identity, identity) if path]
    for path in (known_hosts, control_path, *identities, jump_identity or ""):
        if any(c in path for c in " \t\n\"'\\%"):
            raise ValueError("a path has a character that ssh_config cannot carry")
    options: dict[str, Value] = {
        "HostName": site.address,
        "Port": site.port,
        "User": site.user,
        "HostKeyAlias": _alias(site),
        "IdentitiesOnly": "yes",
        **_common(known_hosts),
        "ControlPath": control_path,
        "ControlMaster": "no",
    }
    if site.proxy_jump:
        options["ProxyJump"] = "jump"
    elif site.socks4:
        options["ProxyCommand"] = f"nc -X 4 -x {site.socks4} %h %p"
    text = _render("site", options, identities)
    return text + _render_jump(site, known_hosts, jump_identity) if site.proxy_jump else text


def _alias(site: Interface) -> str:
    return f"misrc-{site.id}"


def _common(known_hosts: str) -> Mapping[str, Value]:
    return {
        "IdentityAgent": "none",
        "CertificateFile": "none",
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
        "HostKeyAlgorithms": "ssh-ed25519",
        "PubkeyAcceptedAlgorithms": "ssh-ed25519",
        "PreferredAuthentications": "publickey",
        "BatchMode": "yes",
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "Tunnel": "no",
        "PermitLocalCommand": "no",
        "RequestTTY": "no",
        "EscapeChar": "none",
        "SendEnv": "-*",
        "Compression": "no",
        "Ciphers": CIPHERS,
        "ConnectTimeout": 30,
        "ConnectionAttempts": 1,
        "ServerAliveInterval": 15,
        "ServerAliveCountMax": 4,
        "TCPKeepAlive": "yes",
        "IPQoS": "none",
        "LogLevel": "ERROR",
    }


def _render_jump(site: Interface, known_hosts: str, identity: str | None) -> str:
    """The jump host's own block. MInt is an ordinary user there, so its key there may be of any algorithm."""
    user, _, place = (site.proxy_jump or "").rpartition("@")
    host, _, port = place.partition(":")
    options: dict[str, Value] = {"HostName": host, "Port": port or 22, "HostKeyAlias": f"{_alias(site)}-jump"}
    if user:
        options["User"] = user
    if identity:
        options["IdentitiesOnly"] = "yes"
    common = {name: value for name, value in _common(known_hosts).items() if name != "PubkeyAcceptedAlgorithms"}
    return _render("jump", {**options, **common}, [identity] if identity else [])


def _render(host: str, options: Mapping[str, Value], identities: Sequence[str]) -> str:
    lines = [*((name, str(value)) for name, value in options.items()), *(("IdentityFile", path) for path in identities)]
    return f"Host {host}\n" + "".join(f"  {name} {value}\n" for name, value in lines)
