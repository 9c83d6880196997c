"""MInt's SSH configuration for one site: only what was declared, every other convenience off."""

from __future__ import annotations

from ..job.interface import Interface

# The first two are cheapest where the processor has AES instructions; all are authenticated modes.
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"


def render_known_hosts(site: Interface) -> str:
    """The pinned keys, for the alias that the configuration gives the host."""
    return "".join(f"misrc-{site.id} {key}\n" for key in site.host_keys)


def render_config(site: Interface, known_hosts: str, identity: str, control_path: str) -> str:
    """An ssh_config whose only host is `site`. Paths must not hold white space or quotes."""
    for path in (known_hosts, identity, control_path):
        if any(c in path for c in " \t\n\"'\\%"):
            raise ValueError("a path has a character that ssh_config cannot carry")
    options = {
        "HostName": site.address,
        "Port": site.port,
        "User": site.user,
        "HostKeyAlias": f"misrc-{site.id}",
        "IdentityFile": identity,
        "IdentitiesOnly": "yes",
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
        "ControlPath": control_path,
        "ControlMaster": "no",
        "LogLevel": "ERROR",
    }
    if site.proxy_jump:
        options["ProxyJump"] = site.proxy_jump
    elif site.socks4:
        options["ProxyCommand"] = f"nc -X 4 -x {site.socks4} %h %p"
    return "Host site\n" + "".join(f"  {name} {value}\n" for name, value in options.items())
