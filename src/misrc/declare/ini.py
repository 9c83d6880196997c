"""The predecessor's ini file (`mi_distributed_computing_assist.ini`): which sites there are, and what each may run.

A site's `commands` decide what old clients can have run there, so the file is read as strictly as its format allows:
bounded, UTF-8, no `[DEFAULT]` section (it would lend its commands to every site), no interpolation.
What the predecessor takes and does nothing with, is told as a warning: a mistyped name must not go unseen. In files in
use stand sites that have no section, or no commands yet, and words that stand twice.
"""

from __future__ import annotations

import configparser
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..job.errors import BadRequest
from .interface import LEGACY_ID

FILE_NAME = "mi_distributed_computing_assist.ini"
DEFAULT_PORT = 8082
MAX_BYTES = 1 << 20
MAX_SITES = 1000
MAX_COMMANDS = 1000
_COMMAND = re.compile(r"[^\x00-\x20\x7f]{1,1024}")
_SERVER_KEYS = {"ipaddress", "portnumber", "loglevel"}


@dataclass(frozen=True)
class LegacyIni:
    """What the file says. `address` is empty and `port` 0 where it does not say them; `loglevel` means nothing here."""

    address: str
    port: int
    sites: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...] = ()


def load_ini(path: Path) -> LegacyIni:
    """The file's meaning; raises BadRequest with one line."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise BadRequest(f"{path}: longer than 1 MiB")
    try:
        return parse_ini(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadRequest(f"{path}: not UTF-8") from None
    except BadRequest as error:
        raise BadRequest(f"{path}: {error}") from None


def parse_ini(text: str) -> LegacyIni:
    """The text's meaning; raises BadRequest."""
    parser = configparser.ConfigParser(interpolation=None, strict=True, default_section="\0")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise BadRequest(" ".join(str(error).split())) from None
    if not parser.has_option("RemoteSites", "remote_site_ids"):
        raise BadRequest("[RemoteSites] remote_site_ids is missing")
    names = _words(parser, "RemoteSites", "remote_site_ids", MAX_SITES)
    for name in names:
        if not re.fullmatch(LEGACY_ID, name, re.ASCII):
            raise BadRequest("remote_site_ids: a site id has only letters, digits and . _ -, at most 128")
    if "DEFAULT" in parser and "DEFAULT" not in names:
        raise BadRequest("[DEFAULT] is not taken: it would lend its commands to every site")
    sites = {name: _words(parser, name, "commands", MAX_COMMANDS) for name in names}
    for name, commands in sites.items():
        if not all(_COMMAND.fullmatch(command) for command in commands):
            raise BadRequest(f"[{name}] commands: one is too long, or has a control character")
    return LegacyIni(_address(parser), _port(parser), sites, tuple(_warnings(parser, sites)))


def _words(parser: configparser.ConfigParser, section: str, key: str, most: int) -> tuple[str, ...]:
    """A list: separated by white space, over several lines. What stands twice counts once."""
    found = tuple(dict.fromkeys(parser.get(section, key, fallback="").split()))
    if len(found) > most:
        raise BadRequest(f"[{section}] {key}: more than {most}")
    return found


def _address(parser: configparser.ConfigParser) -> str:
    text = parser.get("Server", "ipaddress", fallback="")
    if text == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        raise BadRequest("[Server] ipaddress: an IP address is needed") from None


def _port(parser: configparser.ConfigParser) -> int:
    text = parser.get("Server", "portnumber", fallback="0")
    if not re.fullmatch("[0-9]{1,5}", text, re.ASCII) or int(text) > 65535:
        raise BadRequest("[Server] portnumber: a number up to 65535 is needed")
    return int(text)


def _warnings(parser: configparser.ConfigParser, sites: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    known = {"Server": _SERVER_KEYS, "RemoteSites": {"remote_site_ids"}, **{name: {"commands"} for name in sites}}
    for section in parser.sections():
        if section not in known:
            yield f"[{section}] is not among remote_site_ids and means nothing"
            continue
        for key in sorted(set(parser.options(section)) - known[section]):
            yield f"[{section}] {key} means nothing"
    for name, commands in sites.items():
        if not commands:
            yield f"[{name}] has no commands: nothing can be asked there"


def render_server(ini: LegacyIni, path: Path, state: Path) -> dict[str, object]:
    """The declaration of a server (`misrc serve --config`) that stands where the predecessor's stood.

    Plain HTTP, as there: TLS is the gateway's in front. Without an address in the file it listens on loopback.
    """
    host, port = ini.address or "127.0.0.1", ini.port or DEFAULT_PORT
    return {
        "listen": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"],
        "plain": True,
        "database": f"sqlite:///{state / 'jobs.sqlite'}",
        "spool": str(state / "spool"),
        "ini": str(path),
    }
