# Everything on a fresh machine: Python 3.11 or newer, pip and make; nothing else.
#   make demo   install, pre-train on the embedded sample with the CPU, print kNN accuracies
#   make test   install, lint, types, tests; make slow: the tests that take longest
#   make faults break real runs in every way, measure what is lost (docs/reliability.md); an hour on a busy machine
#   make lock   write down the versions that are installed; make audit: ask pip-audit for known flaws in them
# A torch that is already in .venv (a small CPU build, for example) is kept.

PYTHON ?= python3
EPOCHS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint types unit slow faults lock audit clean

demo: $(VENV)/installed
	$(BIN)/mocokit demo $(if $(EPOCHS),--epochs $(EPOCHS))

test: lint types unit

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/installed-dev
	$(BIN)/mypy

# One process per core: the longest tests start ranks and wait for them.
unit: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m slow

faults: $(VENV)/installed-dev
	$(BIN)/python experiments/faults.py

lock: $(VENV)/installed-dev
	$(BIN)/python -m pip freeze --exclude-editable > requirements.lock

audit: $(VENV)/installed-dev
	$(PIP) pip-audit
	$(BIN)/pip-audit --requirement requirements.lock --no-deps --disable-pip

# Stamps are written last, so that an interrupted installation is taken up again.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mocokit needs Python 3.11 or newer; make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist
