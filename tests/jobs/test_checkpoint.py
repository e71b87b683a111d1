"""Which checkpoints stay."""

import math
from pathlib import Path

import pytest

from jobs.checkpoint import check_resumable, clear_unfinished, prune, publish_step
from jobs.context import RankContext
from jobs.errors import JobError, StaleAttemptError
from launcher.contract.attempt import Attempt
from launcher.contract.checkpoints import best_checkpoint, choose_checkpoint, list_checkpoints, newest_checkpoint
from launcher.contract.manifest import find_problems, publish
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Parallel, Train
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
    assert prune(paths, 1, "eval_loss") == [made[2]]


def test_a_later_attempt_is_newer_even_at_an_earlier_step(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    old = [make(paths, 1, step, None) for step in (10, 20)]
    new = make(paths, 2, 15, None)
    assert prune(paths, 1, "eval_loss") == old
    assert new.exists()


def test_what_is_not_whole_is_not_counted_and_goes(tmp_path: Path) -> None:
    """A removal that was cut off leaves a folder without manifest."""
    paths = RunPaths(tmp_path)
    old, kept, damaged = (make(paths, 1, step, None) for step in (10, 20, 30))
    (damaged / "weights").write_text("0 00")
    paths.checkpoint(1, 40).mkdir()
    assert prune(paths, 1, None) == [old, damaged, paths.checkpoint(1, 40)]
    assert paths.published() == [kept]


def test_where_none_is_whole_all_stay(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    made = [make(paths, 1, step, None) for step in (10, 20)]
    for path in made:
        (path / "weights").unlink()
    assert prune(paths, 1, None) == []


def record(paths: RunPaths, number: int, resumed_from: Path | None = None, nodes: tuple[str, ...] = ("n0",)) -> None:
    origin = resumed_from and resumed_from.relative_to(paths.root).as_posix()
    Attempt(number=number, started=0.0, nodes=list(nodes), resumed_from=origin).save(paths)


def test_what_an_older_attempt_publishes_when_a_newer_has_begun_is_no_part_of_the_run(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    record(paths, 1)
    first = make(paths, 1, 10, 3.0)
    record(paths, 2, first)
    late = make(paths, 1, 20, 1.0)
    assert newest_checkpoint(paths) == first
    assert best_checkpoint(paths, "eval_loss") == first
    # An attempt that found no nodes has not chosen.
    record(paths, 3, nodes=())
    assert newest_checkpoint(paths) == first
    second = make(paths, 2, 15, 2.0)
    assert list_checkpoints(paths) == [first, second]
    assert prune(paths, 2, None, second) == [late]
    # Step 15 turned out to be damaged, and the fourth went back to the first's.
    record(paths, 4, first)
    assert list_checkpoints(paths) == [first]
    # The fifth began anew: nothing of before counts any more, and what it has not begun with is cleared away.
    record(paths, 5)
    assert list_checkpoints(paths) == []
    new = make(paths, 5, 5, None)
    assert prune(paths, 2, None, new) == [first, second]


def test_an_attempt_that_is_over_publishes_nothing(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    plan = plan_on(LOCAL, nodes=1, ranks_per_node=1)
    numbers = {"rank": 0, "local_rank": 0, "world_size": 1}
    old, new = (RankContext(paths=paths, plan=plan, node="n0", attempt=number, **numbers) for number in (1, 2))
    for context in (old, new):
        record(paths, context.attempt)
        folder = paths.checkpoint(context.attempt, 0).parent / ".writing" / "checkpoint-5"
        folder.mkdir(parents=True)
        (folder / "weights").touch()
    with pytest.raises(StaleAttemptError, match="attempt 1 is over: a newer one has begun"):
        publish_step(old, None, paths.checkpoint(1, 0).parent / ".writing" / "checkpoint-5", {"weights"}, 5, {}, 0.0)
    assert paths.published() == []
    clear_unfinished(new)
    assert not (paths.checkpoints / "a01" / ".writing").exists()
    publish_step(new, None, folder, {"weights"}, 5, {}, 0.0)
    assert newest_checkpoint(paths) == paths.checkpoint(2, 5)


def test_a_checkpoint_is_resumed_by_the_strategy_and_the_ranks_that_its_state_was_made_for(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    folder = paths.checkpoint(1, 0).parent / ".writing"
    folder.mkdir(parents=True)
    publish(folder, paths.checkpoint(1, 10), strategy="zero3", world_size=4)

    def check(strategy: str, ranks: int, optimizer: str = "sgd") -> None:
        parallel, train = Parallel(strategy=strategy), Train(optimizer=optimizer)  # type: ignore[arg-type]
        plan = plan_on(LOCAL, nodes=1, ranks_per_node=ranks, parallel=parallel, train=train)
        numbers = {"attempt": 2, "rank": 0, "local_rank": 0, "world_size": ranks}
        check_resumable(RankContext(paths=paths, plan=plan, node="n0", resume_from=paths.checkpoint(1, 10), **numbers))

    check("zero3", 4)
    check("zero3", 2, "adamw")
    with pytest.raises(JobError, match=r"fsdp cannot go on from a checkpoint of zero3; set parallel\.strategy=zero3"):
        check("fsdp", 4)
    with pytest.raises(JobError, match="as many ranks as wrote the checkpoint, 4; the plan has 2"):
        check("zero3", 2)


DAMAGES = {
    "flipped": ("weights", "weights differs from its hash"),
    "truncated": ("weights", "weights has 3 bytes, not 4"),
    "emptied": ("weights", "weights has 0 bytes, not 4"),
    "removed": ("weights", "weights is missing"),
    "torn": ("manifest.json", "manifest.json is not JSON"),
    "listless": ("manifest.json", "manifest.json does not list the files"),
    "unfinished": ("manifest.json", "no manifest.json: the save did not finish"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    """What a resumed attempt starts from, and what its record says of the newer ones."""
    paths = RunPaths(tmp_path)
    good, bad = make(paths, 1, 10, None), make(paths, 1, 20, None)
    assert newest_checkpoint(paths) == bad
    name, told = DAMAGES[damage]
    file = bad / name
    content = file.read_bytes()
    changed = {
        "flipped": bytes([content[0] ^ 1]) + content[1:],
        "truncated": content[:-1],
        "emptied": b"",
        "torn": content[: len(content) // 2],
        "listless": b'{"v": 1, "step": 20}',
    }
    if damage in changed:
        file.write_bytes(changed[damage])
    else:
        file.unlink()
    choice = choose_checkpoint(paths)
    assert (choice.checkpoint, choice.passed_over) == (good, [f"checkpoints/a01/step-000020: {told}"])
    (good / "weights").unlink()
    assert newest_checkpoint(paths) is None
