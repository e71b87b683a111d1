"""The DeepSpeed config that a spec names: reading it, the keys there are, and who decides each of them."""

from .base import read_base
from .keys import find_unknown
from .owners import find_conflicts

__all__ = ["find_conflicts", "find_unknown", "read_base"]
