"""Another number of ranks: a run goes on with it, in the same order and batches, or is refused before the queue."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launcher.contract.ledger import events
from launcher.contract.manifest import read_manifest
from launcher.contract.spec import Data, Parallel, Strategy, Train
from tests.conftest import Tuneyard
from tests.jobs.runs import FLOAT32, Start, checkpoint, launch, ledger, make_rows, values, write_rows, write_run
from tests.reliability import record
from tests.submit.test_resume import end

pytestmark = pytest.mark.faults
TRAIN = Train(
    max_steps=12,
    global_batch=8,
    micro_batch=2,
    optimizer="adamw",
    learning_rate=1e-3,
    save_every_steps=6,
    eval_every_steps=6,
    gradient_checkpointing=False,
)
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp", "zero2", "zero3")
NEAR = 1e-4


@pytest.mark.ranks
@pytest.mark.timeout(1200)
def test_four_ranks_go_on_as_two_and_two_as_four(tmp_path: Path) -> None:
    rows = Data(train=str(write_rows(tmp_path / "rows.jsonl", make_rows(45))), eval=0.2, max_length=80)

    def write(strategy: Strategy, ranks: int, before: int | None = None) -> Path:
        name = f"{strategy}-{ranks}" if before is None else f"{strategy}-{before}-to-{ranks}"
        parallel = Parallel(strategy=strategy)
        root = write_run(tmp_path / name, ranks, model=FLOAT32, data=rows, train=TRAIN, parallel=parallel)
        if before is not None:
            shutil.copytree(tmp_path / f"{strategy}-{before}" / checkpoint(6), root / checkpoint(6))
        return root

    launch(2, [Start(write(strategy, 2)) for strategy in STRATEGIES], timeout=300)
    grown = {strategy: write(strategy, 4, before=2) for strategy in STRATEGIES}
    launch(
        4,
        [Start(write(strategy, 4)) for strategy in STRATEGIES]
        + [Start(root, 2, checkpoint(6)) for root in grown.values()],
        timeout=500,
    )
    shrunk = {strategy: write(strategy, 2, before=4) for strategy in STRATEGIES}
    launch(2, [Start(root, 2, checkpoint(6)) for root in shrunk.values()], timeout=300)
    for runs, before, after in ((grown, 2, 4), (shrunk, 4, 2)):
        for strategy, root in runs.items():
            straight = tmp_path / f"{strategy}-{before}"
            manifest = read_manifest(root / checkpoint(6))
            assert manifest is not None
            assert (manifest["world_size"], manifest["data_position"]) == (before, 6 * TRAIN.global_batch)
            (check,) = events(ledger(root, 2), "strategy_check")
            assert (check["got"], check["world_size"]) == (strategy, after)
            # The same rows in the same order, in batches of the same size.
            assert values(root, "tokens", 2) == {
                step: count for step, count in values(straight, "tokens").items() if step > 6
            }
            loss, expected = values(root, "loss", 2), values(straight, "loss")
            assert list(loss) == list(range(7, 13))
            assert max(abs(loss[step] - expected[step]) for step in loss) < NEAR
            first, second = (load_file(folder / "final" / "adapter_model.safetensors") for folder in (straight, root))
            assert max(float((first[name] - second[name]).abs().max()) for name in first) < NEAR
    record(
        "17 another number of ranks",
        "every strategy resumed from step 6 with 2 ranks instead of 4, and with 4 instead of 2",
        f"same rows in the same batches; losses and final weights within {NEAR} of the run that kept its ranks",
        steps_lost=0,
        samples_skipped_or_repeated=0,
    )


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_deepspeed_with_sgd_is_refused_on_the_login_node(tuneyard: Tuneyard, strategy: str) -> None:
    end(tuneyard, strategy)
    refused = tuneyard("resume", "last", "resources.gpus_per_node=2")
    assert refused.returncode == 2
    assert "goes on only with as many ranks as wrote its newest checkpoint: 4 did" in refused.stderr
    assert "set resources.nodes=1 resources.gpus_per_node=4" in refused.stderr
    record(
        f"17 another number of ranks, {strategy} with sgd",
        "tuneyard resume of a run of 4 ranks with 2",
        "refused with exit code 2 before anything is submitted, with the resources that go",
    )
