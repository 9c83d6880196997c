"""Say as JSON which misrc this Python has, and whether every one of its files is still what was installed.

A word names a part (an extra) whose dependencies must be there too.
"""

import base64
import hashlib
import importlib.metadata
import json
import re
import sys


def is_whole(file):
    """Whether one recorded file has its recorded content; files without a hash are not compared."""
    if file.hash is None:
        return True
    try:
        digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
    except OSError:
        return False
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value


def find_missing(distribution, extra):
    """The dependencies of this part that are not installed."""
    marker = re.compile(rf"extra\s*==\s*[\"']{re.escape(extra)}[\"']")
    for line in distribution.requires or ():
        if extra and marker.search(line):
            name = re.match(r"[A-Za-z0-9._-]+", line)[0]
            try:
                importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                yield name


try:
    found = importlib.metadata.distribution("misrc")
    broken = [str(file) for file in found.files or () if not is_whole(file)]
    broken += find_missing(found, "".join(sys.argv[1:2]))
    print(json.dumps({"version": found.version, "broken": broken}))
except importlib.metadata.PackageNotFoundError:
    print(json.dumps({"version": "", "broken": []}))
