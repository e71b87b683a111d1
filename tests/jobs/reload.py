"""What somebody with plain peft gets from ``final/``: its logits for the probe text, in a process of its own.

python reload.py BASE QUANTIZATION FINAL...        prints a JSON list, an object for each FINAL
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def reload(base: Path, *finals: Path, quantization: str = "nf4") -> list[dict[str, Any]]:
    """Per folder: the logits that the ``live`` model wrote down, those of the base ``without`` the adapter, those of
    the model with its NF4 weights in the ``same`` layout as in training, and ``repacked`` for evaluation.

    Of a reward model the score instead of logits, ``same`` with the head multiplied in float32 as in training, and
    ``plain`` as peft and transformers do it."""
    done = subprocess.run(
        [sys.executable, __file__, str(base), quantization, *map(str, finals)],
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": "", "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(base_folder: str, kind: str, final: str) -> dict[str, Any]:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BitsAndBytesConfig,
    )

    probe = json.loads((Path(final) / "completion.json").read_text())["probe"]
    tokenizer: Any = AutoTokenizer.from_pretrained(final)
    assert tokenizer(probe["text"])["input_ids"] == probe["input_ids"]
    row = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(row, tokenize=False).endswith("<|im_end|>\n")
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    options: Any = {"dtype": torch.bfloat16, "quantization_config": quantization if kind == "nf4" else None}
    if "score" in probe:
        base: Any = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1, **options)
    else:
        base = AutoModelForCausalLM.from_pretrained(base_folder, **options)
    model: Any = PeftModel.from_pretrained(base, final)

    def logits() -> Any:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([probe["input_ids"]])).logits.float()
        return [found.item()] if "score" in probe else found[0, -1][torch.tensor(probe["top_ids"])].tolist()

    def set_repacking(is_on: bool) -> None:
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = is_on

    set_repacking(False)
    model.eval()
    with model.disable_adapter():
        without = logits()
    if "score" in probe:
        plain = logits()
        head = model.base_model.model.score.modules_to_save["default"]
        name = "base_model.model.score.weight"
        head.weight.data = load_file(Path(final) / "adapter_model.safetensors")[name]
        head.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
        return {"live": [probe["score"]], "without": without, "plain": plain, "same": logits()}
    same = logits()
    set_repacking(True)
    return {"live": probe["top_logits"], "without": without, "same": same, "repacked": logits()}


if __name__ == "__main__":
    print(json.dumps([main(*sys.argv[1:3], final) for final in sys.argv[3:]]))
