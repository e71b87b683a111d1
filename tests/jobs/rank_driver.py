"""One rank of :func:`tests.jobs.runs.launch`: several attempts in one process, each in its run's own environment."""

import json
import os
import sys
from pathlib import Path

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import jobs.sft
from jobs.allocation import read_environment
from jobs.context import RankContext
from jobs.errors import JobError
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

for root, number, resume, extra in json.loads(sys.argv[1]):
    paths = RunPaths(Path(root))
    # What chooses the strategy is read when each trainer is made, and must not be left from the run before.
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]
    unset_hf_deepspeed_config()
    os.environ.update({**read_environment(paths.rank_env), **extra})
    context = RankContext(
        paths=paths,
        plan=Plan.load(paths.plan),
        attempt=number,
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        node="localhost",
        resume_from=Path(resume) if resume else None,
    )
    try:
        jobs.sft.main(context)
    except JobError as error:
        (paths.root / f"error.rank{context.rank}.txt").write_text(str(error))
