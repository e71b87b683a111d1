"""Makes a ZeRO checkpoint readable to another number of ranks (DeepSpeed's universal checkpoint, arXiv:2406.18820)."""

import contextlib
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from launcher.contract.manifest import read_manifest
from launcher.contract.strategies import FIXED_WORLD

from .checkpoint import writing_folder
from .context import RankContext

FOLDER = "universal"
"""Where this attempt writes: the checkpoint with its state per weight instead of per rank."""


def find_origin(trainer: Any, context: RankContext) -> Path | None:
    """The folder to go on from: the attempt's checkpoint, or what rank 0 makes of it for this number of ranks.

    Collective. To be called before the trainer wraps its model: the engine is told then how to read.
    """
    source = context.resume_from
    if source is None or context.plan.spec.parallel.strategy not in FIXED_WORLD:
        return source
    written = (read_manifest(source) or {}).get("world_size", context.world_size)
    if written == context.world_size:
        return source
    target = writing_folder(context.paths, context.attempt) / FOLDER
    if context.is_main:
        convert(source, target)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
    return target


def convert(source: Path, target: Path) -> None:
    """Write to ``target`` what DeepSpeed can load on any number of ranks; what the others have is linked from there.

    The files are the run's own, and have been found to be as their manifest says: DeepSpeed 0.19 unpickles them.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    target.mkdir(parents=True)
    step = (source / "latest").read_text().strip()
    for path in source.iterdir():
        if path.name not in ("latest", step):
            (target / path.name).symlink_to(path.resolve())
    made = f"{step}_universal"
    options = Namespace(
        input_folder=str(source / step),
        output_folder=str(target / made),
        # In this process: a rank that has joined the others must not fork.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # patterns of tensor parallelism, of which there is none
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # progress bars
        main(options)
    for name in ("latest", "latest_universal"):
        (target / name).write_text(made)
