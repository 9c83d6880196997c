"""One HTTP call as the predecessor's clients make it: no check of the certificate, a JSON body even with GET."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import urllib.parse
from dataclasses import dataclass
from typing import Any

STDOUT_NAME = "計算標準出力.txt"
STDERR_NAME = "計算標準エラー出力.txt"


def unverified() -> ssl.SSLContext:
    """The predecessor's TLS without `no_auth:FILE`: whoever answers is believed."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass
class Caller:
    """Where to call, and with which token. The port is always appended to the base URL."""

    base_url: str
    token: str
    port: int = 50443
    cafile: str | None = None

    @property
    def address(self) -> str:
        return f"{self.base_url}:{self.port}"

    def call(self, method: str, name: str, query: dict[str, str] | None, body: Any) -> tuple[int, Any]:
        """HTTP status and the parsed answer (None where it is no JSON). Raises OSError and http.client's errors."""
        parts = urllib.parse.urlsplit(self.address)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.cafile) if self.cafile else unverified()
            connection = http.client.HTTPSConnection(str(parts.hostname), parts.port, timeout=20, context=context)
        else:
            connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        target = f"/mi-distcomp-api/{name}" + ("?" + urllib.parse.urlencode(query) if query else "")
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(content)
        except ValueError:
            return answer.status, None


def file_words(path: str) -> list[str]:
    """The two words of `file -i -b`; through a shell, as the predecessor does. A host without `file` guesses."""
    done = subprocess.run("file -i -b %s" % path, shell=True, capture_output=True, text=True, check=False)
    words = done.stdout.split() if done.returncode == 0 else ["text/plain;", "charset=us-ascii"]
    return [*words, "", ""][:2]
