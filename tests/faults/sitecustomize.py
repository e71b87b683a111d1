"""Injects one fault into a rank: found on PYTHONPATH by every Python of a test's job, active in ranks alone.

TUNEYARD_FAULT="RANK PHASE STEP ACTION [ATTEMPT]", such as "1 evaluate 2 kill", says which rank does what when it beats
in that phase at that step or later; without an attempt, in each of them. The name of a node in the place of RANK means
all ranks there. TUNEYARD_PACE is how many seconds rank 0 takes longer for each step.
"""

import os

if os.environ.get("TUNEYARD_FAULT") and os.environ.get("TUNEYARD_ATTEMPT"):
    import ctypes
    import signal
    import socket
    import time

    from launcher.contract import heartbeat

    _rank, _phase, _step, _action, *_attempt = os.environ["TUNEYARD_FAULT"].split()
    _beat = heartbeat.beat
    _paused: list[int] = []

    def beat(paths, *, rank, attempt, step, phase, **more):  # type: ignore[no-untyped-def]
        _beat(paths, rank=rank, attempt=attempt, step=step, phase=phase, **more)
        if _rank not in (str(rank), socket.gethostname()) or phase != _phase or step < int(_step):
            return
        if _attempt not in ([], [str(attempt)]) or _paused:
            return
        (paths.logs(attempt) / "fault").write_text(str(time.time()))
        if _action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if _action == "leave":
            os._exit(0)
        if _action == "raise":
            raise ValueError("injected on purpose")
        if _action == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        if _action == "hold":
            ctypes.PyDLL(None).sleep(3600)  # a call into C that keeps the interpreter's lock
        if _action == "sleep":
            time.sleep(3600)
        if _action in ("pause", "pause_short"):
            _paused.append(step)
            time.sleep(40 if _action == "pause" else 4)
        if _action in ("SIGSEGV", "SIGABRT"):
            os.kill(os.getpid(), signal.Signals[_action])

    heartbeat.beat = beat

if os.environ.get("TUNEYARD_PACE") and os.environ.get("TUNEYARD_ATTEMPT"):
    import time

    from launcher.contract import ledger

    _metric = ledger.LedgerWriter.metric

    def metric(self, step, **values):  # type: ignore[no-untyped-def]
        _metric(self, step, **values)
        time.sleep(float(os.environ["TUNEYARD_PACE"]))

    ledger.LedgerWriter.metric = metric  # type: ignore[method-assign]
