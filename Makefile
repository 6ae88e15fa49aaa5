# `make demo` and `make test` need git, make, and Python 3.10 or newer with pip. Everything is installed into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: help demo test lint format clean

help:
	@echo "make demo    install, then personalize the shipped pictures: out/demo/index.html"
	@echo "make test    install, lint, check types and import layers, run the tests"
	@echo "make lint    the checks of 'make test' without the tests"
	@echo "make format  let ruff rewrite the sources"
	@echo "make clean   remove .venv, out and caches"

demo: $(VENV)/demo.stamp
	$(BIN)/e4t demo

test: lint
	$(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("e4t needs Python 3.10 or newer; try make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[tiny]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[tiny,test]'
	@touch $@ $(VENV)/demo.stamp

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache src/*.egg-info
