"""The server's TLS as testssl.sh (Debian's package) sees it, with a certificate as a site's own CA would give it.

There is no HSTS, which alone keeps the grade from A+: it is a word to browsers, none uses this API, and it would bind
every other port of the host.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from apiserver import Api, sign_certificate
from conftest import CLEAN, eventually, free_port

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(shutil.which("testssl") is None, reason="LEFT OUT: the package testssl.sh is not installed"),
]

EXTENSIONS = """subjectAltName=DNS:localhost,IP:127.0.0.1
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
crlDistributionPoints=URI:http://localhost/ca.crl
"""
# Of the SSL Server Rating Guide (2009q): points of a protocol, and where a grade begins.
PROTOCOLS = {"SSLv2": 0, "SSLv3": 80, "TLS1": 90, "TLS1_1": 95, "TLS1_2": 100, "TLS1_3": 100}
GRADES = ((80, "A"), (65, "B"), (50, "C"), (35, "D"), (20, "E"))

Findings = Mapping[str, tuple[str, str]]


def scan(port: int, authority: Path, report: Path, *words: str) -> Findings:
    """What testssl finds, as severity and words by id; each finding that names an address counts."""
    command = ["testssl", "--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--ip", "127.0.0.1"]
    command += ["--add-ca", str(authority), "--jsonfile", str(report), *words, f"https://localhost:{port}/"]
    environment = {**CLEAN, "PATH": os.environ["PATH"], "TMPDIR": str(report.parent)}
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=1800, check=False)
    found = json.loads(report.read_text(encoding="utf-8"))
    return {item["id"]: (item["severity"], item["finding"]) for item in found if "127.0.0.1" in item["ip"]}


def grade(found: Findings) -> str:
    """testssl's own grade; version 3.0 gives none, and then the guide's rules for what it found."""
    if "overall_grade" in found:
        return found["overall_grade"][1]
    if found["cert_chain_of_trust"][0] != "OK" or found["cert_trust"][0] != "OK":
        return "T"
    offered = [points for name, points in PROTOCOLS.items() if found[name][1].startswith("offered")]
    bits = [int(bit) for name, (_, words) in found.items() if re.fullmatch("cipher_x[0-9a-f]+", name)
            for bit in re.findall(r" (\d+) +TLS_", words)]  # fmt: skip
    strength = [100 if bit >= 256 else 80 if bit >= 128 else 20 for bit in bits]
    if min(offered) < 90 or min(strength) < 80:
        return "F"
    if min(offered) < 100 or found["PFS"][0] != "OK":
        return "B"
    # A key that is as good as RSA of 3072 bits has 90 points.
    score = 0.3 * (max(offered) + min(offered)) / 2 + 0.3 * 90 + 0.4 * (max(strength) + min(strength)) / 2
    return next(name for least, name in GRADES if score >= least)


def test_h81_testssl_gives_grade_a(tmp_path: Path) -> None:
    """Grade A or better, and no finding of severity HIGH or CRITICAL, of a whole scan."""
    api = Api(tmp_path / "s")
    sign_certificate(tmp_path / "s/tls", EXTENSIONS, 300)
    api.start()
    try:
        found = scan(api.port, tmp_path / "s/tls/ca.pem", tmp_path / "report.json")
        grave = {name: words for name, words in found.items() if words[0] in ("HIGH", "CRITICAL", "FATAL")}
        assert grave == {}
        assert {"heartbleed", "ROBOT", "TLS1_2", "TLS1_3", "cert_trust", "HSTS"} <= set(found), "the scan was whole"
        assert grade(found) in ("A+", "A"), found
        assert api._answers(), "and the server serves on"
        assert not [line for line in api.log() if "trace" in line]
    finally:
        api.kill()


def test_h81_testssl_sees_what_is_wrong(tmp_path: Path) -> None:
    """Positive control: a server with a certificate of a CA that nobody added gets no grade, and a grave finding."""
    Api(tmp_path / "known")
    other = Api(tmp_path / "other").root / "tls"
    port = free_port()
    words = ["s_server", "-accept", f"127.0.0.1:{port}", "-cert", "cert.pem", "-key", "key.pem", "-www", "-quiet"]
    server = subprocess.Popen(["openssl", *words], cwd=other, stdin=subprocess.DEVNULL, stderr=sys.stderr)
    try:
        probe = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}"]
        eventually(lambda: subprocess.run(probe, input=b"", capture_output=True, check=False).returncode == 0)
        found = scan(port, tmp_path / "known/tls/ca.pem", tmp_path / "report.json", "-p", "-S")
    finally:
        server.kill()
        server.wait()
    assert "CRITICAL" in found["cert_chain_of_trust"] or "HIGH" in found["cert_chain_of_trust"], found
    assert found.get("overall_grade", ("", "T"))[1] == "T"
    if "overall_grade" not in found:
        assert grade(found) == "T"
