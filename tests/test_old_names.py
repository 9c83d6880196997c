"""The predecessor's paths: one table in the manual, links that a role lays, and callers by path that keep working."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CLEAN
from pages import DOCS, ROOT
from spelling import OLD_API as API
from spelling import OLD_PATHS as OLD
from spelling import OLD_WORKFLOW as WORKFLOW

BIN = Path(sys.executable).parent
PAGES = {"en": DOCS / "predecessor.md", "ja": DOCS / "ja/predecessor.md"}
HEADINGS = {"en": "## Where each old path is", "ja": "## 旧パスの対応表"}


def read_table(language: str) -> dict[str, str]:
    """Each old path of the page's table with what the page says of it."""
    text = PAGES[language].read_text(encoding="utf-8").split(HEADINGS[language] + "\n", 1)[1].split("\n## ")[0]
    folder, found = "", {}
    for line in text.splitlines():
        if match := re.match(r"\| \*\*`([^`]+)`\*\*", line):
            folder = match[1]
        elif match := re.match(r"\| ((?:`[^`]+`(?:, )?)+) \| (.*) \|$", line):
            for name in re.findall(r"`([^`]+)`", match[1]):
                assert folder + name not in found, name
                found[folder + name] = match[2]
    return found


def read_links() -> dict[str, str]:
    """The role's own table."""
    declared = yaml.safe_load((ROOT / "roles/old_names/vars/main.yml").read_text(encoding="utf-8"))
    return dict(declared["old_names_table"])


def led_to(said: str) -> str | None:
    """What a row says that the link leads to: `→ file`."""
    match = re.match(r"→ `([^`]+)`", said)
    return match[1].rstrip("/") if match else None


@pytest.mark.quick
@pytest.mark.parametrize("language", PAGES)
def test_every_old_path_stands_in_the_table(language: str) -> None:
    """Each path that the predecessor's manuals name has one row; nothing else has."""
    assert set(read_table(language)) == OLD


@pytest.mark.quick
@pytest.mark.parametrize("language", PAGES)
def test_the_table_and_the_role_lay_the_same_links(language: str) -> None:
    """A row with an arrow is a link of the role, to the same file, which is here; and every link has its row."""
    rows = {name.rstrip("/"): led_to(said) for name, said in read_table(language).items()}
    links = {name: to for name, to in rows.items() if to is not None}
    assert links == read_links()
    assert [to for to in links.values() if not (ROOT / to).exists()] == []


@pytest.mark.quick
def test_every_drop_in_of_the_scripts_folder_is_in_the_table() -> None:
    """A script here that bears a name of the predecessor is reached under that name."""
    names = {Path(name).name for name in OLD}
    drop_ins = {path.name for path in (ROOT / "scripts").iterdir() if path.name in names and path.is_file()}
    assert len(drop_ins) > 5 and {f"scripts/{name}" for name in drop_ins} <= set(read_links().values())


# -- the role -------------------------------------------------------------------------------------------------------


class Host:
    """A home directory with a checkout of ours, in which the role is run without any connection."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.home.mkdir()
        self.checkout = root / "misrc"
        for name in ("scripts", "modulesxml", "docs"):
            shutil.copytree(ROOT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in [self.checkout, *self.checkout.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o022)
        self.environment = {
            **CLEAN,
            "PATH": f"{BIN}:{CLEAN['PATH']}",
            "HOME": str(root),
            "ANSIBLE_COLLECTIONS_PATH": str(files("misrc") / "collection"),
            "ANSIBLE_NOCOLOR": "1",
            "LANG": "C.UTF-8",
        }

    def play(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`provision` over an inventory of this one host, as MInt's operations run it."""
        host = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "old_names_folder": str(self.home),
            "old_names_checkout": str(self.checkout),
            **options,
        }
        # The play of the names alone: the other parts of provisioning need a whole host.
        play = [{"hosts": "all", "gather_facts": False, "roles": ["misrc.remote.old_names"]}]
        (self.root / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"here": host}}}), encoding="utf-8")
        (self.root / "play.yml").write_text(yaml.safe_dump(play), encoding="utf-8")
        command = [str(BIN / "ansible-playbook"), "-i", "hosts.yml", *words, "play.yml"]
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )

    def seen(self) -> dict[str, str]:
        """Everything in the home: links with where they lead, files with what they hold."""
        found = {}
        for path in sorted(self.home.rglob("*")):
            name = str(path.relative_to(self.home))
            if path.is_symlink():
                found[name] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[name] = path.read_text(encoding="utf-8")
            else:
                found[name] = "folder"
        return found

    def call(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Call a program under its old path."""
        return subprocess.run(
            [str(self.home / name), *words],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def changed(done: subprocess.CompletedProcess[str]) -> int:
    """How many tasks changed something; fails where one failed."""
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.search(r"changed=(\d+)", done.stdout)
    assert match is not None, done.stdout
    return int(match[1])


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host of the test's own."""
    return Host(tmp_path)


def test_the_tree_is_laid_kept_mended_and_taken_away(host: Host) -> None:
    """Check mode makes nothing; a run lays all; again nothing changes; drift is mended; absent leaves nothing."""
    assert changed(host.play("--check")) > 0 and host.seen() == {}
    assert changed(host.play()) > 0
    laid = host.seen()
    for name, to in read_links().items():
        assert laid[name] == f"-> {host.checkout}/{to}" and (host.home / name).exists()
        second = name.replace("misrc_remote_workflow", "remote_workflow")
        assert laid[second] == laid[name]
    assert changed(host.play()) == 0
    (host.home / WORKFLOW / "scripts/kousoku_abaqus_ssh.sh").unlink()
    wrong = host.home / WORKFLOW / "modulesxml"
    wrong.unlink()
    wrong.symlink_to("/nowhere")
    assert changed(host.play("--check")) > 0
    assert changed(host.play()) > 0 and host.seen() == laid
    assert changed(host.play("--check", old_names_state="absent")) > 0 and host.seen() == laid
    assert changed(host.play(old_names_state="absent")) > 0 and host.seen() == {}
    assert changed(host.play(old_names_state="absent")) == 0


def test_what_the_site_made_itself_stays_and_what_the_predecessor_left_is_set_aside(host: Host) -> None:
    """Its own programs C and D are not touched. An old script is in the way until it may be renamed, and comes back."""
    scripts = host.home / "remote_workflow/scripts"
    (scripts / "remote-side_scripts").mkdir(parents=True)
    (scripts / "remote-side_scripts/own.py").write_text("D\n", encoding="utf-8")
    for name in ("execute_remote-side_program_ssh.sh", "execute_remote_command.sh", "kousoku_abaqus_ssh.sh"):
        (scripts / name).write_text(f"old {name}\n", encoding="utf-8")
    (host.home / "remote_workflow/sample_data").mkdir()
    (host.home / "remote_workflow/sample_data/x.dat").write_text("1\n", encoding="utf-8")
    (host.home / "misrc_remote_workflow").symlink_to("remote_workflow")
    before = host.seen()
    refused = host.play()
    assert refused.returncode != 0 and "remote_workflow/scripts/kousoku_abaqus_ssh.sh" in refused.stdout
    assert host.seen() == before
    assert changed(host.play("--check", old_names_set_aside=True)) > 0 and host.seen() == before
    assert changed(host.play(old_names_set_aside=True)) > 0
    now = host.seen()
    kept = ["execute_remote-side_program_ssh.sh", "execute_remote_command.sh", "remote-side_scripts/own.py"]
    assert [now[f"remote_workflow/scripts/{name}"] for name in kept] == [
        before[f"remote_workflow/scripts/{name}"] for name in kept
    ]
    assert now["remote_workflow/scripts/kousoku_abaqus_ssh.sh"].startswith("-> ")
    assert now["remote_workflow/scripts/kousoku_abaqus_ssh.sh.predecessor"] == "old kousoku_abaqus_ssh.sh\n"
    assert now["remote_workflow/sample_data.predecessor/x.dat"] == "1\n"
    assert changed(host.play(old_names_set_aside=True)) == 0
    assert changed(host.play(old_names_state="absent")) > 0 and host.seen() == before


def test_a_checkout_that_others_could_change_is_refused(host: Host) -> None:
    """So are one that is not whole, and a folder that is not absolute: nothing is laid. (It is, in the tests below.)"""
    script = host.checkout / "scripts/mi-system-wf.py"
    script.chmod(0o757)
    refused = host.play()
    assert refused.returncode != 0 and "mi-system-wf.py" in refused.stdout
    script.unlink()
    refused = host.play()
    assert refused.returncode != 0 and "mi-system-wf.py" in refused.stdout
    assert host.play(old_names_folder="home").returncode != 0
    assert host.seen() == {}


def test_callers_by_path_find_ours(host: Host) -> None:
    """Each program answers under its old path as itself, finds misrc, and reads the ini file beside the old name.

    With MInt's modules directory as the folder, the sample's module files find their scripts by objectPath.
    """
    assert changed(host.play()) > 0
    declared = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "modulesxml").glob("*.xml"))
    paths = re.findall(r"<objectPath>(.*)</objectPath>", declared)
    assert len(paths) == 2 and all(os.access(f"{host.home}{path}", os.X_OK) for path in paths)
    for checkout in ("misrc_remote_workflow", "remote_workflow"):
        for name in ("execute_remote_command.sample.sh", "execute_remote_command.sample.py"):
            done = host.call(f"{checkout}/scripts/{name}", "no_such:word")
            assert done.returncode == 2 and re.match("(execute_remote_command|misrc): ", done.stderr), done.stderr
        for name in ("ssh.sh", "http.py", "ssh_version2.sh", "ssh_version2.py", "api_version2.sh", "api_version2.py"):
            done = host.call(f"{checkout}/scripts/kousoku_abaqus_{name}", "--断面減少率", "/nowhere")
            assert done.returncode == 2 and done.stderr.startswith("misrc: "), done.stderr
    done = host.call(f"{API}debug/mi-system-side/mi-system-wf.py")
    assert done.returncode == 1 and "mi-system-wf.py" in done.stdout + done.stderr
    done = host.call(f"{API}debug/remote-side/mi-system-remote.py", "site", "https://localhost", "x" * 64)
    assert done.returncode == 1 and "install misrc-site.pyz first" in done.stderr
    ini = host.home / API / "mi_distributed_computing_assist.ini"
    assert str(ini) in host.call(f"{API}mi_dicomapi.py").stderr, "it looks beside the old name"
    ini.write_text("[Server]\n", encoding="utf-8")
    done = host.call(f"{API}mi_dicomapi.py")
    assert done.returncode == 2 and "there is no" not in done.stderr and str(ini) in done.stderr, done.stderr


@pytest.mark.quick
def test_provisioning_lays_the_names_where_a_host_declares_them() -> None:
    """The playbook's last play is the role's, for every kind of host, and only with old_names_folder."""
    play = yaml.safe_load((ROOT / "playbooks/provision.yml").read_text(encoding="utf-8"))[-1]
    (task,) = play["tasks"]
    assert play["hosts"] == "mint_node:dicomapi:sites"
    assert task["ansible.builtin.include_role"] == {"name": "misrc.remote.old_names"}
    assert task["when"] == "old_names_folder is defined"
