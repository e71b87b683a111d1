# make install | demo | test | cells | faults | soak | gpu | check | wheel | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEBIAN_PACKAGES := slurm-wlm slurmdbd mariadb-server munge iproute2

.PHONY: install demo test test-fast cells faults soak gpu check format slurm-packages wheel clean

install: $(INSTALLED)

# One constraints file for everything, so that two installs are the same install.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tuneyard needs Python 3.11 or newer; name one with PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,dev]'
	touch $@

demo: install
	$(BIN)/python examples/demo.py

test: install slurm-packages
	$(BIN)/python -m pytest

# Without the tests that start ranks or Slurm.
test-fast: install
	$(BIN)/python -m pytest -m "not slurm and not ranks"

# Every strategy on one GPU; MODEL adds a model: a folder, a hub id, or random-1b.
RESULTS ?= build/gpu.json
gpu: install
	$(BIN)/python benchmarks/gpu.py $(RESULTS) $(MODEL)

# Reward, DPO and PPO under every strategy on two nodes of the development cluster.
cells: install slurm-packages
	$(BIN)/python -m pytest -m cells

# Every case of docs/reliability.md, whose table is made of what they found.
faults: install slurm-packages
	rm -f build/faults.jsonl
	$(BIN)/python -m pytest -m "faults or fault_class"
	$(BIN)/python -m tests.reliability

# An hour among faults, chosen by SEED.
SEED ?= 1
MINUTES ?= 60
soak: install slurm-packages
	TUNEYARD_SOAK_SEED=$(SEED) TUNEYARD_SOAK_MINUTES=$(MINUTES) $(BIN)/python -m pytest -s -m soak

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The development cluster needs Slurm's own programs; as root on Debian or Ubuntu they are installed here.
slurm-packages:
	@if command -v slurmctld >/dev/null && command -v slurmdbd >/dev/null && command -v mariadbd >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get -q update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $(DEBIAN_PACKAGES) >/dev/null; \
	else echo "no Slurm here and not root on Debian: the tests on real Slurm will be skipped" >&2; fi

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
