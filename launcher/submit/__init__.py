"""Hands a plan over: run directory, code snapshot, then sbatch through submitit, or a detached local supervisor."""

from .prepare import Prepared, prepare
from .submit import submit_stages

__all__ = ["Prepared", "prepare", "submit_stages"]
