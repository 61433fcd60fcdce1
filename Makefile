# Two commands that need nothing set up but Python 3.11+ and make:
#
#   make demo   a BERT from zero on the documentation that is already on this machine
#   make test   format, lint, types, tests with coverage
#
# Both make the virtual environment .venv and install under constraints.txt. Another Python:
# make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/installed
	$(BIN)/bertsmith demo

test: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not network" -n auto --maxprocesses 8 --dist worksteal --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/installed
