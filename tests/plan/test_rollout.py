"""What the plan says of the weights that a rollout gathers."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.contract.spec import Model, Parallel, Ppo, Spec
from launcher.plan.rollout import GIB, estimate_cache, estimate_weights, note_rollout
from launcher.spec.weights import read_shapes
from tests.plans import DEVCLUSTER, plan_on

SHAPES = {
    "model.embed_tokens.weight": (1000, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.self_attn.k_proj.weight": (16, 64),
    "model.layers.0.self_attn.v_proj.weight": (16, 64),
    "model.norm.weight": (64,),
}


def write_model(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Its header alone: nobody looks at the numbers."""
    header = {name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def ppo(base: str, **ppo: object) -> Spec:
    spec = plan_on(DEVCLUSTER).spec
    return replace(spec, stage="ppo", model=Model(base=base), parallel=Parallel(strategy="zero3"), ppo=Ppo(**ppo))


def test_matrices_of_linear_layers_are_quantized_and_nothing_else() -> None:
    linear, other = (64 + 16 + 16) * 64, 1000 * 64 + 64
    assert estimate_weights(SHAPES, "none", "float32") == (linear + other) * 4
    assert estimate_weights(SHAPES, "int8", "bfloat16") == linear + other * 2
    assert estimate_weights(SHAPES, "nf4", "bfloat16") == pytest.approx(linear * 0.5159 + other * 2, rel=1e-3)
    assert estimate_cache(SHAPES, "bfloat16", tokens=10) == (16 + 16) * 10 * 2


def test_the_plan_tells_what_gathering_holds_and_how_to_do_without(tmp_path: Path) -> None:
    shapes = {**SHAPES, "model.embed_tokens.weight": (1_000_000, 1024)}
    write_model(tmp_path, shapes)
    spec = ppo(str(tmp_path))
    assert read_shapes(spec, {}) == shapes
    (note,) = note_rollout(spec, read_shapes(spec, {}))
    assert note.key == "ppo.gather_for_rollout"
    assert f"{1_000_000 * 1024 * 2 / GIB:.2f} GiB" in note.message
    assert note_rollout(ppo(str(tmp_path), gather_for_rollout=False), shapes) == []
    assert note_rollout(replace(spec, parallel=Parallel(strategy="zero2")), shapes) == []


def test_a_cache_of_unknown_size_is_not_said_to_be_empty(tmp_path: Path) -> None:
    (note,) = note_rollout(ppo(str(tmp_path)), {"h.0.attn.c_attn.weight": (1024, 3072)})
    assert note.message.endswith(" GiB, and keys and values)")


def test_the_plan_tells_that_vllm_holds_the_base_again_under_every_strategy(tmp_path: Path) -> None:
    spec = replace(ppo(str(tmp_path), engine="vllm"), parallel=Parallel(strategy="ddp"))
    (note,) = note_rollout(spec, {**SHAPES, "model.embed_tokens.weight": (1_000_000, 1024)})
    assert note.key == "ppo.engine"
    assert f"{1_000_000 * 1024 * 2 / GIB:.2f} GiB" in note.message


def test_the_base_is_found_through_stages_and_adapters(tmp_path: Path) -> None:
    write_model(tmp_path / "base", SHAPES)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../base"}))
    first = ppo(str(adapter))
    assert read_shapes(ppo("${stages.sft.checkpoint}"), {"sft": first}) == SHAPES


@pytest.mark.parametrize("content", [b"", b"\0" * 7, struct.pack("<Q", 2**60), struct.pack("<Q", 4) + b"[[[["])
def test_of_a_damaged_or_absent_model_no_size_is_told(tmp_path: Path, content: bytes) -> None:
    assert read_shapes(ppo("org/name"), {}) is None
    (tmp_path / "model.safetensors").write_bytes(content)
    spec = ppo(str(tmp_path))
    assert read_shapes(spec, {}) is None
    (note,) = note_rollout(spec, None)
    assert "GiB" not in note.message
