"""A job of a root install against its unit: what it may not do, what it cannot outgrow, and what a reboot makes of it.

tools/host_tests.sh runs these, as root: the site is a container with systemd.
"""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually
from hosts import BIN, RELEASE, Pair, declare, why_not

pytestmark = pytest.mark.skipif(why_not() != "", reason=why_not() or "-")

PROGRAMS = {
    "hello": "#!/bin/sh\nid -un; cat *.txt; echo done >out.dat; mkdir sub; echo deep >sub/deep.dat\n",
    "bomb": "#!/bin/sh\nb() { b | b & }; b; sleep 10\n",
    "hog": "#!/usr/bin/python3\nx = []\nwhile True:\n    x.append(bytearray(b'x' * (10 << 20)))\n",
    "noisy": "#!/bin/sh\nyes | head -c 30000000; echo done >out.dat\n",
    "fill": "#!/bin/sh\nfor i in $(seq 60); do head -c 10000000 /dev/zero >f$i || exit 3; sleep 0.5; done\n",
    "escape": "#!/bin/sh\nsetsid sh -c 'setsid sleep 1234 & sleep 4321' >/dev/null 2>&1 &\necho done >out.dat\n",
    "block": "#!/bin/sh\nsleep 777 & echo s >started; sleep 777\n",
    "again": "#!/bin/sh\nread n <tries.txt; echo $n; test -e /run/misrc-second && exit 0; sleep 777\n",
    "probe": """#!/usr/bin/python3
import ctypes, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action):
    try:
        return ["done", repr(action())]
    except OSError as error:
        return ["refused", error.strerror]
def call(name, *words):
    if getattr(libc, name)(*words) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
job = os.environ["MISRC_JOB_ID"]
tries = {
    "own file": lambda: open("own", "w").write("x"),
    "write /etc": lambda: open("/etc/x", "w"),
    "write /usr": lambda: open("/usr/x", "w"),
    "policy": lambda: open("/etc/misrc/policy.json").read(),
    "ledger": lambda: os.listdir("/var/lib/misrc/ledger"),
    "runner": lambda: socket.socket(socket.AF_UNIX).connect("/run/misrc/runner.sock"),
    "other jobs": lambda: [name for name in os.listdir("/var/lib/misrc/jobs") if name != job] or call("close", -1),
    "network": lambda: socket.create_connection((os.environ.get("PEER", "192.0.2.1"), 22), 3),
    "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "user namespace": lambda: call("unshare", 0x10000000),
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "ptrace": lambda: call("ptrace", 16, 1, 0, 0),
    "setuid": lambda: os.setuid(0),
    "setuid file": lambda: (open("s", "w").close(), os.chmod("s", 0o4755)),
    "kernel log": lambda: open("/dev/kmsg").read(1),
    "root's home": lambda: os.listdir("/root"),
    "cgroup": lambda: os.mkdir("/sys/fs/cgroup/x"),
    "sysctl": lambda: open("/proc/sys/kernel/hostname", "w").write("x"),
    "clock": lambda: call("settimeofday", ctypes.create_string_buffer(16), None),
}
json.dump({name: attempt(action) for name, action in tries.items()}, open("probe.json", "w"))
""",
}
# What the looser profile leaves to a program: namespaces for container tools, devices for accelerators.
HPC_MAY = {"own file", "user namespace", "kernel log"}


@pytest.fixture(scope="session", autouse=True)
def unprivileged() -> None:
    """Takes the place of the rule that tests run as an ordinary user: these make hosts of their own."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A site made by the roles, with programs that misbehave, and MInt's host."""
    place = tmp_path_factory.mktemp("units")
    made = Pair(place, RELEASE, label="units")
    made.make()
    try:
        made.policy = _policy(made)
        tree = place / "programs"
        tree.mkdir()
        for name, text in PROGRAMS.items():
            (tree / name).write_text(text)
            (tree / name).chmod(0o755)
        done = made.provision(site_programs_trees=[{"dest": "/opt/programs", "source": f"{tree}/"}])
        assert done.returncode == 0, done.stdout + done.stderr
        _declare(made)
        yield made
    finally:
        made.remove()


def _policy(pair: Pair) -> dict[str, Any]:
    def rule(name: str, **more: Any) -> dict[str, Any]:
        return {"path": f"/opt/programs/{name}", "returns": ["**"], "logs": "full", **more}

    programs = {name: rule(name) for name in PROGRAMS}
    programs["again"]["restartable"] = True
    programs["hpc"] = rule("probe", profile="hpc")
    programs["netted"] = rule("probe", network="allow")
    key = " ".join((pair.place / "job.pub").read_text().split()[:2])
    return {
        "install": "root",
        "work_root": "/var/lib/misrc/jobs",
        "job_keys": [{"key": key, "from": [f"{pair.mint.address}/32"], "until": "2099-12-31"}],
        "limits": {
            "jobs": 4,
            "job_bytes": "64MiB",
            "processes": 64,
            "memory": "256MiB",
            "log_bytes": "1MiB",
            "hours": 1,
        },
        "programs": programs,
    }


def _declare(pair: Pair) -> None:
    programs = {name: {"inputs": {"*": "optional"}, "outputs": {"**": "optional"}} for name in pair.policy["programs"]}
    declare(pair, programs)


def _misrc(pair: Pair, *words: str) -> list[str]:
    variables = ["env", "MISRC_INVENTORY=/root/inventory", "MISRC_LANG=en", "HOME=/root", "PATH=/usr/bin:/bin"]
    return [*variables, str(BIN / "misrc"), *words]


def _run(pair: Pair, program: str, *words: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """A whole run; what it said, and the folder of its results on MInt's host."""
    folder = f"/root/results-{uuid.uuid4()}"
    pair.mint.sh(f"mkdir {folder}")
    argv = _misrc(pair, "run", "deployed", program, "--results", folder, "--new", *words)
    return pair.mint.run(*argv, check=False, timeout=240), folder


def _probe(pair: Pair, program: str) -> dict[str, list[str]]:
    done, folder = _run(pair, program)
    assert done.returncode == 0, done
    found: dict[str, list[str]] = json.loads(pair.mint.sh(f"cat {folder}/probe.json"))
    return found


def _job_processes(pair: Pair) -> str:
    return pair.site.sh("ps -u misrc-job -o args= || :").strip()


def _works(pair: Pair) -> None:
    """The next job runs, and nothing of the last one is left."""
    assert _job_processes(pair) == ""
    pair.mint.sh("echo input >/root/in.txt")
    done, folder = _run(pair, "hello", "--in", "in.txt=/root/in.txt")
    assert done.returncode == 0, done
    assert pair.mint.sh(f"cat {folder}/out.dat {folder}/sub/deep.dat") == "done\ndeep\n"
    assert pair.mint.sh(f"cat {folder}/remote_program_exec.log") == "misrc-job\ninput\n"


def test_a_job_can_do_nothing_outside_its_folder(pair: Pair) -> None:
    """`strict`: from inside a job everything but its own files is refused by the system, whatever the program tries."""
    found = _probe(pair, "probe")
    assert {name for name, (how, _) in found.items() if how == "done"} == {"own file"}, found


def test_the_hpc_profile_gives_up_no_more_than_it_says(pair: Pair) -> None:
    """`hpc`: devices and namespaces are there; the site's rules, its ledger, other jobs and the network are not."""
    found = _probe(pair, "hpc")
    assert {name for name, (how, _) in found.items() if how == "done"} <= HPC_MAY, found


def test_only_a_program_that_may_has_a_network(pair: Pair) -> None:
    """Without `network: allow` no packet can leave (the system says so at once); with it the attempt gets further."""
    assert _probe(pair, "probe")["network"] == ["refused", "Network is unreachable"]
    assert _probe(pair, "netted")["network"] != ["refused", "Network is unreachable"]


@pytest.mark.parametrize(("unit", "most"), [("strict", 2.0), ("strict-net", 2.0), ("hpc", 5.0)])
def test_systemd_rates_the_units_as_declared(pair: Pair, unit: str, most: float) -> None:
    """`systemd-analyze security` of the deployed unit stays below the profile's bound."""
    words = ("systemd-analyze", "security", "--no-pager", f"misrc-{unit}@{uuid.uuid4()}.service")
    said = pair.site.run(*words, check=False).stdout
    score = float(said.strip().splitlines()[-1].split(": ")[1].split()[0])
    assert 0 < score <= most, said


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("bomb", None, ""),
        ("hog", 1, "failed"),
        ("noisy", 0, ""),
        ("fill", 1, "more than the site allows"),
        ("escape", 0, ""),
    ],
)
def test_what_a_job_wastes_is_its_own(pair: Pair, program: str, status: int | None, said: str) -> None:
    """Fork bomb, memory hog, endless output, full quota, double fork: ended with the job; the next job runs."""
    done, folder = _run(pair, program)
    assert status is None or done.returncode == status, done
    assert said in done.stderr
    if program == "noisy":
        assert int(pair.mint.sh(f"stat -c %s {folder}/remote_program_exec.log")) < 2 << 20
    _works(pair)


def _start(pair: Pair, program: str) -> "subprocess.Popen[str]":
    folder = f"/root/results-{uuid.uuid4()}"
    pair.mint.sh(f"mkdir {folder}; echo one >/root/tries.txt")
    argv = ["podman", "exec", pair.mint.name, *_misrc(pair, "run", "deployed", program, "--results", folder, "--new")]
    extra = ["--in", "tries.txt=/root/tries.txt"] if program == "again" else []
    run = subprocess.Popen([*argv, *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path = f"/opt/programs/{program}"
    eventually(lambda: path in _job_processes(pair), 60, "the program")
    return run


def _job_id(pair: Pair) -> str:
    listed = pair.site.run("/usr/bin/python3", "/usr/libexec/misrc/current", "jobs", "--json").stdout.splitlines()
    [job] = [plain["job"] for plain in map(json.loads, listed) if plain["state"] == "running"]
    return str(job)


def test_cancel_leaves_no_process(pair: Pair) -> None:
    """`misrc cancel` ends the program and all it started; the run says that it was cancelled."""
    run = _start(pair, "block")
    done = pair.mint.run(*_misrc(pair, "cancel", _job_id(pair)), check=False)
    assert done.returncode == 0, done
    said = run.communicate(timeout=60)
    assert run.returncode == 6, said
    _works(pair)


def test_a_killed_supervisor_adopts_its_job(pair: Pair) -> None:
    """The program does not notice that its supervisor was killed; the next one waits for the same process."""
    run = _start(pair, "block")
    job, before = _job_id(pair), pair.site.sh("pgrep -u misrc-job sleep")
    pair.site.run("systemctl", "kill", "-s", "KILL", f"misrc-supervisor@{job}.service")
    eventually(lambda: any(r["event"] == "adopt" and r["job"] == job for r in pair.ledger()), 30, "the adoption")
    assert pair.site.sh("pgrep -u misrc-job sleep") == before
    pair.site.run("pkill", "-u", "misrc-job", "sleep")
    run.communicate(timeout=60)
    assert [r["event"] for r in pair.ledger() if r.get("job") == job].count("run") == 1
    _works(pair)


def test_a_reboot_loses_a_job_or_starts_it_again_as_declared(pair: Pair) -> None:
    """After a reboot MInt hears `lost` (exit 5), or the end of a second run where the policy says `restartable`."""
    before = len([r for r in pair.ledger() if r["event"] in ("run", "restart", "end")])
    lost = _start(pair, "block")
    again = _start(pair, "again")
    address = pair.site.address
    pair.restart_site()
    assert pair.site.address == address
    pair.site.sh("touch /run/misrc-second; pkill -u misrc-job sleep || :")
    told = lost.communicate(timeout=120)
    assert lost.returncode == 5, told
    said = again.communicate(timeout=120)
    assert again.returncode in (0, 1), said
    seen = [(r["event"], r["job"], r.get("reason")) for r in pair.ledger() if r["event"] in ("run", "restart", "end")]
    assert [event for event, _, _ in seen[before:]].count("restart") == 1, seen[before:]
    _works(pair)


def test_a_door_cannot_forge_the_ledger(pair: Pair) -> None:
    """The gate's account cannot read or write the ledger, and the runner takes only a door's own events from it.

    Control: the door's own event is taken.
    """
    ask = (
        "import json,socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/misrc/runner.sock'); "
        "s.sendall((sys.argv[1]+chr(10)).encode()); print(s.recv(65536).decode())"
    )

    def asked(request: dict[str, Any]) -> dict[str, Any]:
        words = ("setpriv", "--reuid", "misrc", "--regid", "misrc", "--clear-groups", "python3", "-c", ask)
        answer: dict[str, Any] = json.loads(pair.site.run(*words, json.dumps(request)).stdout)
        return answer

    before = len(pair.ledger())
    for event in ("run", "end", "leave", "install", "delete", "freeze"):
        assert asked({"do": "record", "event": event, "fields": {"job": None}})["denied"]
    assert asked({"do": "record", "event": "hello", "fields": {"seq": 1}})["denied"]
    for what in ("leave", "run", "delete", "close"):
        assert asked({"do": what, "job": str(uuid.uuid4())})["denied"]
        assert asked({"do": what, "job": "../../etc"})["denied"]
    assert asked({"do": "format"})["denied"]
    assert len(pair.ledger()) == before
    assert asked({"do": "record", "event": "hello", "fields": {"job": None}})["seq"] == before
    words = ("setpriv", "--reuid", "misrc", "--regid", "misrc", "--clear-groups", "ls", "/var/lib/misrc/ledger")
    assert pair.site.run(*words, check=False).returncode != 0


def test_results_are_closed_until_their_leaving_is_on_record(pair: Pair, tmp_path: Path) -> None:
    """A door cannot read what a job made before the runner has recorded that it leaves, nor change it afterwards."""
    done, _ = _run(pair, "hello")
    assert done.returncode == 0
    job = next(r["job"] for r in reversed(pair.ledger()) if r["event"] == "end")
    folder = f"/var/lib/misrc/jobs/{job}"

    def as_door(*words: str) -> int:
        own = ("setpriv", "--reuid", "misrc", "--regid", "misrc", "--clear-groups")
        return pair.site.run(*own, *words, check=False).returncode

    assert as_door("cat", f"{folder}/return/out.dat") == 0
    assert as_door("sh", "-c", f"echo x >{folder}/return/out.dat") != 0
    assert as_door("cat", f"{folder}/work") != 0
    assert as_door("sh", "-c", f"echo x >{folder}/job.json") != 0
    assert as_door("touch", f"{folder}/new") != 0


FORGE = """
import hashlib, os, sys
sys.path.insert(0, sys.argv[1])
from misrc.job.spec import JobSpec
from misrc.job.states import JobState
from misrc.site import files, jobs
root = os.open("/var/lib/misrc/jobs", os.O_RDONLY)
spec = JobSpec(sys.argv[2], "deployed", "hello", manifest=hashlib.sha256(b"").hexdigest(), issued=int(sys.argv[3]))
job = jobs.create_job(root, "/var/lib/misrc/jobs", spec, [], sys.argv[4])
files.write_record(job.folder, "inputs.jsonl", sys.argv[5].encode())
job.advance(JobState.STAGED, JobState.QUEUED)
"""


def test_p21_a_door_cannot_make_work(pair: Pair) -> None:
    """Where signatures are asked for, the runner starts nothing that a taken-over door made, also after a boot."""
    key = pair.mint.run(*_misrc(pair, "signing-key", "make")).stdout.strip()
    policy = json.loads(pair.site.sh("cat /etc/misrc/policy.json"))
    pair.site.write("/root/policy.json", json.dumps({**policy, "require_signature": [key]}))
    pair.site.sh("cp -p /etc/misrc/policy.json /root/policy.before; cat /root/policy.json >/etc/misrc/policy.json")
    own = ("setpriv", "--reuid", "misrc", "--regid", "misrc", "--clear-groups", "/usr/bin/python3", "-c")
    ask = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/misrc/runner.sock'); "
        "s.sendall((sys.argv[1]+chr(10)).encode()); print(s.recv(65536).decode())"
    )
    code = pair.site.sh("ls -d /usr/libexec/misrc/misrc-site.pyz").strip()
    now = str(int(time.time()))
    try:
        refused, _ = _run(pair, "hello")
        assert refused.returncode == 3 and "signed" in refused.stderr, refused
        forged = []
        for signature, inputs in (("none", ""), ("none", '{"name":"x"}\n')):
            job = str(uuid.uuid4())
            forged.append(job)
            pair.site.run(*own, FORGE, code, job, now, signature, inputs)
            answer = json.loads(pair.site.run(*own, ask, json.dumps({"do": "run", "job": job})).stdout)
            assert answer["denied"] == "E16", answer
        pair.site.run("systemctl", "start", "misrc-recover.service")
        for job in forged:
            assert pair.site.sh(f"systemctl is-active misrc-supervisor@{job} || :").strip() == "inactive"
            assert pair.site.sh(f"stat -c %U /var/lib/misrc/jobs/{job}").strip() == "misrc"
            pair.site.sh(f"rm -r /var/lib/misrc/jobs/{job}")
        text = pair.mint.sh("cat /root/inventory/host_vars/deployed.yml")
        pair.mint.write(
            "/root/inventory/host_vars/deployed.yml", text.replace("  id: deployed", "  signed: true\n  id: deployed")
        )
        _works(pair)
        last = next(r["job"] for r in reversed(pair.ledger()) if r["event"] == "end")
        assert pair.site.sh(f"stat -c %U /var/lib/misrc/jobs/{last}/spec.json").strip() == "root"
    finally:
        pair.site.sh("cat /root/policy.before >/etc/misrc/policy.json")
        _declare(pair)
