"""The clusters that runs can be sent to: profiles, and what this machine itself has."""

from .accelerator import detect_accelerator
from .profiles import ClusterEntry, list_clusters, load_cluster

__all__ = ["ClusterEntry", "detect_accelerator", "list_clusters", "load_cluster"]
