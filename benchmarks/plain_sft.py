"""QLoRA with TRL as one writes it by hand: what benchmarks/sft_throughput.py measures the SFT job against.

    python benchmarks/plain_sft.py MODEL ROWS.jsonl TIMES.json STEPS MICRO_BATCH ACCUMULATION

Imports nothing of tuneyard's. It follows TRL's guide and defaults (bf16=True, fused AdamW, gradient checkpointing,
logging every 10 steps), without a progress bar or evaluation. Two lines are there to do the same work as the job:
rows are taken in the file's order, and the adapter is kept in float32, which TRL 1.16 casts to bfloat16. Writes
``{"times": {step: seconds since the epoch}, "logs": [what the Trainer logged]}``.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

folder, rows, output, steps, micro_batch, accumulation = sys.argv[1:]


class Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self):
        self.times = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.times[state.global_step] = time.time()


# One turn each, split where the answer begins: TRL masks the prompt (assistant_only_loss needs a template with
# {% generation %}, which this model's lacks).
messages = [json.loads(line)["messages"] for line in Path(rows).read_text(encoding="utf-8").splitlines()]
dataset = Dataset.from_list([{"prompt": turns[:-1], "completion": turns[-1:]} for turns in messages])
model = AutoModelForCausalLM.from_pretrained(
    folder,
    dtype=torch.bfloat16,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ),
)
clock = Clock()
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=str(Path(output).with_suffix("")),
        max_steps=int(steps),
        per_device_train_batch_size=int(micro_batch),
        gradient_accumulation_steps=int(accumulation),
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        max_length=128,
        seed=42,
        train_sampling_strategy="sequential",
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    ),
    train_dataset=dataset,
    processing_class=AutoTokenizer.from_pretrained(folder),
    peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear"),
    callbacks=[clock],
)
for parameter in model.parameters():
    if parameter.requires_grad:
        parameter.data = parameter.data.float()
trainer.train()
if trainer.is_world_process_zero():
    Path(output).write_text(json.dumps({"times": clock.times, "logs": trainer.state.log_history}), encoding="utf-8")
