# make demo · make test · make lint · make bench · make torture
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

demo: $(READY)  ## train a small SNAC on the shipped speech; a few minutes on two cores
	$(BIN)/accelerate launch launch/train.py --preset demo

test: $(READY) lint  ## linter, types and tests
	$(BIN)/pytest

lint: $(READY)  ## linter and types
	$(BIN)/flake8
	$(BIN)/mypy

torture: $(READY)  ## the long tests: storms and fuzzing
	$(BIN)/pytest -m torture --timeout=3600

bench: $(READY)  ## the short benchmarks against stored ratios
	$(BIN)/python benchmarks/bench.py

# Made anew only when the dependencies change.
$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $(READY)

.PHONY: demo test lint torture bench
