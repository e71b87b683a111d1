# The job imports the snapshot that was taken when it was submitted, whatever happens to the checkout;
# a jobs/ folder in the working directory must not shadow it.
export PYTHONPATH=$code
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
cd $root
# What lies here is run, and a pickle is among it.
[ -O . ] || { echo "$$PWD belongs to another user; nothing was run" >&2; exit 2; }
# A supervisor that was killed (128 + SIGKILL) starts once more in the same allocation, three times at most.
trap '[ $$? -eq 137 ] && [ "$${TUNEYARD_STARTS:-1}" -lt 4 ] && TUNEYARD_STARTS=$$((TUNEYARD_STARTS + 1)) exec bash "$$0"' EXIT
export TUNEYARD_STARTS=$${TUNEYARD_STARTS:-1}
