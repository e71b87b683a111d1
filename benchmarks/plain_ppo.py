"""PPO with TRL 1.12.0, its last, after its own example: what benchmarks/ppo_throughput.py measures the stage against.

    python benchmarks/plain_ppo.py MODEL PROMPTS.jsonl RESULT.json ROLLOUTS BATCH MINIBATCHES MICRO_BATCH EPOCHS TOKENS

Imports nothing of tuneyard's, and runs in an environment of its own with trl 1.12.0. The policy has LoRA r=8; value and
reward model are sequence classifiers on copies of the base, as TRL needs them. Writes ``{"times": [seconds since the
epoch at the end of each rollout's updates], "peak_gib": of this process}``.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

folder, prompts, result = sys.argv[1:4]
rollouts, batch, minibatches, micro_batch, epochs, tokens = map(int, sys.argv[4:])


class Clock(TrainerCallback):
    """Notes when each rollout has been learned from."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.time())


tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
rows = [json.loads(line)["prompt"] for line in Path(prompts).read_text(encoding="utf-8").splitlines()]
turns = [[{"role": "user", "content": row}] for row in rows]
ids = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"] for turn in turns]
dataset = Dataset.from_dict({"input_ids": ids})
float32 = {"dtype": torch.float32}
torch.manual_seed(42)
scorers = [AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **float32) for _ in range(2)]
for scorer in scorers:
    scorer.config.pad_token_id = tokenizer.pad_token_id
clock = Clock()
trainer = PPOTrainer(
    args=PPOConfig(
        output_dir=str(Path(result).with_suffix("")),
        total_episodes=rollouts * batch,
        per_device_train_batch_size=micro_batch,
        # A rollout is one batch of this many micro batches; its optimizer steps once for all of them.
        gradient_accumulation_steps=batch // micro_batch,
        num_mini_batches=minibatches,
        num_ppo_epochs=epochs,
        local_rollout_forward_batch_size=batch,
        response_length=tokens,
        stop_token="eos",
        temperature=1.0,
        learning_rate=1e-5,
        kl_coef=0.05,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        seed=42,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    ),
    processing_class=tokenizer,
    model=AutoModelForCausalLM.from_pretrained(folder, **float32),
    ref_model=None,
    reward_model=scorers[0],
    value_model=scorers[1],
    train_dataset=dataset,
    eval_dataset=dataset.select(range(2)),
    peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
    callbacks=[clock],
)
trainer.train()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
Path(result).write_text(json.dumps({"times": clock.times, "peak_gib": peak}), encoding="utf-8")
