"""Measures how long a checkpoint holds training up, published by the ranks themselves or beside training.

    python benchmarks/checkpoint_stall.py [ROUNDS]      # 8; two ranks on this machine's CPU

Each strategy trains all weights of a Llama of 14 million parameters (float32, AdamW). A round is four stretches of as
many steps, in an order that turns from round to round: one begins with a save that waits until its checkpoint is
published (hashed, synced, renamed, older ones removed), one with a save as it is, two with none. A stretch's time over
that of the first without a save is what the save costs in all, what it takes from the steps beside it included; the
second without one gives the noise. All four are of one process and one model, seconds apart. The stall is the time in
which no step can run.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STRATEGIES = ("ddp", "fsdp", "zero3")
MODES = ("waiting", "beside", "none", "noise")
STEPS = 5
"""Of a stretch: long enough that a checkpoint is published before the next one begins."""
SPEC = f"""\
name: stall
stage: sft
model: {{base: ./model, quantization: none, dtype: float32, adapter: null}}
data: {{train: {ROOT / "examples/data/triage.jsonl"}, format: messages, max_length: 128, eval: null}}
train: {{micro_batch: 1, global_batch: 2, save_every_steps: {STEPS}, gradient_checkpointing: false}}
resources: {{nodes: 1, gpus_per_node: 2, time: 1h}}
tracking: {{wandb: disabled}}
"""
PROFILE = """\
scheduler: local
accelerator: cpu
internet: true
poll_seconds: 1
setup:
  - export PYTHONPATH={hook}:{benchmarks}:$PYTHONPATH
  - export STALL_RECORD={record}
"""
HOOK = """\
import os
if os.environ.get("TUNEYARD_ATTEMPT") and os.environ.get("STALL_RECORD"):
    import checkpoint_stall
    checkpoint_stall.install()
"""


def install() -> None:
    """In a rank: save as the mode of each stretch says, and write down when it began and how long no step could run."""
    from jobs.trainer import RunTrainer

    save = RunTrainer._save_checkpoint
    rows: list[tuple[str, float, float]] = []

    def save_in_turn(trainer: Any, *arguments: Any) -> None:
        began = time.perf_counter()
        round_, turn = divmod(len(rows), len(MODES))
        mode = MODES[(turn + round_) % len(MODES)]
        if mode in ("waiting", "beside"):
            save(trainer, *arguments)
        if mode == "waiting":
            trainer.progress.background.wait()
            trainer.accelerator.wait_for_everyone()
        rows.append((mode, began, time.perf_counter() - began))
        if trainer.progress.context.is_main:
            Path(os.environ["STALL_RECORD"]).write_text(json.dumps(rows))

    RunTrainer._save_checkpoint = save_in_turn  # type: ignore[method-assign]


def write_inputs(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from jobs.tiny import make_tokenizer

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "sitecustomize.py").write_text(HOOK)


def measure(folder: Path, strategy: str, rounds: int) -> dict[str, list[float]]:
    """Per mode and round: seconds of the stretch more than of the one without a save; under ``stall MODE`` those in
    which no step could run. The first round is left out."""
    record = folder / f"{strategy}.json"
    profile = PROFILE.format(hook=folder, benchmarks=Path(__file__).parent, record=record)
    (folder / "profile.yaml").write_text(profile)
    # A stretch ends where the next one begins; the last save is the run's own at its end.
    steps = STEPS * (len(MODES) * (rounds + 1) + 1)
    command = [sys.executable, "-m", "launcher", "submit", "spec.yaml", "--cluster", "./profile.yaml", "--wait"]
    done = subprocess.run(
        [*command, f"parallel.strategy={strategy}", f"train.max_steps={steps}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{strategy}: {done.stderr[-3000:]}")
    rows = json.loads(record.read_text())
    found: dict[str, list[float]] = {}
    for number in range(1, rounds + 1):
        first = number * len(MODES)
        part = {rows[at][0]: (rows[at + 1][1] - rows[at][1], rows[at][2]) for at in range(first, first + len(MODES))}
        for mode in ("waiting", "beside", "noise"):
            found.setdefault(mode, []).append(part[mode][0] - part["none"][0])
        for mode in ("waiting", "beside"):
            found.setdefault(f"stall {mode}", []).append(part[mode][1])
    return found


def show(values: list[float]) -> str:
    """Median, and the standard error of the mean."""
    return f"{statistics.median(values):.2f} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        print(f"torch {version('torch')}, deepspeed {version('deepspeed')}, {os.cpu_count()} cores, {rounds} rounds\n")
        heads = ("stall waiting", "stall beside", "waiting", "beside", "noise")
        titles = ("stall, waits", "stall, beside", "cost, waits", "cost, beside", "noise of the cost")
        print(f"| s per save | {' | '.join(titles)} |\n{'|---' * 6}|")
        for strategy in STRATEGIES:
            found = measure(folder, strategy, rounds)
            print(f"| {strategy} | {' | '.join(show(found[head]) for head in heads)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
