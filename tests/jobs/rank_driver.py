"""One rank of :func:`tests.jobs.runs.launch`: several attempts in one process, each in its run's own environment."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import jobs.model
import jobs.rank
from launcher.contract.environment import read_environment
from launcher.contract.files import write_text
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Model

load_base = jobs.model.load_base


def load_whole(model: Model, **_: bool) -> Any:
    return load_base(model)


for start in json.loads(sys.argv[1]):
    root = Path(start["root"])
    if start["changed"]:
        # What resume with overrides does. All ranks write the same, each file by a rename.
        for source in Path(start["changed"]).rglob("*"):
            if source.is_file():
                write_text(root / source.relative_to(start["changed"]), source.read_text())
    # What chooses the strategy is read when each trainer is made, and must not be left from the run before.
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]
    unset_hf_deepspeed_config()
    os.environ.update({**read_environment(RunPaths(root).rank_env), **start["env"]})
    os.environ["TUNEYARD_ATTEMPT"] = str(start["attempt"])
    os.environ["TUNEYARD_RESUME_FROM"] = start["resume"] or ""
    jobs.model.load_base = load_whole if start["whole"] else load_base
    code = jobs.rank.main(str(root))
    if bool(code) != start["fails"]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 99)
