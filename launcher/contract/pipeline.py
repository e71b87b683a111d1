"""A pipeline: stages that run one after the other, each a run in a folder of its own below the pipeline's."""

import re
from dataclasses import dataclass
from pathlib import Path

from .files import write_json
from .paths import PIPELINE, RunPaths
from .values import read_value, to_value

REFERENCE_START = "${stages"
REFERENCE = re.compile(r"\$\{stages\.(?P<stage>[A-Za-z0-9_-]+)\.checkpoint(\.(?P<kind>best|last))?\}")
"""What a later stage writes for a checkpoint of an earlier one: ``${stages.sft.checkpoint}``."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """``pipeline.json``: the names of the stages in their order."""

    v: int = 1
    run_id: str
    name: str
    stages: list[str]

    def save(self, root: Path) -> None:
        write_json(root / PIPELINE, to_value(self))


def read_pipeline(root: Path) -> Pipeline | None:
    """The pipeline in ``root``, or None where the folder is no pipeline's."""
    return read_value(Pipeline, root / PIPELINE)


def list_stages(root: Path) -> list[RunPaths]:
    """The runs of the pipeline in ``root``, in their order; of a plain run itself."""
    pipeline = read_pipeline(root)
    return [RunPaths(root)] if pipeline is None else [RunPaths(root / stage) for stage in pipeline.stages]
