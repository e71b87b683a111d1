"""The login node's code: spec -> plan -> render -> submit -> observe -> collect; no torch, no transformers."""

__version__ = "0.1.0"
