"""Writes the run's result: adapter or model, tokenizer and template, re-read and compared, completion record last."""

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.contract.files import write_json
from launcher.contract.manifest import list_files

from .checkpoint import writing_folder
from .errors import JobError
from .gather import gather_trained
from .model import name_weights
from .progress import Progress

if TYPE_CHECKING:
    import torch

PROBE_TEXT = "The capital of France is"
PROBE_TOP = 10


def save_final(trainer: Any, progress: Progress, metrics: dict[str, float]) -> None:
    """Write ``final/`` from rank 0; every rank takes part.

    Raises:
        JobError: what was written differs from the live weights, or an adapter that must have moved did not.
    """
    context = progress.context
    progress.beat("finish", now=True)
    probe = run_probe(trainer)
    gathered = gather_trained(trainer, keep=context.is_main)
    if gathered is not None:
        paths = context.paths
        folder = paths.root / f".final.a{context.attempt:02d}"
        shutil.rmtree(folder, ignore_errors=True)
        weights = name_weights(trainer.model, gathered)
        trainer.write_weights(folder, gathered)
        check_saved(folder, weights)
        if progress.has_moved:
            check_moved(weights)
        paths.completion.unlink(missing_ok=True)  # of a run that is being extended
        shutil.rmtree(paths.final, ignore_errors=True)
        os.rename(folder, paths.final)
        shutil.rmtree(writing_folder(paths, context.attempt), ignore_errors=True)
        write_json(
            paths.completion,
            {
                "v": 1,
                "t": time.time(),
                "run_id": context.plan.run_id,
                "attempt": context.attempt,
                "step": trainer.state.global_step,
                "metrics": metrics,
                "probe": probe,
                "files": list_files(paths.final),
            },
        )
    trainer.accelerator.wait_for_everyone()


def run_probe(trainer: Any) -> dict[str, Any]:
    """What the live model says to a fixed text: token ids, then the likeliest next tokens with their logits, or the
    score where the model is one of rewards.

    Whoever loads ``final/`` can check that it is the same model: evaluation mode, no autocast.
    """
    import torch

    # Not the wrapped one: DeepSpeed's engine has an autocast of its own.
    tokenizer, model = trainer.processing_class, trainer.model
    inputs = tokenizer(PROBE_TEXT, return_tensors="pt").to(trainer.args.device)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()
    probe = {"text": PROBE_TEXT, "input_ids": inputs["input_ids"][0].tolist()}
    if logits.dim() == 2:  # (1, 1), of a sequence
        return {**probe, "score": logits.item()}
    top = logits[0, -1].topk(min(PROBE_TOP, logits.size(-1)))
    return {**probe, "top_ids": top.indices.tolist(), "top_logits": top.values.tolist()}


def check_saved(folder: Path, weights: dict[str, "torch.Tensor"]) -> None:
    """Re-read every safetensors file of ``folder`` and compare it with ``weights``, tensor by tensor, bit by bit.

    Raises:
        JobError: a tensor is missing or differs.
    """
    import torch
    from safetensors import safe_open

    seen = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dict)
                tensor = stored.get_tensor(name)
                live = weights.get(name)
                if live is None or tensor.dtype != live.dtype or not torch.equal(tensor, live.cpu()):
                    raise JobError(f"final save: {name} in {file.name} is not what the live model has")
                seen.add(name)
    # Tied weights are stored once.
    stored_at = {weights[name].data_ptr() for name in seen}
    missing = [name for name, tensor in weights.items() if name not in seen and tensor.data_ptr() not in stored_at]
    if missing:
        raise JobError(f"final save: {len(missing)} tensors are missing, {missing[0]} among them")


def check_moved(weights: dict[str, "torch.Tensor"]) -> None:
    """An adapter's second matrix starts at zero; all of it zero at the end is an adapter that does nothing.

    Raises:
        JobError: it is.
    """
    second = [tensor for name, tensor in weights.items() if "lora_B" in name]
    if second and not any(bool(tensor.any()) for tensor in second):
        raise JobError("final save: the adapter is all zero after training: nothing was learned")
