# Everything runs in a virtual environment of its own: nothing needs to be set up first but Python 3.11 or newer.

PYTHON ?= python3
VENV ?= .venv
# PyTorch's own index of CPU builds. For a CUDA build: make TORCH_INDEX= install
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c config/constraints.txt
PYTEST := $(BIN)/python -m pytest

.PHONY: help install demo test check soak bench clean

help: ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

install: $(STAMP) ## Make the virtual environment with everything in it

# torch first and alone, from the CPU index: an open choice would pull several GB of CUDA packages. Where that index
# cannot be reached, pip says so and takes the same version from the usual one.
$(STAMP): setup.py config/constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) -e ".[test]"
	@touch $@

demo: install ## Six pictures from inserted rows
	$(BIN)/tenkaigen demo

test: install ## All tests, with a real PostgreSQL and the real pipeline on small weights
	$(PYTEST) -n auto --dist worksteal

check: install ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: install ## The long tests
	$(PYTEST) -m soak

bench: install ## The figures of the README
	$(BIN)/python benchmarks/footprint.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/fairness.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/plugins.py
	$(BIN)/python benchmarks/api.py
	$(PIP) -e ".[bench]"
	$(BIN)/python benchmarks/queue_speed.py

clean: ## Remove what was built here; pictures and database in .tenkaigen stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
