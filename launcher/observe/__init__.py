"""What became of a run: the scheduler's word and the run's own files, as one state."""

from .find import find_run, find_stages, list_runs
from .pipeline import PipelineStatus, read_any
from .status import Status, read_or_tell, read_status

__all__ = [
    "PipelineStatus",
    "Status",
    "find_run",
    "find_stages",
    "list_runs",
    "read_any",
    "read_or_tell",
    "read_status",
]
