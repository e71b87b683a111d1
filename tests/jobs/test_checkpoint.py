"""Which checkpoints stay."""

import math
from pathlib import Path

import pytest

from jobs.checkpoint import check_resumable, prune
from jobs.context import RankContext
from jobs.errors import JobError
from launcher.contract.checkpoints import best_checkpoint, newest_checkpoint
from launcher.contract.manifest import find_problems, publish
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Parallel
from tests.plans import LOCAL, plan_on


def make(paths: RunPaths, attempt: int, step: int, loss: float | None) -> Path:
    folder = paths.checkpoint(attempt, 0).parent / ".writing"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(f"{attempt} {step}")
    target = paths.checkpoint(attempt, step)
    publish(folder, target, step=step, metrics={} if loss is None else {"eval_loss": loss, "eval_accuracy": loss})
    return target


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    made = [make(paths, 1, step, loss) for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, None), (50, 2.5))]
    assert prune(paths, 2, "eval_loss") == [made[0], made[2]]
    assert all(find_problems(path) == [] for path in (made[1], made[3], made[4]))
    assert not made[0].exists()
    assert prune(paths, 2, "eval_accuracy") == [made[1]]
    assert prune(paths, 1, None) == [made[3]]


def test_a_metric_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    losses = ((10, -math.inf), (20, 1.0), (30, 2.0), (40, math.nan))
    made = [make(paths, 1, step, loss) for step, loss in losses]
    assert best_checkpoint(paths, "eval_loss") == made[1]
    assert best_checkpoint(paths, "eval_accuracy") == made[2]
    assert prune(paths, 1, "eval_loss") == [made[0], made[2]]


def test_a_manifest_that_cannot_be_read_hides_no_other_checkpoint(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    made = [make(paths, 1, step, loss) for step, loss in ((10, 1.0), (20, 2.0), (30, 0.5))]
    (made[2] / "manifest.json").write_text('{"v":')
    assert best_checkpoint(paths, "eval_loss") == made[0]
    assert newest_checkpoint(paths) == made[1]
    assert prune(paths, 1, "eval_loss") == [made[1]]


def test_a_later_attempt_is_newer_even_at_an_earlier_step(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    old = [make(paths, 1, step, None) for step in (10, 20)]
    new = make(paths, 2, 15, None)
    assert prune(paths, 1, "eval_loss") == old
    assert new.exists()


def test_what_is_not_complete_is_not_counted(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    kept = make(paths, 1, 10, None)
    paths.checkpoint(1, 20).mkdir()
    assert prune(paths, 1, None) == []
    assert kept.exists()


def test_a_checkpoint_is_resumed_by_the_strategy_and_the_ranks_that_its_state_was_made_for(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    folder = paths.checkpoint(1, 0).parent / ".writing"
    folder.mkdir(parents=True)
    publish(folder, paths.checkpoint(1, 10), strategy="zero3", world_size=4)

    def check(strategy: str, ranks: int) -> None:
        parallel = Parallel(strategy=strategy)  # type: ignore[arg-type]
        plan = plan_on(LOCAL, nodes=1, ranks_per_node=ranks, parallel=parallel)
        numbers = {"attempt": 2, "rank": 0, "local_rank": 0, "world_size": ranks}
        check_resumable(RankContext(paths=paths, plan=plan, node="n0", resume_from=paths.checkpoint(1, 10), **numbers))

    check("zero3", 4)
    with pytest.raises(JobError, match=r"fsdp cannot go on from a checkpoint of zero3; set parallel\.strategy=zero3"):
        check("fsdp", 4)
    with pytest.raises(JobError, match="as many ranks as wrote the checkpoint, 4; the plan has 2"):
        check("zero3", 2)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "unfinished"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    """What a resumed attempt starts from."""
    paths = RunPaths(tmp_path)
    good, bad = make(paths, 1, 10, None), make(paths, 1, 20, None)
    assert newest_checkpoint(paths) == bad
    weights = bad / "weights"
    if damage == "flipped":
        weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "missing":
        weights.unlink()
    else:
        (bad / "manifest.json").unlink()
    assert newest_checkpoint(paths) == good
    (good / "weights").unlink()
    assert newest_checkpoint(paths) is None
