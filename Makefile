# `make demo` and `make test` need git, make, and Python 3.10 or newer with pip. Everything is installed into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: help demo test lint format docs package oldest newest clean

help:
	@echo "make demo    install, then personalize the shipped pictures: out/demo/index.html"
	@echo "make test    install, lint, check types and import layers, run the tests"
	@echo "make lint    the checks of 'make test' without the tests"
	@echo "make format  let ruff rewrite the sources"
	@echo "make docs    write the generated pages anew and build the site: out/site/index.html"
	@echo "make package build sdist and wheel into dist, and run the demo from the wheel alone in a new environment"
	@echo "make oldest  run tests of the method on the oldest versions that are allowed; needs Python 3.10"
	@echo "make newest  run the same tests on the newest versions of everything but torch"
	@echo "make clean   remove .venv, out and caches"

demo: $(VENV)/demo.stamp
	$(BIN)/e4t demo

# Two workers, each on one thread: tests are many small things, which more threads do not speed up.
test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/test.stamp
	$(BIN)/python docs/scripts/generated.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The wheel is installed where neither sources nor other packages are, and run from an empty folder.
package: $(VENV)/test.stamp
	rm -rf dist out/package
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv out/package/venv
	out/package/venv/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd out/package && PYTHONPATH= venv/bin/e4t demo --domain tiny-face --steps 2 --num-inference-steps 4
	test -s out/package/out/demo/index.html

OLDEST ?= python3.10
oldest:
	$(OLDEST) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e . pytest hypothesis peft
	# what is let through: anyio's plugin warns with this pytest, and transformers of that age about its own tokenizer
	.venv-oldest/bin/python -m pytest -p no:anyio -W "ignore:Deprecated in 0.9.0:DeprecationWarning" $(METHOD_TESTS)

# torch alone is held at the version of constraints.txt: every later one brings gigabytes of its own.
NEWEST ?= $(PYTHON)
newest:
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e . pytest hypothesis peft \
	    $(shell grep '^torch==' constraints.txt)
	.venv-newest/bin/python -m pytest $(METHOD_TESTS)

METHOD_TESTS = $(addprefix tests/test_,$(addsuffix .py,backbone checkpoint config data domain encoder example_scripts \
    export features images loading model objective offsets package personalize pipeline precision pretrain provenance \
    sources stock_pipelines text training))

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("e4t needs Python 3.10 or newer; try make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[tiny]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[tiny,test,docs]'
	@touch $@ $(VENV)/demo.stamp

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest out build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache src/*.egg-info
