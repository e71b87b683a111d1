"""tuneyard's login-node code: spec -> plan -> render -> submit -> observe -> collect; imports neither torch nor transformers."""

__version__ = "0.1.0"
