# make demo · make test · make lint · make bench · make torture · make audit
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

demo: $(READY)  ## train a small SNAC on the shipped speech; a few minutes on two cores
	$(BIN)/accelerate launch launch/train.py --preset demo

test: $(READY) lint  ## linter, types and tests, two files at a time
	$(BIN)/pytest --numprocesses 2 --dist loadfile

lint: $(READY)  ## linter and types
	$(BIN)/flake8
	$(BIN)/mypy

torture: $(READY)  ## the long tests: storms and fuzzing
	$(BIN)/pytest -m torture --timeout=3600

bench: $(READY)  ## the short benchmarks against stored ratios
	$(BIN)/python benchmarks/bench.py

audit: $(READY)  ## known vulnerabilities of the locked dependencies; AUDIT="--vulnerability-service osv" asks another service
	$(BIN)/pip-audit --strict --requirement requirements.lock --no-deps --disable-pip --progress-spinner off $(AUDIT)

lock:  ## the newest versions that setup.cfg allows, as requirements.lock; then `make test`
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/python .ci/lock.py > .venv/requirements.lock
	mv .venv/requirements.lock requirements.lock
	touch $(READY)

# Made anew only when the dependencies change.
$(READY): setup.cfg pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $(READY)

.PHONY: demo test lint torture bench audit lock
