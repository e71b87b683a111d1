"""Tries every strategy on one GPU through the command line, from `tuneyard submit` to the adapter in plain peft.

    make gpu                                        # builtin:tiny, results in build/gpu.json
    python benchmarks/gpu.py RESULTS [MODEL]        # besides it MODEL: a folder, a hub id, or random-1b
    python benchmarks/gpu.py RESULTS --accelerator cpu      # a trial of this script; its speeds mean nothing

For NF4 and bfloat16 under ddp, fsdp, zero2 and zero3: a run with its proof of strategy, its checkpoint, the run resumed
to twice the steps, the adapter loaded by plain peft (plain_peft.py); peak memory and tokens/s beside plain TRL
(plain_trl.py). random-1b is a Llama of 1.1 billion random weights, so that no hub is needed. Exit code 1 where a check
failed; without a GPU it says so and ends with 0.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpu_inputs import RANDOM, TINY, write_model, write_rows
from plain_trl import LEARNING_RATE, LORA, MAX_LENGTH, MICRO_BATCH, STEPS, WARMUP_STEPS

from launcher.contract.attempt import read_attempts
from launcher.contract.files import read_json
from launcher.contract.ledger import events, merge_metrics, read_run
from launcher.contract.manifest import find_problems
from launcher.contract.paths import RunPaths

ROOT = Path(__file__).parent.parent
STRATEGIES, PLAIN = ("ddp", "fsdp", "zero2", "zero3"), "plain TRL"
QUANTIZATIONS = ("nf4", "none")
PROFILE = "{{scheduler: local, accelerator: {accelerator}, gpus_per_node: 1, internet: true, poll_seconds: 1}}\n"
SPEC = f"""\
name: gpu
stage: sft
model:
  base: {TINY}
  adapter: {{r: {LORA["r"]}, alpha: {LORA["lora_alpha"]}, dropout: {LORA["lora_dropout"]}}}
data: {{train: rows.jsonl, format: text, max_length: {MAX_LENGTH}, eval: null}}
train:
  {{max_steps: {STEPS}, micro_batch: {MICRO_BATCH}, global_batch: {MICRO_BATCH}, learning_rate: {LEARNING_RATE},
    scheduler: linear, warmup_steps: 0, loss_on: all, save_every_steps: {STEPS}, eval_every_steps: null}}
resources: {{nodes: 1, gpus_per_node: 1, time: 1h}}
tracking: {{wandb: disabled}}
"""
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "bitsandbytes")
WIDTHS = {"model": 14, "quantization": 14, "strategy": 11, "wrapper": 27, "tokens_per_s": 14, "memory_gib": 12}
WIDTHS |= {"difference": 12, "effect": 9, "check": 0}


class CheckError(Exception):
    """Something is not as it must be; the text says what."""


class Bench:
    """Runs commands in ``folder``, which holds the spec, the profile and the rows."""

    def __init__(self, folder: Path, accelerator: str) -> None:
        self.folder = folder
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}
        if accelerator == "cpu":
            self.env["CUDA_VISIBLE_DEVICES"] = ""
        (folder / "one.yaml").write_text(PROFILE.format(accelerator=accelerator))
        (folder / "spec.yaml").write_text(SPEC)
        write_rows(folder / "rows.jsonl")

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )

    def read(self, script: str, *arguments: str) -> Any:
        """The JSON that a script beside this one prints last."""
        done = self.run(str(ROOT / "benchmarks" / script), *arguments)
        if done.returncode != 0:
            raise CheckError(f"{script} ended with {done.returncode}\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def train(self, model: str, quantization: str, strategy: str) -> dict[str, Any]:
        """Submit a run, then resume it to twice the steps; what was found of it.

        Raises:
            CheckError: it failed, or a check did.
        """
        changes = [f"model.base={model}", f"model.quantization={quantization}", f"parallel.strategy={strategy}"]
        done = self.run(
            "-m", "launcher", "submit", "spec.yaml", "--cluster", "./one.yaml", "--wait", "--json", *changes
        )
        if not done.stdout:
            raise CheckError(done.stderr[-3000:])
        paths = RunPaths(self.folder / json.loads(done.stdout.splitlines()[-1])["run_dir"])
        if done.returncode == 0:
            extended = f"train.max_steps={2 * STEPS}"
            done = self.run("-m", "launcher", "resume", str(paths.root), "--wait", extended)
        attempts, rows = read_attempts(paths), read_run(paths)
        metrics = merge_metrics(rows)
        # Each attempt compiles its kernels anew.
        timed = [row for row in metrics if (row["step"] - 1) % STEPS >= WARMUP_STEPS]
        checks = events(rows, "strategy_check")
        if failures := find_failures(paths, [strategy] * 2, done, [row["got"] for row in checks]):
            raise CheckError("; ".join(failures))
        return {
            "final": str(paths.final),
            "wrapper": checks[0]["wrapper"],
            "strategy_check": checks,
            "resumed_from": attempts[-1].resumed_from,
            "tokens_per_s": statistics.median([row["tokens_per_s"] for row in timed] or [0.0]),
            "memory_gib": max((row["memory_gib"] for row in metrics if "memory_gib" in row), default=0.0),
        }


def find_failures(
    paths: RunPaths, asked: list[str], done: "subprocess.CompletedProcess[str]", got: list[str]
) -> list[str]:
    """What is not as it must be after the resume, ``done``; ``got`` are the strategies in effect in the attempts."""
    attempts = read_attempts(paths)
    ending = attempts[-1].ended if attempts else None
    if done.returncode != 0 or ending is None or ending.state != "completed":
        # A run that fails has a reason; a command that does, a message.
        return ["\n".join([ending.reason, *ending.log]) if ending and ending.exit_code else done.stderr[-3000:]]
    failures = []
    if got != asked:
        failures.append(f"strategy_check has {got}, not {asked}")
    if attempts[-1].resumed_from != paths.checkpoint(1, STEPS).relative_to(paths.root).as_posix():
        failures.append(f"resumed from {attempts[-1].resumed_from}")
    for folder in paths.published():
        failures += [f"{folder.name}: {problem}" for problem in find_problems(folder)]
    if (step := (read_json(paths.completion) or {}).get("step")) != 2 * STEPS:
        failures.append(f"complete at step {step}")
    return failures


def measure(bench: Bench, name: str) -> list[dict[str, Any]]:
    """All rows of one model; each is printed as it comes."""
    folder = write_model(bench.folder / name.replace(":", "-"), name)
    rows = []
    for quantization in QUANTIZATIONS:
        for strategy in (PLAIN, *STRATEGIES):
            row: dict[str, Any] = {"model": name, "quantization": quantization, "strategy": strategy}
            try:
                if strategy == PLAIN:
                    row |= bench.read("plain_trl.py", folder, "rows.jsonl", quantization)
                else:
                    row |= bench.train(name if name == TINY else folder, quantization, strategy)
                    row |= bench.read("plain_peft.py", folder, quantization, row.pop("final"))[0]
                    # Kernels may differ by a rounding or two; a wrong adapter is wrong by what an adapter does.
                    if row["difference"] > row["effect"] / 10:
                        raise CheckError("the adapter in plain peft is not the live model")
                row["check"] = "ok"
            except CheckError as error:
                row["check"] = str(error)
            show(row)
            rows.append(row)
    return rows


def show(row: dict[str, Any]) -> None:
    cells = [row.get(name, "") for name in WIDTHS]
    texts = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("".join(f"{text:<{width}}" for text, width in zip(texts, WIDTHS.values(), strict=True)).rstrip(), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="file to write the results to, as JSON")
    parser.add_argument("model", nargs="?", help=f"a model besides {TINY}: folder, hub id or {RANDOM}")
    parser.add_argument("--accelerator", choices=("cuda", "cpu"), default="cuda", help="cpu: a trial of this script")
    arguments = parser.parse_args()
    import torch

    if arguments.accelerator == "cuda" and not torch.cuda.is_available():
        print(f"no CUDA GPU here (torch {torch.__version__}): nothing was tried", file=sys.stderr)
        return 0
    device = torch.cuda.get_device_name(0) if arguments.accelerator == "cuda" else "cpu"
    print(f"{device}, {MICRO_BATCH} x {MAX_LENGTH} tokens a step, {STEPS} + {STEPS} steps", flush=True)
    show({name: name for name in WIDTHS})
    rows = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), arguments.accelerator)
        for model in [TINY, *([arguments.model] if arguments.model else [])]:
            rows += measure(bench, model)
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps({"device": device, "versions": versions, "rows": rows}, indent=2) + "\n")
    return 1 if any(row["check"] != "ok" for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
