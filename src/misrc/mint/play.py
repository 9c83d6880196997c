"""Run the run playbook through ansible-runner, in a process of its own: nothing of Ansible lives while a job waits."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from ansible_runner.interface import run

NAMESPACE = Path("ansible_collections/misrc/remote")


def collections_folder() -> Path:
    """Where the collection lies: beside the installed package."""
    return Path(__file__).resolve().parents[1] / "collection"


def _settings(folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(collections_folder()),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False",
        "ANSIBLE_INVENTORY_ENABLED": "host_list",
        "ANSIBLE_NOCOLOR": "True",
        "ANSIBLE_FORKS": "1",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "MISRC_FAULTS_PARENT": str(os.getpid()),
    }


def main() -> int:
    """Run the play of the job that is named on standard input: three lines, job, own folder, connection's folder."""
    words = sys.stdin.read().split("\n")
    if len(words) < 3:
        return 2
    job, folder = words[0], Path(words[1])
    os.environ["MISRC_CONNECTION"] = words[2]
    playbook = collections_folder() / NAMESPACE / "playbooks/run.yml"
    (folder / "ansible.cfg").touch()
    result = run(
        private_data_dir=str(folder),
        playbook=str(playbook),
        inventory="localhost,",
        extravars={"misrc_job": job},
        envvars=_settings(folder),
        quiet=True,
        rotate_artifacts=1,
        suppress_env_files=True,
    )
    if result.rc != 0:
        output = Path(result.config.artifact_dir) / "stdout"
        if output.exists():
            shutil.copyfile(output, folder / "play.log")
    return 0 if result.rc == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
