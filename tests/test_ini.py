"""The predecessor's ini file: what it says is understood, and what would say too much is refused."""

from __future__ import annotations

import configparser
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misrc.declare.ini import MAX_BYTES, LegacyIni, load_ini, parse_ini, render_server
from misrc.job.errors import BadRequest

pytestmark = pytest.mark.quick

EXAMPLE = """\
[Server]
ipaddress = 192.0.2.10
portnumber = 8082
loglevel = 3
[RemoteSites]
remote_site_ids = nims-dev
               u-tokyo327
[nims-dev]
commands = /opt/solver/run.sh
        /opt/fem/fem
[u-tokyo327]
commands = create_inp_file.sh
"""
SITES = {"nims-dev": ("/opt/solver/run.sh", "/opt/fem/fem"), "u-tokyo327": ("create_inp_file.sh",)}


def test_the_example_of_the_description() -> None:
    """Lists over several lines, separated by white space."""
    assert parse_ini(EXAMPLE) == LegacyIni("192.0.2.10", 8082, SITES)
    assert parse_ini(EXAMPLE.replace("\n               u-", "\t  u-")).sites == SITES


IDS = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=20).filter(
    lambda name: name not in ("Server", "RemoteSites", "DEFAULT")
)
COMMANDS = st.text(st.sampled_from("/abc%$計._-=:[]"), min_size=1, max_size=20)


@settings(deadline=None)
@given(st.dictionaries(IDS, st.lists(COMMANDS, min_size=1, max_size=4, unique=True), min_size=1, max_size=4))
def test_what_is_written_is_read(sites: dict[str, list[str]]) -> None:
    """Any ids and commands, `%` too: each site has its own and no other's."""
    text = f"[RemoteSites]\nremote_site_ids = {' '.join(sites)}\n"
    text += "".join(f"[{name}]\ncommands = " + "\n  ".join(commands) + "\n" for name, commands in sites.items())
    found = parse_ini(text)
    assert {name: list(commands) for name, commands in found.sites.items()} == sites
    assert (found.address, found.port, found.warnings) == ("", 0, ())


@pytest.mark.parametrize(
    "old, new",
    [("[RemoteSites]", "[Remote]"), ("remote_site_ids", "ids"), ("[u-tokyo327]\n", ""), ("nims-dev\n", "nims/dev\n"),
     ("portnumber = 8082", "portnumber = 99999"), ("portnumber = 8082", "portnumber = x"),
     ("192.0.2.10", "example.com"), ("create_inp_file.sh", "a\x01b"), ("create_inp_file.sh", "x" * 1025),
     ("[u-tokyo327]", "[nims-dev]"), ("loglevel", "portnumber"),
     ("[u-tokyo327]", "u-tokyo327"), ("[Server]", "[DEFAULT]\ncommands = /bin/sh\n[Server]"),
     ("nims-dev\n", " ".join(f"s{i}" for i in range(1001)) + "\n")],
)  # fmt: skip
def test_a_file_that_is_refused(old: str, new: str) -> None:
    """Missing, repeated and malformed parts, and a section that would lend its commands to all sites."""
    assert old in EXAMPLE and parse_ini(EXAMPLE)
    with pytest.raises(BadRequest) as caught:
        parse_ini(EXAMPLE.replace(old, new, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "warnings"),
    [("u-tokyo327\n", "u-tokyo327\n  uacj\n  ihi-abe\n", 2), ("[u-tokyo327]\ncommands", "[u-tokyo327]\ncomands", 2),
     ("u-tokyo327\n", "u-tokyo327 nims-dev\n", 0), ("/opt/fem/fem", "/opt/fem/fem\n  /opt/solver/run.sh", 0),
     ("192.0.2.10", "localhost", 0)],
)  # fmt: skip
def test_h100_what_files_in_use_have(old: str, new: str, warnings: int) -> None:
    """Sites without a section or commands of their own, words that stand twice, `localhost`: the predecessor takes such
    a file."""
    found = parse_ini(EXAMPLE.replace(old, new, 1))
    assert found.address == ("127.0.0.1" if new == "localhost" else "192.0.2.10")
    assert found.sites["nims-dev"] == SITES["nims-dev"] and len(found.warnings) == warnings
    assert all(found.sites[name] == () for name in set(found.sites) - set(SITES))


def test_a_section_default_would_have_lent_its_commands() -> None:
    """Positive control: the usual parser does lend them."""
    parser = configparser.ConfigParser()
    parser.read_string("[DEFAULT]\ncommands = /bin/sh\n[a]\n")
    assert parser.get("a", "commands") == "/bin/sh"


@pytest.mark.parametrize(
    "old, new, word",
    [("[u-tokyo327]", "[utokyo]\ncommands = x\n[u-tokyo327]", "utokyo"), ("loglevel", "log_level", "log_level"),
     ("[u-tokyo327]\n", "[u-tokyo327]\ncommand = y\n", "command"), ("create_inp_file.sh", "", "no commands")],
)  # fmt: skip
def test_what_means_nothing_is_told(old: str, new: str, word: str) -> None:
    """Unknown sections and keys, and a site without commands, are warnings; the rest is in force."""
    found = parse_ini(EXAMPLE.replace(old, new, 1))
    assert len(found.warnings) == 1 and word in found.warnings[0]
    assert found.sites["nims-dev"] == SITES["nims-dev"]


def test_a_file_on_disk(tmp_path: Path) -> None:
    """A byte-order mark is taken; other encodings, a missing file and a huge one are refused by name."""
    path = tmp_path / "x.ini"
    path.write_text(EXAMPLE, encoding="utf-8-sig")
    assert load_ini(path).sites == SITES
    for data in (EXAMPLE.encode("utf-16"), EXAMPLE.encode() + b"#" * MAX_BYTES, b"[x"):
        path.write_bytes(data)
        with pytest.raises(BadRequest, match=r"x\.ini"):
            load_ini(path)
    with pytest.raises(BadRequest, match="No such file"):
        load_ini(tmp_path / "none")


def test_the_server_that_stands_in_its_place(tmp_path: Path) -> None:
    """Address and port of the file; loopback where it names none; an IPv6 address in brackets."""
    for text, listen in (
        (EXAMPLE, "192.0.2.10:8082"), (EXAMPLE.replace("192.0.2.10", "2001:db8::1"), "[2001:db8::1]:8082"),
        (EXAMPLE[EXAMPLE.index("[Remote"):], "127.0.0.1:8082"),
    ):  # fmt: skip
        declared = render_server(parse_ini(text), Path("/etc/x.ini"), Path("/s"))
        assert declared["listen"] == [listen] and declared["database"] == "sqlite:////s/jobs.sqlite"
