"""OpenSSH public keys of the one kind that both sides take."""

from __future__ import annotations

import base64
import binascii
import hashlib

KEY_TYPE = "ssh-ed25519"


def parse_public_key(text: str) -> str:
    """`ssh-ed25519 BASE64` of an OpenSSH public key; a comment is dropped, everything else is refused."""
    if "\n" in text.strip("\n") or "\r" in text:
        raise ValueError("a public key is one line")
    words = text.split()
    if len(words) < 2 or words[0] != KEY_TYPE:
        raise ValueError(f"only {KEY_TYPE} keys are taken, without options")
    try:
        raw = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the public key is not base64") from None
    if raw[:19] != b"\0\0\0\x0bssh-ed25519\0\0\0 " or len(raw) != 51:
        raise ValueError(f"the public key is not a whole {KEY_TYPE} key")
    return f"{KEY_TYPE} {base64.b64encode(raw).decode()}"


def fingerprint(public: str) -> str:
    """The SHA-256 fingerprint of `ssh-ed25519 BASE64`, as OpenSSH writes it."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")
