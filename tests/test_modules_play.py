"""Modules as MInt's player runs them, against a real site: the whole workflow, a stop, and what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chain import chain
from conftest import MISRC, Mint, Site, eventually, job_processes, make_mint, make_program, make_site

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
STEEL = ("reduction_area.dat", "tensile_strength.dat", "yield_strength.dat")
PORTS = {
    "断面減少率": "reduction_area.dat",
    "引っ張り強度": "tensile_strength.dat",
    "降伏強度": "yield_strength.dat",
    "応力分布データ": "XX.dat",
    "Abaqus入力データ": "XX.inp",
}
RULES: dict[str, dict[str, object]] = {
    "mesh": {"choices": ["small", "medium"], "default": "small"},
    "analysis": {"choices": ["elastic", "cyclic"], "default": "elastic"},
    "amplitude": {"pattern": "[0-9]{1,4}", "default": "100"},
}
MODULE: dict[str, Any] = {
    "model": "M000000000000001",
    "version": "1.0.0",
    "date": "2026-11-20",
    "creator": {"name": "x", "id": "200000100000001"},
    "path": "/tests/module.sh",
}
STAMP = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d"
JOB = r"[0-9a-f]{8}-[0-9a-f-]{27}"


def descriptor(number: int) -> dict[str, str]:
    return {"descriptor": f"D{number:015}"}


def add_programs(site: Site, own: Path) -> None:
    """Put the real sample program beside the small ones of a site's policy, and one that needs a prepared table."""
    own.mkdir(parents=True)
    shutil.copytree(SCRIPTS / "remote-side_scripts", own / "remote-side_scripts")
    shutil.copy(SCRIPTS / "execute_remote-side_program_ssh.sample.sh", own / "program.sh")
    subprocess.run([sys.executable, str(own / "remote-side_scripts/make_specimen.py"), "small"], check=True)
    common = {"returns": ["**"], "withhold": ["*.key", "secret/**"], "logs": "full", "network": "allow"}
    arguments = {name: {key: rule[key] for key in rule if key != "default"} for name, rule in RULES.items()}
    site.policy["programs"]["stress_distribution"] = {
        "path": str(own / "program.sh"),
        "arguments": arguments,
        **common,
        "returns": ["XX.dat", "XX.inp"],
    }
    double = 'while read -r x; do echo "$((x * 2))"; done < table.dat > out.dat\n'
    make_program(site.root / "programs/double", f'echo "$MISRC_JOB_ID" >> {site.root}/starts\n{double}')
    site.policy["programs"]["double"] = {"path": str(site.root / "programs/double"), **common}


def declare_modules(programs: dict[str, Any]) -> dict[str, Any]:
    """The programs of a site with what makes them modules."""
    programs = json.loads(json.dumps(programs))
    programs["stress_distribution"] = {
        "inputs": dict.fromkeys(STEEL, "required"),
        "arguments": RULES,
        "outputs": {"XX.dat": "required", "XX.inp": "required"},
        "ports": PORTS,
        "module": {**MODULE, "solver": "abaqus"},
    }
    programs["sleep"]["ports"] = {"結果": "out.dat"}
    programs["sleep"]["module"] = {
        **MODULE,
        "ports": {"結果": descriptor(1), "秒": {**descriptor(2), "argument": "seconds", "required": False}},
    }
    programs["fail"]["ports"] = {"結果": "out.dat"}
    programs["fail"]["module"] = {**MODULE, "ports": {"結果": descriptor(1)}}
    programs["double"] = {
        "inputs": {"table.dat": "required"},
        "outputs": {"out.dat": "required"},
        "command": "/home/rme/double.sh",
        "ports": {"表": "table.csv", "和": "sum.txt"},
        "module": {
            **MODULE,
            "before": [["{scripts}/prepare.sh"]],
            "after": [["{python}", "-c", "print(sum(map(int, open('out.dat'))), file=open('sum.txt', 'w'))"]],
            "ports": {
                "表": {**descriptor(3), "direction": "in", "alias": "table"},
                "和": {**descriptor(4), "direction": "out"},
            },
        },
    }
    # Through JSON, so that YAML finds no value that stands in two places, which it would write as an alias.
    return dict(json.loads(json.dumps(programs)))


class Ways:
    """MInt's side for each way to a site, made when it is asked for. A new way is one more method, and one of WAYS."""

    def __init__(self, root: Path, stack: contextlib.ExitStack) -> None:
        self.root = root
        self.stack = stack
        self._made: dict[str, Mint] = {}

    def __call__(self, method: str) -> Mint:
        if method not in self._made:
            self._made[method] = getattr(self, f"make_{method}")()
        return self._made[method]

    def make_ssh(self) -> Mint:
        """MInt logs in to the site."""
        site = make_site(self.root / "ssh/site-host")
        add_programs(site, self.root / "ssh/workflow/scripts")
        site.install()
        site.start_sshd()
        self.stack.callback(site.stop_sshd)
        mint = make_mint(self.root / "ssh/mint", site)
        mint.declaration["programs"] = declare_modules(mint.declaration["programs"])
        mint.declare()
        return mint

    def make_webapi(self) -> Mint:
        """The site's agent asks MInt's API server."""
        made = self.stack.enter_context(chain(self.root / "webapi"))
        add_programs(made.site, self.root / "webapi/workflow/scripts")
        made.configure()
        made.declare(programs=declare_modules(made.mint.declaration["programs"]))
        made.mint.site = made.site
        return made.mint


WAYS = ["ssh", "webapi"]


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    with contextlib.ExitStack() as stack:
        yield Ways(tmp_path_factory.mktemp("ways"), stack)


@pytest.fixture(params=WAYS)
def mint(request: pytest.FixtureRequest, ways: Ways, tmp_path: Path) -> Mint:
    """MInt's side, with a folder of its own for what a test writes."""
    made = ways(request.param)
    made.environment = {
        "PATH": f"{Path(MISRC).parent}:{os.environ['PATH']}",
        "MISRC_SOLVER_LOGS": str(tmp_path / "logs"),
        "MISYSTEM_SITEID": "site00002",
        "MISRC_SITE": made.site.name,
        "MISRC_MODULES": str(tmp_path / "modules"),
    }
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/misrc_remote_workflow").symlink_to(ROOT)
    return made


def solver_lines(tmp_path: Path) -> list[str]:
    path = tmp_path / "logs/site00002/solver_logs/solver_execute.log"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def render(mint: Mint, program: str, folder: Path) -> Path:
    """The module file of a program, with its script where the player finds it."""
    done = mint.command("module", "render", "--output", str(folder), mint.site.name, program)
    assert done.returncode == 0, done.stderr
    place = folder / "modules/tests"
    place.mkdir(exist_ok=True)
    shutil.copy(folder / "module.sh", place / "module.sh")
    return folder / f"modules-{program}.xml"


def steel() -> list[str]:
    names = {file: port for port, file in PORTS.items()}
    return [word for name in STEEL for word in (f"--{names[name]}", str(SCRIPTS / "sample_data" / name))]


def test_a_workflow_of_two_modules_plays_as_one(mint: Mint, tmp_path: Path) -> None:
    """The remote stress distribution, then the module that reads it: its data is what the program makes, to the byte.

    The second module gets its inputs from the first, finds the peak and draws it; the solver log has both lines; what
    the site withholds did not come; one job was computed.
    """
    before = {record["job"] for record in mint.jobs()}
    done = mint.command(
        "module",
        "play",
        "--workdir",
        str(tmp_path / "run"),
        str(ROOT / "modulesxml/modules-stress_distribution.xml"),
        str(ROOT / "modulesxml/modules-stress_picture.xml"),
        *steel(),
        *("--応力分布データ", str(tmp_path / "stress.dat")),
        *("--応力分布図", str(tmp_path / "field.png")),
        *("--最大応力", str(tmp_path / "peak.txt")),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [str(tmp_path / name) for name in ("field.png", "peak.txt", "stress.dat")]
    assert (tmp_path / "stress.dat").read_bytes() == compute_directly(mint.site, tmp_path / "direct")
    assert (tmp_path / "peak.txt").read_text(encoding="utf-8").startswith("21")
    assert (tmp_path / "field.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert colours(tmp_path / "field.png") > 100, "a field, not an empty sheet"
    (record,) = [record for record in mint.jobs() if record["job"] not in before]
    start, end = solver_lines(tmp_path)
    run = next(iter(re.findall(r"R\d{15}", start)))
    assert re.fullmatch(rf"{STAMP}: start: abaqus: player: {record['job']}: {run}: W000000000000000", start)
    assert re.fullmatch(rf"{STAMP}: normal end: abaqus: player: {record['job']}: {run}: W000000000000000", end)
    assert not list((tmp_path / "run").rglob("*.key"))
    opened = [line for line in mint.site.ledger() if line["event"] == "open" and line.get("job") == record["job"]]
    assert opened[0]["origin"] == {"user": "player", "run": run, "workflow": "W000000000000000"}


def compute_directly(site: Site, folder: Path) -> bytes:
    """The same computation by the program itself."""
    folder.mkdir()
    for name in STEEL:
        shutil.copy(SCRIPTS / "sample_data" / name, folder)
    words = [site.policy["programs"]["stress_distribution"]["path"], "small", "elastic", "100"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=120)
    return (folder / "XX.dat").read_bytes()


def colours(path: Path) -> int:
    from PIL import Image

    with Image.open(path) as image:
        return len(image.getcolors(1 << 24) or [])


@pytest.mark.parametrize("script", ["kousoku_abaqus_{way}_version2.sh", "kousoku_abaqus_{way}_version2.py"])
def test_the_sample_scripts_are_called_as_mint_calls_them(mint: Mint, tmp_path: Path, script: str) -> None:
    """With Japanese and ASCII names of ports and other file names, from another current directory."""
    out = tmp_path / "run"
    out.mkdir()
    words = [*steel()[:4], "--yield_strength.dat", steel()[5]]
    outputs = ["--応力分布データ", str(out / "応力分布データ"), "--Abaqus入力データ", str(out / "Abaqus入力データ")]
    way = {"ssh": "ssh", "webapi": "api"}[mint.declaration["method"]]
    command = [str(SCRIPTS / script.format(way=way)), *words, *outputs]
    done = subprocess.run(command, env=mint.env(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "応力分布データ").read_bytes() == (out / "XX.dat").read_bytes()
    assert (out / "Abaqus入力データ").stat().st_size > 1000
    assert len(solver_lines(tmp_path)) == 2


def marked(mark: str) -> list[int]:
    """Live processes with this word in their environment."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(int(entry))
    return found


@pytest.mark.parametrize("whom", ["the player", "the whole session, as PBS does"])
def test_a_stop_ends_the_remote_job_and_leaves_no_process(mint: Mint, tmp_path: Path, whom: str) -> None:
    """SIGTERM: within 10 s nothing of the job runs at the site and nothing of the module here; the exit is not 0."""
    mark = f"MISRC_TEST_MARK={tmp_path}"
    mint.environment["MISRC_TEST_MARK"] = str(tmp_path)
    seconds = mint.file("seconds", b"600\n")
    path = render(mint, "sleep", tmp_path)
    words = ["module", "play", "--workdir", str(tmp_path / "run"), str(path), "--秒", seconds]
    before = {record["job"] for record in mint.jobs()}
    player = mint.spawn(*words)
    try:
        job = eventually(lambda: {r["job"] for r in mint.jobs()} - before, what="the job's record").pop()
        eventually(lambda: job_processes(job), what="the program at the site")
        assert len(marked(mark)) >= 2, "positive control: the mark shows the player and the module"
        stopped = time.monotonic()
        if whom == "the player":
            player.send_signal(signal.SIGTERM)
        else:
            for pid in marked(mark):
                if pid != player.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
        _, errors = player.communicate(timeout=60)
        assert job_processes(job) == []
        assert time.monotonic() - stopped < 10
        assert player.returncode == (6 if whom == "the player" else 1), errors
        assert eventually(lambda: marked(mark) == [], seconds=10, what="the end of every process")
        record = next(record for record in mint.jobs() if record["job"] == job)
        assert (record["state"], record["outcome"]) == ("closed", "cancelled")
        assert [line.split(": ")[1] for line in solver_lines(tmp_path)] == ["start", "abnormal end"]
    finally:
        player.kill()
        player.communicate()


def test_a_stop_before_the_job_ends_the_step(mint: Mint, tmp_path: Path) -> None:
    """SIGTERM while a command of `before` runs: the command is gone, no job was made, the exit is 6."""
    path = render(mint, "double", tmp_path)
    make_program(tmp_path / "modules/tests/prepare.sh", f"touch {tmp_path}/up; exec sleep 600\n")
    mint.environment["MISRC_TEST_MARK"] = str(tmp_path)
    before = len(mint.jobs())
    words = ["module", "play", "--workdir", str(tmp_path / "run"), str(path), "--表", mint.file("t", b"1\n")]
    player = mint.spawn(*words)
    eventually((tmp_path / "up").exists, what="the step")
    assert len(marked(str(tmp_path))) >= 3, "positive control: the player, the module and its step are seen"
    player.send_signal(signal.SIGTERM)
    _, errors = player.communicate(timeout=30)
    assert player.returncode == 6, errors
    assert marked(str(tmp_path)) == []
    assert len(mint.jobs()) == before and solver_lines(tmp_path) == []


def test_steps_before_and_after_make_files_of_files(mint: Mint, tmp_path: Path) -> None:
    """`before` makes the program's input of a port's file, `after` the port's result of the program's output."""
    path = render(mint, "double", tmp_path)
    step = f"env > {tmp_path}/env; tr , '\\n' < table.csv > table.dat; echo preparing\n"
    make_program(tmp_path / "modules/tests/prepare.sh", step)
    if mint.declaration["method"] == "ssh":  # by WebAPI a token that nobody gave would count
        mint.environment["miwf_api_token"] = "t" * 64
    table = mint.file("numbers", b"1,2,39\n")
    done = mint.command("module", "play", str(path), "--table", table, "--和", str(tmp_path / "sum"))
    assert done.returncode != 0, "an alias is a name for the script, not one of the file"
    done = mint.command(
        "module", "play", "--workdir", str(tmp_path / "run"), str(path), "--表", table, "--和", str(tmp_path / "sum")
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sum").read_text(encoding="utf-8") == "84\n"
    assert "preparing" in done.stderr
    given = (tmp_path / "env").read_text(encoding="utf-8")
    assert "MISRC_RUN_ID=" in given and "t" * 64 not in given, "a run's token is not for a step"
    make_program(tmp_path / "modules/tests/prepare.sh", "exit 3\n")
    done = mint.command("module", "play", "--workdir", str(tmp_path / "again"), str(path), "--表", table)
    assert done.returncode == 1 and "status 3" in done.stderr


def test_a_retired_module_is_not_played(mint: Mint, tmp_path: Path) -> None:
    """As MInt does not run it; before it was retired, the same file played."""
    path = render(mint, "double", tmp_path)
    make_program(tmp_path / "modules/tests/prepare.sh", "cp table.csv table.dat\n")
    words = ("module", "play", str(path), "--表", mint.file("t", b"1\n"))
    assert mint.command(*words).returncode == 0
    assert mint.command("module", "retire", str(path)).returncode == 0
    done = mint.command(*words)
    assert done.returncode == 2 and "deleted" in done.stderr


def test_an_input_that_bears_the_programs_name_is_left_as_it_is(mint: Mint, tmp_path: Path) -> None:
    """A link in the working directory, already named as the program knows it; another file there is in the way."""
    out = tmp_path / "run"
    out.mkdir()
    make_program(out / "prepare.sh", "cp table.csv table.dat\n")
    (out / "table.csv").symlink_to(mint.file("numbers", b"1\n2\n"))
    words = ("module", "run", "--scripts", str(out), mint.site.name, "double", "--和", str(out / "和"))
    done = mint.command(*words, "--表", str(out / "table.csv"))
    assert done.returncode == 0, done.stderr
    assert (out / "和").read_text(encoding="utf-8") == "6\n"
    assert (out / "table.csv").read_bytes() == b"1\n2\n"
    (out / "table.csv").unlink()
    (out / "table.csv").write_text("mine\n", encoding="utf-8")
    done = mint.command(*words, "--表", mint.file("numbers", b"3\n"))
    assert done.returncode == 2 and "table.csv" in done.stderr
    assert (out / "table.csv").read_text(encoding="utf-8") == "mine\n"


def test_a_failing_program_fails_the_module(mint: Mint, tmp_path: Path) -> None:
    """Exit 1, an abnormal end in the solver log, no file where MInt expects the result, and the program's log."""
    path = render(mint, "fail", tmp_path)
    done = mint.command("module", "play", "--workdir", str(tmp_path / "run"), str(path))
    assert done.returncode == 1 and "exit status 3" in done.stderr
    assert [line.split(": ")[1] for line in solver_lines(tmp_path)] == ["start", "abnormal end"]
    assert not (tmp_path / "run/01/結果").exists()
    assert (tmp_path / "run/01/remote_program_exec.log").read_text(encoding="utf-8") == "bad\n"


def test_a_module_that_pbs_starts_again_computes_once(mint: Mint, tmp_path: Path) -> None:
    """The same run in the same folder finds its job; another run with the same inputs is another job."""
    out = tmp_path / "run"
    words = ("module", "run", mint.site.name, "sleep", "--結果", str(out / "結果"))
    started = len(mint.starts())
    for run, count in (("R1", 1), ("R1", 1), ("R2", 2)):
        mint.environment["PBS_JOBID"] = run
        done = mint.command(*words)
        assert done.returncode == 0, done.stderr
        assert (out / "結果").read_text(encoding="utf-8") == "finished\n"
        assert len(mint.starts()) == started + count


def test_the_player_gives_what_pbs_gives(mint: Mint, tmp_path: Path) -> None:
    """PBS's variables, a node file, MInt's site id, a run id, and the folder of the outputs as working directory."""
    path = render(mint, "sleep", tmp_path)
    make_program(
        tmp_path / "modules/tests/module.sh", f'env > {tmp_path}/env; pwd; cat "$PBS_NODEFILE"; echo x > "$2"\n'
    )
    done = mint.command(
        "module", "play", "--workdir", str(tmp_path / "run"), str(path), "--結果", str(tmp_path / "result")
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-2:] == [str(tmp_path / "run/01"), "ssh-node01"]
    given = dict(line.split("=", 1) for line in (tmp_path / "env").read_text(encoding="utf-8").splitlines())
    assert re.fullmatch(r"1\.R\d{15}\.player", given["PBS_JOBID"]) and given["MISYSTEM_SITEID"] == "site00002"
    assert given["PBS_O_WORKDIR"] == str(tmp_path / "run/01") and re.fullmatch(r"R\d{15}", given["MISRC_RUN_ID"])


def test_what_cannot_be_played_is_said_before_anything_runs(mint: Mint, tmp_path: Path) -> None:
    """A broken file, a missing script, an unknown port, a missing input, a folder that is in use."""
    good = str(render(mint, "double", tmp_path))
    table = mint.file("t", b"1\n")
    used = tmp_path / "used"
    used.mkdir()
    (used / "x").touch()
    jobs = len(mint.jobs())
    for words, message in (
        (([]), "module file"),
        ([str(ROOT / "tests/modules/broken/no_title.xml")], "dc:title"),
        ([str(ROOT / "tests/modules/good/written_by_hand.xml")], "module.py"),
        ([good, "--表", table, "--他", table], "他"),
        ([good], "表"),
        (["--workdir", str(used), good, "--表", table], "not empty"),
    ):
        done = mint.command("module", "play", *words)
        assert done.returncode == 2 and message in done.stderr, (words, done.stderr)
    assert len(mint.jobs()) == jobs


@pytest.mark.parametrize("script", ["execute_remote_command.sample.sh", "execute_remote_command.sample.py"])
def test_program_b_under_its_old_name(mint: Mint, tmp_path: Path, script: str) -> None:
    """The old words run the declared program; what returns comes into the current directory; nothing else runs."""
    (tmp_path / "table.dat").write_text("4\n5\n", encoding="utf-8")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(SCRIPTS / script), *words]
        return subprocess.run(command, env=mint.env(), cwd=tmp_path, capture_output=True, text=True, check=False)

    host = f"client_name:{mint.site.name}"
    done = run(host, "client_cmd:/home/rme/double.sh", "client_files:./table.dat")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.dat").read_text(encoding="utf-8") == "8\n10\n"
    assert (tmp_path / "remote_program_exec.log").exists()
    jobs = len(mint.jobs())
    assert run(host, "client_cmd:cat /etc/passwd", "client_files:table.dat").returncode == 2
    assert run(host, "client_cmd:/home/rme/double.sh", "client_files:nothing.dat").returncode == 2
    assert len(mint.jobs()) == jobs
