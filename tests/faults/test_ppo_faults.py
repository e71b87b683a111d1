"""PPO: killed during a rollout, an update and a save, all of its state comes back together."""

import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from launcher.contract.attempt import Attempt
from launcher.contract.checkpoints import choose_checkpoint
from launcher.contract.ledger import events, merge_metrics, read_run
from launcher.contract.paths import RunPaths, read_step
from launcher.contract.spec import Data, Ppo, Train
from tests.jobs.runs import FLOAT32, Start, launch, write_rows, write_run
from tests.reliability import record

pytestmark = [pytest.mark.ranks, pytest.mark.faults, pytest.mark.timeout(600)]
# Four steps per rollout: it is written after steps 0, 4 and 8, and the checkpoints stand in the middle of it.
TRAIN = Train(max_steps=10, global_batch=8, learning_rate=1e-2, save_every_steps=3, eval_every_steps=5, keep_last=9)
PPO = Ppo(
    reward="builtin:length",
    max_new_tokens=10,
    rollout_batch=16,
    epochs=2,
    temperature=0.2,
    kl_coef=0.1,
    kl_target=1.0,
    normalize_reward=True,
)
KILLS = {"rollout": (1, "rollout", 4), "update": (1, "train", 5), "save": (0, "write", 6)}
"""Moment -> rank, phase and the step that was done before."""
FILES = ("adapter_model.safetensors", "critic/adapter_model.safetensors", "critic/value_head.safetensors")


def write(folder: Path) -> Path:
    rows = [{"prompt": f"Say {'a' * (number % 7)} {number}."} for number in range(90)]
    data = Data(train=str(write_rows(folder.parent / "prompts.jsonl", rows)), eval=0.1, max_length=64, format="prompt")
    return write_run(folder, 2, model=FLOAT32, data=data, train=TRAIN, stage="ppo", ppo=PPO)


def attempt(root: Path, number: int, kill: tuple[int, str, int] | None = None) -> int:
    """Run an attempt as a supervisor starts it; returns the step that it started from."""
    paths = RunPaths(root)
    found = choose_checkpoint(paths).checkpoint
    origin = found and found.relative_to(root).as_posix()
    Attempt(number=number, started=time.time(), nodes=["here"], resumed_from=origin).save(paths)
    launch(2, [Start(root, number, origin, kill=kill)])
    return read_step(found) if found is not None else 0


def told(root: Path) -> dict[int, Any]:
    """Step -> the responses of the rollout that was written after it, and their scores; of an attempt's the newest."""
    return {row["step"]: row["samples"] for row in events(read_run(RunPaths(root)), "rollout")}


def test_a_killed_run_comes_back_with_all_its_state_and_uses_each_prompt_once(tmp_path: Path) -> None:
    straight, killed = write(tmp_path / "straight"), write(tmp_path / "killed")
    attempt(straight, 1)
    started = [attempt(killed, number, kill) for number, kill in enumerate(KILLS.values(), start=1)]
    started.append(attempt(killed, len(KILLS) + 1))
    assert started == [0, 3, 3, 3]
    rows, expected = (merge_metrics(read_run(RunPaths(root))) for root in (killed, straight))
    assert [row["step"] for row in rows] == list(range(11))
    drop = ("t", "attempt", "tokens_per_s", "memory_gib", "ppo/generation_s", "ppo/scoring_s", "ppo/update_s")
    for row, other in zip(rows, expected, strict=True):
        assert {key: row[key] for key in row if key not in drop} == {
            key: other[key] for key in other if key not in drop
        }
    # The prompts, what was answered and how it was scored: the same, rollout by rollout.
    assert told(killed) == told(straight)
    assert sorted(told(killed)) == [0, 4, 8]
    assert rows[-1]["epoch"] == 3 * PPO.rollout_batch / 81  # type: ignore[operator]
    for name in FILES:
        first, second = (load_file(root / "final" / name) for root in (straight, killed))
        assert first
        assert all(bool((first[key] == second[key]).all()) for key in first)
    record(
        "18 PPO killed in rollout, update and save",
        f"SIGKILL of {', '.join(f'rank {rank} in {moment}' for moment, (rank, _, _) in KILLS.items())}",
        "policy, value head, optimizers, KL controller and prompt position come back together: metrics, rollouts and "
        "final weights bitwise equal, each prompt used once",
        steps_lost=3,
        committed_checkpoints_lost=0,
    )
