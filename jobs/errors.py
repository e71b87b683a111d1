"""The exceptions of a job that need no traceback: their text is the run's reason."""


class JobError(Exception):
    """What is wrong, with the key or file it concerns, and what to do about it."""


class StaleAttemptError(JobError):
    """A later attempt of the run has begun: what this one still does is void."""


class RollbackError(JobError):
    """The attempt cannot go on from where it is; the next one can, from the newest checkpoint."""
