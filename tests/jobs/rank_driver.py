"""One rank of :func:`tests.jobs.runs.launch`: several attempts in one process, each in its run's own environment."""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import jobs.collector
import jobs.final
import jobs.model
import jobs.rank
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
    code = jobs.rank.main(str(root))
    if bool(code) != start["fails"]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 99)
