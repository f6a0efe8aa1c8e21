# Needs Python ≥ 3.11 and make, nothing else. Everything is installed into .venv, and nothing is written outside
# this directory and the temporary directory.

PYTHON ?= python3
BIN := .venv/bin
SRC ?=
JOBS ?= auto
BENCH_SCALE ?= 1
BENCH_ARGS ?=

export PIP_CACHE_DIR := $(CURDIR)/.venv/pip-cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo test test-nightly test-oldest bench bench-scale lint clean

help:
	@echo "make demo [SRC=dir]  back up, restore and compare a directory, in a temporary place"
	@echo "make test            run the tests"
	@echo "make test-nightly    run the long tests, too"
	@echo "make test-oldest     unit tests, command line and demo with the oldest dependencies that are allowed"
	@echo "make bench           packnback beside restic and borg; BENCH_SCALE=0.1 for smaller trees,"
	@echo "                     BENCH_ARGS='--corpora small --repeat 1' for parts; an hour, 20 GB of disk"
	@echo "make bench-scale     how time and memory grow; BENCH_SCALE too"
	@echo "make lint            style, types, layers"
	@echo "make clean           remove .venv, .venv-oldest and caches"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "Making .venv …"
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "On Debian and Ubuntu this needs the package python3-venv." >&2; exit 1; }

.venv/.installed: pyproject.toml | .venv/bin/python
	@echo "Installing packnback into .venv …"
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	@echo "Installing packnback and what its tests need into .venv …"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/.installed

demo: .venv/.installed
	@$(BIN)/python demo/demo.py $(SRC)

test: .venv/.installed-dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test-nightly: .venv/.installed-dev
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --nightly

.venv-oldest/.installed: pyproject.toml tests/oldest_dependencies.py | .venv/bin/python
	@rm -rf .venv-oldest
	@$(PYTHON) -m venv .venv-oldest
	@$(PYTHON) tests/oldest_dependencies.py >.venv-oldest/constraints.txt
	@.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt --editable '.[dev]'
	@touch $@

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest -q -p no:cacheprovider tests/unit tests/cli
	.venv-oldest/bin/python demo/demo.py $(SRC)

bench: .venv/.installed
	$(BIN)/python -m bench.compare --scale $(BENCH_SCALE) $(BENCH_ARGS)

bench-scale: .venv/.installed
	$(BIN)/python -m bench.curve --scale $(BENCH_SCALE) $(BENCH_ARGS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-oldest .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
