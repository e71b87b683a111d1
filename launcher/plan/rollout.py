"""What a rollout of ppo holds beside the training step: the whole weights, and the cache of keys and values."""

import math
from collections.abc import Mapping

from launcher.contract.plan import Note
from launcher.contract.spec import Spec
from launcher.contract.strategies import SHARDS_WEIGHTS

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
QUANTIZED_BYTES = {"nf4": 4.127 / 8, "int8": 1.0}
"""Of a linear layer's weight. NF4 doubly quantized: 4 bits, and 0.127 of constants (arXiv:2305.14314, sec. 3)."""
NOT_QUANTIZED = ("embed", "wte", "lm_head")
GIB = 2**30


def note_rollout(spec: Spec, shapes: Mapping[str, tuple[int, ...]] | None) -> list[Note]:
    """What ``ppo.engine: vllm`` holds, and what ``ppo.gather_for_rollout`` does where weights are sharded; ``shapes``
    are those of the base, by name."""
    by_vllm = spec.ppo.engine == "vllm"
    gathers = spec.parallel.strategy in SHARDS_WEIGHTS and spec.ppo.gather_for_rollout
    if spec.stage != "ppo" or not (by_vllm or gathers):
        return []
    size = ""
    if shapes is not None and spec.model is not None:
        weights = estimate_weights(shapes, spec.model.quantization, spec.model.dtype)
        cache = estimate_cache(shapes, spec.model.dtype, spec.ppo.generation_batch * spec.require_data().max_length)
        told = f"{cache / GIB:.2f} GiB of keys and values" if cache else "keys and values"
        size = f" ({weights / GIB:.2f} GiB, and {told})"
    if by_vllm:
        return [
            Note(
                key="ppo.engine",
                message=f"every rank holds a whole copy of the base for vllm as long as it trains{size}",
                remedy="set ppo.engine=builtin where that does not fit",
            )
        ]
    return [
        Note(
            key="ppo.gather_for_rollout",
            message=f"every rank holds the whole weights while a rollout is written{size}",
            remedy="set ppo.gather_for_rollout=false where that does not fit: slower, for it gathers for every token",
        )
    ]


def estimate_weights(shapes: Mapping[str, tuple[int, ...]], quantization: str, dtype: str) -> float:
    """Bytes of the weights in memory: the matrices of linear layers as ``quantization`` says, all else in ``dtype``."""
    total = 0.0
    for name, shape in shapes.items():
        is_linear = len(shape) == 2 and not any(part in name for part in NOT_QUANTIZED)
        width = QUANTIZED_BYTES.get(quantization, BYTES[dtype]) if is_linear else BYTES[dtype]
        total += math.prod(shape) * width
    return total


def estimate_cache(shapes: Mapping[str, tuple[int, ...]], dtype: str, tokens: int) -> float:
    """Bytes of the keys and values of ``tokens``: as wide as the layers that make them; 0 where these are not told by
    their names (a model that makes queries, keys and values in one)."""
    width = sum(shape[0] for name, shape in shapes.items() if name.endswith(("k_proj.weight", "v_proj.weight")))
    return width * tokens * BYTES[dtype]
