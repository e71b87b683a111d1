"""Collect: what came of a run, read from its ledger and checkpoints, and mirrored to W&B."""
