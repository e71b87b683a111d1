"""Makes sure that a rank has the device of its plan: a GPU of its own, or none in sight where it runs on the CPU."""

import os

from .context import RankContext
from .errors import JobError


def claim_device(context: RankContext) -> None:
    """Check, before anything of torch decides by itself what to run on.

    accelerate 1.15 then takes the GPU ``LOCAL_RANK`` (state.py, set_device), and everything else the current one.

    Raises:
        JobError: the plan says cuda, and this rank sees no GPU of its own. One rank would train on the CPU without a
            word (``PartialState._prepare_backend`` makes it ``DistributedType.NO``), several would share a GPU
            (``local_process_index % device_count()``).
    """
    if context.plan.cluster.accelerator == "cpu":
        # bitsandbytes quantizes on a GPU where it sees one, peft loads adapters there, and memory would be CUDA's.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if context.local_rank >= count:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise JobError(
            f"accelerator: the profile {context.plan.cluster.name} says cuda, and rank {context.local_rank} of "
            f"{context.node} sees {count} GPUs (torch {torch.__version__} for CUDA {torch.version.cuda}, "
            f"CUDA_VISIBLE_DEVICES {seen}); look at nvidia-smi there, or set accelerator: cpu in the profile"
        )
