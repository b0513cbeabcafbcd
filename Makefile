# `make demo` and `make test` work from a fresh clone with git, make and Python >= 3.11.
# Variables: PYTHON (the interpreter of a new .venv), WORKERS (test processes), ARGS (for pytest).

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTHON ?= python3.13 python3.12 python3.11 python3 python
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test examples lint types docs linkcheck bench clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(VENV)/installed  ## fit a first map and write its pictures and report to demo-output/
	$(BIN)/brenier demo --out demo-output

test: $(VENV)/installed-test  ## run the fast tests
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m "not slow and not gpu" -n $(WORKERS) --dist loadfile $(ARGS)

examples: $(VENV)/installed-test  ## run every example, small, and those of the pages
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) tests/test_examples.py tests/test_docs.py -k example

lint: $(VENV)/installed-dev  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev  ## check types
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

docs: $(VENV)/installed-docs  ## build the site in docs/_build/html and run its pages
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

linkcheck: $(VENV)/installed-docs  ## ask the network whether the pages' outer links still lead somewhere
	$(BIN)/python -m sphinx -b linkcheck -D nb_execution_mode=off -q docs docs/_build/linkcheck

bench: $(VENV)/installed-bench  ## run the benchmarks and regenerate their tables
	$(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove the environment, the caches and the demo's output
	rm -rf $(VENV) demo-output docs/_build docs/api build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment; each stamp says which extras are in it. An extra installs on top of the core, so
# the targets may come in any order, and a changed requirement installs again.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing brenier into $(VENV) (once; a few minutes)" >&2
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-%: $(VENV)/installed
	@echo "Installing the $* tools into $(VENV) (once)" >&2
	@$(PIP) --editable ".[$*]"
	@touch $@

# A candidate on PATH may be a shim without a Python behind it, too old, or without venv: run it.
$(BIN)/python:
	@old= ; bare= ; \
	for python in $(PYTHON); do \
	    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { old=$$version; continue; }; \
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null || { bare=$$python; continue; }; \
	    exec "$$python" -m venv $(VENV); \
	done; \
	if [ "$$bare" ]; then \
	    echo "$$bare cannot make environments: install its venv module (Debian, Ubuntu: sudo apt install python3-venv) and try again."; \
	else \
	    echo "brenier needs Python >= 3.11; tried $(PYTHON), found $${old:-none}. Install one, or name it: make test PYTHON=/path/to/python3"; \
	fi >&2; \
	exit 1
