"""Nearly greedy responses of both engines to the same prompts, by two adapters in turn: python -m ... MODEL_FOLDER.

Prints [builtin, vllm], of each [responses by the first adapter, by the second].
"""

import json
import os
import sys
from typing import Any

import numpy
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from jobs.generate import draw_noise, generate
from jobs.vllm_engine import VllmEngine
from launcher.contract.spec import Adapter, Data, Model, Ppo, Spec

base = sys.argv[1]
spec = Spec(
    name="two",
    stage="ppo",
    model=Model(base=base, quantization="none", dtype="float32", adapter=Adapter(r=4)),
    data=Data(train="", format="prompt", max_length=64),
    ppo=Ppo(engine="vllm", generation_batch=4),
)
config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).eval()
prompts = [[32 + (7 * number + place) % 90 for place in range(3 + number % 5)] for number in range(10)]
noise = draw_noise(0, numpy.arange(len(prompts)), 16)
# What a rank has when its engine is made.
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
engine = VllmEngine(model, spec, is_cpu=True)
found: tuple[list[Any], list[Any]] = ([], [])
stop = None
for seed in (1, 2):
    torch.manual_seed(seed)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for weight in weights.values():
        weight.data.normal_(0, 0.3)
    options: dict[str, Any] = {"temperature": 0.01}
    if stop is None:
        # One that is written in the middle of a response.
        whole = generate(model, prompts, noise, **options, stop=-1, pad=0, batch_size=4, device="cpu")
        stop = whole[0][5]
    options["stop"] = stop
    found[0].append(generate(model, prompts, noise, **options, pad=0, batch_size=4, device="cpu"))
    found[1].append(engine.generate(prompts, noise, {name: w.detach() for name, w in weights.items()}, **options))
print(json.dumps(found))
