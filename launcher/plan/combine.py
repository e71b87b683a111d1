"""Checks the spec against the strategy and the cluster: what would train wrongly, or only fail on the nodes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launcher.contract.cluster import Cluster
from launcher.contract.spec import Complaint, Spec
from launcher.contract.strategies import SHARDS_WEIGHTS, ZERO_STAGES
from launcher.spec.deepspeed import find_conflicts, find_unknown


def find_complaints(spec: Spec, cluster: Cluster, ds_base: Mapping[str, Any] | None) -> Iterator[Complaint]:
    """What does not go together; ``ds_base`` is the DeepSpeed config that the plan is merged over, if any."""
    if spec.stage != "script":  # which makes a model of its own
        for check in _CHECKS:
            yield from check(spec, cluster)
    yield from _check_ds_config(spec, ds_base)


def _check_int8(spec: Spec, cluster: Cluster) -> Iterator[Complaint]:
    if spec.require_model().quantization == "int8" and spec.parallel.strategy in SHARDS_WEIGHTS:
        # Under ZeRO-3 the loss is wrong; for FSDP2 accelerate 1.15 provides for bitsandbytes' 4-bit weights alone
        # (utils/fsdp_utils.py, fsdp2_prepare_model).
        yield (
            "model.quantization",
            f"int8 weights cannot be sharded, and {spec.parallel.strategy} shards them",
            "set model.quantization=nf4 (with model.dtype=bfloat16) or none, or parallel.strategy=zero2 or ddp",
        )


def _check_nf4(spec: Spec, cluster: Cluster) -> Iterator[Complaint]:
    model = spec.require_model()
    if model.quantization != "nf4" or spec.parallel.strategy not in SHARDS_WEIGHTS:
        return
    if model.dtype != "bfloat16":
        # Packed weights travel as numbers of the model's dtype: accelerate 1.15 leaves integer storage whole on every
        # rank, and any cast between float dtypes would change the packed bits.
        yield (
            "model.dtype",
            f"nf4 weights are sharded in bfloat16 storage, not with model.dtype={model.dtype}",
            "set model.dtype=bfloat16, or model.quantization=none, or parallel.strategy=zero2 or ddp",
        )


def _check_float16(spec: Spec, cluster: Cluster) -> Iterator[Complaint]:
    """Without AVX512-FP16 a product takes 30 times as long as in float32 (torch 2.13), and DeepSpeed 0.19 refuses its
    fp16 mode (engine.py, _do_sanity_check)."""
    if cluster.accelerator != "cpu":
        return
    model = spec.require_model()
    dtypes = {"model.dtype": model.dtype}
    if model.adapter is not None:
        dtypes["model.adapter.dtype"] = model.adapter.dtype
    for key, dtype in dtypes.items():
        if dtype == "float16":
            is_nf4 = key == "model.dtype" and model.quantization == "nf4"  # sharded in bfloat16 alone: _check_nf4
            works = "bfloat16" if is_nf4 and spec.parallel.strategy in SHARDS_WEIGHTS else "bfloat16 or float32"
            message = f"float16 needs a GPU: most CPUs multiply it very slowly, and {cluster.name} has CPU ranks"
            yield key, message, f"set {key}={works}, which CPU ranks train in, or name a profile with GPUs"


def _check_ds_config(spec: Spec, ds_base: Mapping[str, Any] | None) -> Iterator[Complaint]:
    if spec.parallel.ds_config is None:
        return
    if spec.parallel.strategy not in ZERO_STAGES:
        message = f"a DeepSpeed config has no effect under {spec.parallel.strategy}"
        yield "parallel.ds_config", message, "set parallel.strategy=zero2 or zero3, or parallel.ds_config=null"
    elif ds_base is not None:
        for message, hint in (*find_unknown(ds_base), *find_conflicts(spec, ds_base)):
            yield "parallel.ds_config", message, hint


_CHECKS: tuple[Callable[[Spec, Cluster], Iterator[Complaint]], ...] = (_check_int8, _check_nf4, _check_float16)
