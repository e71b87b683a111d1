"""What a later stage is made from: chosen when it starts, and held on to once it has trained."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from jobs.checkpoint import prune
from jobs.errors import JobError
from jobs.lineage import record_lineage
from launcher.contract.lineage import fill_in, read_lineage
from launcher.contract.manifest import MANIFEST, list_files, publish
from launcher.contract.paths import RunPaths
from launcher.contract.pipeline import Pipeline
from launcher.contract.plan import Plan
from launcher.contract.spec import Model, Script, Train
from tests.plans import LOCAL, plan_on


@pytest.fixture
def stages(tmp_path: Path) -> tuple[RunPaths, RunPaths]:
    """A pipeline whose first stage is complete, with the checkpoints of steps 1 (the best), 2 and 3."""
    Pipeline(run_id="chain", name="chain", stages=["sft", "dpo"]).save(tmp_path)
    first = RunPaths(tmp_path / "sft")
    plan_on(LOCAL, train=Train(max_steps=3, keep_best="eval_loss")).save(first.plan)
    for step in (1, 2, 3):
        save(first, step, {"eval_loss": float(step)})
    complete(first)
    return first, RunPaths(tmp_path / "dpo")


def save(paths: RunPaths, step: int, metrics: dict[str, float], attempt: int = 1) -> Path:
    folder = paths.checkpoint(attempt, 0).parent / ".writing"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(f"{attempt} {step}")
    target = paths.checkpoint(attempt, step)
    publish(folder, target, step=step, metrics=metrics)
    return target


def complete(paths: RunPaths) -> None:
    paths.final.mkdir(exist_ok=True)
    (paths.final / "weights").write_text("final")
    paths.completion.unlink(missing_ok=True)
    record = {"step": 3, "metrics": {}, "files": list_files(paths.final)}
    paths.completion.write_text(json.dumps(record))


def later(reference: str = "${stages.sft.checkpoint}") -> Plan:
    return plan_on(LOCAL, model=Model(base=reference))


def base_of(paths: RunPaths, plan: Plan) -> Path:
    return Path(fill_in(plan, paths).spec.require_model().base)


def test_a_run_without_a_checkpoint_begins_anew_from_what_is_best_now(stages: tuple[RunPaths, RunPaths]) -> None:
    first, second = stages
    record_lineage(second, later())
    assert base_of(second, later()) == first.checkpoint(1, 1)
    better = save(first, 4, {"eval_loss": 0.5}, attempt=2)
    shutil.rmtree(first.checkpoint(1, 1))
    record_lineage(second, later())
    assert base_of(second, later()) == better


def test_a_run_with_a_checkpoint_stays_made_from_what_it_was(stages: tuple[RunPaths, RunPaths]) -> None:
    first, second = stages
    record_lineage(second, later())
    before = second.lineage.read_bytes()
    save(second, 1, {})
    save(first, 4, {"eval_loss": 0.5}, attempt=2)
    record_lineage(second, later())
    assert second.lineage.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("gone", "is gone"),
        ("manifest", "is no longer the same"),
        ("weights", "is no longer the same: weights differs from its hash"),
    ],
)
def test_a_run_whose_origin_was_lost_says_so(stages: tuple[RunPaths, RunPaths], damage: str, fault: str) -> None:
    first, second = stages
    record_lineage(second, later())
    save(second, 1, {})
    folder = first.checkpoint(1, 1)
    if damage == "gone":
        shutil.rmtree(folder)
    elif damage == "manifest":
        manifest = folder / MANIFEST
        manifest.write_text(manifest.read_text().replace("1.0", "0.9"))
    else:
        (folder / "weights").write_text("1 9")
    with pytest.raises(
        JobError, match=rf"stages\.sft\.checkpoint.*\.\./sft/checkpoints/a01/step-000001, which {fault}"
    ):
        record_lineage(second, later())
    record_lineage(second, plan_on(LOCAL))  # a plan that no longer refers to it needs nothing of it


def test_a_final_save_that_was_written_anew_is_noticed(stages: tuple[RunPaths, RunPaths]) -> None:
    first, second = stages
    shutil.rmtree(first.checkpoints)
    record_lineage(second, later())
    assert base_of(second, later()) == first.final
    save(second, 1, {})
    record_lineage(second, later())
    (first.final / "more").write_text("")
    complete(first)
    with pytest.raises(JobError, match=r"\.\./sft/final, which is no longer the same"):
        record_lineage(second, later())


def test_a_new_argument_of_a_script_may_refer_to_another_checkpoint(stages: tuple[RunPaths, RunPaths]) -> None:
    first, second = stages

    def plan(*references: str) -> Plan:
        return plan_on(LOCAL, stage="script", model=None, data=None, script=Script(path="a.py", args=list(references)))

    best, last = "${stages.sft.checkpoint.best}", "${stages.sft.checkpoint.last}"
    record_lineage(second, plan(best))
    save(second, 1, {})
    record_lineage(second, plan(best, last))
    lineage = read_lineage(second)
    assert lineage is not None
    assert [parent.folder(second) for parent in lineage.parents] == [first.checkpoint(1, 1), first.checkpoint(1, 3)]


def test_what_a_later_stage_is_made_from_is_not_removed(stages: tuple[RunPaths, RunPaths]) -> None:
    first, second = stages
    record_lineage(second, later())
    assert prune(first, 1, None) == [first.checkpoint(1, 2)]
    assert first.checkpoint(1, 1).exists()
    (first.root.parent / "pipeline.json").unlink()  # a plain run has no children
    assert prune(first, 1, None) == [first.checkpoint(1, 1)]


def test_best_is_the_best_or_nothing(stages: tuple[RunPaths, RunPaths]) -> None:
    """Without a word the newest will do where no checkpoint has the metric."""
    first, second = stages
    plan = Plan.load(first.plan)
    train = dataclasses.replace(plan.spec.train, keep_best="eval_accuracy")
    dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, train=train)).save(first.plan)
    record_lineage(second, later())
    assert base_of(second, later()) == first.checkpoint(1, 3)
    with pytest.raises(JobError, match=r"no whole checkpoint of the stage sft has eval_accuracy.*checkpoint\.last"):
        record_lineage(second, later("${stages.sft.checkpoint.best}"))


def test_a_file_called_as_the_manifest_is_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / MANIFEST).write_text("{}")
    publish(folder, tmp_path / "step", step=1)
    assert list(json.loads((tmp_path / "step" / MANIFEST).read_text())["files"]) == [f"tokenizer/{MANIFEST}"]


def test_a_checkpoint_with_a_manifest_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    folder.mkdir()
    (folder / MANIFEST).write_text("mine")
    with pytest.raises(FileExistsError, match="call the file otherwise"):
        publish(folder, tmp_path / "step", step=1)
    assert (folder / MANIFEST).read_text() == "mine"
    assert not (tmp_path / "step").exists()
