"""One rank of :func:`tests.jobs.runs.launch`: several attempts in one process."""

import json
import os
import sys
from pathlib import Path

import jobs.sft
from jobs.context import RankContext
from jobs.errors import JobError
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

for root, number, resume in json.loads(sys.argv[1]):
    paths = RunPaths(Path(root))
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
