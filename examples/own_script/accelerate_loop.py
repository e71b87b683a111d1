"""Trains a small byte-level language model with an accelerate loop, which logs to its run and can be resumed.

By hand: accelerate launch examples/own_script/accelerate_loop.py --rows examples/data/triage.jsonl
"""

import argparse
import json
import os

import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.run import current_run

LENGTH = 96


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--save-every", type=int, default=10)
    options = parser.parse_args()

    run = current_run()
    accelerator = Accelerator(gradient_accumulation_steps=int(os.environ.get("TUNEYARD_ACCUMULATION", "1")))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    loader = torch.utils.data.DataLoader(
        read_rows(options.rows),
        batch_size=int(os.environ.get("TUNEYARD_MICRO_BATCH", "4")),
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    step = 0
    if run.resume_from is not None:  # the rows begin anew; weights, optimizer and random states go on
        accelerator.load_state(str(run.resume_from))
        step = int(run.resume_from.name.removeprefix("step-"))
    while step < options.steps:
        losses = []
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(input_ids=batch, labels=batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            if not accelerator.sync_gradients:
                continue
            step += 1
            run.log(step, loss=accelerator.reduce(torch.stack(losses).mean(), reduction="mean"))
            losses = []
            if step % options.save_every == 0:
                with run.checkpoint(step) as folder:
                    accelerator.save_state(str(folder))
            if step == options.steps:
                break

    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(run.final, state_dict=weights)
    accelerator.end_training()


def read_rows(path: str) -> torch.Tensor:
    """Each row's message and answer as bytes, int64 (rows, LENGTH)."""
    with open(path, encoding="utf-8") as file:
        texts = ["\n".join(turn["content"] for turn in json.loads(line)["messages"]) for line in file]
    return torch.tensor([list(text.encode()[-LENGTH:].rjust(LENGTH)) for text in texts])


if __name__ == "__main__":
    main()
