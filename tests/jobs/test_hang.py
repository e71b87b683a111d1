"""When ranks count as hung."""

from dataclasses import replace

from jobs.hang import SLOW_SECONDS, Beats
from launcher.contract.heartbeat import Heartbeat
from launcher.contract.plan import Batch, Plan, Topology
from launcher.contract.spec import Recovery, Spec
from tests.plans import LOCAL

PLAN = Plan(
    tuneyard="0",
    run_id="run",
    runs="/runs",
    spec=Spec(name="run", stage="sft", recovery=Recovery(hang_seconds=60)),
    cluster=LOCAL,
    topology=Topology(nodes=1, ranks_per_node=2, world_size=2, cpus_per_rank=1, time_minutes=5),
    batch=Batch(micro=1, accumulation=1, global_batch=2),
    gpu_hours=0.0,
)


def at(t: float, rank: int, phase: str, *, step: int = 1, attempt: int = 2) -> Heartbeat:
    return Heartbeat(t=t, rank=rank, node="n0", pid=1, attempt=attempt, step=step, phase=phase)


def test_a_rank_that_beats_no_more_is_named_with_all_others() -> None:
    beats = Beats(2, PLAN, 0.0)
    beats.take([at(1.0, 0, "train"), at(1.0, 1, "train")], 10.0)
    beats.take([at(31.0, 0, "train", step=2), at(1.0, 1, "train")], 40.0)
    assert beats.find_silent(69.0) == []
    silent = beats.find_silent(71.0)
    assert [(item.rank, item.seconds, item.step) for item in silent] == [(1, 61.0, 1), (0, 31.0, 2)]


def test_phases_that_do_not_beat_have_two_hours() -> None:
    for phase in ("import", "data", "load", "save", "finish", "done"):
        beats = Beats(2, PLAN, 0.0)
        beats.take([at(1.0, 0, phase), at(1.0, 1, phase)], 0.0)
        assert beats.find_silent(SLOW_SECONDS - 1) == []
        assert beats.find_silent(SLOW_SECONDS + 1) != []
    assert Beats(2, PLAN, 0.0).find_silent(SLOW_SECONDS - 1) == []  # no beat yet: the interpreter starts


def test_beats_of_an_older_attempt_are_no_life() -> None:
    beats = Beats(2, PLAN, 0.0)
    beats.take([at(1.0, 0, "train", attempt=1), at(1.0, 1, "train", attempt=1)], 5.0)
    assert [item.phase for item in beats.find_silent(SLOW_SECONDS + 1)] == ["start", "start"]


def test_hang_seconds_null_is_never() -> None:
    spec = replace(PLAN.spec, recovery=Recovery(hang_seconds=None))
    assert Beats(2, replace(PLAN, spec=spec), 0.0).find_silent(10 * SLOW_SECONDS) == []
