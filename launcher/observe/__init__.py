"""What became of a run: the scheduler's word and the run's own files, as one state."""

from .find import Found, find, find_root, list_runs, read_plan
from .pipeline import PipelineStatus, read_all
from .status import Status, read_status, read_statuses

__all__ = [
    "Found",
    "PipelineStatus",
    "Status",
    "find",
    "find_root",
    "list_runs",
    "read_all",
    "read_plan",
    "read_status",
    "read_statuses",
]
