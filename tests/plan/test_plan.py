"""The plan's arithmetic."""

import re

import pytest

from launcher.contract.plan import Plan
from launcher.contract.values import from_value, to_value
from launcher.plan import digest_request, name_run
from launcher.plan.batch import BatchError, derive_batch
from tests.plans import DEVCLUSTER, H100, plan_on


def test_accumulation_makes_up_the_global_batch() -> None:
    batch = derive_batch(micro=2, global_batch=64, world_size=8)
    assert (batch.micro, batch.accumulation, batch.global_batch) == (2, 4, 64)


@pytest.mark.parametrize("global_batch", [1, 15, 17, 63])
def test_a_global_batch_that_does_not_divide_is_refused_with_ones_that_do(global_batch: int) -> None:
    with pytest.raises(BatchError) as caught:
        derive_batch(micro=2, global_batch=global_batch, world_size=8)
    hint = caught.value.hint.split(",")[0]  # "set train.global_batch=48 or 64"
    proposals = [int(number) for number in re.findall(r"\d+", hint)]
    assert proposals
    for proposal in proposals:
        assert derive_batch(micro=2, global_batch=proposal, world_size=8).global_batch == proposal


def test_a_smaller_micro_batch_is_proposed_where_it_fits() -> None:
    with pytest.raises(BatchError) as caught:
        derive_batch(micro=4, global_batch=8, world_size=4)
    assert "train.micro_batch=2" in caught.value.hint
    assert derive_batch(micro=2, global_batch=8, world_size=4).accumulation == 1


def test_plan_survives_json() -> None:
    plan = plan_on(H100, nodes=4, ranks_per_node=8)
    assert from_value(Plan, to_value(plan)) == plan


def test_the_same_request_has_the_same_run_until_it_is_submitted() -> None:
    spec = plan_on(DEVCLUSTER).spec
    digest = digest_request({"": (spec, None)}, DEVCLUSTER, "0.1.0")
    assert digest == digest_request({"": (spec, None)}, DEVCLUSTER, "0.1.0")
    assert digest != digest_request({"": (spec, None)}, H100, "0.1.0")
    taken: set[str] = set()
    first = name_run("sft", digest, taken.__contains__)
    assert first == name_run("sft", digest, taken.__contains__) == f"sft-{digest}"
    taken.add(first)
    assert name_run("sft", digest, taken.__contains__) == f"sft-{digest}-2"
