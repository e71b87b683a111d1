"""Owns every path inside a run directory."""

import re
from dataclasses import dataclass
from pathlib import Path

PIPELINE = "pipeline.json"
"""In the folder around the runs of a pipeline; a plain run has none."""
_PUBLISHED = re.compile(r"/a\d+/step-\d+$")
"""The end of a checkpoint's path; a folder that somebody set aside has another."""


@dataclass(frozen=True)
class RunPaths:
    """The files of one run, below ``root`` (``runs/<run id>``, in a pipeline ``runs/<pipeline id>/<stage>``)."""

    root: Path

    @property
    def spec_source(self) -> Path:
        """The user's text as it was."""
        return self.root / "spec.source.yaml"

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def rendered(self) -> Path:
        return self.root / "rendered"

    @property
    def rank_env(self) -> Path:
        """``KEY=VALUE`` lines: the environment of every rank, before its rank numbers."""
        return self.rendered / "rank.env"

    @property
    def accelerate(self) -> Path:
        return self.rendered / "accelerate.yaml"

    @property
    def ds_config(self) -> Path:
        """The DeepSpeed configuration; only under zero2 and zero3."""
        return self.rendered / "ds.json"

    @property
    def job_script(self) -> Path:
        """What was handed to sbatch (or, locally, to bash)."""
        return self.rendered / "job.sh"

    @property
    def code(self) -> Path:
        """The snapshot of the code that the job imports."""
        return self.root / "code"

    @property
    def script_sources(self) -> Path:
        """Of a script stage: the copy of the user's folder, in which the ranks work."""
        return self.code / "script"

    @property
    def git(self) -> Path:
        return self.root / "git.json"

    @property
    def lineage(self) -> Path:
        """What the run is made from: checkpoints of earlier stages, rows, code."""
        return self.root / "lineage.json"

    @property
    def submission(self) -> Path:
        return self.root / "submission.json"

    @property
    def intent(self) -> Path:
        """Exists while the run is handed over, and after a hand-over that was cut off."""
        return self.root / "intent.json"

    @property
    def submitit(self) -> Path:
        """submitit's own folder: the pickle with the run directory's path."""
        return self.root / "submitit"

    @property
    def cancelled(self) -> Path:
        """Exists once the user asked to cancel; its text is the time in seconds since the epoch."""
        return self.root / "cancelled"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    def attempt(self, number: int) -> Path:
        return self.attempts / f"{attempt_name(number)}.json"

    def logs(self, number: int) -> Path:
        return self.root / "logs" / attempt_name(number)

    def supervisor_log(self, number: int) -> Path:
        return self.logs(number) / "supervisor.log"

    def rank_log(self, number: int, node: int | str, rank: int | str) -> Path:
        """Log of one rank; srun fills ``%n`` and ``%t`` in where they are given."""
        return self.logs(number) / f"node{node}.rank{rank}.log"

    def rank_error(self, number: int, rank: int) -> Path:
        """What a failing rank wrote of its exception: t, rank, node, type, message, traceback."""
        return self.logs(number) / f"rank{rank}.error.json"

    def rank_stack(self, number: int, rank: int) -> Path:
        """Where a rank's main thread was when the supervisor asked: lines of a traceback."""
        return self.logs(number) / f"rank{rank}.stack.txt"

    @property
    def heartbeats(self) -> Path:
        return self.root / "heartbeat"

    def heartbeat(self, rank: int) -> Path:
        return self.heartbeats / f"rank{rank}.json"

    @property
    def ledgers(self) -> Path:
        return self.root / "ledger"

    def ledger(self, number: int) -> Path:
        return self.ledgers / f"{attempt_name(number)}.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, number: int, step: int) -> Path:
        return self.checkpoints / attempt_name(number) / f"step-{step:06d}"

    def published(self) -> list[Path]:
        """Every published checkpoint, the oldest first: by attempt, then by step, as numbers.

        Which of them the run has gone through, :func:`launcher.contract.checkpoints.list_checkpoints` says.
        """
        folders = (path for path in self.checkpoints.glob("a*/step-*") if _PUBLISHED.search(path.as_posix()))
        return sorted(folders, key=lambda path: (read_attempt(path), read_step(path)))

    @property
    def final(self) -> Path:
        return self.root / "final"

    @property
    def completion(self) -> Path:
        """Written last: its existence means that the run is complete."""
        return self.final / "completion.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def wandb(self) -> Path:
        """The exporter's folder."""
        return self.root / "wandb"

    @property
    def wandb_end(self) -> Path:
        """Created by whoever owns the run when it has ended: the exporter finishes. A file and no signal, because
        Slurm sends signals to every process of a step."""
        return self.wandb / "end"

    @property
    def secrets(self) -> Path:
        """0600, beside the run directories and not in one: a copied run carries none. Removed when the run ends."""
        folder, name = self.root.parent, self.root.name
        if (folder / PIPELINE).is_file():
            folder, name = folder.parent, f"{folder.name}.{name}"
        return folder / ".secrets" / f"{name}.env"


def attempt_name(number: int) -> str:
    """``a01`` for attempt 1."""
    return f"a{number:02d}"


def read_step(checkpoint: Path) -> int:
    """The optimizer step of a published checkpoint, by the name of its folder."""
    return int(checkpoint.name.removeprefix("step-"))


def read_attempt(checkpoint: Path) -> int:
    """The attempt that published a checkpoint, by the name of the folder around it."""
    return int(checkpoint.parent.name.removeprefix("a"))
