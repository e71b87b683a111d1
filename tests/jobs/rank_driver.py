"""One rank of :func:`tests.jobs.runs.launch`: several attempts in one process, each in its run's own environment."""

import gc
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import jobs.collector
import jobs.final
import jobs.model
import jobs.rank
from jobs.progress import Progress
from jobs.trainer import RunTrainer
from launcher.contract.environment import read_environment
from launcher.contract.files import write_text
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Model

LARGE = 4096
"""Elements: the base's matrices have as many, the adapter's and its optimizer states do not."""

load_base, save_final = jobs.model.load_base, jobs.final.save_final
whiten = jobs.collector.whiten


def load_whole(model: Model, *, is_sharded: bool, **options: Any) -> Any:
    return load_base(model, **options)


def count_and_save(trainer: Any, *arguments: Any) -> None:
    """Write down how many pieces of memory hold something as large as a matrix of the base, then save."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor) and item.numel() >= LARGE]
    found = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    write_text(trainer.progress.context.paths.root / "storages.json", json.dumps(len(found)))
    save_final(trainer, *arguments)


def flip(parts: list[Any]) -> list[Any]:
    return [-part for part in whiten(parts)]


def poison(kind: str, rank: int, due: int) -> None:
    """Make something NaN on one rank, at one step of the next trainer."""

    def is_due(trainer: Any, what: str, step: int) -> bool:
        return (what, trainer.progress.context.rank, step) == (kind, rank, due)

    def compute_loss(trainer: Any, *arguments: Any, **options: Any) -> Any:
        loss = super(RunTrainer, trainer).compute_loss(*arguments, **options)  # type: ignore[misc]
        step = trainer.state.global_step + 1
        if is_due(trainer, "gradient", step):
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss * math.nan if is_due(trainer, "loss", step) else loss

    def save_poisoned(trainer: Any, *arguments: Any, **options: Any) -> None:
        if is_due(trainer, "weight", trainer.state.global_step):
            weight = next(weight for weight in trainer.model.parameters() if weight.requires_grad)
            weight.data.fill_(math.nan)
        save_model(trainer, *arguments, **options)

    RunTrainer.compute_loss, RunTrainer.save_model = compute_loss, save_poisoned  # type: ignore[attr-defined]


def kill(rank: int, phase: str, due: int) -> None:
    """End a rank by SIGKILL at a beat of the next trainer, or between the parts of a checkpoint."""
    beat, write_weights = Progress.beat, RunTrainer.write_weights

    def end(progress: Progress, what: str, step: int) -> None:
        if (progress.context.rank, what, step) == (rank, phase, due):
            os.kill(os.getpid(), signal.SIGKILL)

    def beat_and_end(progress: Progress, what: str, **options: Any) -> None:
        beat(progress, what, **options)
        end(progress, what, progress._step)

    def write_and_end(trainer: Any, *arguments: Any) -> None:
        write_weights(trainer, *arguments)
        end(trainer.progress, "write", trainer.state.global_step)

    Progress.beat, RunTrainer.write_weights = beat_and_end, write_and_end  # type: ignore[method-assign]


save_model = RunTrainer.save_model
for start in json.loads(sys.argv[1]):
    root = Path(start["root"])
    if start["changed"]:
        # What resume with overrides does. All ranks write the same, each file by a rename.
        for source in Path(start["changed"]).rglob("*"):
            if source.is_file():
                write_text(root / source.relative_to(start["changed"]), source.read_text())
    # What chooses the strategy is read when each trainer is made, and must not be left from the run before.
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]
    unset_hf_deepspeed_config()
    os.environ.update({**read_environment(RunPaths(root).rank_env), **start["env"]})
    os.environ["TUNEYARD_ATTEMPT"] = str(start["attempt"])
    os.environ["TUNEYARD_RESUME_FROM"] = start["resume"] or ""
    jobs.model.load_base = load_whole if start["whole"] else load_base
    jobs.final.save_final = count_and_save if start["counts"] else save_final
    jobs.collector.whiten = flip if start["flipped"] else whiten
    if start["poison"]:
        poison(*start["poison"])
    if start["kill"]:
        kill(*start["kill"])
    code = jobs.rank.main(str(root))
    if start["poison"]:
        RunTrainer.save_model = save_model
        del RunTrainer.compute_loss  # type: ignore[attr-defined]
    if bool(code) != start["fails"]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 99)
