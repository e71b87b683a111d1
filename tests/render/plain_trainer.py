"""A plain transformers Trainer, as somebody has one who starts it by hand; it knows no plan and no run directory.

accelerate launch --config_file accelerate.yaml plain_trainer.py STRATEGY
torchrun --nproc-per-node 2 plain_trainer.py zero3=ds_configs/zero3.json ...

Trains builtin:tiny for two steps, once for each argument; rank 0 prints a line of JSON: what was in effect.
"""

import json
import os
import sys
import tempfile
from typing import Any

MICRO_BATCH = 2


def main(strategy: str, deepspeed: str | None) -> dict[str, Any]:
    if os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu":
        # What our own jobs do on CPU ranks; on GPUs a plain script needs nothing of ours.
        from jobs import cpu

        cpu.enable(strategy, int(os.environ["LOCAL_WORLD_SIZE"]))
    from transformers import Trainer, TrainingArguments

    from jobs.proof import count_parameters
    from jobs.tiny import make_model

    rows = [{"input_ids": [row, *range(20)], "labels": [row, *range(20)]} for row in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=2,
            per_device_train_batch_size=MICRO_BATCH,
            learning_rate=1e-3,
            deepspeed=deepspeed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer: Any = Trainer(model=make_model(), args=arguments, train_dataset=rows)  # type: ignore[arg-type]
        loss = trainer.train().training_loss
    model = trainer.model_wrapped
    counts = count_parameters(model)
    return {
        "distributed_type": trainer.accelerator.distributed_type.value,
        "wrapper": type(model).__name__,
        "stage": model.zero_optimization_stage() if hasattr(model, "zero_optimization_stage") else None,
        "world_size": trainer.accelerator.num_processes,
        "steps": trainer.state.global_step,
        "loss": loss,
        "share": counts.params_local / counts.params_total,
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        name, _, config = argument.partition("=")
        found = main(name, config or None)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps({"strategy": name, **found}), flush=True)
