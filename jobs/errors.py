"""The one exception of a job that its user can mend: printed without a traceback, recorded as the run's reason."""


class JobError(Exception):
    """What is wrong, with the key or file it concerns, and what to do about it."""
