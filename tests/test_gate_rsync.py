"""Section B of docs/attacks.md, first half: rsync's options, as a command and inside the daemon protocol."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Site
from oracle import Oracle, tree
from transfers import Rsync

from misrc.wire.rsync import put_argv

FILES = {"a.dat": b"alpha\n", "b.dat": b"beta" * 1000}
REFUSED = b"server is configured to refuse"


@pytest.fixture(scope="module")
def rsync(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Rsync:
    return Rsync(shared_site, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def oracle(shared_site: Site) -> Oracle:
    return Oracle(shared_site)


def quiet(rsync: Rsync, done: subprocess.CompletedProcess[bytes]) -> None:
    """Nothing that the site said names one of its paths."""
    said = done.stdout + done.stderr
    assert str(rsync.site.work_root).encode() not in said and str(rsync.site.prefix).encode() not in said, said


def refused(rsync: Rsync, *attacks: str, verb: str = "put", because: bytes = REFUSED) -> None:
    """Each attack's options are refused in the protocol before any file moves; then a plain transfer still works."""

    def attempt(options: str) -> str:
        job = rsync.opened(FILES) if verb == "put" else rsync.ended()
        if verb == "put":
            done, arrived = rsync.push(job, FILES, *options.split()), rsync.received(job)
        else:
            done, arrived = rsync.pull(job, *options.split())
        assert done.returncode != 0 and because in done.stderr, (options, done)
        assert not any(arrived.values()), (options, arrived)
        quiet(rsync, done)
        return job

    with ThreadPoolExecutor(6) as pool:  # a refusing rsync sleeps more than it works
        jobs = list(pool.map(attempt, attacks))
    controls(rsync, jobs[-1], verb)


def controls(rsync: Rsync, job: str, verb: str = "put") -> None:
    """`-rt`: one push into `in`, or one pull from `return`."""
    if verb == "put":
        assert rsync.push(job, FILES).returncode == 0
        assert rsync.received(job) == FILES
    else:
        done, found = rsync.pull(job)
        assert done.returncode == 0 and found["out.dat"] == b"done\n"


def denied(oracle: Oracle, *commands: str) -> None:
    """On the command line none of them is in the grammar."""
    oracle.all_denied("E02", *(command.encode() for command in commands))


def test_g29_owner_links_and_modes_are_refused(oracle: Oracle, rsync: Rsync) -> None:
    """What plain `-a` sends is refused, on the command line and in the protocol; `-rt` is the documented form."""
    denied(oracle, "rsync --server -logDtpre.iLsfxCIvu . U/in/", "rsync --server --sender -re.iLsfxCIvu . U/return/")
    refused(
        rsync,
        "-a",
        "-rtl",
        "-rtp",
        "-rto",
        "-rtg",
        "-rtD",
        "-rtA",
        "-rtX",
        "-rtE",
        "-rt --owner --numeric-ids",
        "-rt -M--fake-super",
        "-rt -M--super",
    )
    refused(rsync, "-a", verb="get")


def test_g32_a_reversed_direction_is_refused(oracle: Oracle, rsync: Rsync) -> None:
    """Each verb offers one module with one direction: nothing is read by `put`, nothing is written by `get`."""
    denied(oracle, "rsync --server -tre.x --sender . U/in/")
    job = rsync.opened(FILES)
    controls(rsync, job)
    done, found = rsync.pull(job, module="in/", verb="put")
    assert done.returncode != 0 and b"write only" in done.stderr and not found
    ended = rsync.ended()
    done = rsync.push(ended, FILES, module="return/", verb="get")
    assert done.returncode != 0 and b"read only" in done.stderr
    assert set(rsync.pull(ended)[1]) == {"out.dat", "remote_program_exec.log"}
    for module, verb, name in (("return/", "put", job), ("in/", "get", ended)):
        done, found = rsync.pull(name, module=module, verb=verb)
        assert done.returncode != 0 and b"Unknown module" in done.stderr and not found


@pytest.mark.parametrize("option", ["-s", "--protect-args", "--secluded-args", "-M-s", "-M--secluded-args"])
def test_g33_arguments_do_not_come_later(oracle: Oracle, rsync: Rsync, option: str) -> None:
    """Arguments over standard input are refused although a wildcard refusal spares that option."""
    denied(oracle, f"rsync --server -s{option} .", "rsync --server --secluded-args .")
    refused(rsync, f"-rt {option}")


def test_g34_a_doctored_remote_path_is_refused(oracle: Oracle, rsync: Rsync) -> None:
    """No word can be put in front of or into the command that rsync makes."""
    denied(oracle, "rsync --insecure-links --server -tre.x . U/in/", "put --insecure-links U --server --daemon .")
    job = rsync.opened(FILES)
    for command in (f"put {job} --config=/x", f"put  {job}", f"rsync --rsync-path put {job}", f"put {job};id", "rsync"):
        done = rsync.run(command, "-rt", "--", rsync.source(FILES), "site::in/")
        assert done.returncode != 0 and b"misrc: denied (E02)" in done.stderr
    refused(rsync, "-rt -M--insecure-links")


def test_g38_lists_of_files_are_refused(oracle: Oracle, rsync: Rsync, tmp_path: Path) -> None:
    """No list of names reaches the site's rsync, from the client, from standard input or from a file of the server.

    Control: the names in MInt's own client's argv.
    """
    denied(oracle, "rsync --server --files-from=- .", "rsync --server --files-from=:list . U/in/")
    listing = tmp_path / "list"
    listing.write_text("../../../../etc/passwd\n/etc/passwd\n")
    refused(
        rsync, f"-rt --files-from={listing}", "-rt -M--files-from=-", "-rt -M--files-from=/etc/passwd", "-rt -M--from0"
    )
    job = rsync.ended()
    for option in ("--files-from=:/etc/passwd", "--files-from=:list", f"--files-from={listing}"):
        done, found = rsync.pull(job, "-rt", option)
        assert done.returncode != 0 and not found
    job = rsync.opened(FILES)
    argv = put_argv("/usr/bin/rsync", str(rsync.rsh), job, sorted(FILES))
    assert subprocess.run(argv, cwd=rsync.source(FILES), capture_output=True, check=False).returncode == 0
    assert rsync.received(job) == FILES


def test_g40_links_at_the_site_are_not_followed(rsync: Rsync, tmp_path: Path) -> None:
    """`-L`, `-k` and `--copy-unsafe-links` on a pull and `-K` on a push are refused; a link in `return/` never leaves.

    Control: `-L` on a push concerns MInt's own source files.
    """
    refused(rsync, "-rtL", "-rtk", "-rt --copy-unsafe-links", "-rt --copy-links", "-rt --copy-dirlinks", verb="get")
    refused(rsync, "-rtK", "-rt --keep-dirlinks", "-rt -M-K")
    job = rsync.ended()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for name, target in (("link", secret), ("folder", tmp_path)):
        (rsync.site.job_file(job, "return") / name).symlink_to(target)
    assert set(rsync.pull(job)[1]) == {"out.dat", "remote_program_exec.log"}
    job = rsync.opened(FILES)
    source = Path(rsync.source({"b.dat": FILES["b.dat"], "../outside/a": FILES["a.dat"]}))
    (source / "a.dat").symlink_to(source / "../outside/a")
    done = rsync.run(f"put {job}", "-rtL", "--", f"{source}/", "site::in/")
    assert done.returncode == 0 and rsync.received(job) == FILES
    shutil.rmtree(source.parent / "outside")


def test_g41_no_special_file_ever_appears(oracle: Oracle, rsync: Rsync) -> None:
    """Options for devices are refused, and a source that merely contains special files brings none of them."""
    refused(rsync, "-rtD", "-rt --devices", "-rt --specials", "-rt -M--copy-devices", "-rt -M--write-devices")
    refused(rsync, "-rt --copy-devices", "-rtD", verb="get")
    job = rsync.opened(FILES)
    source = rsync.source(FILES)
    os.mkfifo(f"{source}fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(source)
        listener.bind("socket")
        done = rsync.run(f"put {job}", "-rt", "--", source, "site::in/")
    assert done.returncode == 0 and rsync.received(job) == FILES


def test_g43_hard_links_are_refused(rsync: Rsync) -> None:
    """No option makes a hard link at the site, to the job's own files or to others."""
    refused(
        rsync,
        "-rtH",
        "-rt --link-dest=/etc",
        "-rt --link-dest=../../return",
        "-rt --copy-dest=/etc",
        "-rt --compare-dest=/etc",
        "-rt -M--hard-links",
    )
    refused(rsync, "-rtH", verb="get")


def test_g45_other_ways_of_writing_are_refused(rsync: Rsync) -> None:
    """Appending, sparse and preallocated writing are refused.

    Control: `--partial --inplace` on a `put` goes on from what a cut transfer left. On a `get` they only reach MInt's
    own side of the transfer and change nothing at the site.
    """
    refused(
        rsync,
        "-rt --append",
        "-rt --append-verify",
        "-rtS",
        "-rt --preallocate",
        "-rt --backup",
        "-rtu",
        "-rtR",
        "-rt --backup-dir=/tmp",
        "-rt --temp-dir=/tmp",
        "-rt --partial-dir=/tmp",
        "-rt --delay-updates",
        "-rt --delete",
        "-rt --mkpath",
        "-rt --remove-source-files",
        "-rt --existing",
    )
    refused(rsync, "-rt -M--read-batch=x", "-rt -M--write-batch=/tmp/x", because=b"")
    job = rsync.opened(FILES)
    (rsync.site.job_file(job, "in") / "b.dat").write_bytes(FILES["b.dat"][:1500])
    assert rsync.push(job, FILES, "-rt", "--partial", "--inplace").returncode == 0
    assert rsync.received(job) == FILES
    ended = rsync.ended()
    before = tree(rsync.site)
    assert rsync.pull(ended, "-rt", "--partial", "--inplace")[0].returncode == 0
    work = f"{rsync.site.job_file(ended, 'return')}/"
    assert {k: v for k, v in tree(rsync.site).items() if k.startswith(work)} == {
        k: v for k, v in before.items() if k.startswith(work)
    }


def test_g46_no_compressed_stream_is_accepted(rsync: Rsync) -> None:
    """Compression in every spelling is refused."""
    refused(
        rsync,
        "-rtz",
        "-rt --compress-choice=zstd",
        "-rtz --compress-level=9",
        "-rt --new-compress",
        "-rt -M-z",
        "-rt --old-compress",
        "-rt -M--compress-threads=256",
        "-rt -M--compress",
        "-rt -M--skip-compress=gz",
    )
    refused(rsync, "-rtz", verb="get")


def test_g49_verbosity_and_logs_stay_the_site_s(rsync: Rsync, tmp_path: Path) -> None:
    """Noise, formats and log files are refused and none of the site's paths is told.

    The site's verbosity is fixed, so `-v` is refused too. Control: what MInt's own client asks of itself for progress.
    """
    log = tmp_path / "log"
    refused(
        rsync,
        "-rtv",
        "-rtvvv",
        "-rt --debug=ALL -M--debug=ALL",
        "-rt -M--info=all9",
        "-rt -M--msgs2stderr",
        "-rt --stderr=all",
        "-rt -M--out-format=%f",
        "-rt -M--log-format=%f",
        f"-rt -M--log-file={log}",
        "-rt -M--log-file-format=%f",
        "-rt -M--stats",
        "-rt -M--itemize-changes",
        "-rt -M--checksum-seed=1",
    )
    assert not log.exists()
    job = rsync.opened(FILES)
    done = rsync.push(job, FILES, "-rt", "--info=progress2")
    assert done.returncode == 0
    quiet(rsync, done)


def test_g50_a_daemon_of_the_client_s_making_is_refused(oracle: Oracle, rsync: Rsync, tmp_path: Path) -> None:
    """Neither a configuration nor a parameter nor another module can be given."""
    denied(oracle, "rsync --server --daemon --config=/x .", "rsync --server --daemon .", "rsync --daemon --no-detach")
    config = tmp_path / "own.conf"
    config.write_text("[all]\npath = /\nread only = no\n")
    refused(
        rsync, f"-rt -M--config={config}", "-rt -M--dparam=path=/", "-rt -M--no-detach", "-rt -M--port=1", because=b""
    )
    job = rsync.opened(FILES)
    for module in ("all/", "etc/", "return/", "in2/", "/", "", "#list", "in\x01/"):
        done = rsync.push(job, FILES, module=module)
        assert (done.returncode != 0 or done.stdout == b"") and not rsync.received(job), (module, done)
        quiet(rsync, done)
    controls(rsync, job)
