"""Trains a small byte-level language model with transformers' Trainer; one callback ties it to its run.

By hand: torchrun --nproc-per-node 2 examples/own_script/hf_trainer.py --rows examples/data/triage.jsonl
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from jobs.run import current_run

LENGTH = 96
run = current_run()


class RunCallback(TrainerCallback):
    """Hands what the Trainer logs and saves to the run."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        run.log(state.global_step, **(logs or {}))

    def on_save(self, args, state, control, **kwargs):
        written = Path(args.output_dir, f"checkpoint-{state.global_step}")
        with run.checkpoint(state.global_step) as folder:
            if state.is_world_process_zero:
                shutil.copytree(written, folder, dirs_exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--save-every", type=int, default=10)
    options = parser.parse_args()

    arguments = TrainingArguments(
        output_dir=os.path.join(os.environ.get("TUNEYARD_RUN_DIR", "."), "trainer"),  # the nodes share it
        per_device_train_batch_size=int(os.environ.get("TUNEYARD_MICRO_BATCH", "4")),
        gradient_accumulation_steps=int(os.environ.get("TUNEYARD_ACCUMULATION", "1")),
        max_steps=options.steps,
        learning_rate=options.lr,
        logging_steps=1,
        save_steps=options.save_every,
        save_total_limit=1,  # the run has its own copies
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    trainer = Trainer(
        model=LlamaForCausalLM(config),
        args=arguments,
        train_dataset=read_rows(options.rows),
        callbacks=[RunCallback()],
    )
    trainer.train(resume_from_checkpoint=str(run.resume_from) if run.resume_from is not None else None)
    # Not trainer.save_model, which under fsdp writes nothing: the state is kept in shards (transformers 5.23).
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(run.final, state_dict=weights)


def read_rows(path: str) -> list[dict[str, list[int]]]:
    """Each row's message and answer as bytes, LENGTH of them."""
    with open(path, encoding="utf-8") as file:
        texts = ["\n".join(turn["content"] for turn in json.loads(line)["messages"]) for line in file]
    rows = [list(text.encode()[-LENGTH:].rjust(LENGTH)) for text in texts]
    return [{"input_ids": row, "labels": row} for row in rows]


if __name__ == "__main__":
    main()
