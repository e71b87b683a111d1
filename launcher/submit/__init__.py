"""Hands a plan over: run directory, code snapshot, then sbatch through submitit, or a detached local supervisor."""

from .prepare import Prepared, prepare
from .submit import Submission, read_submission, submit

__all__ = ["Prepared", "Submission", "prepare", "read_submission", "submit"]
