"""What a user reads of a pipeline: every run by a name that finds it again."""

import json
import os
import re
from pathlib import Path

import pytest
import typer

from launcher.cli.handover import hand_over as follow
from launcher.contract.files import read_json, write_json, write_text
from launcher.contract.paths import PIPELINE
from launcher.contract.plan import Plan
from launcher.errors import UserError
from launcher.observe import read_plan
from tests.conftest import Tuneyard
from tests.pipelines import end, hand_over, hand_over_gone, make_pipeline

SPEC = """\
name: one
stage: script
script: {path: train.py}
resources: {nodes: 1, gpus_per_node: 1, time: 10m}
"""


def _plan(tuneyard: Tuneyard, more: str, *arguments: str) -> str:
    (tuneyard.folder / "train.py").write_text("")
    (tuneyard.folder / "one.yaml").write_text(SPEC + more)
    done = tuneyard("plan", "one.yaml", "--cluster", "local", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_epoch_is_told_in_the_singular(tuneyard: Tuneyard) -> None:
    assert "length   1 epoch\n" in _plan(tuneyard, "train: {epochs: 1}\n")


def test_a_pipeline_of_one_stage_answers_to_what_is_printed_of_it(tuneyard: Tuneyard) -> None:
    (planned,) = json.loads(_plan(tuneyard, "stages: {script: {}}\n", "--json"))
    stage_id = planned["run_id"]
    whole = tuneyard.status(stage_id.partition("/")[0])
    assert [stage["run_id"] for stage in whole["stages"]] == [stage_id]  # type: ignore[attr-defined]
    assert tuneyard.status(stage_id)["run_id"] == stage_id
    (runs,) = (path for path in tuneyard.folder.glob("runs/*") if (path / PIPELINE).exists())
    assert tuneyard("resume", runs.name).stderr.startswith(f"error: {runs.name} is a pipeline")


def test_status_of_one_and_of_all_are_of_one_kind(tuneyard: Tuneyard) -> None:
    (stage,) = make_pipeline(tuneyard.folder / "runs", "sft", run_id="one-7d6ca6")
    hand_over_gone(stage, t=1.0)
    (listed,) = json.loads(tuneyard("status", "--json").stdout)
    assert listed == tuneyard.status("one")


def test_the_list_has_the_first_line_of_a_reason(tuneyard: Tuneyard) -> None:
    (stage,) = make_pipeline(tuneyard.folder / "runs", "sft")
    hand_over_gone(stage, t=1.0)
    end(stage, t=2.0)
    record = read_json(stage.attempt(1))
    record["ended"]["reason"] = "1 of 4 rows is bad\nrow 4: no answer\nmend it"
    write_json(stage.attempt(1), record)
    listed, whole = tuneyard("status").stdout, tuneyard("status", "chain").stdout
    assert listed.splitlines()[-1] == "    reason: 1 of 4 rows is bad"
    assert whole.startswith(listed)
    assert [line.strip() for line in whole.splitlines()[-2:]] == ["row 4: no answer", "mend it"]


def test_a_damaged_pipeline_is_shown_with_the_others(tuneyard: Tuneyard) -> None:
    for run_id in ("good-000000", "bad-000000"):
        hand_over_gone(make_pipeline(tuneyard.folder / "runs", "sft", run_id=run_id)[0], t=1.0)
    (tuneyard.folder / "runs" / "bad-000000" / PIPELINE).write_text("{")
    done = tuneyard("status")
    assert done.returncode == 0, done.stderr
    assert "good-000000  failed" in done.stdout
    assert "bad-000000  unknown\n  reason: " in done.stdout
    assert "bad-000000/pipeline.json cannot be read" in done.stdout
    assert tuneyard("status", "bad").stdout in done.stdout
    refused = tuneyard("cancel", "bad")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_a_damaged_record_in_the_folder_of_a_new_plan_is_named(tuneyard: Tuneyard) -> None:
    (planned,) = json.loads(_plan(tuneyard, "stages: {script: {}}\n", "--json"))
    record = tuneyard.folder / "runs" / planned["run_id"].partition("/")[0] / PIPELINE
    record.write_text("[]")
    refused = tuneyard("plan", "one.yaml", "--cluster", "local")
    assert refused.returncode == 2
    assert f"error: {record} cannot be read" in refused.stderr
    assert f"hint: an earlier plan of this file is there; move {record.parent} away" in refused.stderr
    assert record.read_text() == "[]"


def test_a_damaged_plan_is_named(tuneyard: Tuneyard) -> None:
    (stage,) = make_pipeline(tuneyard.folder / "runs", "sft", run_id="one-7d6ca6")
    hand_over_gone(stage, t=1.0)
    for text in ("[]", "{}", "{"):
        stage.plan.write_text(text)
        with pytest.raises(UserError, match=r"plan\.json cannot be read"):
            read_plan(stage)
    end(stage, t=2.0)
    write_text(stage.supervisor_log(1), "a line\n")
    assert tuneyard("logs", "one").stdout == "a line\n"  # which needs no plan
    for command in ("collect", "sync"):
        refused = tuneyard(command, "one")
        assert refused.returncode == 2
        assert f"error: {stage.plan} cannot be read" in refused.stderr
        assert "hint: put a copy of it back" in refused.stderr


def test_hints_name_a_stage_by_its_run_id(tuneyard: Tuneyard) -> None:
    sft, dpo = make_pipeline(tuneyard.folder / "runs", "sft", "dpo")
    hand_over(sft, t=1.0, pid=os.getpid())
    hand_over(dpo, t=1.0, pid=os.getpid())
    assert "tuneyard status chain-000000/sft" in tuneyard("logs", "chain").stderr
    assert "error: chain-000000/dpo is pending" in tuneyard("resume", "chain/dpo").stderr
    assert "error: chain-000000/sft is running" in tuneyard("retry", "chain").stderr


def test_a_cut_off_submission_that_started_nothing_is_cleared_by_whoever_finds_it(tuneyard: Tuneyard) -> None:
    sft, dpo = make_pipeline(tuneyard.folder / "runs", "sft", "dpo")
    hand_over_gone(sft, t=1.0)
    end(sft, t=2.0)
    for find in (lambda: tuneyard.status("chain/dpo"), lambda: tuneyard("retry", "chain")):
        hand_over(dpo, t=1.0)
        find()
        assert not dpo.intent.exists()
        assert not dpo.submission.exists()
    refused = tuneyard("resume", "chain/dpo")
    assert refused.returncode == 2
    assert "chain-000000/dpo was planned but never submitted; tuneyard retry chain-000000 does that" in refused.stderr


def test_retry_names_the_command_that_takes_changes(tuneyard: Tuneyard) -> None:
    make_pipeline(tuneyard.folder / "runs", "sft", "dpo")
    for run, stage in (("chain", "chain-000000/STAGE"), ("chain/dpo", "chain/dpo")):
        refused = tuneyard("retry", run, "data.max_length=320")
        assert refused.returncode == 2
        assert f"`tuneyard resume {stage} data.max_length=320` does" in refused.stderr


def test_a_stage_that_is_gone_leaves_the_others_to_collect(tuneyard: Tuneyard) -> None:
    sft, dpo = make_pipeline(tuneyard.folder / "runs", "sft", "dpo")
    hand_over_gone(dpo, t=1.0)
    end(dpo, t=2.0)
    sft.plan.unlink()
    done = tuneyard("collect", "chain", "--json")
    assert done.returncode == 0, done.stderr
    assert [summary["run_id"] for summary in json.loads(done.stdout)] == ["chain-000000/dpo"]
    assert "chain-000000/sft: its run directory is gone" in done.stderr
    refused = tuneyard("retry", "chain")
    assert refused.returncode == 2
    assert "sft cannot be run again" in refused.stderr


def test_a_comparison_names_what_has_no_counterpart(tuneyard: Tuneyard) -> None:
    single = json.loads(_plan(tuneyard, "", "--json"))["run_id"]
    a, b = (plan["run_id"] for plan in json.loads(_plan(tuneyard, "stages: {a: {}, b: {}}\n", "--json")))
    text = _plan(tuneyard, "stages: {a: {}, b: {}}\n", "--diff", single)
    assert text.splitlines() == [f"only there: {single}", f"only here: {a}", f"only here: {b}"]
    text = _plan(tuneyard, "stages: {a: {resources: {nodes: 1, time: 5m}}, c: {}}\n", "--diff", a.partition("/")[0])
    here = re.escape(text.splitlines()[-1].removeprefix("only here: ").removesuffix("/c"))
    assert re.match(rf"--- {a}\n\+\+\+ {here}/a\n", text)
    assert text.splitlines()[-2] == f"only there: {b}"


def test_waiting_says_which_stage_its_lines_are_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = make_pipeline(tmp_path, "sft", "dpo", "more")
    for paths in stages:
        hand_over_gone(paths, t=1.0)
    end(stages[0], t=2.0, state="completed")
    end(stages[1], t=4.0)
    planned = [(Plan.load(paths.plan), paths) for paths in stages]
    with pytest.raises(typer.Exit) as left:
        follow(planned, list, root=stages[0].root.parent, wait=True, yes=True, as_json=True)
    assert left.value.exit_code == 1
    said, err = capsys.readouterr()
    assert json.loads(said) == {"run_id": "chain-000000", "run_dir": str(tmp_path / "chain-000000")}
    lines = err.partition("==> ")[2].splitlines()
    assert lines[:2] == ["chain-000000/sft", "completed"]
    assert lines[3:] == ["==> chain-000000/dpo", "failed: failed", "logs: tuneyard logs chain-000000/dpo"]
