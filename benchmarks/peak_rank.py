"""Runs the only rank of a planned run in this process, and prints what bytes of tensors it held at most.

    python benchmarks/peak_rank.py RUN_DIR          # on a CPU, whose allocator keeps no statistics

Every storage that an operation makes is counted until it is freed, activations and logits too; what the run holds when
its training starts is counted as :func:`jobs.memory.count_live_bytes` does. Prints ``{"start": bytes, "peak": bytes}``.
"""

import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

from jobs import rank, stage
from jobs.memory import count_live_bytes
from launcher.contract.environment import read_environment
from launcher.contract.paths import RunPaths

found = {"start": 0, "peak": 0}


def make_counter() -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.weak import WeakIdKeyDictionary

    class Counter(TorchDispatchMode):
        """Bytes of the storages that live, of those made within it."""

        def __init__(self) -> None:
            super().__init__()
            self.seen = WeakIdKeyDictionary()
            self.live = 0

        def free(self, size: int) -> None:
            self.live -= size

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            import torch

            known = {
                id(item.untyped_storage()) for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)
            }
            output = func(*args, **(kwargs or {}))
            for item in tree_leaves(output):
                if not isinstance(item, torch.Tensor):
                    continue
                storage = item.untyped_storage()
                if id(storage) in known or storage in self.seen:  # a view, or written in place
                    continue
                self.seen[storage] = True
                self.live += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
            found["peak"] = max(found["peak"], found["start"] + self.live)
            return output

    return Counter()


def main(run_dir: str) -> int:
    paths = RunPaths(Path(run_dir))
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    os.environ.update(
        {**read_environment(paths.rank_env), **alone, "TUNEYARD_ATTEMPT": "1", "TUNEYARD_RESUME_FROM": ""}
    )
    run_trainer = stage.run_trainer

    def counted(trainer: Any) -> None:
        found["start"] = found["peak"] = sum(count_live_bytes().values())
        with make_counter():
            run_trainer(trainer)

    for name in ("sft", "ppo"):
        __import__(f"jobs.{name}")
        sys.modules[f"jobs.{name}"].run_trainer = counted  # type: ignore[attr-defined]
    code = rank.main(run_dir)
    print(json.dumps(found), flush=True)
    return code


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))
