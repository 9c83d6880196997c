"""Certificates of every kind for the tests, made with openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

DAY = ["-days", "2"]


def run(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def make_authority(folder: Path, name: str = "ca") -> Path:
    """An authority's certificate; its key lies beside it."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"]
    extension = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    run(*words, "-keyout", str(folder / f"{name}.key"), "-out", str(path), *DAY, *extension)
    return path


def make_certificate(authority: Path, names: str = "IP:127.0.0.1,DNS:localhost", days: int = 2) -> Path:
    """A server's certificate and key in one file, by `authority`, for `names`; negative days: expired."""
    folder = authority.parent
    stem = f"server{len(list(folder.iterdir()))}"
    key, request, path = folder / f"{stem}.key", folder / f"{stem}.csr", folder / f"{stem}.pem"
    words = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=server"]
    run(*words, "-keyout", str(key), "-out", str(request))
    extensions = folder / f"{stem}.ext"
    extensions.write_text(f"subjectAltName={names}\nbasicConstraints=CA:FALSE\n")
    sign = ["x509", "-req", "-in", str(request), "-CA", str(authority), "-CAkey", str(authority.with_suffix(".key"))]
    until = ["-days", str(days)]
    run(*sign, "-CAcreateserial", "-out", str(path), "-extfile", str(extensions), *until)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
