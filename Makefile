# The two commands of a new user: `make repro` and `make test`. Both set everything up first.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test setup lint types clean

repro: setup ## the experiment that params.yaml selects, and its table
	@dvc repro
	@cat reports/selected/table.md
	@echo "pictures: reports/selected/*.png   metrics: reports/metrics.json"

# One thread a process: two processes of two threads each get in each other's way. The order of files
# is that of tests/conftest.py, the longest first.
test: setup lint types ## everything that CI checks
	@OMP_NUM_THREADS=1 pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup
	@ruff check .
	@ruff format --check .

types: setup
	@mypy

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found (make PYTHON=...)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the rest (some 5 GB with CUDA, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean: ## forget the environment; results stay
	rm -rf $(VENV)
