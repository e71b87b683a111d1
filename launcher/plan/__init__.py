"""What will happen, from what was asked for and what the cluster has; pure."""

from .batch import derive_batch
from .build import make_plan
from .run_id import digest_request, name_run

__all__ = ["derive_batch", "digest_request", "make_plan", "name_run"]
