"""Injects one fault into a rank: found on PYTHONPATH by every Python of a test's job, active in ranks alone.

TUNEYARD_FAULT="RANK PHASE STEP ACTION", such as "1 evaluate 2 kill", says which rank does what when it beats.
"""

import os

if os.environ.get("TUNEYARD_FAULT") and os.environ.get("TUNEYARD_ATTEMPT"):
    import signal

    from launcher.contract import heartbeat

    _rank, _phase, _step, _action = os.environ["TUNEYARD_FAULT"].split()
    _beat = heartbeat.beat

    def beat(paths, *, rank, attempt, step, phase):  # type: ignore[no-untyped-def]
        _beat(paths, rank=rank, attempt=attempt, step=step, phase=phase)
        if (rank, phase, step) != (int(_rank), _phase, int(_step)):
            return
        if _action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if _action == "leave":
            os._exit(0)
        if _action == "raise":
            raise ValueError("injected on purpose")

    heartbeat.beat = beat
