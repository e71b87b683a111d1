"""Checks a stage against the earlier one whose checkpoint it trains further: what its job would only find later."""

from collections.abc import Iterator, Mapping

from launcher.contract.adapter import expect_adapter_config, find_contradictions
from launcher.contract.pipeline import REFERENCE
from launcher.contract.spec import Complaint, Spec


def get_parent(spec: Spec, earlier: Mapping[str, Spec | None]) -> Spec | None:
    """The stage of ``earlier`` whose checkpoint is the ``model.base`` of ``spec``."""
    match = REFERENCE.fullmatch(spec.model.base) if spec.model else None
    return earlier.get(match["stage"]) if match else None


def find_misfits(spec: Spec, parent: Spec) -> Iterator[Complaint]:
    """Where ``spec`` asks for another model than the checkpoint of ``parent`` will be."""
    if spec.model is None or spec.stage == "script":  # which makes a model of its own
        return
    yield from _check_code(spec, parent)
    if parent.model is None or parent.stage == "script":  # nobody knows what it writes
        return
    config, adapter = expect_adapter_config(parent), spec.model.adapter
    if config is not None:
        yield from find_contradictions(config, adapter, spec.stage)
        targets = config["target_modules"]
        if adapter is not None and adapter.target_modules == "all-linear" != targets:
            names = targets if isinstance(targets, str) else f"[{', '.join(targets)}]"
            message = f"all-linear, but the adapter in model.base is on {names.strip('[]')}"
            yield "model.adapter.target_modules", message, f"set model.adapter.target_modules: {names}"
    elif parent.stage == "reward" != spec.stage:
        message = f"holds a reward model, and {spec.stage} trains a language model"
        yield "model.base", message, "name a checkpoint of an sft or dpo stage"


def _check_code(spec: Spec, parent: Spec) -> Iterator[Complaint]:
    """A checkpoint names the code of its base but not the code's commit, so the stages must agree on both."""
    assert spec.model is not None
    if not spec.model.trust_remote_code:
        return
    if parent.model is None or parent.stage == "script" or not parent.model.trust_remote_code:
        message = "the stage that model.base comes from trains without code from elsewhere"
        yield "model.trust_remote_code", message, "set trust_remote_code, with a pinned revision, in that stage too"
    elif spec.model.revision != parent.model.revision:
        hint = f"set model.revision: {parent.model.revision or 'null'}, as in the stage that model.base comes from"
        yield "model.trust_remote_code", "the code of model.base is pinned to another revision", hint
