"""What became of a run: the scheduler's word and the run's own files, as one state."""

from .find import find_run, list_runs
from .status import Status, read_or_tell, read_status

__all__ = ["Status", "find_run", "list_runs", "read_or_tell", "read_status"]
