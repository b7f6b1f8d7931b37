# Everything a person or a robot runs: a fresh clone needs python3 (3.11 or newer) and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_ARGS ?=
BENCH_ARGS ?=

# One thread per process (the tests run in parallel) and no network after the installation.
QUIET_CPU := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: help install demo test lint bench docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo     audit the bundled model with known memorization (minutes, CPU, offline)"
	@echo "make test     run the tests"
	@echo "make lint     ruff and mypy"
	@echo "make bench    measure the methods on the digits testbed"
	@echo "make docs     build the documentation as a site into build/site"
	@echo "make clean    remove caches and builds ($(VENV) stays; remove it to install afresh)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "make: there is no '$(PYTHON)' on the PATH; diffmem needs Python 3.11 or newer." \
		"Install it, or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: '$(PYTHON)' is $$($(PYTHON) --version 2>&1); diffmem needs Python 3.11 or newer." \
		"Name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[lora,plots,faiss,features,ray,test,lint]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/diffmem demo

test: $(STAMP)
	$(QUIET_CPU) $(BIN)/python -m pytest -n 2 $(TEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/diffmem bench --suite digits $(BENCH_ARGS)

docs: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
