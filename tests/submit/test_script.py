"""The job script under hostile paths and profiles."""

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.contract.paths import RunPaths
from launcher.submit.slurm import job_script
from tests.conftest import Tuneyard
from tests.plans import DEVCLUSTER, plan_on


def test_false_and_null_in_a_profile_take_an_option_away() -> None:
    profile = replace(DEVCLUSTER, sbatch={"requeue": False, "exclusive": False, "hold": None, "comment": "a b"})
    script = job_script(plan_on(profile), RunPaths(Path("/runs/x")))
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert not [line for line in options if "requeue" in line or "exclusive" in line or "hold" in line]
    assert "#SBATCH --comment='a b'" in options


@pytest.mark.parametrize("folder", ["nl\n#SBATCH --nice=77", "job%j", "tab\t", "\x1b[2J"])
def test_a_runs_folder_that_would_change_the_script_is_refused(tuneyard: Tuneyard, folder: str) -> None:
    (tuneyard.folder / "rows.jsonl").write_text('{"messages": []}\n')
    (tuneyard.folder / "s.yaml").write_text(
        "{name: x, stage: sft, model: {base: 'builtin:tiny'}, data: {train: rows.jsonl, format: messages},"
        " train: {max_steps: 1, global_batch: 2}}"
    )
    done = tuneyard("plan", "s.yaml", "--cluster", "devcluster", "--runs", str(tuneyard.folder / folder))
    assert done.returncode == 2
    assert "cannot stand in a job script" in done.stderr
    assert not (tuneyard.folder / folder).exists()
