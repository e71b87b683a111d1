"""The rendered DeepSpeed config, as the Trainer and DeepSpeed's own config class take it."""

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.contract.plan import Plan
from launcher.contract.spec import Adapter, Model, Parallel, Train
from launcher.data import find_data
from launcher.render.deepspeed import get_value, merge
from launcher.spec.deepspeed import find_conflicts, find_unknown, read_base
from launcher.spec.deepspeed.owners import OWNERS
from tests.plans import DEVCLUSTER, H100, plan_on
from tests.render.test_render import PLANS
from tests.spec.test_deepspeed_config import USERS

RENDERED = {name: plan for name, plan in PLANS.items() if "zero" in name}


def _merged(plan: Plan) -> dict[str, Any]:
    base = read_base(plan.spec)
    assert base is not None
    return merge(plan, base)


def _zero(strategy: str = "zero3", offload: str = "none", cluster: Any = DEVCLUSTER, **changes: Any) -> Plan:
    return plan_on(cluster, parallel=Parallel(strategy=strategy, offload=offload), **changes)


def _fill(config: dict[str, Any], plan: Plan, *, world_size: int, **arguments: Any) -> dict[str, Any]:
    """``config`` after transformers' Trainer has checked it against its own numbers and filled in ``auto``."""
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    train, batch = plan.spec.train, plan.batch
    values = {
        "world_size": world_size,
        "per_device_train_batch_size": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "max_grad_norm": train.max_grad_norm,
        "learning_rate": train.learning_rate,
        "weight_decay": train.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "save_on_each_node": False,
        # The jobs set the flag that stands for the engine's 16-bit mode, see launcher.render.deepspeed.
        "fp16": False,
        "bf16": False,
        "fp16_full_eval": bool(get_value(config, "fp16.enabled") is True),
        "bf16_full_eval": bool(get_value(config, "bf16.enabled") is True),
        "get_warmup_steps": lambda steps: 0,
    }
    trainer = SimpleNamespace(**(values | arguments))
    filled = HfTrainerDeepSpeedConfig(copy.deepcopy(config))
    filled.trainer_config_process(trainer)
    filled.trainer_config_finalize(trainer, SimpleNamespace(config=SimpleNamespace(hidden_size=64)), 20)
    result: dict[str, Any] = filled.config
    return result


def _load(config: dict[str, Any], world_size: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    from deepspeed.runtime import config as ds

    monkeypatch.setattr(ds.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(ds.dist, "get_world_size", lambda: world_size)
    return ds.DeepSpeedConfig(config)


def _autos(config: dict[str, Any]) -> set[str]:
    return {key for key in _keys(config) if get_value(config, key) == "auto"}


def _keys(config: dict[str, Any], prefix: str = "") -> list[str]:
    inner = [
        name for key, value in config.items() if isinstance(value, dict) for name in _keys(value, f"{prefix}{key}.")
    ]
    return [f"{prefix}{key}" for key in config] + inner


@pytest.mark.parametrize("name", RENDERED)
def test_the_trainer_and_deepspeed_take_what_is_rendered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = RENDERED[name]
    config = _merged(plan)
    assert not list(find_unknown(config))
    filled = _fill(config, plan, world_size=plan.topology.world_size)
    assert not _autos(filled)
    loaded = _load(filled, plan.topology.world_size, monkeypatch)
    assert loaded.train_batch_size == plan.batch.global_batch
    assert loaded.gradient_clipping == plan.spec.train.max_grad_norm
    assert loaded.zero_optimization_stage == {"zero2": 2, "zero3": 3}[plan.spec.parallel.strategy]
    offload = plan.spec.parallel.offload
    devices = [getattr(section, "device", None) for section in _offload_sections(loaded)]
    assert devices == {"none": [None, None], "optimizer": ["cpu", None], "all": ["cpu", "cpu"]}[offload]


def _offload_sections(loaded: Any) -> list[Any]:
    return [loaded.zero_config.offload_optimizer, loaded.zero_config.offload_param]


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_the_shipped_configs_are_valid_as_they_stand(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain Trainer with bf16=True takes them; what the plan owns is ``auto``."""
    config = json.loads(find_data(f"ds_configs/{strategy}.json").read_text())
    assert not list(find_unknown(config))
    assert not list(find_conflicts(_zero(strategy).spec, config))
    filled = _fill(config, _zero(strategy), world_size=4, bf16=True)
    assert not _autos(filled)
    assert _load(filled, 4, monkeypatch).bfloat16_config.enabled


def test_what_is_left_to_the_trainer_is_the_model_s_size() -> None:
    left = {f"zero_optimization.{key}" for key in ("reduce_bucket_size", "stage3_prefetch_bucket_size")}
    assert _autos(_merged(_zero())) == left | {"zero_optimization.stage3_param_persistence_threshold"}


def test_clipping_is_said_even_where_it_is_off() -> None:
    plan = _zero(train=Train(max_steps=20, global_batch=8, max_grad_norm=0.0))
    assert _merged(plan)["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("strategy", "model", "engine", "autocast"),
    [
        # Nothing is cast: base, adapter and computation are float32.
        ("zero3", Model(base="x", quantization="none", dtype="float32"), "fp32", None),
        # A float32 adapter on an NF4 or bfloat16 base: the engine casts nothing, autocast computes in bfloat16.
        ("zero2", Model(base="x"), "fp32", "bfloat16"),
        ("zero3", Model(base="x"), "fp32", "bfloat16"),
        ("zero2", Model(base="x", quantization="none"), "fp32", "bfloat16"),
        # zero.Init lays the base out in the engine's dtype; an adapter, which comes later, keeps its own.
        ("zero3", Model(base="x", quantization="none"), "bf16", "bfloat16"),
        # All in bfloat16.
        ("zero2", Model(base="x", adapter=Adapter(dtype="bfloat16")), "bf16", None),
        ("zero3", Model(base="x", quantization="none", adapter=None), "bf16", None),
    ],
)
def test_dtypes_are_those_of_the_spec(strategy: str, model: Model, engine: str, autocast: str | None) -> None:
    config = _merged(_zero(strategy, model=model))
    assert {name: config[name]["enabled"] for name in ("bf16", "fp16")} == {"bf16": engine == "bf16", "fp16": False}
    assert config["torch_autocast"]["enabled"] == (autocast is not None)
    assert config["torch_autocast"].get("dtype") == autocast
    trainable = model.dtype if model.adapter is None else model.adapter.dtype
    assert config["communication_data_type"] == config["data_types"]["grad_accum_dtype"]
    assert config["communication_data_type"] == {"float32": "fp32", "bfloat16": "bf16"}[trainable]


@pytest.mark.parametrize(
    ("cluster", "train", "model", "swapped"),
    [
        (H100, Train(max_steps=2), Model(base="x", quantization="none", adapter=None), True),
        (H100, Train(max_steps=2, optimizer="sgd"), Model(base="x", quantization="none", adapter=None), False),
        (H100, Train(max_steps=2), Model(base="x"), False),
        (DEVCLUSTER, Train(max_steps=2), Model(base="x", quantization="none", adapter=None), False),
    ],
)
def test_offloading_never_changes_which_optimizer_it_is(
    cluster: Any, train: Train, model: Model, swapped: bool
) -> None:
    """accelerate puts DeepSpeed's Adam in the place of any optimizer, SGD too, unless the config says otherwise."""
    config = _merged(_zero("zero2", "optimizer", cluster, train=train, model=model))
    assert config["zero_force_ds_cpu_optimizer"] == swapped
    assert config["zero_optimization"]["offload_optimizer"]["pin_memory"] == (cluster is H100)


def test_a_config_of_the_users_is_merged_over(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _zero("zero3", "optimizer")
    assert not list(find_unknown(USERS))
    assert not list(find_conflicts(plan.spec, USERS))
    before = copy.deepcopy(USERS)
    config = merge(plan, USERS)
    assert before == USERS
    assert config["zero_optimization"]["sub_group_size"] == 1000000000
    offload = {"device": "cpu", "pin_memory": False, "buffer_count": 4}
    assert config["zero_optimization"]["offload_optimizer"] == offload
    # torch's optimizer and schedule come from the Trainer, as under every strategy.
    assert not {"optimizer", "scheduler"} & set(config)
    _load(_fill(config, plan, world_size=4), 4, monkeypatch)
    # Without offload nothing of it is left.
    assert "offload_optimizer" not in merge(_zero("zero3"), USERS)["zero_optimization"]


def test_every_value_that_is_owned_is_written() -> None:
    config = _merged(_zero("zero2", model=Model(base="x")))
    assert all(get_value(config, key) is not None for key in OWNERS)
