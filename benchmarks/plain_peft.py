"""Loads finished adapters with plain peft and compares each with what the live model said when its run ended.

    python benchmarks/plain_peft.py MODEL QUANTIZATION FINAL...

Prints a line of JSON, an object for each FINAL. Logits of the probe's ten likeliest tokens: ``difference`` is the
largest one to the live model's, ``effect`` the largest that the adapter makes.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(model_name: str, quantization: str, final: str) -> dict[str, float]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device_map": {"": device}}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    probe = json.loads(Path(final, "completion.json").read_text(encoding="utf-8"))["probe"]
    base = AutoModelForCausalLM.from_pretrained(model_name, **options)
    model: Any = PeftModel.from_pretrained(base, final).eval()
    live = torch.tensor(probe["top_logits"])

    def logits() -> Any:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([probe["input_ids"]], device=device)).logits[0, -1]
        return found.float().cpu()[probe["top_ids"]]

    difference = (logits() - live).abs().max().item()
    with model.disable_adapter():
        effect = (logits() - live).abs().max().item()
    return {"difference": difference, "effect": effect}


if __name__ == "__main__":
    print(json.dumps([main(*sys.argv[1:3], final) for final in sys.argv[3:]]))
