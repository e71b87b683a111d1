"""A pipeline's state out of its stages' files: what died on the way says so, and what to do."""

import os
from pathlib import Path

import pytest

from launcher.contract.files import write_text
from launcher.contract.paths import PIPELINE
from launcher.errors import UserError
from launcher.observe import PipelineStatus, Status, find, list_runs, read_all, read_status
from tests.pipelines import end, hand_over, hand_over_gone, make_pipeline
from tests.plans import DEVCLUSTER, LOCAL, plan_on


def _read(root: Path) -> PipelineStatus:
    (status,) = read_all([root])
    assert isinstance(status, PipelineStatus)
    return status


def test_a_stage_that_was_never_submitted_fails_the_pipeline_once_nothing_before_it_lives(tmp_path: Path) -> None:
    sft, dpo = make_pipeline(tmp_path, "sft", "dpo")
    root = sft.root.parent
    assert (_read(root).state, read_status(dpo).reason) == ("pending", "planned, not submitted")
    hand_over(sft, t=1.0, pid=os.getpid())
    assert _read(root).state == "running"
    end(sft, t=2.0, state="completed")
    status = _read(root)
    assert (status.state, status.reason) == ("failed", "dpo: was never submitted; tuneyard retry chain-000000")


def test_a_stage_that_ended_for_its_parents_sake_says_so_when_that_goes_on(tmp_path: Path) -> None:
    sft, dpo = make_pipeline(tmp_path, "sft", "dpo")
    hand_over_gone(sft, t=1.0)
    hand_over_gone(dpo, t=1.5)
    end(sft, t=2.0)
    assert read_status(dpo).reason == "never started: the stage sft is failed"
    hand_over(sft, t=10.0, pid=os.getpid())  # resumed
    expected = (
        "cancelled",
        "never started, because the stage sft had not completed; tuneyard retry chain-000000 starts it",
    )
    for _ in range(2):
        status = read_status(dpo)
        assert (status.state, status.reason) == expected
        end(sft, t=11.0, state="completed")
    write_text(dpo.cancelled, "1.0\n")
    assert read_status(dpo).reason == "cancelled by the user"


def test_a_stage_that_had_started_keeps_its_own_reason(tmp_path: Path) -> None:
    sft, dpo = make_pipeline(tmp_path, "sft", "dpo")
    hand_over_gone(sft, t=1.0)
    end(sft, t=2.0, state="completed")
    hand_over_gone(dpo, t=1.5)
    end(dpo, t=4.0)
    hand_over(sft, t=10.0, pid=os.getpid())
    assert (read_status(dpo).state, read_status(dpo).reason) == ("failed", "failed")


def test_slurm_is_asked_once_for_all_stages_of_all_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By commands that keep count; Slurm gives no answer, so each is asked for all jobs."""
    for command in ("squeue", "sacct"):
        script = tmp_path / "bin" / command
        write_text(script, f'#!/bin/sh\necho {command} "$@" >> {tmp_path}/asked\nexit 1\n', mode=0o700)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    runs = tmp_path / "runs"
    for number in range(2):
        stages = make_pipeline(runs, "a", "b", "c", run_id=f"chain-00000{number}", cluster=DEVCLUSTER)
        for index, paths in enumerate(stages):
            hand_over(paths, t=1.0, job_id=f"{number}{index}")
    statuses = read_all(sorted(runs.glob("chain-*")))
    assert [status.state for status in statuses] == ["unknown"] * 2
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["squeue", "sacct"]
    assert all(line.endswith("--jobs=00,01,02,10,11,12") for line in asked)
    (tmp_path / "asked").unlink()
    assert read_status(stages[2]).state == "unknown"
    assert len((tmp_path / "asked").read_text().splitlines()) == 2


def test_one_stage_is_a_pipeline_all_the_same(tmp_path: Path) -> None:
    (sft,) = make_pipeline(tmp_path, "sft", run_id="one-7d6ca6")
    assert isinstance(read_all([find("one", tmp_path).root])[0], PipelineStatus)
    whole, stage = find("one-7d6ca6", tmp_path), find("one-7d6ca6/sft", tmp_path)
    assert (whole.is_pipeline, whole.root, whole.stages) == (True, sft.root.parent, [sft])
    assert (stage.is_pipeline, stage.root, stage.stages) == (False, sft.root, [sft])
    assert find(str(sft.root), tmp_path) == stage
    with pytest.raises(UserError, match="no stage dpo; the stages of one-7d6ca6 are sft"):
        find("one-7d6ca6/dpo", tmp_path)


def test_a_single_run_has_no_stages(tmp_path: Path) -> None:
    plan_on(LOCAL).save(tmp_path / "sft-demo-000000" / "plan.json")
    assert not find("sft-demo-000000", tmp_path).is_pipeline
    with pytest.raises(UserError, match="sft-demo-000000 is a single run"):
        find("sft-demo-000000/sft", tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"run_id": "x"}', '{"run_id": "x", "name": "x", "stages": null}', "\0"])
def test_a_damaged_record_is_unknown_and_hides_nothing(tmp_path: Path, text: str) -> None:
    sft, dpo = make_pipeline(tmp_path, "sft", "dpo", run_id="good-000000")
    bad, _ = make_pipeline(tmp_path, "sft", "dpo", run_id="bad-000000")
    for paths in (sft, dpo, bad):
        hand_over_gone(paths, t=1.0)
    (bad.root.parent / PIPELINE).write_text(text)
    (dpo.plan).write_text(text)
    good, damaged = read_all(list_runs(tmp_path))
    assert isinstance(good, PipelineStatus)
    assert [stage.run_id for stage in good.stages] == ["good-000000/sft", "good-000000/dpo"]
    assert good.stages[1].state == "unknown"
    assert "cannot be read" in str(good.stages[1].reason)
    assert (damaged.run_id, damaged.state) == ("bad-000000", "unknown")
    assert "pipeline.json cannot be read" in str(damaged.reason)
    with pytest.raises(UserError, match=r"pipeline\.json cannot be read"):
        find("bad-000000", tmp_path)
    (stage,) = read_all([find("bad-000000/sft", tmp_path).root])
    assert isinstance(stage, Status)
    assert stage.state == "failed"


def test_a_stage_whose_folder_is_gone_is_named_and_the_others_stay(tmp_path: Path) -> None:
    sft, dpo = make_pipeline(tmp_path, "sft", "dpo")
    for file in sft.root.iterdir():
        file.unlink()
    sft.root.rmdir()
    found = find("chain", tmp_path)
    assert (found.stages, found.missing, found.is_pipeline) == ([dpo], ["sft"], True)
    assert [stage.state for stage in _read(found.root).stages] == ["unknown", "pending"]
