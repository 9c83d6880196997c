"""What MInt asks of a prediction module's ids, names and paths: said once, for declarations and for module files.

Standard library only: `misrc module run` must stay lean.
"""

from __future__ import annotations

import re
import unicodedata

MODULE_ID = "P[0-9]{15}"
MODEL_ID = "M[0-9]{15}"
DESCRIPTOR = "D[0-9]{15}"
CREATOR_ID = "[0-9]{15,16}"
VERSION = r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}"
ALIAS = "[A-Za-z][A-Za-z0-9_.-]{0,63}"
# The one node that may talk to the outside, and what its scheduler is asked for: the site's own decides the rest.
NODE_GROUP = "ssh-node01"
MAX_PORT_BYTES = 255

# Characters that end a word, or mean something, in the script that MInt's player writes.
_UNSAFE = re.compile(r"""[\s"'`$\\;|&<>(){}\[\]*?!#=]""")


# Why a name or a path cannot be one: a code, which messages translate, and the words for a declaration's error.
FAULTS = {
    "empty": "it is empty",
    "long": "it is longer than 255 bytes",
    "hyphen": "it begins with a hyphen",
    "control": "it holds a control character",
    "space": "it holds a space",
    "slash": "it holds a / or is . or ..",
    "unsafe": "it holds a character that a shell would read",
    "relative": "it does not begin with /",
    "home": "it begins with /home",
    "parts": "it has an empty part, or . or .. as a part",
}


def find_port_fault(name: str) -> str | None:
    """Why `name` cannot be a port's (a key of FAULTS), or None. Ports are words of a command: `--NAME FILE`."""
    if not name:
        return "empty"
    if len(name.encode("utf-8", "replace")) > MAX_PORT_BYTES:
        return "long"
    if name.startswith("-"):
        return "hyphen"
    if "/" in name or name in (".", ".."):
        return "slash"
    if any(c.isspace() for c in name):
        return "space"
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") for c in name):
        return "control"
    return "unsafe" if _UNSAFE.search(name) else None


def find_path_fault(path: str) -> str | None:
    """Why `path` cannot be an objectPath (a key of FAULTS), or None: `/folder/…/script`, below MInt's modules."""
    if not path.startswith("/"):
        return "relative"
    if path.startswith("/home/"):
        return "home"
    if any(part in ("", ".", "..") for part in path[1:].split("/")):
        return "parts"
    return "unsafe" if _UNSAFE.search(path) or not path.isprintable() else None


def normalize(name: str) -> str:
    """A port's name as it is compared: ガ may be one character or two, and both are the same port."""
    return unicodedata.normalize("NFC", name)
