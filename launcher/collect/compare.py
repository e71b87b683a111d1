"""Compares the merged ledger with what W&B's files hold of the run."""

from dataclasses import dataclass

from launcher.contract.ledger import merge_metrics, read_run
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

from .artifacts import list_artifacts
from .wandb_records import Records, read_records
from .wandb_run import ExportPaths


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Steps of the merged ledger against steps in W&B's files; ``artifacts`` names those that are nowhere recorded."""

    ledger: list[int]
    recorded: list[int]
    duplicates: list[int]
    uncertain: list[int]
    missing: list[int]
    artifacts: list[str]

    @property
    def is_complete(self) -> bool:
        """Nothing has to be written; ``uncertain`` rows are written, but maybe not sent."""
        return not (self.missing or self.artifacts)


def compare(paths: RunPaths, plan: Plan, records: Records | None = None) -> Comparison:
    """Read the ledger, and all segments where ``records`` does not hold them yet."""
    records = records or read_records(ExportPaths(paths.wandb))
    steps = [row["step"] for row in merge_metrics(read_run(paths))]
    artifacts = {item.name: item.fingerprint for item in list_artifacts(paths, plan)}
    return compare_records(steps, artifacts, records)


def compare_records(steps: list[int], artifacts: dict[str, str], records: Records) -> Comparison:
    """The pure part: the merged ledger's steps, name -> fingerprint of the expected artifacts, and the records."""
    recorded, uncertain = records.recorded, records.uncertain
    return Comparison(
        ledger=steps,
        recorded=sorted(recorded),
        duplicates=sorted(step for step, times in recorded.items() if times > 1),
        uncertain=sorted(uncertain),
        missing=[step for step in steps if step not in recorded and step not in uncertain],
        artifacts=[name for name, fingerprint in artifacts.items() if fingerprint not in records.fingerprints],
    )
