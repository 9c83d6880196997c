"""What the scenarios' tests share: commands on hosts that must succeed, waiting, and one request to an API server."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Callable
from typing import Any

# One request with the token on standard input; prints the status, or why there is none. Words: address, Host or "", CA.
ASK = """
import ssl, sys, urllib.error, urllib.request
url, host, ca = sys.argv[1:]
headers = {"Authorization": "Bearer " + sys.stdin.read().strip(), **({"Host": host} if host else {})}
request = urllib.request.Request(url, headers=headers)
try:
    context = ssl.create_default_context(cafile=ca) if url.startswith("https") else None
    print(urllib.request.urlopen(request, context=context, timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print(type(error).__name__)
"""


def good(host: Any, command: str, user: str = "root") -> str:
    """The output of a command that must succeed."""
    if user != "root":
        command = f"setpriv --reuid {user} --regid {user} --init-groups sh -c {shlex.quote(command)}"
    done = host.run(command)
    assert done.rc == 0, (command, done.stdout, done.stderr)
    return str(done.stdout)


def eventually(what: Callable[[], Any], text: str, seconds: float = 300) -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, f"still not so: {text}"
        time.sleep(0.2)


def score(host: Any, unit: str) -> float:
    """What `systemd-analyze security` thinks of a unit."""
    found = re.search(r"level.*: ([0-9.]+)", good(host, f"systemd-analyze security --no-pager {unit} | tail -1"))
    assert found is not None
    return float(found[1])


def request(container: str, url: str, token: str, host: str = "", ca: str = "/usr/local/share/mint-ca.pem") -> str:
    """What a server says to a call with this token, asked from a container; `host` is the name that is asked for."""
    words = ["podman", "exec", "-i", container, "python3", "-c", ASK, url, host, ca]
    return subprocess.run(words, input=token, capture_output=True, text=True, check=True, timeout=180).stdout.strip()


def start_run(container: str, folder: str, *words: str) -> subprocess.Popen[str]:
    """`misrc run WORDS` on MInt's node, as its account and in an empty folder of its own, beside the test."""
    account = "setpriv --reuid misrc --regid misrc --init-groups env LANG=C.UTF-8 HOME=/nonexistent"
    made = f"rm -rf {folder} && install -d -o misrc -g misrc {folder} && cd {folder}"
    command = f"{made} && exec {account} /usr/local/bin/misrc run {shlex.join(words)}"
    return subprocess.Popen(
        ["podman", "exec", container, "sh", "-c", command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
