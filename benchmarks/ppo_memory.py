"""Compares what a ppo step holds with what an SFT step of the same base, micro batch and length holds.

    python benchmarks/ppo_memory.py MODEL [r] [micro_batch] [max_length]     # 8 4 256

QLoRA on one CPU rank. PPO plays four roles: a policy and a reference that come from an SFT adapter, a critic with an
adapter of its own (or a head on the policy's trunk), a reward adapter. Live tensors are those of the ledger's memory
event, after a step; the peak is that of all storages during the run (peak_rank.py), rollout and final save included.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from launcher.contract.ledger import events, read_run
from launcher.contract.paths import RunPaths

ROOT = Path(__file__).parent.parent
MIB = 2**20
SPEC = """\
name: memory
stage: {stage}
model: {{base: {base}, quantization: nf4, dtype: bfloat16, adapter: {{r: {r}, alpha: {r}, dropout: 0.0}}}}
data: {{train: {rows}, format: {format}, max_length: {length}, eval: null}}
train: {{max_steps: 1, micro_batch: {micro}, global_batch: {micro}, save_every_steps: null}}
resources: {{gpus_per_node: 1}}
tracking: {{wandb: disabled}}
{more}
"""


def run(folder: Path, **asked: object) -> tuple[RunPaths, float, float]:
    """Live MiB after the step, and at most, of one run; its folder."""
    (folder / "spec.yaml").write_text(SPEC.format(**{"more": "", **asked}), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    plan = [sys.executable, "-m", "launcher", "plan", "spec.yaml", "--cluster", "local", "--json"]
    done = subprocess.run(plan, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    planned = json.loads(done.stdout)
    paths = RunPaths(folder / "runs" / planned["run_id"])
    command = [sys.executable, str(ROOT / "benchmarks/peak_rank.py"), str(paths.root)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    (row,) = events(read_run(paths), "memory")
    live: float = sum(kind["max"] for kind in row["live_bytes"].values()) / MIB
    return paths, live, json.loads(done.stdout.splitlines()[-1])["peak"] / MIB


def main(model: str, r: int = 8, micro: int = 4, length: int = 256) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        word, text = "word ", {"role": "user", "content": "one two three"}
        said = {"role": "assistant", "content": word * length}
        rows = {
            "sft": [{"messages": [text, said]}] * micro,
            "reward": [{"prompt": [text], "chosen": [said], "rejected": [{**said, "content": "other " * length}]}]
            * micro,
            "ppo": [{"prompt": word * (length // 2)}] * micro,
        }
        for stage, items in rows.items():
            (folder / f"{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items), encoding="utf-8")
        shape = {"r": r, "micro": micro, "length": length}
        formats = {"sft": "messages", "reward": "preference", "ppo": "prompt"}

        def measure(stage: str, base: object, more: str = "") -> tuple[RunPaths, float, float]:
            return run(folder, stage=stage, base=base, rows=f"{stage}.jsonl", format=formats[stage], more=more, **shape)

        sft, live, peak = measure("sft", model)
        print(f"sft: {live:.1f} MiB live, {peak:.1f} MiB at most", flush=True)
        reward, _, _ = measure("reward", sft.final)
        for critic in ("own", "shared"):
            more = (
                f"ppo: {{reward: {reward.final}, critic: {critic}, max_new_tokens: {length // 4}, epochs: 1, "
                f"generation_batch: {micro}}}"
            )
            _, held, most = measure("ppo", sft.final, more)
            print(
                f"ppo, critic {critic}: {held:.1f} MiB live ({held / live:.2f}), "
                f"{most:.1f} MiB at most ({most / peak:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
