"""`misrc site add` and `show`. What is killed at any step goes on when it is repeated."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import CLEAN, MISRC, Mint, Site, eventually, free_port, make_mint
from faultpoints import check_all_struck
from lives import (
    accept,
    add,
    add_words,
    ask_json,
    check_one_line,
    declared,
    fault_points,
    house,
    keys_folder,
    kill_at,
    only_key,
    private_key,
    run_noop,
    tree,
)

from misrc.declare.inventory import load_sites

__all__ = ["house"]


def test_add_then_install_then_run(house: Mint) -> None:
    """One call here and one at the site, from what the first one printed, and a job ends with its result."""
    told = add(house)
    assert private_key(house).stat().st_mode & 0o777 == 0o600 and keys_folder(house).stat().st_mode & 0o077 == 0
    assert told["policy_entry"]["from"] == ["127.0.0.0/8"]
    assert yaml.safe_load(told["interface"])["misrc_site"]["survey"] == {"sources": ["127.0.0.0/8"]}, "for the sheet"
    assert f"install --site {house.site.name}" in told["install"]
    assert yaml.safe_load(told["interface"]) == yaml.safe_load(declared(house).read_text())
    done = run_noop(house)
    assert done.returncode == 0, done.stderr


def test_add_writes_nothing_in_a_rehearsal(house: Mint) -> None:
    """--dry-run shows declaration, install and sources, and leaves no file; the real call then does."""
    before = tree(house.root.parent)
    done = house.command(*add_words(house), "--dry-run")
    assert done.returncode == 0 and "address: 127.0.0.1" in done.stdout and "127.0.0.0/8" in done.stdout
    assert tree(house.root.parent) == before
    assert house.command(*add_words(house)).returncode == 0 and declared(house).exists()


@pytest.mark.parametrize("option", ["address", "host-key", "program"])
def test_add_never_asks_without_a_terminal(house: Mint, option: str) -> None:
    """What is missing is named, nothing waits, and nothing is written."""
    before = tree(house.root.parent)
    check_one_line(house.command(*add_words(house, **{option: None})), 2, f"--{option}")
    assert tree(house.root.parent) == before


def test_add_asks_on_a_terminal(house: Mint) -> None:
    """A person answers what no option said; an empty answer takes the default."""
    leader, follower = pty.openpty()
    words = add_words(house, address=None, user=None, program=None)
    process = subprocess.Popen(
        [MISRC, *words], stdin=follower, stdout=subprocess.PIPE, stderr=follower, env=house.env(), text=True
    )
    os.close(follower)
    seen = b""
    for question, answer in ((b"Host name", b"127.0.0.1\n"), (b"[misrc]: ", b"\n"), (b"Programs", b"noop copy\n")):
        while question not in seen:
            seen += os.read(leader, 1024)
        os.write(leader, answer)
    output, _ = process.communicate(timeout=60)
    os.close(leader)
    assert process.returncode == 0, (seen, output)
    site = load_sites(house.root / "inventory")[house.site.name]
    assert (site.address, site.user, sorted(site.programs)) == ("127.0.0.1", "misrc", ["copy", "noop"])


def test_add_reads_a_host_key_from_standard_input(house: Mint) -> None:
    """`--host-key -` takes the lines of a .pub file."""
    key = (house.site.root / "host_key.pub").read_bytes()
    done = subprocess.run(
        [MISRC, *add_words(house, **{"host-key": "-"})], input=key, capture_output=True, env=house.env(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert load_sites(house.root / "inventory")[house.site.name].host_keys == (house.site.host_key(),)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"address": "a b"}, "address"),
        ({"address": "-oProxyCommand=x"}, "address"),
        ({"user": "root"}, "user"),
        ({"port": "70000"}, "port"),
        ({"program": "Bad-Name"}, "programs"),
        ({"program": "noop=/nonexistent.yml"}, "/nonexistent.yml"),
        ({"from": "192.0.2.1/24"}, "--from"),
        ({"valid-until": "2027-02-30"}, "valid_until"),
        ({"proxy-jump": "jump.example"}, "--jump-host-key"),
        ({"host-key": "/dev/null"}, "--host-key"),
        ({"host-key": "/nonexistent"}, "--host-key"),
        ({"host-key": "/etc/hostname"}, "--host-key"),
        ({"key": "/etc/hostname"}, "/etc/hostname"),
    ],
)
def test_add_refuses_what_is_not_well_formed(house: Mint, changes: dict[str, str], part: str) -> None:
    """One line that names the place, and nothing is written."""
    before = tree(house.root.parent)
    done = house.command(*add_words(house, **changes))
    assert done.returncode == 2 and part in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
    assert tree(house.root.parent) == before


def test_add_writes_nothing_over(house: Mint) -> None:
    """A declared id, a file of that name, and a key that lies there stay as they are."""
    add(house)
    before = tree(house.root.parent)
    check_one_line(house.command(*add_words(house)), 2, "declared already")
    declared(house).rename(declared(house).with_name("other.yml"))
    check_one_line(house.command(*add_words(house)), 2, "declared already", "other.yml")
    declared(house).with_name("other.yml").rename(declared(house))
    check_one_line(house.command(*add_words(house, key=str(house.site.job_key))), 2, "declared already")
    assert tree(house.root.parent) == before
    declared(house).unlink()
    check_one_line(house.command(*add_words(house, key=str(house.site.job_key))), 2, "never written over")
    assert private_key(house).read_bytes() == before[str(private_key(house))]


def test_add_takes_a_key_that_exists(house: Mint) -> None:
    """--key copies a private key to its place; the site, which knows it already, serves it at once."""
    told = ask_json(house, *add_words(house, key=str(house.site.job_key)))
    assert told["public_key"].split()[:2] == (house.site.root / "job_key.pub").read_text().split()[:2]
    assert private_key(house).stat().st_mode & 0o777 == 0o600
    done = run_noop(house)
    assert done.returncode == 0, done.stderr


def test_add_killed_anywhere_goes_on(house: Mint, tmp_path: Path) -> None:
    """After a kill at each step the same call ends well, with one key and one whole declaration."""
    words = add_words(house)
    points = fault_points(house, tmp_path, words)
    assert len(points) >= 6
    wanted = declared(house).read_bytes()
    check_all_struck("life-add", points)
    for point in points:
        for path in [*keys_folder(house).iterdir(), declared(house)]:
            path.unlink()
        kill_at(house, tmp_path, words, point)
        if not declared(house).exists():
            assert house.command(*words).returncode == 0, point
        assert declared(house).read_bytes() == wanted and only_key(house), point


def test_show_touches_no_host_and_shows_what_is_used(house: Mint) -> None:
    """With the site switched off it shows MInt's configuration, and the site's key lines as the site has them."""
    add(house)
    house.site.stop_sshd()
    done = house.command("site", "show", house.site.name)
    assert done.returncode == 0 and "Host site" in done.stdout and "root install" in done.stdout, done
    policy = house.site.root / "policy.json"
    told = ask_json(house, "site", "show", house.site.name, "--policy", str(policy))
    files = {Path(file["path"]).name: file["text"] for file in told["files"]}
    (line,) = files["authorized_keys"].splitlines()
    (real,) = (house.site.root / "authorized_keys").read_text().splitlines()
    assert line.split(",command=")[0] == real.split(",command=")[0] and line.split('" ')[1] == real.split('" ')[1]
    assert len(told["weaker"]) == 8 and files["known_hosts"] == f"misrc-{house.site.name} {house.site.host_key()}\n"
    check_one_line(house.command("site", "show", "nobody"), 2, "nobody", house.site.name)


def test_show_stops_quietly_when_nobody_reads(house: Mint) -> None:
    """`misrc site show … | head -1` is no error."""
    add(house)
    line = f"{MISRC} site show {house.site.name} | head -1"
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, env=house.env(), check=False)
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.startswith(b"# ")


# -- the way there, and the end of an agreement ----------------------------------------------------------------------


@pytest.fixture
def jump(house: Mint, tmp_path: Path) -> Iterator[Site]:
    """A second sshd, through which the first one is reached: an ordinary account that may forward."""
    root = tmp_path / "jump-host"
    root.mkdir()
    host = Site(root, "jump", {})
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name)], check=True)
    (root / "authorized_keys").write_bytes((root / "user_key.pub").read_bytes())
    host.start_sshd(free_port())
    yield host
    host.stop_sshd()


def test_a_jump_host_is_pinned_too(house: Mint, jump: Site) -> None:
    """By way of a jump host with the declared key a job runs; with another key nothing gets through."""
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    key = str(jump.root / "host_key.pub")
    way = {"proxy-jump": f"{user}@127.0.0.1:{jump.port}", "jump-host-key": key}
    accept(house, ask_json(house, *add_words(house, **way))["policy_entry"])
    private_key(house, ".jump").write_bytes((jump.root / "user_key").read_bytes())
    private_key(house, ".jump").chmod(0o600)
    done = run_noop(house)
    assert done.returncode == 0, done.stderr
    before = len(house.site.ledger())
    variables = yaml.safe_load(declared(house).read_text())
    variables["misrc_site"]["via"]["host_keys"] = [house.site.host_key()]
    variables["misrc_site"]["retry"] = {"count": 0, "interval": 0}
    declared(house).write_text(yaml.safe_dump(variables))
    done = run_noop(house)
    assert done.returncode == 4 and "host key" in done.stderr, done.stderr
    assert len(house.site.ledger()) == before


def test_an_ended_agreement_lets_a_begun_job_end(mint: Mint, site: Site) -> None:
    """valid_until refuses new jobs with status 3, in both languages; a job that was begun before is brought home."""
    process = mint.spawn("run", site.name, "sleep", "--arg", "seconds=8", "--results", "out")
    eventually(lambda: [record for record in mint.jobs() if record["state"] == "running"], 60)
    process.kill()
    process.communicate()
    late = make_mint(mint.root, site, valid_until="2020-01-31")
    done = late.command("run", site.name, "sleep", "--arg", "seconds=8", "--results", "out")
    assert done.returncode == 0, done.stderr
    for language, word in (("en", "ended on 2020-01-31"), ("ja", "利用期限は 2020-01-31")):
        late.environment["MISRC_LANG"] = language
        done = late.command("run", site.name, "noop")
        assert done.returncode == 3 and word in done.stderr, done.stderr
    assert len(late.starts()) == 1


def test_help_stays_quick() -> None:
    """`misrc site --help` loads neither pydantic nor Ansible, and of our own rooms only the words of commands."""
    code = "import sys; from misrc import cli\ntry: cli.main(['site', '--help'])\nexcept SystemExit: pass\n"
    code += "heavy = ('pydantic', 'yaml', 'ansible', 'lxml', 'misrc.declare', 'misrc.mint.messages.catalog')\n"
    code += "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    python = str(Path(MISRC).parent / "python")
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, env=CLEAN, check=True)
    assert done.stderr == "[]\n" and "rotate" in done.stdout
