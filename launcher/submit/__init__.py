"""Hands a plan over: run directory, code snapshot, then sbatch through submitit, or a detached local supervisor."""

from .prepare import Prepared, prepare
from .submit import submit

__all__ = ["Prepared", "prepare", "submit"]
