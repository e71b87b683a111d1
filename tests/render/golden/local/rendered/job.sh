#!/bin/bash
# The job imports the snapshot that was taken when it was submitted, whatever happens to the checkout;
# a jobs/ folder in the working directory must not shadow it.
export PYTHONPATH='/runs/it'"'"'s a run/code'
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
cd '/runs/it'"'"'s a run'
# What lies here is run, and a pickle is among it.
[ -O . ] || { echo "$PWD belongs to another user; nothing was run" >&2; exit 2; }
exec /opt/venv/bin/python -m jobs.supervisor '/runs/it'"'"'s a run'
