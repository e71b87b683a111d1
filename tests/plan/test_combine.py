"""What does not go together is refused at plan time, with what does."""

import re
from dataclasses import replace
from typing import Any

import pytest

from launcher.contract.cluster import Cluster
from launcher.contract.spec import Adapter, Model, Parallel, Spec
from launcher.contract.strategies import LEGAL_OFFLOAD
from launcher.plan.combine import find_complaints
from tests.plans import DEVCLUSTER, H100, plan_on


def _spec(strategy: str, offload: str = "none", ds_config: str | None = None, **model: Any) -> Spec:
    spec = plan_on(H100).spec
    parallel = Parallel(strategy=strategy, offload=offload, ds_config=ds_config)
    return replace(spec, parallel=parallel, model=Model(base="builtin:tiny", **model))


def _keys(spec: Spec, cluster: Cluster = H100, ds_base: Any = None) -> list[str]:
    return [key for key, _, _ in find_complaints(spec, cluster, ds_base)]


@pytest.mark.parametrize(
    ("strategy", "model", "refused"),
    [
        ("fsdp", {"quantization": "int8"}, ["model.quantization"]),
        ("zero3", {"quantization": "int8"}, ["model.quantization"]),
        ("zero2", {"quantization": "int8"}, []),
        ("ddp", {"quantization": "int8"}, []),
        ("fsdp", {"quantization": "nf4", "dtype": "float32"}, ["model.dtype"]),
        ("zero3", {"quantization": "nf4", "dtype": "float16"}, ["model.dtype"]),
        ("zero3", {"quantization": "nf4", "dtype": "bfloat16"}, []),
        ("zero2", {"quantization": "nf4", "dtype": "float32"}, []),
        ("fsdp", {"quantization": "none", "dtype": "float32"}, []),
        # FSDP2 gathers weights of several dtypes in one group; only the trained ones have to be of one.
        ("fsdp", {"quantization": "nf4", "adapter": Adapter(dtype="bfloat16")}, []),
    ],
)
def test_quantized_weights_are_sharded_only_as_they_can_be(strategy: str, model: Any, refused: list[str]) -> None:
    spec = _spec(strategy, **model)
    assert _keys(spec) == refused
    hints = [hint for _, _, hint in find_complaints(spec, H100, None)]
    assert all("zero2 or ddp" in hint for hint in hints)


@pytest.mark.parametrize("strategy", LEGAL_OFFLOAD)
def test_the_defaults_go_with_every_strategy(strategy: str) -> None:
    for offload in LEGAL_OFFLOAD[strategy]:
        for cluster in (DEVCLUSTER, H100):
            assert not _keys(_spec(strategy, offload), cluster)


def test_float16_is_refused_on_cpu_wherever_it_stands() -> None:
    spec = _spec("ddp", dtype="float16", adapter=Adapter(dtype="float16"))
    assert _keys(spec, DEVCLUSTER) == ["model.dtype", "model.adapter.dtype"]
    assert not _keys(spec, H100)


@pytest.mark.parametrize("strategy", LEGAL_OFFLOAD)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_dtypes_named_in_place_of_float16_work_on_cpu(strategy: str, quantization: str) -> None:
    complaints = find_complaints(_spec(strategy, quantization=quantization, dtype="float16"), DEVCLUSTER, None)
    [hint] = [hint for _, message, hint in complaints if "float16 needs a GPU" in message]
    dtypes = re.findall("bfloat16|float32", hint)
    assert dtypes[0] == "bfloat16"
    for dtype in dtypes:
        assert not _keys(_spec(strategy, quantization=quantization, dtype=dtype), DEVCLUSTER)


def test_a_deepspeed_config_needs_a_deepspeed_strategy() -> None:
    [(key, message, hint)] = find_complaints(_spec("fsdp", ds_config="/x.json"), H100, None)
    assert key == "parallel.ds_config"
    assert "no effect under fsdp" in message
    assert "parallel.strategy=zero2 or zero3" in hint


def test_a_deepspeed_config_is_checked_as_a_whole() -> None:
    spec = _spec("zero3", ds_config="/x.json")
    conflicts = {"train_batch_size": 8, "gradient_clipping": 2.0, "zero_optimization": {"stage": 2}}
    assert _keys(spec, ds_base=conflicts) == ["parallel.ds_config"] * 3
    [(_, message, hint)] = find_complaints(spec, H100, {"zero_optimization": {"stge": 3}})
    assert "zero_optimization.stge" in message
    assert hint == "did you mean zero_optimization.stage?"
    both = {"train_batch_size": 8, "bf16": True, "optimiser": "auto", "optimizer": "AdamW", "checkpoint": {"x": "auto"}}
    messages = [message for _, message, _ in find_complaints(spec, H100, both)]
    assert [message.split()[0] for message in messages] == [*list(both)[1:], "train_batch_size"]


def test_everything_is_said_at_once() -> None:
    spec = _spec("fsdp", ds_config="/x.json", quantization="int8", dtype="float16")
    assert _keys(spec, DEVCLUSTER) == ["model.quantization", "model.dtype", "parallel.ds_config"]
