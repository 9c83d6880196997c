"""What a test of the predecessor's way needs around it: a program, an ini file, a certificate."""

from __future__ import annotations

import subprocess
from pathlib import Path

TOKEN = "Canary" + "t" * 58
SITE = "nims-dev"


def program(folder: Path, text: str = 'cat "$CALC_DIR/a.dat" >out.txt; echo "$*"; echo bad >&2') -> Path:
    """A program at the site."""
    path = folder / "run.sh"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def write_ini(folder: Path, *commands: object) -> Path:
    path = folder / "mi_distributed_computing_assist.ini"
    path.write_text(
        "[Server]\nipaddress = 127.0.0.1\nportnumber = 8082\nloglevel = 3\n[RemoteSites]\n"
        f"remote_site_ids = {SITE}\n               other\n[{SITE}]\ncommands = "
        + "\n        ".join(map(str, commands))
        + "\n[other]\ncommands = x.sh\n",
        encoding="utf-8",
    )
    return path


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate with its key, in one file."""
    path = folder / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", path, "-out", folder / f"{name}.crt", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + (folder / f"{name}.crt").read_bytes())
    return path
