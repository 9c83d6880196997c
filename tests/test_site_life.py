"""A site's life at MInt's side: add, show, rotate, retire. What is killed at any step goes on when it is repeated."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CLEAN, MISRC, Mint, Site, eventually, free_port, make_mint, make_site

from misrc.declare.inventory import load_sites


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Mint]:
    """MInt's side on which nothing is declared yet, and an installed site with its sshd."""
    site = make_site(tmp_path / "site-host")
    site.start_sshd()
    mint = Mint(tmp_path / "mint", site, {}, {"XDG_CONFIG_HOME": str(tmp_path / "config")})
    mint.root.mkdir()
    yield mint
    site.stop_sshd()


def keys_folder(house: Mint) -> Path:
    return Path(house.environment["XDG_CONFIG_HOME"]) / "misrc/keys"


def private_key(house: Mint, suffix: str = "") -> Path:
    return keys_folder(house) / f"{house.site.name}{suffix}"


def declared(house: Mint) -> Path:
    return house.root / f"inventory/host_vars/{house.site.name}.yml"


def add_words(house: Mint, **changes: str | None) -> list[str]:
    """The call that declares the site; a change of None leaves an option out."""
    options: dict[str, str | None] = {
        "address": "127.0.0.1",
        "port": str(house.site.port),
        "user": subprocess.check_output(["id", "-un"], text=True).strip(),
        "host-key": str(house.site.root / "host_key.pub"),
        "program": "noop",
        "from": "127.0.0.0/8",
        **changes,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return ["site", "add", house.site.name, *words]


def ask_json(house: Mint, *words: str) -> dict[str, Any]:
    done = house.command(*words, "--json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def accept(house: Mint, *entries: dict[str, Any]) -> None:
    """The site's administrator takes these job keys and no others."""
    house.site.policy["job_keys"] = list(entries)
    house.site.install()


def add(house: Mint) -> dict[str, Any]:
    """Declare the site, and let it take the key."""
    told = ask_json(house, *add_words(house))
    accept(house, told["policy_entry"])
    return told


def run_noop(house: Mint) -> subprocess.CompletedProcess[str]:
    return house.command("run", house.site.name, "noop", "--results", f"out-{time.monotonic_ns()}", "--new")


def check_one_line(done: subprocess.CompletedProcess[str], status: int, *parts: str) -> None:
    assert done.returncode == status, done
    assert done.stderr.count("\n") == 1 and all(part in done.stderr for part in parts), done.stderr


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; locks and the memory of parsed declarations hold nothing, and sshd writes its log."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".log"))
    return {str(path): path.read_bytes() for path in found if path.parent.name != "declared"}


# -- add -------------------------------------------------------------------------------------------------------------


def test_add_then_install_then_run(house: Mint) -> None:
    """One call here and one at the site, from what the first one printed, and a job ends with its result."""
    told = add(house)
    assert private_key(house).stat().st_mode & 0o777 == 0o600 and keys_folder(house).stat().st_mode & 0o077 == 0
    assert told["policy_entry"]["from"] == ["127.0.0.0/8"]
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


# -- killed, and repeated --------------------------------------------------------------------------------------------


def fault_points(house: Mint, tmp_path: Path, words: list[str]) -> list[str]:
    """The passages of a whole run, as orders for `kill`; the run's own effects stay."""
    folder = tmp_path / "faults-seen"
    folder.mkdir(exist_ok=True)
    (folder / "trace").unlink(missing_ok=True)
    house.environment["MISRC_FAULTS"] = str(folder)
    done = house.command(*words)
    del house.environment["MISRC_FAULTS"]
    assert done.returncode == 0, done.stderr
    names = (folder / "trace").read_text().split()
    return [f"{name} {names[:i].count(name) + 1}" for i, name in enumerate(names)]


def kill_at(house: Mint, tmp_path: Path, words: list[str], point: str) -> None:
    """Run a command that dies at a fault point."""
    folder = tmp_path / f"faults-{time.monotonic_ns()}"
    folder.mkdir()
    (folder / "kill").write_text(point)
    house.environment["MISRC_FAULTS"] = str(folder)
    done = house.command(*words)
    del house.environment["MISRC_FAULTS"]
    assert done.returncode == -9, (point, done)


def only_key(house: Mint) -> bool:
    """Nothing but the job key and its public half lies in the folder, and they belong together."""
    names = sorted(path.name for path in keys_folder(house).iterdir() if not path.name.endswith(".lock"))
    public = subprocess.check_output(["ssh-keygen", "-y", "-f", private_key(house)], text=True).split()[1]
    return names == [house.site.name, f"{house.site.name}.pub"] and public in private_key(house, ".pub").read_text()


def test_add_killed_anywhere_goes_on(house: Mint, tmp_path: Path) -> None:
    """After a kill at each step the same call ends well, with one key and one whole declaration."""
    words = add_words(house)
    points = fault_points(house, tmp_path, words)
    assert len(points) >= 6
    wanted = declared(house).read_bytes()
    for point in points[:-1]:
        for path in [*keys_folder(house).iterdir(), declared(house)]:
            path.unlink()
        kill_at(house, tmp_path, words, point)
        if not declared(house).exists():
            assert house.command(*words).returncode == 0, point
        assert declared(house).read_bytes() == wanted and only_key(house), point


def test_rotation_killed_anywhere_goes_on(house: Mint, tmp_path: Path) -> None:
    """Each step of begin, finish and abort may be the last one: repeated, it ends well, and a key always works."""
    add(house)
    name = house.site.name
    begin, finish, abort = (["site", "rotate", name, *more] for more in ([], ["--finish"], ["--abort"]))
    fault_points(house, tmp_path, begin)
    begin_points = fault_points_of_begin(house, tmp_path, begin, abort)
    for point in begin_points:
        kill_at(house, tmp_path, begin, point)
        told = ask_json(house, *begin)
        assert told["state"] == "begun" and private_key(house, ".next").exists(), point
        assert house.command(*abort).returncode == 0 and only_key(house), point
    for closing, wanted in ((abort, "old"), (finish, "new")):
        told = begun(house, begin)
        accept(house, *told["job_keys"])
        points = fault_points(house, tmp_path, closing)
        for point in points:
            told = begun(house, begin)
            accept(house, *told["job_keys"])
            kill_at(house, tmp_path, closing, point)
            assert run_hello(house), point
            assert house.command(*closing).returncode == 0, point
            assert only_key(house), point
            listed = subprocess.check_output(["ssh-keygen", "-lf", private_key(house)], text=True).split()[1]
            assert listed == told["fingerprints"][wanted], point
            assert run_hello(house), point


def fault_points_of_begin(house: Mint, tmp_path: Path, begin: list[str], abort: list[str]) -> list[str]:
    assert house.command(*abort).returncode == 0
    points = fault_points(house, tmp_path, begin)
    assert house.command(*abort).returncode == 0
    assert len(points) >= 6
    return points


def begun(house: Mint, begin: list[str]) -> dict[str, Any]:
    return ask_json(house, *begin)


def run_hello(house: Mint) -> bool:
    """Whether the site would take a job now."""
    return house.command("run", house.site.name, "noop", "--dry-run").returncode == 0


# -- rotate ----------------------------------------------------------------------------------------------------------


def test_rotation_never_leaves_a_job_without_a_key(house: Mint) -> None:
    """Before, during and after the site's change jobs run; the old key is gone here when it is finished."""
    told = add(house)
    name = house.site.name
    old_bytes = private_key(house).read_bytes()
    begun_now = ask_json(house, "site", "rotate", name, "--overlap", "30")
    new, old = begun_now["job_keys"]
    assert old["key"] == told["policy_entry"]["key"] and old["until"] == begun_now["until"] and "until" not in new
    assert run_noop(house).returncode == 0, "the site knows only the old key"
    check_one_line(house.command("site", "rotate", name, "--finish"), 4, "does not accept")
    assert private_key(house).read_bytes() == old_bytes and private_key(house, ".next").exists()
    accept(house, new, old)
    found = findings(house)
    assert found["job_key"]["verdict"] == "ok" and "--finish" in found["job_key"]["note"]
    assert run_noop(house).returncode == 0
    accept(house, new)
    assert run_noop(house).returncode == 0, "the site knows only the new key"
    done = ask_json(house, "site", "rotate", name, "--finish")
    assert done["state"] == "finished" and done["new"] == begun_now["fingerprints"]["new"]
    assert only_key(house) and private_key(house).read_bytes() != old_bytes
    assert run_noop(house).returncode == 0
    assert ask_json(house, "site", "rotate", name, "--finish")["state"] == "none"


def test_a_job_that_runs_while_keys_change_ends_well(house: Mint) -> None:
    """A job begun under the old key is fetched after the change, though the site has forgotten the old key."""
    told = add(house)
    variables = yaml.safe_load(declared(house).read_text())
    variables["misrc_site"]["programs"]["sleep"] = {
        "arguments": {"seconds": {"pattern": "[0-9]{1,4}", "default": "1"}},
        "outputs": {"out.dat": "required"},
    }
    variables["misrc_site"]["retry"] = {"count": 20, "interval": 0.3}
    declared(house).write_text(yaml.safe_dump(variables))
    process = house.spawn("run", house.site.name, "sleep", "--arg", "seconds=600", "--results", "long")
    job = eventually(lambda: [record for record in house.jobs() if record["state"] == "running"], 60)[0]["job"]
    new = ask_json(house, "site", "rotate", house.site.name)["job_keys"][0]
    accept(house, new, told["policy_entry"])
    assert house.command("site", "rotate", house.site.name, "--finish").returncode == 0
    accept(house, new)
    house.site.stop_sshd()
    house.site.start_sshd()
    for pid in house_sleepers(job):
        os.kill(pid, 15)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "does not accept" not in errors, (output, errors)
    assert [record["state"] for record in house.jobs()] == ["closed"]


def house_sleepers(job: str) -> list[int]:
    from conftest import job_processes

    return [pid for pid in job_processes(job) if Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"]


def test_two_changes_at_a_time_are_refused(house: Mint) -> None:
    """While one command changes the keys of a site, another one is told so; afterwards it works."""
    import fcntl

    add(house)
    with private_key(house).with_name(f".{house.site.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check_one_line(house.command("site", "rotate", house.site.name), 2, "another command")
    assert house.command("site", "rotate", house.site.name).returncode == 0


# -- retire ----------------------------------------------------------------------------------------------------------


def retired(house: Mint) -> Path:
    return house.root / "retired" / house.site.name


def check_retired(house: Mint, private: bytes) -> dict[str, Any]:
    """The record is there, the declaration and the public key beside it, and the private key nowhere."""
    record: dict[str, Any] = json.loads((retired(house) / "record.json").read_text())
    assert not declared(house).exists() and (retired(house) / f"{house.site.name}.yml").exists()
    assert (retired(house) / f"{house.site.name}.pub").exists()
    assert not [path for path in house.root.parent.rglob("*") if path.is_file() and path.read_bytes() == private]
    assert not [path for path in keys_folder(house).iterdir() if not path.name.endswith(".lock")]
    return record


def test_retire_leaves_a_record_and_no_key(house: Mint) -> None:
    """The ledger's last line, why and when; afterwards no job, and never that id again."""
    add(house)
    assert run_noop(house).returncode == 0
    private = private_key(house).read_bytes()
    public = private_key(house, ".pub").read_text()
    told = ask_json(house, "site", "retire", house.site.name, "--reason", "契約終了")
    record = check_retired(house, private)
    last = house.site.ledger()[-1]
    assert record["checkpoint"]["seq"] == last["seq"] and record["heard"] and record["reason"] == "契約終了"
    assert record["jobs"] == 1 and told["folder"] == str(retired(house))
    assert (retired(house) / f"{house.site.name}.pub").read_text() == public
    check_one_line(run_noop(house), 2, house.site.name)
    check_one_line(house.command(*add_words(house)), 2, "never used again")
    assert house.command("site", "retire", house.site.name).returncode == 0


def test_retire_waits_for_jobs(house: Mint) -> None:
    """An unfinished job is named and stops the retirement; --force cancels it first."""
    add(house)
    variables = yaml.safe_load(declared(house).read_text())
    variables["misrc_site"]["programs"]["sleep"] = {
        "arguments": {"seconds": {"pattern": "[0-9]{1,4}"}},
        "outputs": {"out.dat": "optional"},
    }
    declared(house).write_text(yaml.safe_dump(variables))
    process = house.spawn("run", house.site.name, "sleep", "--arg", "seconds=600", "--results", "long")
    job = eventually(lambda: [record for record in house.jobs() if record["state"] == "running"], 60)[0]["job"]
    process.kill()
    process.communicate()
    private = private_key(house).read_bytes()
    before = tree(house.root / "inventory")
    check_one_line(house.command("site", "retire", house.site.name), 2, job, "running")
    assert tree(house.root / "inventory") == before and private_key(house).read_bytes() == private
    done = house.command("site", "retire", house.site.name, "--force")
    assert done.returncode == 0, done.stderr
    check_retired(house, private)
    assert [(record["state"], record["outcome"]) for record in house.jobs()] == [("closed", "cancelled")]


def test_a_site_that_is_gone_can_be_retired(house: Mint) -> None:
    """Its last line is then the one that a job told, and the record says so."""
    add(house)
    assert run_noop(house).returncode == 0
    told = house.jobs()[-1]["checkpoint"]
    private = private_key(house).read_bytes()
    house.site.stop_sshd()
    assert house.command("site", "retire", house.site.name).returncode == 0
    record = check_retired(house, private)
    assert record["checkpoint"] == told and not record["heard"]


def test_retirement_killed_anywhere_goes_on(house: Mint, tmp_path: Path) -> None:
    """After a kill at each step the same call finishes it, and no private key is left."""
    words = ["site", "retire", house.site.name]
    entry = add(house)["policy_entry"]

    def again() -> bytes:
        """As if it had never been: only a test may forget that an id was used."""
        for path in sorted(retired(house).rglob("*")) if retired(house).exists() else []:
            path.unlink()
        if retired(house).exists():
            retired(house).rmdir()
        for path in keys_folder(house).iterdir():
            path.unlink()
        declared(house).unlink(missing_ok=True)
        accept(house, ask_json(house, *add_words(house))["policy_entry"])
        assert house.command("site", "rotate", house.site.name).returncode == 0
        return private_key(house).read_bytes()

    again()
    points = fault_points(house, tmp_path, words)
    assert len(points) >= 10 and entry
    for point in points:
        private = again()
        kill_at(house, tmp_path, words, point)
        done = house.command(*words)
        assert done.returncode == 0, (point, done.stderr)
        assert len(check_retired(house, private)["fingerprints"]) == 2, point


# -- show ------------------------------------------------------------------------------------------------------------


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


def findings(house: Mint) -> dict[str, dict[str, str]]:
    done = house.command("site", "check", house.site.name, "--json")
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


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
    """`misrc site --help` loads neither pydantic nor Ansible."""
    code = "import sys; from misrc import cli\ntry: cli.main(['site', '--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('pydantic', 'yaml', 'ansible', 'misrc.mint') if m in sys.modules], file=sys.stderr)"
    python = str(Path(MISRC).parent / "python")
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, env=CLEAN, check=True)
    assert done.stderr == "[]\n" and "rotate" in done.stdout
