"""QLoRA or LoRA with TRL as its documentation has it, on one device, measured: what gpu.py compares tuneyard with.

    python benchmarks/plain_trl.py MODEL ROWS QUANTIZATION

Prints a line of JSON: tokens_per_s (median over the steps) and memory_gib (peak, as the ledger has it).
"""

import json
import statistics
import sys
import tempfile
import time
from typing import Any

# What gpu.py asks of tuneyard, too.
STEPS, MICRO_BATCH, MAX_LENGTH = 10, 4, 512
LEARNING_RATE = 2e-3
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
WARMUP_STEPS = 3
"""Steps that are not timed: kernels are compiled and buffers allocated in them."""


def main(model_name: str, rows: str, quantization: str) -> dict[str, float]:
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from jobs.progress import measure_memory_gib

    class Clock(TrainerCallback):
        """Tokens, padding left out, and the time after each step."""

        marks: list[tuple[float, float]] = []  # noqa: RUF012 (one trainer, one clock)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                self.marks.append((logs["num_tokens"], time.perf_counter()))

    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_length=MAX_LENGTH,
            max_steps=STEPS,
            per_device_train_batch_size=MICRO_BATCH,
            learning_rate=LEARNING_RATE,
            bf16=True,
            optim="adamw_torch",
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer: Any = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_name, **options),
            args=arguments,
            train_dataset=datasets.load_dataset("json", data_files=rows, split="train", cache_dir=folder),
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
            callbacks=[Clock()],
        )
        trainer.train()
    pairs = zip(Clock.marks[WARMUP_STEPS - 1 :], Clock.marks[WARMUP_STEPS:], strict=False)
    rates = [(after - before) / (end - start) for (before, start), (after, end) in pairs]
    return {"tokens_per_s": statistics.median(rates), "memory_gib": measure_memory_gib()}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
