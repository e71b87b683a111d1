"""Finds the folders that come with tuneyard, in a wheel or in a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def find_data(relative: str) -> Path:
    """The shipped file or folder ``relative``, such as ``cluster_configs`` or ``slurm/job.sh``.

    A wheel carries the folders in ``launcher/_data``; an editable install has no such folder, and there they lie at
    the top of the checkout.

    Raises:
        FileNotFoundError: neither place has it, so the installation is incomplete.
    """
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        if (root / relative).exists():
            return root / relative
    raise FileNotFoundError(f"{relative} is missing from this installation of tuneyard; install it again")
