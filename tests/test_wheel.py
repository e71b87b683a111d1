"""The wheel, installed in an empty virtual environment and used outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("tuneyard-*.whl"))


def test_the_wheel_holds_both_packages_and_the_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        "launcher/cli/__init__.py",
        "launcher/spec/deepspeed/keys.json",
        "jobs/supervisor.py",
        "launcher/_data/cluster_configs/local.yaml",
        "launcher/_data/ds_configs/zero3.json",
        "launcher/_data/slurm/devcluster.py",
        "launcher/_data/slurm/job_setup.sh",
        "launcher/_data/examples/sft.yaml",
    ):
        assert needed in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"launcher", "jobs"}
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_installed_command_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    install = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def tuneyard(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [environment / "bin" / "tuneyard", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert tuneyard("init", "sft", "-o", "my.yaml").returncode == 0
    planned = tuneyard(
        "plan", "my.yaml", "model.base=builtin:tiny", "resources.nodes=2", "--cluster", "devcluster", "--script"
    )
    assert planned.returncode == 0, planned.stderr
    assert f"{environment}/bin/python" in planned.stdout
    assert str(ROOT) not in planned.stdout
    assert "devcluster" in tuneyard("devcluster", "--help").stdout
